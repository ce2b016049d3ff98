"""The less busy of two at random."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from sluice.policies.least_inflight import LeastInflight
from tests.unit.policies.test_contract import CALL, workers


@given(loads=st.lists(st.integers(0, 9), min_size=2, max_size=2, unique=True), seed=st.integers())
def test_of_two_workers_the_less_busy_one_is_picked(loads, seed):
    picked = LeastInflight(seed).pick(workers(loads), CALL, 0.0)
    assert picked.in_flight == min(loads)


@given(loads=st.lists(st.integers(0, 9), min_size=2, max_size=10), seed=st.integers())
def test_the_busiest_of_all_is_never_picked_before_a_less_busy_one(loads, seed):
    """Two different ones are drawn: so the one that is busier than all others always loses."""
    candidates = workers([*loads, 10])
    assert LeastInflight(seed).pick(candidates, CALL, 0.0) is not candidates[-1]


def test_every_pair_is_drawn():
    """With loads 0 to 3 the winner k is the lower of a pair: three pairs for 0, two for 1, one for 2."""
    policy, candidates = LeastInflight(1), workers([0, 1, 2, 3])
    picked = Counter(policy.pick(candidates, CALL, 0.0).in_flight for _ in range(6000))
    assert [round(picked[k] / 1000) for k in range(4)] == [3, 2, 1, 0]


def test_the_same_seed_draws_the_same():
    candidates = workers([0] * 8)
    one, two = LeastInflight(5), LeastInflight(5)
    assert [one.pick(candidates, CALL, 0.0) for _ in range(20)] == [two.pick(candidates, CALL, 0.0) for _ in range(20)]
