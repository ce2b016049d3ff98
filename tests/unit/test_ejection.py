"""Passive ejection: failures in a row, times that grow and differ, and one call that decides."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sluice.ejection import FAILURES, FIRST_S, GOOD_AFTER_S, JITTER, LONGEST_S, Ejection


def ejected(now: float = 0.0, draw: float = 0.5) -> Ejection:
    ejection = Ejection(lambda: draw)
    assert [ejection.failed(now) for _ in range(FAILURES)] == [False] * (FAILURES - 1) + [True]
    return ejection


def trial(ejection: Ejection, now: float, *, is_good: bool) -> bool:
    ejection.num_trials += 1
    told = ejection.succeeded(now) if is_good else ejection.failed(now)
    ejection.num_trials -= 1
    return told


def test_failures_in_a_row_eject_for_a_while():
    ejection = ejected(100.0)
    assert ejection.until == 100.0 + FIRST_S
    assert ejection.is_out(100.0) and not ejection.is_out(100.0 + FIRST_S)


def test_a_success_between_failures_begins_the_count_anew():
    ejection = Ejection()
    for _ in range(10):
        assert not any(ejection.failed(0.0) for _ in range(FAILURES - 1))
        assert not ejection.succeeded(0.0)
    assert ejection.until is None


def test_after_its_time_one_call_decides_and_meanwhile_there_is_no_other():
    ejection = ejected()
    now = FIRST_S + 0.5
    ejection.num_trials += 1
    assert ejection.is_out(now)
    assert ejection.succeeded(now)
    ejection.num_trials -= 1
    assert ejection.until is None and not ejection.is_out(now)


def test_a_trial_that_tells_nothing_is_followed_by_another():
    ejection = ejected()
    ejection.num_trials += 1
    ejection.num_trials -= 1  # its client has left
    assert not ejection.is_out(FIRST_S)


def test_times_double_up_to_the_longest():
    ejection, now, lengths = ejected(), 0.0, []
    for _ in range(8):
        assert ejection.until is not None
        lengths.append(ejection.until - now)
        now = ejection.until
        assert trial(ejection, now, is_good=False)
    assert lengths == [1, 2, 4, 8, 16, LONGEST_S, LONGEST_S, LONGEST_S]


@given(st.floats(0, 1))
def test_times_differ_from_gateway_to_gateway(draw):
    until = ejected(0.0, draw).until
    assert until is not None and abs(until - FIRST_S) <= JITTER * FIRST_S + 1e-9


@pytest.mark.parametrize(("good_for_s", "length_s"), [(GOOD_AFTER_S, 2 * FIRST_S), (GOOD_AFTER_S + 1, FIRST_S)])
def test_a_worker_that_was_good_for_long_begins_with_the_shortest_time(good_for_s, length_s):
    ejection = ejected()
    assert trial(ejection, 5.0, is_good=True)
    now = 5.0 + good_for_s
    for _ in range(FAILURES):
        ejection.failed(now)
    assert ejection.until == now + length_s


def test_calls_from_before_the_ejection_decide_nothing():
    ejection = ejected()
    until = ejection.until
    assert not ejection.failed(0.5) and not ejection.succeeded(0.5)
    assert not ejection.failed(FIRST_S + 1) and not ejection.succeeded(FIRST_S + 1)
    assert ejection.until == until


def test_a_call_that_found_nobody_else_may_readmit_but_does_not_prolong():
    ejection = ejected()
    until = ejection.until
    assert not trial(ejection, 0.5, is_good=False)
    assert ejection.until == until
    assert trial(ejection, 0.6, is_good=True)
    assert ejection.until is None


def test_a_new_process_begins_anew():
    ejection = ejected()
    ejection.reset()
    assert ejection.until is None
    assert [ejection.failed(10.0) for _ in range(FAILURES)][-1]
    assert ejection.until == 10.0 + FIRST_S
