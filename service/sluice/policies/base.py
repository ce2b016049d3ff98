"""What a routing policy is: it chooses among candidates and knows nothing of health, limits or HTTP."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from sluice.types import Call
from sluice.worker import Worker


class RoutingPolicy(Protocol):
    """Rule of use: `pick` is called on the event loop for every attempt, never with an empty sequence; it does no I/O,
    never awaits and returns one of the candidates. Candidates are healthy and were not tried for this call before.
    """

    def pick(self, candidates: Sequence[Worker], call: Call, now: float) -> Worker: ...

    def forget(self, worker: Worker) -> None:
        """The worker has left the pool."""
        ...
