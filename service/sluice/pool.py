"""The workers of one route, and who of them may take a call now."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from sluice.errors import WorkerUnavailable
from sluice.policies.base import RoutingPolicy
from sluice.types import Call
from sluice.worker import Lease, ModelInfo, Worker


class Pool:
    """All workers of a route. The mutable state is the workers' own; the pool only chooses."""

    def __init__(self, route: str, workers: Sequence[Worker], policy: RoutingPolicy) -> None:
        self.route = route
        self.workers = tuple(workers)
        self._policy = policy

    def __repr__(self) -> str:
        return f"<Pool {self.route} [{len(self.workers)} workers | {self.in_flight} in flight]>"

    @property
    def reads_prefix(self) -> bool:
        return self._policy.reads_prefix

    @property
    def in_flight(self) -> int:
        return sum(worker.in_flight for worker in self.workers)

    @property
    def is_ready(self) -> bool:
        return any(worker.is_healthy for worker in self.workers)

    def models(self) -> dict[str, ModelInfo]:
        """What the workers say they serve, merged: the first worker to name a model describes it."""
        found: dict[str, ModelInfo] = {}
        for worker in self.workers:
            for model in worker.models:
                found.setdefault(model.id, model)
        return found

    def candidates(self, call: Call, tried: Collection[Worker]) -> list[Worker]:
        """Who may be picked now: not tried for this call, and not known to be ill.

        A worker that no probe has seen yet is a candidate: a gateway that just started must not refuse its first calls.
        """
        return [
            worker
            for worker in self.workers
            if worker.is_healthy is not False
            and worker not in tried
            and (call.pinned_worker is None or worker.url == call.pinned_worker)
        ]

    def lease(self, call: Call, tried: Collection[Worker], now: float) -> Lease:
        """One slot on the worker that the policy picks; raises `WorkerUnavailable` where there is no candidate."""
        candidates = self.candidates(call, tried)
        if not candidates:
            raise WorkerUnavailable(f"No worker of {self.route} can take this request now.", retry_after_s=2)
        worker = self._policy.pick(candidates, call, now)
        return worker.lease(self._policy.prefill_tokens(call, worker))
