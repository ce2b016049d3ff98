"""Part of the composition root: limits, the ledger and what gateways tell each other, as the configuration wants them."""

from __future__ import annotations

import os
import re
import secrets
import socket
import sqlite3
import time
from collections.abc import Callable, Iterable
from contextlib import AsyncExitStack

from sluice.config import ConfigError, LedgerSettings, LimitsSettings
from sluice.limit_metrics import LimitNumbers
from sluice.limits.base import LimitStore
from sluice.limits.limiter import Limiter
from sluice.limits.memory import MemoryStore
from sluice.limits.rules import Rules
from sluice.loading import load
from sluice.metrics import Metrics
from sluice.pool import Pool
from sluice.sharing import Channel, Sharing
from sluice.usage import Ledger


def ledger_of(stack: AsyncExitStack, settings: LedgerSettings, metrics: Metrics) -> Ledger | None:
    if settings.folder is None:
        return None
    replica = settings.replica or re.sub(r"[^A-Za-z0-9_.-]", "-", socket.gethostname()) or "one"
    try:
        ledger = Ledger(settings.folder, replica, keep_months=settings.keep_months, wall_clock=time.time)
    except (OSError, sqlite3.Error) as exc:
        raise ConfigError(f"ledger.folder {settings.folder}: cannot be written: {exc}") from exc
    metrics.watch_ledger(lambda: ledger.num_lost)
    return stack.enter_context(ledger)


def limiter_of(settings: LimitsSettings, num_replicas: int, metrics: Metrics, clock: Callable[[], float]) -> Limiter:
    memory = MemoryStore(clock, time.time)
    store = memory if settings.store == "memory" else _redis(settings, num_replicas)
    limiter = Limiter(Rules(settings), store, memory)
    metrics.watch_limits(lambda: _numbers(limiter))
    return limiter


def _redis(settings: LimitsSettings, num_replicas: int) -> LimitStore:
    """The library is loaded only where it is asked for."""
    store: LimitStore = load("sluice.limits.redis:RedisStore", setting="limits.store")(
        settings.store,
        username=settings.store_username,
        password=_password(settings),
        timeout_s=settings.store_timeout_s,
        replica=secrets.token_hex(8),
        min_replicas=num_replicas,
    )
    return store


def sharing_of(settings: LimitsSettings, pools: Iterable[Pool], metrics: Metrics, clock: Callable[[], float]) -> Sharing | None:
    """What gateways tell each other goes through the store of limits; where that is memory there are no others."""
    if settings.store == "memory":
        return None
    channel: Channel = load("sluice.channel:RedisChannel", setting="limits.store")(
        settings.store, username=settings.store_username, password=_password(settings), timeout_s=settings.store_timeout_s
    )
    sharing = Sharing(channel, [pool.share() for pool in pools], clock)
    metrics.watch_gateways(lambda: sharing.num_others)
    return sharing


def _password(settings: LimitsSettings) -> str | None:
    return os.environ.get(settings.store_password_env) if settings.store_password_env else None


def _numbers(limiter: Limiter) -> LimitNumbers:
    store = limiter.store
    refused = {str(kind): count for kind, count in limiter.num_refused.items()}
    without_store = {str(fail): count for fail, count in limiter.num_without_store.items()}
    return LimitNumbers(refused, without_store, store.num_lost, not store.is_away)
