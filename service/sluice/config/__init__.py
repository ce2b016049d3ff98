"""The configuration: one YAML file, validated whole before anything starts, frozen, handed to constructors in parts.

A bad file raises `ConfigError`, whose lines name file, line and key. Secrets are never in the file: a member that ends
in `_env` names an environment variable, one that ends in `_file` a file.
"""

from sluice.config.base import Section
from sluice.config.ledger import LedgerSettings
from sluice.config.limits import Fail, Limits, LimitsSettings, TenantLimits
from sluice.config.queue import Queue, Replicas
from sluice.config.retrieval import OnCall, Retrieval, RetrieverSettings
from sluice.config.routes import Bounds, DefaultRetrieval, Hedge, Route, Timeouts
from sluice.config.server import Auth, ClientTimeouts, Server
from sluice.config.settings import Settings, load
from sluice.config.stores import Embedding, Stores
from sluice.config.tracing import TracingSettings
from sluice.config.workers import Dns, Kubernetes, Probes, Workers
from sluice.yaml_lines import ConfigError

__all__ = [
    "Auth",
    "Bounds",
    "ClientTimeouts",
    "ConfigError",
    "Embedding",
    "DefaultRetrieval",
    "Dns",
    "Hedge",
    "Kubernetes",
    "OnCall",
    "Fail",
    "Limits",
    "LedgerSettings",
    "LimitsSettings",
    "Probes",
    "Queue",
    "Replicas",
    "Retrieval",
    "RetrieverSettings",
    "Route",
    "Section",
    "Server",
    "Settings",
    "Stores",
    "TenantLimits",
    "Timeouts",
    "TracingSettings",
    "Workers",
    "load",
]
