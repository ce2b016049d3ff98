"""What fails often is left alone for a while."""

from sluice.retrieval.breaker import MAX_FAILURES, OPEN_S, WINDOW_S, Breaker


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_it_opens_after_failures_in_a_row_lets_one_through_and_closes_by_its_success():
    clock = Clock()
    breaker = Breaker(clock)
    for _ in range(MAX_FAILURES):
        assert not breaker.is_open
        breaker.failed()
    assert breaker.is_open
    clock.now += OPEN_S
    assert not breaker.is_open  # the one attempt
    assert breaker.is_open  # the others wait for it
    breaker.succeeded()
    assert not breaker.is_open


def test_an_attempt_that_fails_keeps_it_open():
    clock = Clock()
    breaker = Breaker(clock)
    for _ in range(MAX_FAILURES):
        breaker.failed()
    clock.now += OPEN_S
    assert not breaker.is_open
    breaker.failed()
    clock.now += OPEN_S / 2
    assert breaker.is_open


def test_failures_that_are_far_apart_open_nothing():
    clock = Clock()
    breaker = Breaker(clock)
    for _ in range(3 * MAX_FAILURES):
        breaker.failed()
        clock.now += WINDOW_S / (MAX_FAILURES - 2)
    assert not breaker.is_open
