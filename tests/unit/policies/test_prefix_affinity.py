"""The worker that has the prompt's beginning, unless it costs more to wait for it."""

import random
import time
from collections import Counter

import pytest

from sluice.policies.least_inflight import LeastInflight
from sluice.policies.prefix_affinity import MAX_PREDICTIONS, PrefixAffinity
from sluice.types import Usage
from sluice.worker import CacheFacts, EngineLoad
from tests.unit.policies.test_contract import call, workers

SYSTEM = b"s" * 4096


def prompt(name: str, kilobytes: int = 32) -> bytes:
    return SYSTEM + name.encode().ljust(16, b".") * 64 * (kilobytes - 4)


def send(policy, candidates, asked, now=0.0):
    """Pick, and let the worker be busy with it as the gateway does."""
    worker = policy.pick(candidates, asked, now)
    tokens = policy.prefill_tokens(asked, worker)
    worker.backlog.send(tokens, now, shows_first_event=True)
    return worker, tokens


def test_the_next_turn_goes_where_the_turns_before_were():
    policy, candidates = PrefixAffinity(), workers([0] * 8)
    first = {name: send(policy, candidates, call(prompt(name), id=name), 0.0)[0] for name in "abcdefgh"}
    for name, worker in first.items():
        longer = call(prompt(name) + b"and then?" * 1000, id=name)
        picked, tokens = send(policy, candidates, longer, 60.0)
        assert picked is worker
        assert tokens == pytest.approx(longer.prompt_tokens - 32 * 256, abs=256)


def test_one_beginning_that_all_share_makes_no_hot_spot():
    policy, candidates = PrefixAffinity(), workers([0] * 8)
    picked = Counter(send(policy, candidates, call(prompt(str(k)), id=str(k)), k / 100)[0] for k in range(400))
    assert max(picked.values()) < 2 * 400 / 8


def test_a_holder_is_left_when_the_wait_there_exceeds_what_is_saved():
    policy, candidates = PrefixAffinity(), workers([0, 0])
    asked = call(prompt("a"))
    holder, tokens = send(policy, candidates, asked)
    holder.backlog.send(tokens // 2, 100.0, shows_first_event=True)
    assert policy.pick(candidates, asked, 100.0) is holder
    holder.backlog.send(tokens, 100.0, shows_first_event=True)
    assert policy.pick(candidates, asked, 100.0) is not holder


def test_the_busier_all_are_the_longer_a_holder_is_waited_for():
    """Computing anew would also delay the calls behind."""

    def is_left(gap_s: float, num_others: int = 0) -> bool:
        policy, candidates = PrefixAffinity(), workers([0, 0])
        for worker in candidates:
            worker.load = EngineLoad(num_running=1 + num_others, num_ours=1)
        now = 0.0
        for k in range(2000):
            now += gap_s
            send(policy, candidates, call(prompt(f"other-{k}"), id=str(k)), now)
        asked = call(prompt("a"), id="a")
        now += gap_s
        holder, tokens = send(policy, candidates, asked, now)
        now += gap_s
        for worker in candidates:
            worker.backlog.ends_at = now
        holder.backlog.ends_at += tokens * holder.backlog.s_per_token * 1.3
        return policy.pick(candidates, asked, now) is not holder

    assert is_left(gap_s=100.0)
    assert not is_left(gap_s=1.0)
    assert not is_left(gap_s=100.0, num_others=99)  # of other gateways


def test_replicas_send_a_new_prompt_to_the_same_idle_worker():
    candidates = workers([0] * 8)
    new = [call(f"{k}".encode().ljust(2048)) for k in range(100)]
    one, two = ([policy.pick(candidates, asked, 0.0) for asked in new] for policy in (PrefixAffinity(1), PrefixAffinity(2)))
    assert one == two


def test_homes_are_spread_over_the_workers_and_survive_the_loss_of_one():
    candidates = workers([0] * 4)
    policy = PrefixAffinity()
    new = [call(f"{k}".encode().ljust(2048)) for k in range(200)]
    before = [policy.pick(candidates, asked, 0.0) for asked in new]
    after = [policy.pick(candidates[1:], asked, 0.0) for asked in new]
    assert len(Counter(before)) == 4 and min(Counter(before).values()) >= 25
    assert all(a is b for a, b in zip(before, after, strict=True) if a is not candidates[0])


def test_prompts_without_a_whole_block_go_by_load():
    candidates = workers([3, 0, 3])
    assert PrefixAffinity().pick(candidates, call(b"short"), 0.0) is candidates[1]


def test_what_the_engine_did_not_find_shrinks_what_is_believed_of_its_cache():
    policy, [worker] = PrefixAffinity(), workers([0])
    for k in range(50):
        asked = call(prompt(str(k % 10)), id=str(k))
        send(policy, [worker], asked)
        policy.observe(asked, worker, Usage(asked.prompt_tokens, 5, 1024, exact=True))
    _, tokens = send(policy, [worker], call(prompt("0"), id="x"))
    assert tokens > 6000


def test_an_engine_that_does_not_say_what_it_finds_is_taken_to_hold_what_it_was_sent():
    """vLLM says it only with --enable-prompt-tokens-details."""
    policy, [worker] = PrefixAffinity(), workers([0])
    for k in range(50):
        asked = call(prompt(str(k % 10)), id=str(k))
        send(policy, [worker], asked)
        policy.observe(asked, worker, Usage(asked.prompt_tokens, 5, 0, exact=True))
    _, tokens = send(policy, [worker], call(prompt("0"), id="x"))
    assert tokens == 0


def test_counts_that_are_not_exact_teach_nothing():
    policy, [worker] = PrefixAffinity(), workers([0])
    for k in range(50):
        asked = call(prompt(str(k % 10)), id=str(k))
        send(policy, [worker], asked)
        policy.observe(asked, worker, Usage(asked.prompt_tokens, 5, 0, exact=False))
    _, tokens = send(policy, [worker], call(prompt("0"), id="x"))
    assert tokens < 300


def test_a_worker_that_lost_its_cache_has_to_compute_all():
    policy, candidates = PrefixAffinity(), workers([0, 0])
    asked = call(prompt("a"))
    holder, _ = send(policy, candidates, asked)
    policy.forget(holder)
    assert send(policy, [holder], asked)[1] == asked.prompt_tokens


def test_the_end_of_a_call_that_went_to_another_worker_or_is_unknown_is_nothing():
    policy, [one, two] = PrefixAffinity(), workers([0, 0])
    asked = call(prompt("a"))
    send(policy, [one], asked)
    policy.observe(asked, two, Usage(1, 1, 0, exact=True))
    policy.observe(asked, one, Usage(1, 1, 0, exact=True))
    policy.observe(call(prompt("b"), id="b"), one, Usage(1, 1, 0, exact=True))


def test_predictions_of_calls_that_never_end_well_are_bounded():
    policy, candidates = PrefixAffinity(), workers([0])
    for k in range(MAX_PREDICTIONS + 100):
        send(policy, candidates, call(b"x" * 1024, id=str(k)))
    assert len(policy._predictions) == MAX_PREDICTIONS


def test_it_says_how_much_it_believes_to_be_cached():
    policy, candidates = PrefixAffinity(), workers([0])
    asked = call(prompt("a"))
    send(policy, candidates, asked)
    assert policy.reason(asked, candidates[0]) == "prefix_affinity; cached=0 of=32768"
    send(policy, candidates, asked)
    assert policy.reason(asked, candidates[0]) == "prefix_affinity; cached=32768 of=32768"


def pick_s(policy, candidates, calls) -> float:
    """The least time of a pick in many rounds, of which some are not disturbed."""
    rounds = []
    for _ in range(20):
        begun = time.perf_counter()
        for asked in calls:
            policy.pick(candidates, asked, 99.0)
        rounds.append((time.perf_counter() - begun) / len(calls))
    return min(rounds)


def test_a_pick_among_a_hundred_workers_costs_at_most_twice_that_of_least_inflight():
    rng = random.Random(1)
    candidates = workers([rng.randrange(20) for _ in range(100)])
    for worker in candidates:
        worker.backlog.ends_at = 98.0 + 2 * rng.random()
    calls = [call(prompt(f"{k % 60}", rng.randrange(5, 60)), id=str(k)) for k in range(120)]
    ours = PrefixAffinity(1)
    for asked in calls * 3:
        ours.prefill_tokens(asked, ours.pick(candidates, asked, 99.0))
    assert pick_s(ours, candidates, calls) <= 2 * pick_s(LeastInflight(1), candidates, calls)


def test_the_size_of_a_cache_that_its_metrics_tell_is_where_learning_starts():
    policy, [worker] = PrefixAffinity(), workers([0])
    worker.cache = CacheFacts(block_size=16, num_blocks=1600)  # 25,600 tokens, some 100 KB
    for k in range(20):
        send(policy, [worker], call(prompt(str(k)), id=str(k)))
    assert send(policy, [worker], call(prompt("19"), id="x"))[1] == 0
    assert send(policy, [worker], call(prompt("0"), id="x"))[1] > 6000
    worker.cache = CacheFacts(block_size=16, num_blocks=160_000)
    policy.cache_facts(worker)
    for k in range(20):
        send(policy, [worker], call(prompt(str(k)), id=str(k)))
    assert send(policy, [worker], call(prompt("0"), id="x"))[1] == 0


def test_a_holder_without_room_is_waited_for_as_long_as_the_first_token_would_be_later_elsewhere():
    policy, candidates = PrefixAffinity(), workers([0, 0])
    asked = call(prompt("a"))
    holder, tokens = send(policy, candidates, asked)
    [other] = [worker for worker in candidates if worker is not holder]
    until = policy.waits_until(candidates, [other], asked, 100.0)
    assert until is not None
    saved_s = other.backlog.time_s(tokens) - other.backlog.time_s(0)
    assert until - 100.0 == pytest.approx(saved_s)  # and no longer for what computing it would do to later calls
    other.backlog.ends_at = 102.0
    assert policy.waits_until(candidates, [other], asked, 100.0) == pytest.approx(until + 2.0)
    assert policy.waits_until(candidates, [holder], asked, 100.0) is None
    holder.backlog.ends_at = 100.0 + 10 * (until - 100.0)
    assert policy.waits_until(candidates, [other], asked, 100.0) is None


def test_without_a_beginning_that_counts_nobody_is_waited_for_in_vain():
    policy, candidates = PrefixAffinity(), workers([0, 1])
    until = policy.waits_until(candidates, [candidates[1]], call(b"short"), 100.0)
    assert until is None
