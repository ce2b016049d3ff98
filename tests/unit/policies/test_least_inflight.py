"""The worker that will be free first."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from sluice.policies.least_inflight import LeastInflight
from sluice.worker import EngineLoad
from tests.unit.policies.test_contract import CALL, call, workers


@given(loads=st.lists(st.integers(0, 9), min_size=1, max_size=10), seed=st.integers())
def test_of_workers_without_prompts_the_one_with_the_fewest_calls_is_picked(loads, seed):
    assert LeastInflight(seed).pick(workers(loads), CALL, 0.0).in_flight == min(loads)


def test_one_long_prompt_weighs_more_than_many_calls_that_decode():
    candidates = workers([20, 0])
    candidates[1].backlog.send(60_000, 0.0, shows_first_event=True)
    assert LeastInflight().pick(candidates, CALL, 0.0) is candidates[0]


def test_a_prompt_weighs_less_as_time_passes():
    candidates = workers([4, 0])
    candidates[1].backlog.send(5000, 0.0, shows_first_event=True)  # a second's worth
    assert LeastInflight().pick(candidates, CALL, 0.5) is candidates[0]
    assert LeastInflight().pick(candidates, CALL, 0.9) is candidates[1]


def test_a_faster_worker_gets_more():
    candidates = workers([0, 0])
    for worker, tokens_per_s in zip(candidates, (1000, 10_000), strict=True):
        worker.backlog.s_per_token = 1 / tokens_per_s
        worker.backlog.send(5000, 0.0, shows_first_event=True)
    assert LeastInflight().pick(candidates, CALL, 0.0) is candidates[1]


def test_the_calls_of_others_count_as_their_engine_tells_them():
    candidates = workers([0, 0])
    candidates[0].load = EngineLoad(num_running=4, num_waiting=6)
    candidates[1].load = EngineLoad(num_running=4, num_waiting=0)
    assert LeastInflight().pick(candidates, call(b"x" * 4096), 0.0) is candidates[1]


def test_our_own_calls_are_not_counted_twice():
    candidates = workers([10, 10])
    candidates[0].load = EngineLoad(num_running=4, num_waiting=6, num_ours=10)
    candidates[1].in_flight = 11
    assert LeastInflight().pick(candidates, call(b"x" * 4096), 0.0) is candidates[0]


def test_between_equals_the_choice_is_random_and_the_same_for_the_same_seed():
    candidates = workers([1, 0, 0, 0])
    one, two = LeastInflight(5), LeastInflight(5)
    picked = [one.pick(candidates, CALL, 0.0) for _ in range(300)]
    assert picked == [two.pick(candidates, CALL, 0.0) for _ in range(300)]
    assert len(picked) == 300 and set(Counter(picked)) == set(candidates[1:])
