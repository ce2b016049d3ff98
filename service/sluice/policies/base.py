"""What a routing policy is: it chooses among candidates and knows nothing of health, limits or HTTP."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Protocol

from sluice.types import Call, Usage
from sluice.worker import Worker

# What a call in flight weighs in prompt tokens: it makes each step a little longer for all others on its worker, and they for
# it. A fraction of what it really costs on engines that we know, so that prompts decide, and calls without long ones spread.
DECODING_TOKENS = 256


class RoutingPolicy(Protocol):
    """Rule of use: everything is called on the event loop, does no I/O and never awaits. Subclass it: all but `pick` has
    a default.

    `pick` is called for every attempt, never with an empty sequence, and returns one of the candidates, which are healthy
    and were not tried for this call before; the call then goes there. The sequence is not changed later. `now` is in seconds,
    on a monotonic clock.
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

    def reason(self, call: Call, worker: Worker) -> str:
        """Why `pick` chose this worker, in a few words of ASCII. Asked right after `pick`, where somebody wants to know."""
        return ""

    def observe(self, call: Call, worker: Worker, usage: Usage) -> None:
        """What the engine said the call took, once it has ended well; `cached_tokens` corrects what was predicted."""
        return

    def forget(self, worker: Worker) -> None:
        """The worker has left the pool, or has lost its cache."""
        return

    def heard(self, worker: Worker, tokens: int, hashes: Sequence[int], now: float) -> None:
        """Another gateway has sent a call there, of whose prompt so many tokens are to be computed. `Worker.backlog` knows."""
        return

    def cache_facts(self, worker: Worker) -> None:
        """More is known of the size of the worker's cache, or of how long a block stays there: see `Worker.cache`."""
        return


def with_adapter(candidates: Sequence[Worker], call: Call) -> Sequence[Worker]:
    """The candidates that have the call's LoRA adapter loaded, where some have: the others would have to load it first."""
    if call.adapter is None:
        return candidates
    return [worker for worker in candidates if call.adapter in worker.adapters] or candidates


def prompt_tokens_of(call: Call) -> float:
    """The length of a call's prompt, as far as it is known."""
    return call.prompt_tokens or call.prefix.num_bytes / 4
