"""The sections on our side of the wire: where we listen, who may call, how long clients may take."""

from __future__ import annotations

import ipaddress
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from sluice.config.base import Port, Positive, Seconds, Section
from sluice.yaml_lines import Mistake


class Server(Section):
    """Where we listen, and how much of clients' bytes we hold."""

    host: str = "127.0.0.1"
    port: Port = 8000
    metrics_port: Port | None = 8001
    body_limit_bytes: Annotated[int, Field(ge=1024)] = 33_554_432
    max_buffered_bytes: Annotated[int, Field(ge=1_048_576)] = 1_073_741_824
    max_connections: Positive = 10_000
    keep_alive_s: Seconds = 75
    cors_origins: tuple[str, ...] = ()
    access_log: bool = True
    secret_env: str | None = None  # signs the ids of stored responses; the same in all replicas

    @property
    def is_loopback(self) -> bool:
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"

    @model_validator(mode="after")
    def _ports_differ(self) -> Self:
        if self.metrics_port and self.metrics_port == self.port:
            raise Mistake("is server.port already; take another, or null for no metrics port", "metrics_port")
        return self


class Auth(Section):
    """Who may call: keys from a file of hashes, or everybody on loopback."""

    mode: Literal["keys", "open"] = "keys"
    keys_file: Path = Path("keys.yaml")
    open_beyond_loopback: bool = False
    max_failures_per_minute: Positive = 60  # of one address; good keys are never held up by it


class ClientTimeouts(Section):
    """How long a client may take."""

    header_s: Seconds = 10
    body_s: Seconds = 60
    body_idle_s: Seconds = 10
    write_stall_s: Seconds = 60
