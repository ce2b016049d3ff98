"""The path of a call as one straight line: pick a worker, send, look at what comes first, hand it out, let go.

`Gateway.exchange(call)` is an async context manager. What it takes (slot, connection) it takes by `with`, so that the end, an
error and a client that leaves go out by the same way.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field

from sluice.admission.route import Admission
from sluice.attempt import Attempt
from sluice.config import Route
from sluice.errors import GatewayError, UpstreamError, WorkerRefused, WorkerRejected
from sluice.exchange import Exchange
from sluice.limits.estimate import RouteEstimate
from sluice.pool import Pool
from sluice.retry_budget import RetryBudget
from sluice.types import Call, Usage
from sluice.worker import Worker


@dataclass(frozen=True, slots=True)
class Served:
    """A route as the gateway runs it."""

    settings: Route
    pool: Pool
    admission: Admission
    estimate: RouteEstimate = field(default_factory=RouteEstimate)
    retries: RetryBudget = field(default_factory=RetryBudget)


class Gateway:
    """All routes, and the one way through them."""

    def __init__(self, routes: Mapping[str, Served], clock: Callable[[], float]) -> None:
        self._routes = routes
        self._clock = clock

    def exchange(self, call: Call) -> Exchanging:
        """Take a worker and its answer, by `async with`; see `Exchanging`."""
        return Exchanging(self._routes[call.route], call, self._clock)


class Exchanging:
    """A call on its way through its route, as a context manager: what is inside holds for the whole call.

    Raises what the last worker said; nothing has gone down by then.
    """

    __slots__ = ("_attempt", "_call", "_clock", "_held", "_served", "attempts", "exchange", "opened_at", "sent_at", "worker")

    def __init__(self, served: Served, call: Call, clock: Callable[[], float]) -> None:
        self._served = served
        self._call = call
        self._clock = clock
        self._held = AsyncExitStack()  # what is taken for the call as a whole; each attempt holds its own
        self._attempt: Attempt | None = None
        # What is known of the call so far; worker and exchange are those of the last attempt.
        self.attempts = 0
        self.worker: Worker | None = None
        self.exchange: Exchange | None = None
        self.sent_at: float | None = None
        self.opened_at: float | None = None

    @property
    def usage(self) -> Usage:
        """What the call has used so far, for whoever settles it on the way out."""
        return self.exchange.usage if self.exchange is not None else Usage()

    async def __aenter__(self) -> Exchange:
        """The straight line (architecture.md, section 4). What is taken here is entered on `_held`, and is let go last."""
        served, call = self._served, self._call
        try:
            # First the reservation of limits, then retrieval, which makes another `call` of it: one line each, here.
            return await self._first_answer(served, call)
        except BaseException:
            await self._leave()
            raise

    async def __aexit__(self, *exc: object) -> None:
        assert self.worker is not None and self.exchange is not None
        if (events := self.exchange.events) is not None:
            if events.done:
                self.worker.succeeded(self._clock())
            elif events.broken:
                self.worker.failed(self._clock())
        await self._leave()

    async def _leave(self) -> None:
        if self._attempt is not None:
            await self._attempt.close()
        await self._held.aclose()

    async def _first_answer(self, served: Served, call: Call) -> Exchange:
        """Try workers until one has answered, within the route's `max_retries`, and none of them twice.

        Where nothing was computed the next one is asked at once; where something may have been, within the retry budget.
        """
        served.retries.count_call(self._clock())
        tried: list[Worker] = []
        while True:
            try:
                return await self._try(served, call, tried)
            except GatewayError as exc:
                assert self._attempt is not None
                worker = self._attempt.worker
                if worker is None or not is_workers_fault(exc):
                    raise
                worker.failed(self._clock())
                await self._attempt.close()
                if self.attempts > served.settings.max_retries or self._clock() >= call.deadline:
                    raise
                if not served.pool.candidates(call, tried):
                    raise
                if not isinstance(exc, WorkerRefused) and not served.retries.take(self._clock()):
                    raise

    async def _try(self, served: Served, call: Call, tried: list[Worker]) -> Exchange:
        attempt = self._attempt = Attempt(call, served.settings, self._clock)
        worker = await attempt.take(served.admission.enter(call, tried))
        self.worker, self.exchange = worker, None
        tried.append(worker)
        self.attempts += 1
        try:
            self.exchange = await attempt.open(f"{call.id}-{self.attempts}")
        finally:
            if self.sent_at is None:
                self.sent_at = attempt.sent_at
        self.opened_at = self._clock()
        if call.stream:
            worker.answered(self.opened_at)
        else:
            worker.succeeded(self.opened_at)
        return self.exchange


def is_workers_fault(error: GatewayError) -> bool:
    """Whether another worker may do better: not where the request was judged, nor for what none of them can do."""
    if isinstance(error, WorkerRejected):
        return error.status >= 500 and error.status != 501
    return isinstance(error, UpstreamError)
