"""Each in turn."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from sluice.policies.round_robin import RoundRobin
from tests.unit.policies.test_contract import CALL, workers


@given(num_workers=st.integers(1, 12), num_rounds=st.integers(1, 5), load=st.integers(0, 99))
def test_every_worker_gets_as_many_calls_as_the_others_whatever_it_has_to_do(num_workers, num_rounds, load):
    policy, candidates = RoundRobin(), workers([load] + [0] * (num_workers - 1))
    picked = Counter(policy.pick(candidates, CALL, 0.0).url for _ in range(num_workers * num_rounds))
    assert set(picked.values()) == {num_rounds} and len(picked) == num_workers


def test_turns_follow_the_order_of_the_workers():
    policy, candidates = RoundRobin(), workers([0, 0, 0])
    turns = [candidates.index(policy.pick(candidates, CALL, 0.0)) for _ in range(4)]
    assert turns in ([0, 1, 2, 0], [1, 2, 0, 1], [2, 0, 1, 2])


def test_a_worker_that_is_no_candidate_for_a_while_is_passed_over():
    policy, candidates = RoundRobin(), workers([0, 0, 0])
    picked = Counter(policy.pick(candidates[:2], CALL, 0.0).url for _ in range(10))
    assert sorted(picked.values()) == [5, 5]
