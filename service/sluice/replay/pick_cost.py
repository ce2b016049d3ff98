"""What a pick costs, policy by policy, among many workers that are busy and hold prompts of a trace."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence

from sluice.policies import policy_class
from sluice.policies.base import RoutingPolicy
from sluice.replay.gateways import Gateway, call_of
from sluice.replay.trace import Trace

NUM_CALLS = 300
NUM_ROUNDS = 20  # the least of them counts: some are not disturbed
NOW = 1000.0


def pick_costs_us(trace: Trace, policies: Sequence[str], num_workers: int) -> dict[str, float]:
    """Microseconds of one pick, on the trace's first calls, with every worker as busy as chance will have it."""
    return {policy: _pick_us(policy_class("replay", policy)(), trace, num_workers) for policy in policies}


def _pick_us(policy: RoutingPolicy, trace: Trace, num_workers: int) -> float:
    rng = random.Random(1)
    workers = Gateway(policy, num_workers).workers
    for worker in workers:
        worker.in_flight = rng.randrange(20)
        worker.backlog.ends_at = NOW - 1.0 + 2 * rng.random()
    calls = [call_of(request, str(number), NOW) for number, request in enumerate(trace.requests[:NUM_CALLS])]
    for call in calls:
        policy.prefill_tokens(call, policy.pick(workers, call, NOW))
    least_s = float("inf")
    for _ in range(NUM_ROUNDS):
        begun = time.perf_counter()
        for call in calls:
            policy.pick(workers, call, NOW)
        least_s = min(least_s, time.perf_counter() - begun)
    return least_s / len(calls) * 1e6
