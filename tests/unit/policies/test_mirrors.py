"""What one gateway believes of the caches of its workers."""

import math
import random
from collections import OrderedDict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sluice.policies.mirrors import FIRST_KB, UNKNOWN, Mirrors
from tests.unit.policies.test_contract import workers


def opened(num_workers: int):
    mirrors, everyone = Mirrors(), workers([0] * num_workers)
    return mirrors, everyone, [mirrors.open(worker, k) for k, worker in enumerate(everyone)]


def held(mirrors, hashes):
    """By worker, how many leading blocks it holds."""
    holders = mirrors.holders(hashes)
    return [mirror.num_held(holders) for mirror in mirrors.of.values()]


PATHS = st.lists(st.integers(0, 1), max_size=8)


def chained(path):
    """Hashes of blocks that each stand for all before them too."""
    return [hash(tuple(path[: k + 1])) for k in range(len(path))]


@given(sent=st.lists(st.tuples(st.integers(0, 2), PATHS), max_size=20), asked=PATHS)
def test_a_worker_holds_the_longest_beginning_that_it_was_sent(sent, asked):
    mirrors, _, opened_ = opened(3)
    for number, path in sent:
        mirrors.use(opened_[number], chained(path))

    def num_shared(path):
        return sum(a == b for a, b in zip(chained(path), chained(asked), strict=False))

    expected = [max([num_shared(path) for k, path in sent if k == number], default=0) for number in range(3)]
    assert held(mirrors, chained(asked)) == expected


def test_of_one_prompt_the_end_is_evicted_first():
    mirrors, _, [mirror] = opened(1)
    mirror.capacity_kb = 10.0
    mirrors.use(mirror, range(8))
    mirrors.use(mirror, range(100, 106))
    assert 0 < held(mirrors, range(8))[0] < 8
    assert held(mirrors, range(100, 106)) == [6]


def test_what_is_used_again_stays():
    mirrors, _, [mirror] = opened(1)
    mirror.capacity_kb = 10.0
    for k in range(20):
        mirrors.use(mirror, range(3))
        mirrors.use(mirror, range(100 * k + 100, 100 * k + 103))
    assert held(mirrors, range(3)) == [3]


def test_ages_are_those_before_the_use():
    mirrors, _, [mirror] = opened(1)
    assert list(mirrors.use(mirror, [1, 2])) == [UNKNOWN, UNKNOWN]
    mirrors.use(mirror, [11, 12, 13])
    assert list(mirrors.use(mirror, [1, 2, 3])) == [3.0, 4.0, UNKNOWN]


def test_a_worker_that_is_forgotten_holds_nothing_and_leaves_nothing():
    mirrors, [one, two], [first, second] = opened(2)
    mirrors.use(first, range(5))
    mirrors.use(second, range(3))
    mirrors.forget(one)
    assert held(mirrors, range(5)) == [3]
    mirrors.forget(two)
    mirrors.forget(two)
    assert repr(mirrors) == "<Mirrors of 0 workers, 0 blocks>"


def test_a_new_worker_takes_nothing_over_from_one_that_is_forgotten():
    mirrors, [one, _], [first, _] = opened(2)
    mirrors.use(first, range(5))
    mirrors.forget(one)
    [new] = workers([0])
    mirrors.open(new, 9)
    assert sorted(held(mirrors, range(5))) == [0, 0]


def test_memory_is_bounded(monkeypatch):
    monkeypatch.setattr("sluice.policies.mirrors.MAX_BLOCKS", 500)
    mirrors, _, [mirror] = opened(1)
    for k in range(100):
        mirrors.use(mirror, range(100 * k, 100 * k + 100))
    assert len(mirror.blocks) <= 500 and len(mirror.evicted) <= 500
    assert repr(mirrors) == f"<Mirrors of 1 workers, {len(mirror.blocks)} blocks>"


@pytest.mark.parametrize("capacity", [60, 400, 3000])
def test_the_capacity_of_a_cache_is_learnt_from_what_it_still_holds(capacity):
    """A cache of so many blocks of 1 KiB, in front of prompts that come back after a while or never."""
    mirrors, _, [mirror] = opened(1)
    cache: OrderedDict[int, None] = OrderedDict()
    rng, known = random.Random(1), []
    for k in range(4000):
        back = int(rng.expovariate(1 / (capacity / 6)))
        prompt = known[-back - 1] if rng.random() < 0.5 and back < len(known) else list(range(10 * k, 10 * k + 10))
        known.append(prompt)
        num_predicted = held(mirrors, prompt)[0]
        num_found = next((k for k, block in enumerate(prompt) if block not in cache), 10)
        for block in reversed(prompt):
            cache[block] = None
            cache.move_to_end(block)
        while len(cache) > capacity:
            cache.popitem(last=False)
        mirror.learn(mirrors.use(mirror, prompt), num_predicted, num_found)
        mirrors.evict(mirror)
    assert math.log(mirror.capacity_kb / max(capacity, 64)) == pytest.approx(0, abs=math.log(1.3))


def test_a_cache_that_was_found_as_predicted_teaches_next_to_nothing():
    mirrors, _, [mirror] = opened(1)
    for _ in range(100):
        mirror.learn(mirrors.use(mirror, range(10)), 10, 10)
    assert mirror.capacity_kb == pytest.approx(FIRST_KB, rel=1e-6)


def test_a_cache_whose_size_is_told_is_taken_to_have_that_size_until_answers_teach_more():
    mirrors, _, [mirror] = opened(1)
    mirror.note(500.0, None, 0.0)
    assert mirror.capacity_kb == 500.0
    mirror.evidence = 100.0
    mirror.note(900.0, None, 1.0)
    assert mirror.capacity_kb == 500.0


def test_where_blocks_stay_for_a_short_time_the_cache_holds_what_was_sent_in_that_time():
    mirrors, _, [mirror] = opened(1)
    mirror.note(500.0, 10.0, 100.0)
    mirrors.use(mirror, range(40))  # 40 KiB in 4 s, and others send too
    mirror.note(500.0, 10.0, 104.0)
    assert mirror.capacity_kb == pytest.approx(100.0)
