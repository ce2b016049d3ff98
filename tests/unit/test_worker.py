"""A worker: how it is judged, and that a slot is given back whatever happens in it."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

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
