"""The section of limits: what each tenant, key, person and route may use, and where it is counted."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from sluice.config.base import Positive, Seconds, Section

Fail = Literal["open", "closed", "local"]
GpuSeconds = Annotated[float, Field(gt=0, le=1e9)]
STORE = re.compile(r"memory|rediss?://[A-Za-z0-9._\[\]:-]+(/[0-9]+)?|unix:///[^?@]+")


def _store_url(url: str) -> str:
    if STORE.fullmatch(url) is None:
        raise ValueError("a store is memory, redis://HOST:PORT/0, rediss://... or unix:///PATH, with no password in it")
    return url


class Limits(Section):
    """What one of them may use. What is null is not limited."""

    rpm: Positive | None = None
    tpm: Positive | None = None
    concurrency: Positive | None = None
    tokens_per_day: Positive | None = None
    tokens_per_month: Positive | None = None
    gpu_seconds_per_day: GpuSeconds | None = None
    gpu_seconds_per_month: GpuSeconds | None = None
    fail: Fail | None = None  # None: as `limits.fail` says


class TenantLimits(Limits):
    """A tenant's own limits, and what holds for each of its keys and persons and on single routes."""

    per_key: Limits | None = None
    per_user: Limits | None = None
    routes: dict[str, Limits] = {}


class LimitsSettings(Section):
    """Where limits are counted, and all of them."""

    store: Annotated[str, AfterValidator(_store_url)] = "memory"
    store_username: str | None = None
    store_password_env: str | None = None
    store_timeout_s: Seconds = 1
    fail: Fail = "open"
    default: TenantLimits | None = None
    tenants: dict[str, TenantLimits] = {}
    routes: dict[str, Limits] = {}

    @property
    def is_empty(self) -> bool:
        return not (self.default or self.tenants or self.routes)
