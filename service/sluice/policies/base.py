"""What a routing policy is: it chooses among candidates and knows nothing of health, limits or HTTP."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Protocol

from sluice.types import Call, Usage
from sluice.worker import Worker


class RoutingPolicy(Protocol):
    """Rule of use: everything is called on the event loop, does no I/O and never awaits. Subclass it: all but `pick` has
    a default.

    `pick` is called for every attempt, never with an empty sequence, and returns one of the candidates, which are healthy
    and were not tried for this call before; the call then goes there. `now` is in seconds, on a monotonic clock.
    """

    reads_prefix: ClassVar[bool] = False  # whether `Call.prefix` is wanted; it costs a hash of the prompt

    def pick(self, candidates: Sequence[Worker], call: Call, now: float) -> Worker: ...

    def waits_until(self, candidates: Sequence[Worker], able: Sequence[Worker], call: Call, now: float) -> float | None:
        """Until when the call should rather wait for one of `candidates` that has no room now than go to one of `able`, which
        have; None: it should go. Asked before `pick`, at each of the call's turns; the first time that is said holds."""
        return None

    def prefill_tokens(self, call: Call, worker: Worker) -> int:
        """How many tokens of the prompt the worker will have to compute. Asked once, right after `pick`."""
        return call.prompt_tokens

    def observe(self, call: Call, worker: Worker, usage: Usage) -> None:
        """What the engine said the call took, once it has ended well; `cached_tokens` corrects what was predicted."""
        return

    def forget(self, worker: Worker) -> None:
        """The worker has left the pool, or has lost its cache."""
        return
