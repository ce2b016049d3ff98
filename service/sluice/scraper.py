"""Reads again and again how busy a worker's engine says it is, and does not believe everything.

A worker that does not answer, has said the same for too long while it should be working, reports less than we ourselves have
there, or numbers that cannot be, is not idle: its load is unknown then (`Worker.load` is None).
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from math import inf
from typing import Any
from urllib.parse import urlencode

from sluice import engine_metrics
from sluice.asking import ask
from sluice.config import Probes
from sluice.engine_metrics import Reading
from sluice.http_json import HttpJsonError
from sluice.worker import EngineLoad, Worker

TIMEOUT_S = 1.0
STALE_S = 1.0  # a load that is older is not known any more; at least four intervals
FROZEN_S = 5.0  # so long may an engine that has work compute nothing
LOW_READINGS = 4  # so many in a row may be of fewer calls than half of ours: ours may be on their way, or wait to be read
MAX_PAGE_BYTES = 4_194_304

# Only these are asked for, where the worker can choose; vLLM can, below this path. A whole page is forty times as long, and
# takes vLLM 3 ms.
FEW = "/metrics/?" + urlencode([("name[]", name.decode()) for name in (*engine_metrics.READ, engine_metrics.CACHE_CONFIG)])
ALL = "/metrics"

logger = logging.getLogger("sluice.scraper")


class Scraper:
    """Scrapes one worker until cancelled. `on_restart` is told when its engine has begun anew, `on_cache` how large its cache
    is: tokens of a block, and blocks."""

    def __init__(
        self,
        worker: Worker,
        settings: Probes,
        clock: Callable[[], float],
        *,
        on_restart: Callable[[], None],
        on_cache: Callable[[int, int], None],
    ) -> None:
        self._worker = worker
        self._interval_s = settings.load_interval_s or inf
        self._timeout_s = min(TIMEOUT_S, settings.timeout_s)
        self._clock = clock
        self._on_restart = on_restart
        self._on_cache = on_cache
        self._path = FEW
        self._trouble = ""
        self._cache: tuple[int, int] | None = None
        # What was believed, and what was seen, last
        self._in_flight = 0  # our calls there at the last reading
        self._num_tokens = -1
        self._moved_at = -inf  # when its count of tokens last changed, or it had nothing to do
        self._num_low = 0  # readings in a row of fewer calls than we have there

    async def run(self, sleep: Callable[[float], Awaitable[Any]] = asyncio.sleep) -> None:
        """The first time at a moment of its own: many workers are not to be read all at once."""
        await sleep(self._interval_s * random.random())
        while True:
            await self.scrape()
            await sleep(self._interval_s)

    async def scrape(self) -> None:
        """One look; it never raises."""
        worker, now = self._worker, self._clock()
        if worker.is_healthy is False:
            worker.load = None
            return
        try:
            page = await ask(worker, self._path, self._timeout_s, MAX_PAGE_BYTES)
            reading = engine_metrics.read(page)
            if reading is None:
                raise HttpJsonError("status", f"{worker.url}/metrics: says nothing of its load")
        except HttpJsonError as exc:
            if exc.kind == "status" and exc.status in (None, 404) and self._path is FEW:
                self._path = ALL  # it cannot choose
            else:
                self._doubt(exc.kind, str(exc))
            if worker.load is not None and now - worker.load.read_at > max(STALE_S, 4 * self._interval_s):
                worker.load = None
        except ValueError as exc:
            self._doubt("absurd", f"its metrics are not to be believed: {exc}")
            worker.load = None
        else:
            self._learn(page, reading)
            self._take(reading, self._clock())

    def _learn(self, page: bytes, reading: Reading) -> None:
        """What concerns more than this moment: sleep, restarts, the size of the cache."""
        self._worker.mark_asleep("metrics", reading.is_asleep)
        self._worker.num_tokens = reading.num_tokens
        if reading.num_tokens < self._num_tokens:
            logger.warning("worker %s was started anew", self._worker.url)
            self._cache = None
            self._on_restart()
        cache = engine_metrics.cache_size(page)
        if cache is not None and cache != self._cache:
            self._cache = cache
            self._on_cache(*cache)

    def _take(self, reading: Reading, now: float) -> None:
        worker = self._worker
        # Calls that came or went meanwhile are not held against it.
        ours, self._in_flight = min(self._in_flight, worker.in_flight), worker.in_flight
        reported = reading.num_running + reading.num_waiting
        self._num_low = self._num_low + 1 if 2 * reported < ours else 0
        if reading.num_tokens != self._num_tokens or not (reported or ours):
            self._moved_at = now
        self._num_tokens = reading.num_tokens
        if self._num_low >= LOW_READINGS:
            self._doubt("low", f"its metrics show {reported} calls, and {ours} of ours are there")
            worker.load = None
        elif now - self._moved_at > FROZEN_S:
            self._doubt("frozen", "its metrics have stopped, or its engine has")
            worker.load = None
        else:
            self._trouble = ""
            worker.load = EngineLoad(
                reading.num_running,
                reading.num_waiting,
                reading.num_waiting_for_capacity,
                reading.kv_usage,
                now,
                self._in_flight + worker.in_flight_elsewhere,
            )

    def _doubt(self, kind: str, said: str) -> None:
        """A line in the log when the kind of trouble changes."""
        if kind != self._trouble:
            logger.warning("worker %s: load unknown: %s", self._worker.url, said)
            self._trouble = kind
