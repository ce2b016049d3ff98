"""Each worker in turn, whatever it has to do."""

from __future__ import annotations

from collections.abc import Sequence

from sluice.policies.base import RoutingPolicy
from sluice.types import Call
from sluice.worker import Worker


class RoundRobin(RoutingPolicy):
    def __init__(self) -> None:
        self._turn = 0

    def pick(self, candidates: Sequence[Worker], call: Call, now: float) -> Worker:
        self._turn += 1
        return candidates[self._turn % len(candidates)]

    def reason(self, call: Call, worker: Worker) -> str:
        return "round_robin"
