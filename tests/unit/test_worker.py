"""A worker: how it is judged, and that a slot is given back whatever happens in it."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sluice.ejection import FAILURES
from sluice.upstream.connections import Connections
from sluice.worker import ModelInfo, Worker


def worker() -> Worker:
    return Worker("http://worker:8000", Connections("http://worker:8000"))


def test_a_lease_is_one_slot_for_the_length_of_its_block():
    one = worker()
    with one.lease() as outer, one.lease() as inner:
        assert outer.worker is inner.worker is one
        assert one.in_flight == 2
    assert one.in_flight == 0


@pytest.mark.parametrize("error", [ZeroDivisionError, asyncio.CancelledError, KeyboardInterrupt, GeneratorExit])
def test_a_slot_is_given_back_however_the_block_ends(error):
    one = worker()
    with pytest.raises(error), one.lease():
        raise error
    assert one.in_flight == 0


@given(st.lists(st.booleans(), max_size=50))
def test_slots_in_use_are_those_entered_and_not_left_and_never_fewer_than_none(steps):
    one, held = worker(), []
    for enters in steps:
        if enters:
            held.append(one.lease().__enter__())
        elif held:
            held.pop(0).__exit__(None, None, None)
        assert one.in_flight == len(held) >= 0


def test_a_lease_that_was_not_entered_is_no_slot():
    one = worker()
    one.lease()
    assert one.in_flight == 0


def test_a_judgement_replaces_the_last_one_and_keeps_models_that_it_does_not_mention():
    one = worker()
    assert repr(one) == "<Worker http://worker:8000 [unknown, 0 in flight]>"
    one.judge(is_healthy=True, models=(ModelInfo("smollm2"),))
    assert repr(one) == "<Worker http://worker:8000 [healthy, 0 in flight]>"
    one.judge(is_healthy=False, trouble="no answer")
    assert repr(one) == "<Worker http://worker:8000 [unhealthy, 0 in flight]>"
    assert (one.trouble, one.models) == ("no answer", (ModelInfo("smollm2"),))
    one.judge(is_healthy=True)
    assert one.trouble == ""


# What it tells


class Told:
    """A worker, and how often it said that something changed."""

    def __init__(self) -> None:
        self.worker = worker()
        self.worker.on_change = self._count
        self.times = 0

    def _count(self) -> None:
        self.times += 1


def test_only_what_changes_is_told():
    told = Told()
    one, models = told.worker, (ModelInfo("smollm2"), ModelInfo("pirate", parent="smollm2"))
    seen = []
    for _ in range(2):
        one.judge(is_healthy=True, models=models)
        one.mark_asleep("metrics", True)
        one.mark_draining("discovery", True)
        seen.append((told.times, one.state))
        one.mark_draining("discovery", False)
    assert seen == [(3, "draining"), (5, "draining")]
    assert (one.state, one.adapters) == ("asleep", {"pirate"})


def test_its_state_in_a_word_and_whether_it_is_usable():
    one = worker()
    seen = [(one.state, one.is_usable)]
    for is_healthy in (False, True):
        one.judge(is_healthy=is_healthy)
        seen.append((one.state, one.is_usable))
    for _ in range(FAILURES):
        one.failed(0.0)
    seen.append((one.state, one.is_usable))
    one.mark_asleep("metrics", True)
    seen.append((one.state, one.is_usable))
    assert seen == [
        ("unknown", True),
        ("unhealthy", False),
        ("healthy", True),
        ("ejected", True),
        ("asleep", False),
    ]


def test_a_trial_is_told_when_it_begins_and_when_it_ends():
    told = Told()
    one = told.worker
    for _ in range(FAILURES):
        one.failed(0.0)
    assert told.times == 1
    with one.lease():
        assert (told.times, one.ejection.num_trials) == (2, 1)
        one.succeeded(5.0)
        assert (told.times, one.state) == (3, "unknown")
        with one.lease():
            assert told.times == 3
    assert (told.times, one.ejection.num_trials) == (4, 0)


def test_a_worker_that_was_ill_and_is_well_again_is_not_held_to_its_past():
    one = worker()
    one.judge(is_healthy=True)
    for _ in range(FAILURES):
        one.failed(0.0)
    one.judge(is_healthy=True)
    assert one.state == "ejected"
    one.judge(is_healthy=False)
    one.judge(is_healthy=True)
    assert one.state == "healthy"


async def test_a_retired_worker_keeps_its_connections_as_long_as_its_calls():
    class Closing(Connections):
        is_closed = False

        def close(self) -> None:
            self.is_closed = True

    connections = Closing("http://worker:8000")
    one = Worker("http://worker:8000", connections)
    with one.lease():
        with one.lease():
            one.retire()
        assert not connections.is_closed
    assert connections.is_closed
