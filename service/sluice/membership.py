"""Keeps the pool of one route in step with its discovery, and what watches each worker running as long as it is there."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Collection, Coroutine, Iterable
from contextlib import aclosing
from typing import Any

from sluice.discovery.base import Discovery, Found
from sluice.pool import Pool
from sluice.worker import Worker

DOUBT_S = 900.0  # so long probes may speak against discovery
LOOK_S = 5.0  # between two looks at the time

logger = logging.getLogger("sluice.membership")

Companions = Callable[[Worker], Iterable[Coroutine[Any, Any, None]]]


class Membership:
    """Who is in the pool.

    Discovery may be wrong in one direction: where half of the workers, or all, are gone at once, those stay whose probes still
    find them well, for a quarter of an hour: who is still missing then is gone, well or not. A worker that drained is believed
    to be gone, and so is one whose place another process has taken. Who is new gets calls once its first probe went well,
    unless nobody else is there.
    """

    def __init__(
        self,
        pool: Pool,
        discovery: Discovery,
        make_worker: Callable[[Found], Worker],
        companions: Companions,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.pool = pool
        self.discovery = discovery
        self._make_worker = make_worker
        self._companions = companions
        self._clock = clock
        self._running: dict[Worker, list[asyncio.Task[None]]] = {}
        self._found = frozenset(discovery.initial)
        self.doubted: dict[Worker, float] = {}  # gone, says discovery, but well, say the probes; since when
        pool.adopt([make_worker(found) for found in discovery.initial])
        pool.watch(self._reconsider)

    async def run(self, sleep: Callable[[float], Awaitable[Any]] = asyncio.sleep) -> None:
        """Until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._keep_looking(sleep))
            self._accompany(tasks, self.pool.workers)
            async with aclosing(self.discovery.watch()) as sets:
                async for found in sets:
                    self._adopt(found)
                    self._accompany(tasks, self.pool.workers)

    async def _keep_looking(self, sleep: Callable[[float], Awaitable[Any]]) -> None:
        while True:
            await sleep(LOOK_S)
            self.pass_time()

    def pass_time(self) -> None:
        """Who was doubted for too long is gone; but not while the source cannot be asked."""
        late = [worker for worker, since in self.doubted.items() if self._clock() - since > DOUBT_S]
        if late and not self.discovery.trouble:
            logger.warning("%s: %d workers are well, and not found for %.0f s: they go", self.pool.route, len(late), DOUBT_S)
            self._give_up(late)

    def _adopt(self, found: frozenset[Found]) -> None:
        """The set as discovery tells it now."""
        self._found = found
        known = {worker.url: worker for worker in self.pool.workers}
        stay = {worker for one in found if (worker := known.get(one.url)) and worker.identity == one.identity}
        has_healthy = any(worker.is_healthy and worker.is_usable for worker in stay)
        members = []
        places = {url: place for place, url in enumerate(known)}
        for one in sorted(found, key=lambda one: (places.get(one.url, len(places)), one.url)):
            worker = known.get(one.url)
            if worker is None or worker not in stay:
                worker = self._make_worker(one)
                if has_healthy:
                    worker.judge(is_healthy=False, trouble="it is new, and not probed yet")
            worker.mark_draining("discovery", one.is_draining)
            members.append(worker)
        self.doubted = self._doubt({worker.url for worker in members})
        self._swap([*members, *sorted(self.doubted, key=lambda worker: worker.url)])

    def _doubt(self, urls: Collection[str]) -> dict[Worker, float]:
        """Who is not among these and stays all the same: who was doubted before, and now those who are gone with too many."""
        believed = [worker for worker in self.pool.workers if not worker.is_draining and worker not in self.doubted]
        gone = {worker for worker in believed if worker.url not in urls}
        still = {worker for worker in self.doubted if worker.url not in urls}
        if self.discovery.is_certain or 2 * len(gone) < len(believed):
            gone = set()
        elif gone:
            logger.warning("%s: discovery has lost %d of %d workers at once", self.pool.route, len(gone), len(believed))
        now = self._clock()
        return {worker: self.doubted.get(worker, now) for worker in still | gone if worker.is_healthy is not False}

    def _reconsider(self) -> None:
        """Something was learnt of a worker: whoever is doubted and found ill is gone."""
        ill = [worker for worker in self.doubted if worker.is_healthy is False]
        if ill:
            self._give_up(ill)

    def _give_up(self, workers: Iterable[Worker]) -> None:
        for worker in workers:
            del self.doubted[worker]
        urls = {found.url for found in self._found}
        self._swap([worker for worker in self.pool.workers if worker.url in urls or worker in self.doubted])

    def _swap(self, workers: list[Worker]) -> None:
        before = set(self.pool.workers)
        if before == set(workers):
            return
        for worker in before.difference(workers):
            logger.warning("worker %s has left route %s", worker.url, self.pool.route)
            for task in self._running.pop(worker, ()):
                task.cancel()
        for worker in set(workers) - before:
            logger.warning("worker %s has come to route %s", worker.url, self.pool.route)
        self.pool.adopt(workers)

    def _accompany(self, tasks: asyncio.TaskGroup, workers: Iterable[Worker]) -> None:
        for worker in workers:
            if worker not in self._running:
                self._running[worker] = [tasks.create_task(one) for one in self._companions(worker)]
