"""A second copy of a call whose first event is late: when it may be sent, and which of the two is taken.

Late means later than 95 % of the calls with prompts of about that length were in the last while. A copy costs the workers a
prompt, so that there are few of them (`max_percent` of the calls), and none where a worker would have to let it wait.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Collection, Coroutine, Sequence

from sluice.attempt import Attempt
from sluice.config import Hedge
from sluice.errors import GatewayError, is_workers_fault
from sluice.exchange import Exchange
from sluice.pool import Pool
from sluice.retry_budget import RetryBudget
from sluice.types import Call
from sluice.worker import Worker

Sent = Coroutine[None, None, Exchange]

MIN_SAMPLES = 20
MAX_SAMPLES = 200
LATE_SHARE = 0.95


class FirstEvents:
    """How long calls took to their first event, by the length of their prompts: each twice as long as the one before."""

    def __init__(self) -> None:
        self._samples_s: dict[int, deque[float]] = {}

    def learn(self, prompt_tokens: int, took_s: float) -> None:
        self._samples_s.setdefault(prompt_tokens.bit_length(), deque(maxlen=MAX_SAMPLES)).append(took_s)

    def late_s(self, prompt_tokens: int) -> float | None:
        """After which time one is late; None where too little is known."""
        samples_s = self._samples_s.get(prompt_tokens.bit_length(), ())
        if len(samples_s) < MIN_SAMPLES:
            return None
        return sorted(samples_s)[int(len(samples_s) * LATE_SHARE)]


class Hedging:
    """The second copies of one route."""

    def __init__(self, settings: Hedge) -> None:
        self.first_events = FirstEvents()
        self._budget = RetryBudget(share=settings.max_percent / 100, per_s=0)

    def count_call(self, now: float) -> None:
        self._budget.count_call(now)

    def idle_workers(self, pool: Pool, call: Call, tried: Sequence[Worker], now: float) -> list[Worker]:
        """Who may be sent a copy now, at once and without anybody waiting for it; it counts as sent where there is one."""
        idle = [worker for worker in pool.candidates(call, tried) if _is_idle(worker)]
        return idle if idle and self._budget.take(now) else []


def _is_idle(worker: Worker) -> bool:
    """Whether a call would begin there at once. Of a worker whose load is not known that cannot be said."""
    return worker.in_flight < worker.window and worker.load is not None and worker.load.num_waiting == 0


class Race:
    """Two attempts at one call, of which the first to answer is `taken`; the other one has let go when `run` ends, however."""

    def __init__(self, first: Attempt, copy: Attempt, clock: Callable[[], float]) -> None:
        self._first = first
        self._copy = copy
        self._clock = clock
        self.taken = first
        self.was_copied = False

    async def run(self, late_s: float | None, sent: Sent, second: Callable[[], Sent | None]) -> Exchange:
        """Wait for `sent`, the first attempt, and where that is late for what `second` gives as well, if anything.

        Where both fail it raises the error of the last one, and the first attempt counts as taken.
        """
        tasks = [asyncio.ensure_future(sent)]
        try:
            await asyncio.wait(tasks, timeout=late_s)
            if not tasks[0].done() and (copied := second()) is not None:
                self.was_copied = True
                tasks.append(asyncio.ensure_future(copied))
            winner = await _first_good(tasks)
            if winner is not tasks[0] and winner.exception() is None:
                self.taken = self._copy
            self._judge(tasks)
            return winner.result()
        finally:
            try:
                await _end(tasks)
            finally:
                (self._copy if self.taken is self._first else self._first).close()

    def _judge(self, tasks: Sequence[asyncio.Task[Exchange]]) -> None:
        """The attempt that is not taken may have failed by its worker's fault."""
        for attempt, task in zip((self._first, self._copy), tasks, strict=False):
            error = task.exception() if task.done() and not task.cancelled() else None
            if attempt is not self.taken and attempt.worker and isinstance(error, GatewayError) and is_workers_fault(error):
                attempt.worker.failed(self._clock())


async def _first_good(tasks: Sequence[asyncio.Task[Exchange]]) -> asyncio.Task[Exchange]:
    """The first of these to succeed, or where none does the last to fail; the others are cancelled."""
    waiting = set(tasks)
    try:
        while True:
            done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            good = [task for task in tasks if task in done and not task.cancelled() and task.exception() is None]
            if good or not waiting:
                return good[0] if good else done.pop()
    finally:
        await _end(waiting)


async def _end(tasks: Collection[asyncio.Task[Exchange]]) -> None:
    """Cancel these, and wait until they have let go."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
