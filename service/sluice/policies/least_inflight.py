"""The worker that will be free first: by the prompt tokens in flight there, not by the number of calls.

In flight means our own calls, exact and 0 ms old, and what its engine says of the calls of others. Between equals the choice
is random, so that replicas of the gateway, which do not see each other's calls, do not run to the same worker.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

from sluice.policies.base import DECODING_TOKENS, RoutingPolicy, prompt_tokens_of, with_adapter
from sluice.types import Call
from sluice.worker import Worker

LATEST = 0.01  # the weight of one call in the running mean


class LeastInflight(RoutingPolicy):
    def __init__(self, seed: int | None = None) -> None:
        self._random = random.Random(seed)
        self._tokens = 0.0  # of a prompt, the running mean
        self._others: Mapping[Worker, float] = {}  # seconds of work that is not ours, as of the last pick

    def pick(self, candidates: Sequence[Worker], call: Call, now: float) -> Worker:
        if len(candidates) == 1:
            self._others = {}
            return candidates[0]
        candidates = with_adapter(candidates, call)
        self._tokens += LATEST * (prompt_tokens_of(call) - self._tokens)
        others = self._others = others_wait_s(candidates, self._tokens)
        best, least = [candidates[0]], float("inf")
        for worker in candidates:
            backlog = worker.backlog
            cost = (worker.in_flight + worker.in_flight_elsewhere) * DECODING_TOKENS * backlog.s_per_token
            if backlog.ends_at > now:
                cost += backlog.ends_at - now
            if others:
                cost += others.get(worker, 0.0)
            if cost < least:
                best, least = [worker], cost
            elif cost == least:
                best.append(worker)
        return best[int(self._random.random() * len(best))]

    def reason(self, call: Call, worker: Worker) -> str:
        return f"least_inflight; in_flight={worker.in_flight}; prefill_tokens={worker.prefill_tokens}"

    def wait_s(self, worker: Worker, now: float) -> float:
        """How long a candidate of the last pick will be busy with prompts."""
        wait_s = worker.backlog.ends_at - now
        if wait_s < 0.0:
            wait_s = 0.0
        return wait_s + self._others.get(worker, 0.0) if self._others else wait_s


def others_wait_s(candidates: Sequence[Worker], tokens: float) -> dict[Worker, float]:
    """How long calls that are not ours will keep each worker busy, by its engine's own word; only where there are such.

    It is their number in the engine's queue, at so many tokens each. Of a worker that has said nothing, or nothing for a
    while, the mean of the others is believed: no news is no sign of idleness.
    """
    waits: dict[Worker, float] = {}
    silent: list[Worker] = []
    for worker in candidates:
        load = worker.load
        if load is None:
            silent.append(worker)
        elif load.num_waiting:
            in_flight = load.num_running + load.num_waiting
            share = max(0, in_flight - load.num_ours) / in_flight
            waits[worker] = share * load.num_waiting * tokens * worker.backlog.s_per_token
    if waits and silent:
        mean = sum(waits.values()) / (len(candidates) - len(silent))
        waits.update(dict.fromkeys(silent, mean))
    return waits
