"""The less busy of two workers drawn at random (Mitzenmacher, "The power of two choices", 2001).

In flight means our own calls, exact and 0 ms old. Two random choices instead of the minimum of all keep replicas of the
gateway, which do not see each other's calls, from running to the same worker.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from sluice.policies.base import RoutingPolicy
from sluice.types import Call
from sluice.worker import Worker


class LeastInflight(RoutingPolicy):
    def __init__(self, seed: int | None = None) -> None:
        self._random = random.Random(seed)

    def pick(self, candidates: Sequence[Worker], call: Call, now: float) -> Worker:
        count = len(candidates)
        if count == 1:
            return candidates[0]
        first = int(self._random.random() * count)
        second = int(self._random.random() * (count - 1))
        a, b = candidates[first], candidates[second + (second >= first)]
        return a if a.in_flight <= b.in_flight else b
