"""One vLLM server that we send to, and one occupied slot on it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import inf
from time import monotonic
from typing import NamedTuple, Protocol

from sluice.backlog import Backlog
from sluice.ejection import Ejection
from sluice.types import Usage
from sluice.upstream.connections import Connections


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What a worker says of a model it serves. Its `root` (a path on the worker) is left behind."""

    id: str
    created: int = 0
    max_model_len: int | None = None
    parent: str | None = None


@dataclass(frozen=True, slots=True)
class EngineLoad:
    """What a worker's engine last said of its own load, summed over its data-parallel ranks."""

    num_running: int = 0
    num_waiting: int = 0
    num_waiting_for_capacity: int = 0  # of those, the ones that found no room
    kv_usage: float = 0.0  # 0 to 1
    read_at: float = 0.0  # on the event loop's clock
    num_ours: int = 0  # our own calls in flight there at that time, and those that other gateways have told us of


class CacheFacts(NamedTuple):
    """A worker's KV cache, summed over its ranks: its size by its metrics, the rest by its events, where those are on."""

    block_size: int = 0  # tokens
    num_blocks: int = 0
    num_held: int | None = None  # blocks that hold something now
    stored_per_s: float | None = None
    removed_per_s: float | None = None

    @property
    def age_s(self) -> float | None:
        """How long a block stays, on average, while others push it out; None where none is pushed out, or nobody tells.

        Where it is not known how many blocks are held, all are: else none would be pushed out.
        """
        num_held = self.num_blocks if self.num_held is None else self.num_held
        return num_held / self.removed_per_s if num_held and self.removed_per_s else None


class Worker:
    """A worker of one route, identified by its URL. What is learnt of it is told by methods: the pool is told of changes.

    Another process at the same URL is another `Worker`: what was known of the first does not hold for it.
    """

    def __init__(self, url: str, connections: Connections, *, identity: str = "", ejection: Ejection | None = None) -> None:
        self.url = url
        self.identity = identity  # what discovery tells one process at this URL from the next by, where it can
        self.connections = connections
        self.on_change: Callable[[], None] = _nobody  # whether it may get calls may have changed; the pool's
        # Load: calls that hold a lease now, and the prompt tokens of those that have no first event yet, less what is
        # predicted to be cached there. Changed by `Lease` alone.
        self.in_flight = 0
        self.prefill_tokens = 0
        self.in_flight_elsewhere = 0  # of other gateways, as far as they tell. Changed by `Placements` alone.
        # How many calls we may have in flight there. Changed by admission alone.
        self.window: float = inf
        self.backlog = Backlog()  # how long these prompts will take
        # What the last probe saw; None until there was one.
        self.is_healthy: bool | None = None
        self.trouble = ""
        self.models: tuple[ModelInfo, ...] = ()
        self.adapters: frozenset[str] = frozenset()  # of those models, the LoRA adapters
        # It ends its calls and gets no new ones; it takes calls, but they wait until it wakes.
        self._draining_by: frozenset[str] = frozenset()  # who wants it
        self._asleep_by: frozenset[str] = frozenset()  # who said so
        # What calls found out.
        self.ejection = ejection or Ejection()
        # What is known of its KV cache; zeros where nothing is.
        self.cache = CacheFacts()
        # What its engine last said of its load. None: nothing yet, nothing for a while, or nothing credible. That is no sign
        # of idleness: what we have in flight there is all that is known then.
        self.load: EngineLoad | None = None
        # Tokens that its engine says it has ever computed, and those that calls there were charged, or that were wasted on
        # them: the two drift apart where one of us counts wrong, or somebody else uses it. Changed by the scraper, by calls.
        self.num_tokens: int | None = None
        self.num_tokens_charged = 0
        self.asks_orca = False  # whether its answers are to bring load reports
        self._is_retired = False

    def __repr__(self) -> str:
        return f"<Worker {self.url} [{self.state}, {self.in_flight} in flight]>"

    @property
    def state(self) -> str:
        """In a word: draining, asleep, unknown, unhealthy, ejected or healthy."""
        if self.is_draining:
            return "draining"
        if self.is_healthy and self.is_asleep:
            return "asleep"
        if self.is_healthy is None:
            return "unknown"
        if not self.is_healthy:
            return "unhealthy"
        return "healthy" if self.ejection.until is None else "ejected"

    @property
    def is_usable(self) -> bool:
        """As far as probes and discovery know. A worker that no probe has seen is: a new gateway must not refuse calls."""
        return self.is_healthy is not False and not self.is_draining and not self.is_asleep

    def judge(self, *, is_healthy: bool, trouble: str = "", models: tuple[ModelInfo, ...] | None = None) -> None:
        """What a probe saw. One that finds a worker well again which it knew as ill, finds a new one."""
        if is_healthy and self.is_healthy is False:
            self.ejection.reset()
        is_new = is_healthy != self.is_healthy or (models is not None and models != self.models)
        self.is_healthy = is_healthy
        self.trouble = trouble
        if models is not None:
            self.models = models
            self.adapters = frozenset(model.id for model in models if model.parent is not None)
        if is_new:
            self.on_change()

    @property
    def is_asleep(self) -> bool:
        return bool(self._asleep_by)

    @property
    def is_draining(self) -> bool:
        return bool(self._draining_by)

    def mark_draining(self, source: str, is_draining: bool) -> None:
        """What discovery says of it, or an admin wants; one is enough."""
        before = self._draining_by
        self._draining_by = before | {source} if is_draining else before - {source}
        if self._draining_by != before:
            self.on_change()

    def mark_asleep(self, source: str, is_asleep: bool) -> None:
        """What one of the places says that tell whether it sleeps or is paused; one is enough."""
        before = self._asleep_by
        self._asleep_by = before | {source} if is_asleep else before - {source}
        if self._asleep_by != before:
            self.on_change()

    def failed(self, now: float) -> None:
        """A call failed by the worker's fault: it refused or broke the connection, said 5xx, stalled, cut its answer."""
        if self.ejection.failed(now):
            self.on_change()

    def answered(self, now: float) -> None:
        """A stream has begun. That readmits a worker on trial, but says nothing of how its streams end."""
        if self.ejection.until is not None:
            self.succeeded(now)

    def succeeded(self, now: float) -> None:
        """A call got its whole answer, or its stream to the end."""
        if self.ejection.succeeded(now):
            self.on_change()

    def lease(
        self, prefill_tokens: int = 0, clock: Callable[[], float] = monotonic, *, shows_first_event: bool = False
    ) -> Lease:
        """Occupy one slot, by `with`, from admission to the last byte; so many tokens of prompt are to be computed."""
        return Lease(self, prefill_tokens, clock, shows_first_event)

    def retire(self) -> None:
        """It has left the pool. The calls that it has go on; after the last of them its connections are closed."""
        self._is_retired = True
        self.on_change = _nobody
        self.release()

    def release(self) -> None:
        if self._is_retired and not self.in_flight:
            self.connections.close()


class Metered(Protocol):
    """What can say what a call has used so far."""

    @property
    def usage(self) -> Usage: ...


class Lease:
    """One occupied slot on a worker: in flight + 1 inside the block, whatever happens there."""

    __slots__ = (
        "_clock",
        "_is_trial",
        "_is_waiting",
        "_mark",
        "_shows_first_event",
        "meter",
        "prefill_tokens",
        "queued_s",
        "reason",
        "worker",
    )

    def __init__(self, worker: Worker, prefill_tokens: int, clock: Callable[[], float], shows_first_event: bool) -> None:
        self.worker = worker
        self.prefill_tokens = prefill_tokens
        self.queued_s = 0.0  # how long it was waited for
        self.reason = ""  # why this worker, where the call wants to know
        self.meter: Metered | None = None  # once the request is on its way: what it uses
        self._clock = clock
        self._shows_first_event = shows_first_event
        self._mark = 0.0  # where its prompt stands in the worker's backlog
        self._is_waiting = False  # for its first event
        self._is_trial = False

    def __enter__(self) -> Lease:
        worker = self.worker
        worker.in_flight += 1
        worker.prefill_tokens += self.prefill_tokens
        self._is_waiting = True
        self._mark = worker.backlog.send(self.prefill_tokens, self._clock(), shows_first_event=self._shows_first_event)
        if worker.ejection.until is not None:
            self._is_trial = True
            worker.ejection.num_trials += 1
            worker.on_change()
        return self

    def __exit__(self, *exc: object) -> None:
        worker = self.worker
        worker.in_flight -= 1
        self._let_go(is_computed=False)
        if self._is_trial:
            worker.ejection.num_trials -= 1
            worker.on_change()
        worker.release()

    def prefilled(self) -> None:
        """The first event is there: the prompt weighs on the worker no more."""
        self._let_go(is_computed=True)

    def _let_go(self, *, is_computed: bool) -> None:
        worker, tokens = self.worker, self.prefill_tokens
        if not self._is_waiting:
            return
        self._is_waiting = False
        if not self._shows_first_event:
            worker.backlog.ended(self._mark, self._clock())
        elif is_computed:
            worker.backlog.began(self._mark, self._clock())
        else:
            worker.backlog.left(self._mark, self._clock())
        worker.prefill_tokens -= tokens
        self.prefill_tokens = 0


def _nobody() -> None:
    return
