"""How fast a queue drains, what that predicts, and when who is sent away is told to come back."""

import pytest

from sluice.admission.drain import MAX_RETRY_S, SMOOTHED_OVER_S, Drain


def draining(rate: float, seconds: float, *, drain: Drain | None = None, at: float = 0.0) -> tuple[Drain, float]:
    """A queue from which calls of 100 tokens start at this many tokens a second."""
    drain = drain or Drain()
    drain.begin(at)
    for number in range(1, int(seconds * rate / 100) + 1):
        drain.started(100, at + number * 100 / rate)
    return drain, at + seconds


def test_nothing_is_known_at_first():
    drain = Drain()
    assert drain.rate(1) is None and drain.wait_s(1000, 1) is None
    assert drain.retry_after_s(1000, 10, 1) == 1
    drain.started(100, 2)  # nothing waited
    assert drain.rate(3) is None


@pytest.mark.parametrize("rate", [50, 1000, 20_000])
def test_the_rate_is_what_starts(rate):
    drain, now = draining(rate, 20)
    assert drain.rate(now) == pytest.approx(rate, rel=0.05)
    assert drain.wait_s(3 * rate, now) == pytest.approx(3, rel=0.05)


def test_it_follows_the_workers():
    drain, now = draining(1000, 20)
    drain, now = draining(4000, 3 * SMOOTHED_OVER_S, drain=drain, at=now)
    assert drain.rate(now) == pytest.approx(4000, rel=0.1)


def test_times_without_a_queue_do_not_count():
    drain, now = draining(1000, 20)
    drain.end()
    assert drain.rate(now + 3600) == pytest.approx(1000, rel=0.05)
    drain, now = draining(1000, 5, drain=drain, at=now + 3600)
    assert drain.rate(now) == pytest.approx(1000, rel=0.05)


def test_calls_that_start_together_are_one_sample():
    drain = Drain()
    drain.begin(0)
    for _ in range(100):
        drain.started(100, 0.000_1)
    assert drain.rate(0.001) is None
    drain.started(100, 10)
    assert drain.rate(10) == pytest.approx(1010)


def test_a_queue_that_stands_still_is_not_promised_to_move():
    drain, now = draining(1000, 20)
    assert (drain.wait_s(1000, now + 100) or 0) > 100


def test_those_sent_away_are_told_to_come_back_as_fast_as_there_is_room():
    drain, now = draining(1000, 20)
    told = [drain.retry_after_s(5000, 1000, now) for _ in range(10)]
    assert told[0] == pytest.approx(6, rel=0.05)
    assert all(0.9 <= later - earlier <= 1.1 for earlier, later in zip(told, told[1:], strict=False))
    drain.end()
    assert drain.retry_after_s(5000, 1000, now + 30) == pytest.approx(6, rel=0.05)  # all of those are back by now


def test_nobody_is_told_more_than_a_minute_nor_less_than_a_second():
    drain, now = draining(1000, 20)
    assert drain.retry_after_s(10**9, 1, now) == MAX_RETRY_S
    assert drain.retry_after_s(0, 1, now) == 1
