"""The workers of one route, and who of them may take a call now."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from math import inf

from sluice.errors import WorkerUnavailable
from sluice.placements import Placements
from sluice.policies.base import RoutingPolicy
from sluice.types import Call, Usage
from sluice.worker import Lease, ModelInfo, Worker

logger = logging.getLogger("sluice.pool")


class Pool:
    """All workers of a route. The mutable state is the workers' own; the pool only chooses.

    Who may get calls is kept until a worker says that something has changed, or an ejection ends: it is asked for each call.
    Ejections never leave a pool without anybody: where all usable workers are ejected, all of them are used.
    """

    def __init__(
        self,
        route: str,
        workers: Sequence[Worker],
        policy: RoutingPolicy,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.route = route
        self.workers: tuple[Worker, ...] = ()  # swapped whole
        self.uses_ejected = False  # whether all usable workers are ejected
        self._policy = policy
        self._placements: Placements | None = None  # where other gateways are told of them
        self._clock = clock
        self._watchers: list[Callable[[], None]] = []
        self._candidates: Sequence[Worker] = ()
        self._good_until = -inf  # when the candidates must be found anew, whatever happens
        self.adopt(workers)

    def __repr__(self) -> str:
        return f"<Pool {self.route} [{len(self.workers)} workers | {self.in_flight} in flight]>"

    def share(self) -> Placements:
        """From now on what is placed is kept for other gateways, and what they placed is heard."""
        self._placements = Placements(self.route, self._policy, lambda: self.workers)
        return self._placements

    def adopt(self, workers: Sequence[Worker]) -> None:
        """The workers from now on. Those that are gone keep the calls they have, and get no new ones."""
        gone = set(self.workers).difference(workers)
        self.workers = tuple(workers)
        for worker in workers:
            worker.on_change = self._changed
        for worker in gone:
            worker.retire()
            self._policy.forget(worker)
        self._changed()

    def forget(self, worker: Worker) -> None:
        """The worker has lost its cache: it was started anew, or has emptied it."""
        self._policy.forget(worker)

    def cache_changed(self, worker: Worker) -> None:
        """More is known of the worker's cache."""
        self._policy.cache_facts(worker)

    def watch(self, callback: Callable[[], None]) -> None:
        """Call back, at once and from anywhere on the loop, when who may get calls may have changed. The end of an ejection
        is not told: it is seen by the next one who asks."""
        self._watchers.append(callback)

    @property
    def reads_prefix(self) -> bool:
        """Whether prompts are to be hashed: where there is a choice, and a policy that makes it by them."""
        return self._policy.reads_prefix and len(self.workers) > 1

    @property
    def in_flight(self) -> int:
        return sum(worker.in_flight for worker in self.workers)

    @property
    def is_ready(self) -> bool:
        return any(worker.is_healthy and worker.is_usable for worker in self.workers)

    def models(self) -> dict[str, ModelInfo]:
        """What the workers say they serve, merged: the first worker to name a model describes it."""
        found: dict[str, ModelInfo] = {}
        for worker in self.workers:
            for model in worker.models:
                found.setdefault(model.id, model)
        return found

    def adapters(self) -> list[str]:
        """What LoRA adapters the workers hold, one or all of them."""
        return sorted({adapter for worker in self.workers for adapter in worker.adapters})

    def candidates(self, call: Call, tried: Collection[Worker]) -> Sequence[Worker]:
        """Who may be picked now: usable, not ejected, and not tried for this call. It is not to be changed.

        Who is asked after another has failed is one whose last call did not fail, if there is one: where many turn sick at
        once, a call does not go from one to the next. A worker that is ejected is better than none: where all others were
        tried it is one too. A call that is pinned may
        go to a worker that drains.
        """
        if self._clock() >= self._good_until:
            self._find_candidates(self._clock())
        if call.pinned_worker is not None:
            return [
                worker
                for worker in self.workers
                if worker.url == call.pinned_worker and worker.is_healthy is not False and worker not in tried
            ]
        if not tried:
            return self._candidates
        left = [worker for worker in self._candidates if worker not in tried]
        return _calm(left) or left or [worker for worker in self.workers if worker.is_usable and worker not in tried]

    def has_calm(self, call: Call, tried: Collection[Worker]) -> bool:
        """Whether there is a candidate whose own last call did not fail."""
        return bool(_calm(self.candidates(call, tried)))

    def lease(self, call: Call, tried: Collection[Worker], now: float) -> Lease:
        """One slot on the worker that the policy picks; raises `WorkerUnavailable` where there is no candidate."""
        candidates = self.candidates(call, tried)
        if not candidates:
            raise self.unavailable()
        return self.pick(candidates, call, now)

    def unavailable(self) -> WorkerUnavailable:
        return WorkerUnavailable(f"No worker of {self.route} can take this request now.", retry_after_s=2)

    def pick(self, candidates: Sequence[Worker], call: Call, now: float) -> Lease:
        """One slot on the one of these candidates that the policy picks."""
        worker = self._policy.pick(candidates, call, now)
        tokens = self._policy.prefill_tokens(call, worker)
        if self._placements is not None:
            self._placements.placed(worker, now, tokens, call.prefix.hashes)
        lease = worker.lease(tokens, self._clock, shows_first_event=call.stream or not call.num_choices)
        if call.explains:
            lease.reason = f"{self._policy.reason(call, worker)}; candidates={len(candidates)}"
        return lease

    def observe(self, call: Call, worker: Worker, usage: Usage) -> None:
        """A call has ended well there, and took this."""
        self._policy.observe(call, worker, usage)

    def waits_until(self, candidates: Sequence[Worker], able: Sequence[Worker], call: Call, now: float) -> float | None:
        """Until when the call should rather wait than go to one of those who have room; None where it should not."""
        return self._policy.waits_until(candidates, able, call, now)

    def _changed(self) -> None:
        self._good_until = -inf
        for callback in self._watchers:
            callback()

    def _find_candidates(self, now: float) -> None:
        usable = [worker for worker in self.workers if worker.is_usable]
        allowed = [worker for worker in usable if not worker.ejection.is_out(now)]
        ends = [worker.ejection.until for worker in usable if worker.ejection.until is not None]
        self._good_until = min((end for end in ends if end > now), default=inf)
        self._candidates = allowed or usable
        uses_ejected = bool(usable) and not allowed
        if uses_ejected and not self.uses_ejected:
            logger.warning("route %s: calls failed on all %d workers that are up; all are used", self.route, len(usable))
        self.uses_ejected = uses_ejected


def _calm(workers: Iterable[Worker]) -> list[Worker]:
    """Those whose last call did not fail."""
    return [worker for worker in workers if not worker.ejection.num_failures]
