"""What every section of the configuration is made of."""

from __future__ import annotations

import ipaddress
import re
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

Seconds = Annotated[float, Field(gt=0, le=86_400)]
Port = Annotated[int, Field(ge=0, le=65_535)]
Count = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(ge=1)]
COLLECTOR_URL = re.compile(r"https?://[^/?#@\s]+/[^?#@\s]*")
HeaderName = Annotated[str, Field(pattern=r"^[!#$%&'*+.^_`|~0-9A-Za-z-]{1,64}$"), AfterValidator(str.lower)]
WORKER_URL = re.compile(r"https?://(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(:(?P<port>[0-9]{1,5}))?/?")


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


def _worker_url(url: str) -> str:
    found = WORKER_URL.fullmatch(url)
    if found is None or not 0 < int(found["port"] or 80) < 65_536:
        raise ValueError("a worker is http://HOST:PORT or https://HOST:PORT, with no path and no password in it")
    return url.rstrip("/")


def _collector_url(url: str) -> str:
    if COLLECTOR_URL.fullmatch(url) is None:
        raise ValueError("a collector is http://HOST:PORT/PATH or https://..., for OTLP usually http://HOST:4318/v1/traces")
    return url


WorkerUrl = Annotated[str, AfterValidator(_worker_url)]
CollectorUrl = Annotated[str, AfterValidator(_collector_url)]


def split_address(address: str, default_port: int) -> tuple[str, int]:
    """`10.0.0.10`, `10.0.0.10:53` or `[fd00::a]:53` as address and port; raises `ValueError` for anything else."""
    host, bracket, port = address.rpartition("]:") if address.startswith("[") else address.rpartition(":")
    if bracket and (address.startswith("[") or ":" not in host):
        address, default_port = host.removeprefix("["), int(port)
    if not 0 < default_port < 65_536:
        raise ValueError("a port is 1 to 65535")
    return str(ipaddress.ip_address(address.strip("[]"))), default_port


def _name_server(address: str) -> str:
    try:
        split_address(address, 53)
    except ValueError as exc:
        raise ValueError("a name server is an address, with or without a port: 10.0.0.10 or 10.0.0.10:53") from exc
    return address


NameServer = Annotated[str, AfterValidator(_name_server)]
