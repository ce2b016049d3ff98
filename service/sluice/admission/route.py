"""Admission to one route: `async with admission.enter(call) as lease` is a slot on a worker, at once or in its turn, or shed.

Who has a slot is decided in one place, `_grant`, which never awaits: it runs when a slot is given back, when a call comes
and others wait, and ten times a second (for windows that have grown, workers that are back, times that are up). A waiter
that is cancelled leaves no trace; one that was given a slot in that very moment gives it back.

Where nothing waits and a worker has room, `enter` gives the lease without a task switch. A slot at each worker is spared for
tenants who have fewer than their part: who has more does not get it while others have come lately.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from math import inf
from typing import NamedTuple

from sluice.admission.drain import Drain
from sluice.admission.entry import Entry, Standing
from sluice.admission.fair_queue import OUTPUT_WEIGHT, FairQueue, Tenant
from sluice.admission.shedding import Shedding
from sluice.admission.window import Window
from sluice.config import Queue
from sluice.errors import GatewayError
from sluice.metrics import Histogram
from sluice.pool import Pool
from sluice.types import Call, Endpoint
from sluice.worker import Lease, Worker

TICK_S = 0.1
PRUNE_TICKS = 50
SPARED_FROM = 6  # slots that a worker has for each one that is spared: else none is
STANDINGS_S = 0.5  # how old what clients are told of their place may be
QUEUE_TIME_S = (0.001, 0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80)
# What costs the engine nothing does not wait behind what does.
WITHOUT_ENGINE = frozenset({Endpoint.TOKENIZE, Endpoint.DETOKENIZE, Endpoint.COUNT_TOKENS})

logger = logging.getLogger("sluice.admission")


class QueueState(NamedTuple):
    """A queue at one moment."""

    num_waiting: int
    waiting_tokens: float
    in_flight: int
    limit: float  # calls that may be in flight; without a bound infinite
    tokens_per_s: float | None  # that start, while calls wait; None: not known yet
    predicted_wait_s: float | None  # for all that wait
    num_shed: dict[str, int]
    queue_time: Histogram


class Admission:
    """The queue of one route. `share` is this gateway's part of all that share the workers."""

    def __init__(
        self,
        pool: Pool,
        settings: Queue,
        clock: Callable[[], float] = time.monotonic,
        share: Callable[[], float] = lambda: 1.0,
    ) -> None:
        self.pool = pool
        self._settings = settings
        self._clock = clock
        self._share = share
        self._queue = FairQueue()
        self._drain = Drain()
        self._shedding = Shedding(settings, self._queue, self._drain)
        self._queued: set[Entry] = set()
        self._started: set[Entry] = set()
        self._windows: dict[Worker, Window] = {}
        self._num_slots = inf  # of all workers
        self._spared: dict[Worker, int] = {}  # slots that are not for whoever has more than its part
        self._had_waiting = False
        self._num_ticks = 0
        self._standings: dict[Entry, Standing] = {}
        self._stood_at = 0.0
        # For the metrics
        self.queue_time = Histogram(QUEUE_TIME_S)
        self._set_windows()

    def __repr__(self) -> str:
        return f"<Admission {self.pool.route} [{len(self._queue)} waiting | {len(self._started)} started]>"

    def enter(self, call: Call, tried: Sequence[Worker] = (), *, ahead: bool = False) -> Entry:
        """A slot on a worker that is not among `tried`, by `async with`; raises `Overloaded` where the call is shed, and
        `WorkerUnavailable` where no worker could take it even in its turn.

        A call that was somewhere already, or is resumed (`ahead`), waits in front of all that were nowhere, and is not
        shed for want of room.
        """
        return Entry(self, call, tried, ahead or bool(tried))

    def would_shed(self, call: Call) -> GatewayError | None:
        """What `enter` would raise now for want of room or time; None where the call may come."""
        if not self._queue and self._has_room():
            return None
        entry = Entry(self, call, (), is_ahead=False)
        self._queue.join(entry)
        now = self._clock()
        reason = self._shedding.objection(entry, now)
        return None if reason is None else self._shedding.shed(entry, reason, now)

    def start_now(self, entry: Entry) -> Lease | None:
        """The lease, if it is nobody else's turn and a worker has room."""
        now = entry.entered_at = self._clock()
        if _is_free(entry.call):
            entry.lease = self.pool.lease(entry.call, entry.tried, now)
            return entry.lease.__enter__()
        self._queue.join(entry)
        if self._queue:
            return None
        lease = self._lease(entry, now)
        if lease is not None:
            self._start(entry, lease, now)
        return lease

    async def wait(self, entry: Entry) -> Lease:
        """The lease, when its turn has come."""
        now = entry.entered_at
        if not entry.is_ahead:
            self._make_room(entry, now)
        entry.done = asyncio.get_running_loop().create_future()
        self._enqueue(entry, now)
        try:
            self._grant(now)  # those before it may all wait for one worker, and it for another
            await entry.done
        except BaseException:
            if entry.is_queued:
                self._dequeue(entry)
            elif entry.lease is not None:
                self.let_go(entry)
            elif not entry.done.cancelled():
                entry.done.exception()  # refused, and cancelled before it could hear of it
            raise
        assert entry.lease is not None
        return entry.lease

    def let_go(self, entry: Entry) -> None:
        """The slot is free again, and what the call has taken is known."""
        lease, entry.lease = entry.lease, None
        assert lease is not None
        lease.__exit__()
        now = self._clock()
        if entry in self._started:
            self._started.discard(entry)
            self._queue.end(entry, self._cost(entry, lease, now))
        if self._queue:
            self._grant(now)

    def refused(self, worker: Worker) -> None:
        """The worker's engine said that its queue is full."""
        if (window := self._windows.get(worker)) is not None:
            window.refused()

    async def run(self, sleep: Callable[[float], Awaitable[object]] = asyncio.sleep) -> None:
        """Look at the clock until cancelled."""
        while True:
            await sleep(TICK_S)
            self.tick()

    def tick(self) -> None:
        """What time changes: windows, calls whose time is up, what running calls have taken."""
        now, share = self._clock(), self._share()
        if self._windows.keys() != set(self.pool.workers):
            self._set_windows()
        had_waiting, self._had_waiting = self._had_waiting, bool(self._queue)
        for worker, window in self._windows.items():
            window.look(share, had_waiting=had_waiting, spared=self._spared.get(worker, 0))
        self._spare()
        if self._queue:
            self._expire(now)
            for entry in self._started:
                if entry.lease is not None and entry.lease.meter is not None:
                    self._recharge(entry, entry.lease)
            self._grant(now)
        self._num_ticks += 1
        if self._num_ticks % PRUNE_TICKS == 0:
            self._queue.prune()

    def standing(self, entry: Entry) -> Standing | None:
        """Where a waiting call stands; reckoned for all of them at once, and not more often than clients are told."""
        now = self._clock()
        if now - self._stood_at >= STANDINGS_S or entry not in self._standings:
            self._stood_at, before = now, 0.0
            self._standings.clear()
            for position, place in enumerate(self._queue.ranking(), 1):
                assert isinstance(place, Entry)
                self._standings[place] = Standing(position, self._drain.wait_s(before + place.cost, now))
                before += place.cost
        return self._standings.get(entry)

    def state(self) -> QueueState:
        """How it stands now. Metrics ask in a thread of their own, so nothing here walks what the loop changes."""
        now, queue = self._clock(), self._queue
        rate = self._drain.rate(now)
        return QueueState(
            num_waiting=len(queue),
            waiting_tokens=queue.waiting_cost,
            in_flight=self.pool.in_flight,
            limit=sum(worker.window for worker in self.pool.workers),
            tokens_per_s=rate,
            predicted_wait_s=self._drain.wait_s(queue.waiting_cost, now) if queue else 0.0,
            num_shed=dict(self._shedding.num_shed),
            queue_time=self.queue_time,
        )

    def tenants(self) -> list[Tenant]:
        """Those who have calls here, waiting or started."""
        return self._queue.tenants()

    # Who is next
    def _grant(self, now: float) -> None:
        """Give each free slot to the first in turn who can use it."""
        while self._queue and self._has_room():
            for entry in self._queue.in_turn(self._num_slots if self._is_scarce() else None):
                assert isinstance(entry, Entry) and entry.done is not None
                if entry.done.cancelled():  # it is about to leave
                    continue
                if (lease := self._turn_of(entry, now)) is not None:
                    self._dequeue(entry)
                    self._start(entry, lease, now)
                    self._drain.started(entry.cost, now)
                    entry.done.set_result(None)
                    break
            else:
                return

    def _turn_of(self, entry: Entry, now: float) -> Lease | None:
        """The lease of a waiting call whose turn it is. None: not on the workers that have room; or it is refused."""
        if self._shedding.is_too_late(entry, now):
            self._refuse(entry, self._shedding.shed(entry, "deadline", now))
            return None
        try:
            return self._lease(entry, now)
        except GatewayError as exc:
            self._refuse(entry, exc)
            return None

    def _lease(self, entry: Entry, now: float) -> Lease | None:
        """A slot on a worker with room; None where there is none, or where the policy would rather wait for another."""
        call, pool = entry.call, self.pool
        candidates = pool.candidates(call, entry.tried)
        if not candidates:
            raise pool.unavailable()
        if self._spared and not entry.is_ahead and self._queue.is_over_share(entry, self._num_slots):
            able = [worker for worker in candidates if worker.in_flight < worker.window - self._spared.get(worker, 0)]
        else:
            able = [worker for worker in candidates if worker.in_flight < worker.window]
        if not able:
            return None
        if len(able) < len(candidates) and (until := pool.waits_until(candidates, able, call, now)) is not None:
            # The first word counts: a call is not put off again and again.
            entry.held_until = until if entry.held_until is None else entry.held_until
            if now < entry.held_until:
                return None
        return pool.pick(able, call, now)

    def _has_room(self) -> bool:
        return any(worker.in_flight < worker.window for worker in self.pool.workers)

    def _is_scarce(self) -> bool:
        """Whether no slots are left but those that are spared."""
        spared = self._spared
        return bool(spared) and not any(
            worker.in_flight < worker.window - spared.get(worker, 0) for worker in self.pool.workers
        )

    def _spare(self) -> None:
        workers = [worker for worker in self.pool.workers if worker.is_usable]
        self._num_slots = sum([worker.window for worker in workers])
        number = self._settings.spared_slots
        able = [worker for worker in workers if number and SPARED_FROM * number <= worker.window < inf]
        self._spared = {worker: number for worker in able if not self._windows[worker].is_tried}

    def _start(self, entry: Entry, lease: Lease, now: float) -> None:
        self._queue.start(entry)
        self._started.add(entry)
        entry.lease, entry.started_at = lease, now
        lease.queued_s = now - entry.entered_at
        self.queue_time.observe(lease.queued_s)
        lease.__enter__()

    def _make_room(self, entry: Entry, now: float) -> None:
        """Raise where the call may not wait; shed those whose loss is fairer, as far as the bounds ask for it."""
        if (reason := self._shedding.objection(entry, now)) is not None:
            raise self._shedding.shed(entry, reason, now)
        while (victim := self._shedding.victim(entry)) is not None:
            assert isinstance(victim, Entry)
            self._refuse(victim, self._shedding.shed(victim, "displaced", now))

    def _expire(self, now: float) -> None:
        for entry in list(self._queued):
            if now >= entry.call.deadline:
                self._refuse(entry, self._shedding.shed(entry, "deadline", now))
            elif now - entry.entered_at >= self._settings.timeout_s:
                self._refuse(entry, self._shedding.shed(entry, "timeout", now))

    def _refuse(self, entry: Entry, error: GatewayError) -> None:
        self._dequeue(entry)
        assert entry.done is not None
        if not entry.done.cancelled():
            entry.done.set_exception(error)

    def _enqueue(self, entry: Entry, now: float) -> None:
        if not self._queue:
            self._drain.begin(now)
        entry.is_queued = self._had_waiting = True
        self._queued.add(entry)
        self._queue.wait(entry)

    def _dequeue(self, entry: Entry) -> None:
        entry.is_queued = False
        self._queued.discard(entry)
        self._queue.leave(entry)
        if not self._queue:
            self._drain.end()

    # What calls take
    def _recharge(self, entry: Entry, lease: Lease) -> None:
        """Charge a running call for what it has made beyond what was expected."""
        assert lease.meter is not None
        cost = entry.call.prompt_tokens + OUTPUT_WEIGHT * lease.meter.usage.completion_tokens
        if cost > entry.charged:
            entry.charge(cost)

    def _cost(self, entry: Entry, lease: Lease, now: float) -> float:
        """What a call that is over has taken. Its worker may have worked on the prompt of one that left without a word."""
        if lease.meter is None:
            return 0.0
        usage = lease.meter.usage
        if not usage.exact:
            return float(entry.call.prompt_tokens + OUTPUT_WEIGHT * usage.completion_tokens)
        if usage.completion_tokens:
            self._shedding.took(now - entry.started_at, usage.completion_tokens)
        return float(usage.prompt_tokens - usage.cached_tokens + OUTPUT_WEIGHT * usage.completion_tokens)

    def _set_windows(self) -> None:
        self._windows = {
            worker: self._windows.get(worker) or Window(worker, self._settings, self._share()) for worker in self.pool.workers
        }


def _is_free(call: Call) -> bool:
    """Whether the call costs the engine nothing: then it takes no turn. Stored responses are read, and are cancelled, so."""
    return call.endpoint in WITHOUT_ENGINE or call.path != call.endpoint
