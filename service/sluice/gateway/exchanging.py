"""The path of a call as one straight line: pick a worker, send, look at what comes first, hand it out, let go.

`Gateway.exchange(call)` is an async context manager. What it takes (slot, connection) it takes by `with`, so that the end, an
error and a client that leaves go out by the same way.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping
from dataclasses import replace

from sluice.admission.entry import Entry, Standing
from sluice.asgi import Headers
from sluice.attempt import Attempt
from sluice.errors import (
    GatewayError,
    Overloaded,
    WorkerFull,
    WorkerRefused,
    WorkerRejected,
    WorkerUnavailable,
    is_workers_fault,
)
from sluice.exchange import RESUMED, Exchange, OwnAnswer
from sluice.gateway.served import Served
from sluice.hedge import Hedging, Race
from sluice.limits.limiter import Reservation, Unlimited
from sluice.resume import Rest
from sluice.types import Call, Endpoint, Ground, Grounding, Usage
from sluice.wire.emitted import CannotResume
from sluice.wire.events import EventStream
from sluice.wire.requests import with_model
from sluice.wire.splice import SeamMismatch, Splice
from sluice.worker import Worker


class Gateway:
    """All routes, and the one way through them."""

    def __init__(
        self,
        routes: Mapping[str, Served],
        clock: Callable[[], float],
        reservation: Callable[[Call], Reservation] = lambda call: Unlimited(),
    ) -> None:
        """`reservation` gives what a call must take of its limits before anything else."""
        self._routes = routes
        self._clock = clock
        self._reservation = reservation

    def exchange(self, call: Call) -> Exchanging:
        """Take a worker and its answer, by `async with`; see `Exchanging`."""
        served = self._routes[call.route]
        fallback = self._routes[served.settings.fallback] if served.settings.fallback is not None else None
        return Exchanging(served, call, self._clock, self._reservation(call), fallback)


class Exchanging:
    """A call on its way through its route, as a context manager: what is inside holds for the whole call.

    Raises what the last worker said; nothing has gone down by then. A stream that breaks later may be continued by `resume`.
    """

    __slots__ = (
        "_attempt", "_batch", "_call", "_clock", "_fallback", "_is_reserved", "_lost", "_place", "_served", "_splices",
        "_wasted", "attempts", "exchange", "fell_back", "gpu_ms", "grounding", "hedge", "num_resumes", "opened_at",
        "queued_s", "reason", "reservation", "sent_at", "usage", "waited_s", "worker",
    )  # fmt: skip

    def __init__(
        self,
        served: Served,
        call: Call,
        clock: Callable[[], float],
        reservation: Reservation,
        fallback: Served | None = None,
    ) -> None:
        self._served = served
        self._fallback = fallback
        self._call = call
        self._clock = clock
        self._is_reserved = False
        self._attempt: Attempt | None = None
        self._place: Entry | None = None  # of the last attempt, in admission
        self.reservation = reservation
        # What is known of the call so far; worker and exchange are those of the last attempt that sent something.
        self.attempts = 0
        self.worker: Worker | None = None
        self.reason = ""  # why that worker, where the call wants to know
        self.exchange: Exchange | None = None
        self.queued_s = 0.0  # waited for slots, all attempts together
        self.sent_at: float | None = None
        self.waited_s = 0.0  # of the time until then: for a slot, and for sources
        self.opened_at: float | None = None
        self.grounding: Grounding | None = None  # where sources were asked for
        self.fell_back = False
        self.hedge: str | None = None  # where two were asked for the first event: which of them was taken
        # What it is charged; known when it has been left.
        self.usage = Usage()
        self.gpu_ms = 0.0
        self._batch = 1  # calls at the worker when this one came
        # What was lost: workers that failed after they may have computed something, and the tokens of that.
        self.num_resumes = 0
        self._lost: list[Worker] = []
        self._wasted = 0
        self._splices: list[Splice] = []

    @property
    def headers(self) -> Headers:
        """For the answer: what is left of its limits; where the call went and why, where the route tells it to clients."""
        if not self._served.settings.explain.headers or self.worker is None:
            return self.reservation.headers
        why = [(b"x-sluice-worker", self.worker.url.encode()), (b"x-sluice-route-reason", self.reason.encode())]
        return self.reservation.headers + why

    @property
    def standing(self) -> Standing | None:
        """Where the call stands, while it waits for a slot."""
        return self._place.standing if self._place is not None else None

    @property
    def tokens_wasted(self) -> int:
        """What workers computed for this call and nobody is billed for: lost first tries, prompts that were computed again."""
        return self._wasted + sum([splice.num_recomputed for splice in self._splices])

    async def __aenter__(self) -> Exchange:
        """The straight line (architecture.md, section 4). The reservation is taken first, and let go last."""
        try:
            await self.reservation.__aenter__()
            self._is_reserved = True
            if self._call.ground is not None:
                begun = self._clock()
                self._call, self.grounding = await self._grounded(self._call, self._call.ground)
                self.waited_s = self._clock() - begun
                if self.grounding.reply is not None:
                    self.exchange = OwnAnswer(self._call, *self.grounding.reply)
                    return self.exchange
            try:
                return await self._first_answer(self._served, self._call)
            except (WorkerUnavailable, WorkerRefused, Overloaded):
                if self._fallback is None or not self._fall_back(self._fallback):
                    raise
            return await self._first_answer(self._served, self._call)
        except BaseException as exc:
            self._leave(exc)
            raise

    async def __aexit__(self, *exc: object) -> None:
        attempt = self._attempt
        if attempt is not None and attempt.worker is not None and attempt.exchange is not None:
            events = attempt.exchange.events
            if events is not None and events.done:
                attempt.worker.succeeded(self._clock())
                if not self.num_resumes:  # usage is of the call, and no worker's own any more
                    self._served.pool.observe(self._call, attempt.worker, events.usage)
            elif events is not None and events.broken:
                attempt.worker.failed(self._clock())
        self._leave()

    async def _grounded(self, call: Call, ground: Ground) -> tuple[Call, Grounding]:
        """The call with its sources. One that would be shed is refused before anything is searched for it."""
        refusal = self._served.admission.would_shed(call)
        if refusal is not None and self._fallback is None:
            raise refusal
        return await ground(call)

    def _fall_back(self, other: Served) -> bool:
        """No worker of the route can take the call: whether it can go to another route's, where it has another model's name."""
        call = self._call
        if call.pinned_worker is not None or call.stamp is not None or call.endpoint is Endpoint.TRANSCRIPTIONS:
            return False
        body = with_model(call.body, other.served_model)
        if body is None:
            return False
        self._served, self._call, self.fell_back = other, replace(call, body=body, adapter=None), True
        return True

    def _leave(self, error: BaseException | None = None) -> None:
        if self.sent_at is not None and not isinstance(error, WorkerRefused | WorkerRejected):
            self._charge(self.sent_at)
        try:
            self._close_attempt()
        finally:
            if self._is_reserved:
                self._is_reserved = False
                self.reservation.close()

    def _charge(self, sent_at: float) -> None:
        """What the call has really used: as its worker says, else as we know. Its limits are settled by it."""
        call, estimate = self._call, self._served.estimate
        seconds = self._clock() - sent_at
        usage = self.exchange.usage if self.exchange is not None else Usage()
        if usage.exact:
            estimate.learn(call, usage, seconds)
        else:
            usage = estimate.spent(call, usage, seconds)
        self.usage = usage
        if self.worker is not None:
            self.worker.num_tokens_charged += usage.prompt_tokens + usage.completion_tokens + self.tokens_wasted
        self.gpu_ms = self._gpu_ms(usage.step_ms or seconds * 1000)
        self.reservation.spend(usage.prompt_tokens + usage.completion_tokens, round(self.gpu_ms))

    def _gpu_ms(self, step_ms: float) -> float:
        """Its part of these steps: they worked on as many calls as were there, in the mean of when it came and went."""
        batch = (self._batch + (self.worker.in_flight if self.worker is not None else 1)) / 2
        return round(step_ms / max(1.0, batch), 3)

    def _close_attempt(self) -> None:
        attempt, self._attempt = self._attempt, None
        if attempt is not None:
            attempt.close()

    async def _first_answer(self, served: Served, call: Call) -> Exchange:
        """Try workers until one has answered, within the route's `max_retries`, and none of them twice.

        Where nothing was computed the next one is asked at once; where something may have been, within the retry budget.
        Workers that are full are passed by beyond `max_retries`, as long as there is one whose own last call went well: either
        this one does too, or nobody else comes upon that worker in vain. So a part of the pool that turns full is found out
        once, and a pool that is full does not see each call at each worker.
        """
        served.retries.count_call(self._clock())
        hedging = served.hedging if call.stream else None
        num_before = self.attempts
        tried: list[Worker] = []
        while True:
            attempt = self._attempt = Attempt(served.settings, self._clock)
            try:
                worker = await self._take(attempt, tried)
                tried.append(worker)
                self.exchange = None
                if hedging is None:
                    exchange = await self._send(attempt, worker, call)
                else:
                    exchange, worker = await self._send_hedged(hedging, attempt, worker, call, tried)
            except GatewayError as exc:
                if attempt.worker is None or not is_workers_fault(exc):
                    raise
                self._lose(attempt.worker, exc)
                if self._clock() >= call.deadline or not served.pool.candidates(call, tried):
                    raise
                max_retries = served.settings.max_retries
                if self.attempts - num_before > max_retries:
                    if not (max_retries and isinstance(exc, WorkerFull) and served.pool.has_calm(call, tried)):
                        raise
                if not isinstance(exc, WorkerRefused):
                    if not served.retries.take(self._clock()):
                        raise
                    self._wasted += call.prompt_tokens
                continue
            self.opened_at = self._clock()
            if not call.stream:
                worker.succeeded(self.opened_at)
                served.pool.observe(call, worker, exchange.usage)
            return exchange

    async def _take(self, attempt: Attempt, tried: list[Worker], *, ahead: bool = False) -> Worker:
        """A slot for this attempt, when its turn has come."""
        self._place = self._served.admission.enter(self._call, tried, ahead=ahead)
        worker = await attempt.take(self._place)
        self.queued_s += attempt.queued_s
        self.reason = attempt.reason
        return worker

    async def _send(
        self,
        attempt: Attempt,
        worker: Worker,
        call: Call,
        events: EventStream | None = None,
        splice: Splice | None = None,
    ) -> Exchange:
        """Send the attempt's request, and wait for its first event or its whole answer."""
        self.worker = worker
        self.attempts += 1
        self._batch = worker.in_flight
        try:
            self.exchange = await attempt.open(call, f"{call.id}-{self.attempts}", events, splice)
        finally:
            if self.sent_at is None and attempt.sent_at is not None:
                self.sent_at = attempt.sent_at
                self.waited_s += self.queued_s
        if call.stream:
            worker.answered(self._clock())
        return self.exchange

    async def _send_hedged(
        self, hedging: Hedging, attempt: Attempt, worker: Worker, call: Call, tried: list[Worker]
    ) -> tuple[Exchange, Worker]:
        """The same, and where the first event is late a second copy to another worker: which of them was first."""
        now = self._clock()
        hedging.count_call(now)
        copy = Attempt(self._served.settings, self._clock)

        def second() -> Coroutine[None, None, Exchange] | None:
            idle = hedging.idle_workers(self._served.pool, call, tried, self._clock())
            return self._send_copy(copy, idle, call) if idle else None

        race = Race(attempt, copy, self._clock)
        try:
            self.exchange = await race.run(
                hedging.first_events.late_s(call.prompt_tokens), self._send(attempt, worker, call), second
            )
        finally:
            self._attempt, self.worker = race.taken, race.taken.worker
            if race.was_copied:
                self._wasted += call.prompt_tokens
                self.hedge = "copy" if race.taken is copy else "first"
        assert race.taken.worker is not None
        hedging.first_events.learn(call.prompt_tokens, self._clock() - now)
        return self.exchange, race.taken.worker

    async def _send_copy(self, copy: Attempt, idle: list[Worker], call: Call) -> Exchange:
        others = [worker for worker in self._served.pool.workers if worker not in idle]
        worker = await self._take(copy, others, ahead=True)
        return await self._send(copy, worker, call)

    def _lose(self, worker: Worker, error: GatewayError) -> None:
        """The attempt at this worker has failed by its fault."""
        worker.failed(self._clock())  # while its slot is held: it may have been on trial
        if not isinstance(error, WorkerRefused):
            self._lost.append(worker)
        self._close_attempt()
        if isinstance(error, WorkerFull):
            self._served.admission.refused(worker)

    async def resume(self) -> bytes | None:
        """Continue the stream, which is broken, on another worker: what goes down next, or None where that cannot be.

        What comes after that is in `exchange`, unless the stream has ended with it. Where it is None, `events.broken` is what
        the client must be told.
        """
        exchange, attempt, settings = self.exchange, self._attempt, self._served.settings.resume
        assert exchange is not None and exchange.events is not None
        events = exchange.events
        error = events.broken
        if error is None or attempt is None or attempt.worker is None or not is_workers_fault(error):
            return None
        if not settings.enabled or self._call.endpoint not in RESUMED or self._clock() >= self._call.deadline:
            return None
        self._lose(attempt.worker, error)
        try:
            if self.num_resumes >= settings.max_resumes:
                raise CannotResume(f"it has been {settings.max_resumes} times")
            return await self._continue(Rest(self._call, events), events)
        except CannotResume as exc:
            error.message = f"{error.message} It could not be continued on another worker: {exc}."
        except GatewayError as exc:
            error.message = f"{error.message} It could not be continued on another worker. {exc.message}"
        self._close_attempt()
        events.revive()
        events.fail(error)
        return None

    async def _continue(self, rest: Rest, events: EventStream) -> bytes:
        """Ask workers for the rest until one gives it. None is asked that has failed this call, nor one twice that refuses."""
        call, tried = self._call, list(self._lost)
        num_failed = 0
        while True:
            attempt = self._attempt = Attempt(self._served.settings, self._clock)
            try:
                worker = await self._take(attempt, tried, ahead=True)
                tried.append(worker)
                request = await rest.request(worker)
                events.revive()
                if isinstance(request, bytes):
                    return events.feed(request)
                exchange = await self._send(attempt, worker, request.call, events, request.splice)
            except SeamMismatch:
                rest.compares = False
                tried.pop()  # it has done nothing wrong
                self._close_attempt()
            except GatewayError as exc:
                if attempt.worker is None or not is_workers_fault(exc) or self._clock() >= call.deadline:
                    raise
                self._lose(attempt.worker, exc)
                num_failed += not isinstance(exc, WorkerRefused)
                if num_failed > self._served.settings.max_retries:
                    raise  # it may be the call itself that workers die of
            else:
                self.num_resumes += 1
                self._splices.append(request.splice)
                return exchange.first
