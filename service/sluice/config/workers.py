"""The sections that say who the workers of a route are, and how their health and load are followed."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, field_validator, model_validator

from sluice.config.base import NameServer, Seconds, Section, WorkerUrl
from sluice.yaml_lines import Mistake

KINDS = ("static", "dns", "kubernetes", "managed")
SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
HOST_NAME = re.compile(r"(?=.{1,253}$)[A-Za-z0-9_]([A-Za-z0-9_-]{0,62})(\.[A-Za-z0-9_]([A-Za-z0-9_-]{0,62}))*\.?")
LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
API_SERVER = re.compile(r"https://[A-Za-z0-9._:\[\]-]+")


def _host_name(name: str) -> str:
    if HOST_NAME.fullmatch(name) is None:
        raise ValueError("a host name is letters, digits, hyphens and dots, like workers.example.internal")
    return name


def _label(name: str) -> str:
    if LABEL.fullmatch(name) is None:
        raise ValueError("a name in Kubernetes is up to 63 small letters, digits and hyphens")
    return name


def _api_server(server: str) -> str:
    if API_SERVER.fullmatch(server.rstrip("/")) is None:
        raise ValueError("an API server is https://HOST:PORT")
    return server.rstrip("/")


HostName = Annotated[str, AfterValidator(_host_name)]
Label = Annotated[str, AfterValidator(_label)]
WorkerPort = Annotated[int, Field(ge=1, le=65_535)]
Scheme = Literal["http", "https"]


class Dns(Section):
    """Workers are what a name resolves to, asked again when its records expire."""

    name: HostName
    record: Literal["a", "aaaa", "srv"] = "a"
    port: WorkerPort | None = None
    scheme: Scheme = "http"
    interval_s: Seconds = 10
    nameserver: NameServer | None = None

    @model_validator(mode="after")
    def _a_port_where_records_have_none(self) -> Self:
        if (self.port is None) != (self.record == "srv"):
            raise Mistake("SRV records have a port of their own, a and aaaa need one here", "port")
        return self


class Kubernetes(Section):
    """Workers are the pods behind a Service."""

    service: Label
    namespace: Label | None = None
    port_name: str | None = None
    port: WorkerPort | None = None
    scheme: Scheme = "http"
    api_server: Annotated[str, AfterValidator(_api_server)] | None = None
    token_file: Path = SERVICE_ACCOUNT / "token"
    ca_file: Path = SERVICE_ACCOUNT / "ca.crt"

    @model_validator(mode="after")
    def _one_port(self) -> Self:
        if self.port is not None and self.port_name is not None:
            raise Mistake("port and port_name are two ways to say the same: give one of them", "port")
        return self


class Workers(Section):
    """The workers of a route, named or found in one of four ways, and what they need to let us in."""

    static: Annotated[tuple[WorkerUrl, ...], Field(min_length=1)] | None = None
    dns: Dns | None = None
    kubernetes: Kubernetes | None = None
    managed: Path | None = None
    api_key_env: str | None = None
    ca_file: Path | None = None
    server_name: HostName | None = None
    kv_events: bool = False
    kv_events_port: WorkerPort | None = None

    @field_validator("static")
    @classmethod
    def _each_once(cls, static: tuple[str, ...] | None) -> tuple[str, ...] | None:
        for position, url in enumerate(static or ()):
            if url in (static or ())[:position]:
                raise Mistake("this worker stands here twice", position)
        return static

    @model_validator(mode="after")
    def _found_in_one_way(self) -> Self:
        ways = [kind for kind in KINDS if getattr(self, kind) is not None]
        if not ways:
            raise Mistake("say where the workers are: static, dns, kubernetes or managed")
        if len(ways) > 1:
            raise Mistake(f"workers are found in one way, and here stand {' and '.join(ways)}", ways[1])
        return self

    def resolved(self, folder: Path) -> Workers:
        """The same with relative paths made absolute from `folder`."""
        paths = {name: folder / path for name in ("ca_file", "managed") if (path := getattr(self, name)) is not None}
        if (kubernetes := self.kubernetes) is not None:
            files = {"token_file": folder / kubernetes.token_file, "ca_file": folder / kubernetes.ca_file}
            return self.model_copy(update={**paths, "kubernetes": kubernetes.model_copy(update=files)})
        return self.model_copy(update=paths)


class Probes(Section):
    """How workers are watched."""

    health_interval_s: Seconds = 1
    timeout_s: Seconds = 2
    load_interval_s: Seconds | None = 0.25
    ask_orca: bool = False
