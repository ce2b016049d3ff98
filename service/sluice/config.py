"""The configuration: one YAML file, validated whole before anything starts, frozen, handed to constructors in parts.

A bad file raises `ConfigError`, whose lines name file, line and key. Secrets are never in the file: a member that ends
in `_env` names an environment variable, one that ends in `_file` a file.
"""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from sluice.yaml_lines import ConfigError as ConfigError
from sluice.yaml_lines import Mistake, parse, read_text

Seconds = Annotated[float, Field(gt=0, le=86_400)]
Port = Annotated[int, Field(ge=0, le=65_535)]
Count = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(ge=1)]
OpenEndpoint = Literal["tokenize", "detokenize", "transcriptions"]
WORKER_URL = re.compile(r"https?://(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(:(?P<port>[0-9]{1,5}))?/?")


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


def _worker_url(url: str) -> str:
    found = WORKER_URL.fullmatch(url)
    if found is None or not 0 < int(found["port"] or 80) < 65_536:
        raise ValueError("a worker is http://HOST:PORT or https://HOST:PORT, with no path and no password in it")
    return url.rstrip("/")


WorkerUrl = Annotated[str, AfterValidator(_worker_url)]


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


class Workers(Section):
    """The workers of a route, and what they need to let us in."""

    static: tuple[WorkerUrl, ...] = Field(min_length=1)
    api_key_env: str | None = None
    ca_file: Path | None = None

    @field_validator("static")
    @classmethod
    def _each_once(cls, static: tuple[str, ...]) -> tuple[str, ...]:
        for position, url in enumerate(static):
            if url in static[:position]:
                raise Mistake("this worker stands here twice", position)
        return static


class Timeouts(Section):
    connect_s: Seconds = 2
    first_event_s: Seconds = 300
    silence_s: Seconds = 15
    total_s: Seconds = 3600


class Bounds(Section):
    """What one request may ask of the shared engine; beyond it the request is refused with a 400."""

    max_n: Positive = 16
    max_logprobs: Count = 20
    max_prompts: Positive = 2048  # inputs of one embeddings, rerank, score or completions call
    min_tokens: bool = True
    ignore_eos: bool = False
    beam_search: bool = False


class Route(Section):
    """One model name: its workers, how one of them is picked, and what may be asked of it."""

    workers: Workers
    served_model: str | None = None
    policy: str = "least_inflight"
    aliases: tuple[str, ...] = ()
    adapters: tuple[str, ...] = ()
    max_retries: Annotated[int, Field(ge=0, le=10)] = 2
    timeouts: Timeouts = Timeouts()
    bounds: Bounds = Bounds()
    open: frozenset[OpenEndpoint] = frozenset()
    media_hosts: tuple[str, ...] = ()  # hosts that image and audio URLs may name; data: URLs always may
    input_modalities: tuple[Literal["text", "image", "audio", "video"], ...] = ()  # shown by GET /v1/models, where known
    reasoning_content: bool = False  # write vLLM's `reasoning` a second time under its older name
    responses_store: bool = False  # the workers run with VLLM_ENABLE_RESPONSES_API_STORE=1
    keep_alive_s: Seconds | None = 10  # comments to the client while a worker is silent, once the answer has begun
    keep_alive_before_first_event_s: Seconds | None = None  # commits a 200 early: later failures are events


class ClientTimeouts(Section):
    """How long a client may take."""

    header_s: Seconds = 10
    body_s: Seconds = 60
    body_idle_s: Seconds = 10
    write_stall_s: Seconds = 60


class Probes(Section):
    health_interval_s: Seconds = 1
    timeout_s: Seconds = 2


class Settings(Section):
    """The whole file. Paths in it are taken from the folder that the file is in."""

    server: Server = Server()
    auth: Auth = Auth()
    routes: dict[str, Route] = Field(min_length=1)
    client_timeouts: ClientTimeouts = ClientTimeouts()
    probes: Probes = Probes()
    drain_timeout_s: Seconds = 120

    @model_validator(mode="after")
    def _names_are_unique(self) -> Self:
        owner: dict[str, str] = {}
        for name, route in self.routes.items():
            for spelled in (name, *route.aliases, *route.adapters):
                if not spelled or len(spelled) > 256 or not spelled.isprintable():
                    raise Mistake(f"a model name is 1 to 256 printable characters, not {spelled!r}", "routes", name)
                if spelled in owner:
                    raise Mistake(f"the name {spelled!r} belongs to route {owner[spelled]!r} already", "routes", name)
                owner[spelled] = name
        return self

    @model_validator(mode="after")
    def _open_means_loopback(self) -> Self:
        if self.auth.mode == "open" and not self.server.is_loopback and not self.auth.open_beyond_loopback:
            raise Mistake(
                f"open lets everybody in, and server.host {self.server.host} is not loopback; "
                "use mode: keys, or set auth.open_beyond_loopback: true if another layer keeps strangers out",
                *("auth", "mode"),
            )
        return self

    @model_validator(mode="after")
    def _secrets_are_there(self, info: ValidationInfo) -> Self:
        environment = (info.context or {}).get("environment")
        if environment is None:
            return self
        named = [(("routes", name, "workers", "api_key_env"), r.workers.api_key_env) for name, r in self.routes.items()]
        for key, variable in [(("server", "secret_env"), self.server.secret_env), *named]:
            if variable is not None and not environment.get(variable):
                raise Mistake(f"the environment variable {variable} is not set", *key)
        return self

    def resolved(self, folder: Path) -> Settings:
        """The same settings with relative paths made absolute from `folder`."""
        auth = self.auth.model_copy(update={"keys_file": folder / self.auth.keys_file})
        routes = {}
        for name, route in self.routes.items():
            ca_file = route.workers.ca_file
            workers = route.workers.model_copy(update={"ca_file": folder / ca_file if ca_file else None})
            routes[name] = route.model_copy(update={"workers": workers, "served_model": route.served_model or name})
        return self.model_copy(update={"auth": auth, "routes": routes})


def load(path: Path, environment: Mapping[str, str] | None = os.environ) -> Settings:
    """The settings of the file at `path`; raises `ConfigError` with a line for each mistake.

    Without an environment, the variables that the file names are not asked for.
    """
    settings = parse(path, read_text(path), Settings, {"environment": environment})
    return settings.resolved(path.resolve().parent)
