"""What every section of the configuration is made of."""

from __future__ import annotations

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
