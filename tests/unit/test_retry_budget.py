"""How much may be sent twice, counted over ten seconds."""

from sluice.retry_budget import RetryBudget


def taken(budget: RetryBudget, now: float, tries: int = 1000) -> int:
    return sum(budget.take(now) for _ in range(tries))


def test_a_quiet_gateway_may_retry_so_many_times_a_second():
    assert taken(RetryBudget(share=0.2, per_s=10), 5.5) == 100


def test_a_busy_one_a_share_of_its_calls_besides():
    budget = RetryBudget(share=0.2, per_s=10)
    for k in range(1000):
        budget.count_call(100 + k / 100)
    assert taken(budget, 109.9) == 100 + 200


def test_without_an_allowance_the_share_alone_counts():
    budget = RetryBudget(share=0.02, per_s=0)
    assert not budget.take(7)
    for _ in range(100):
        budget.count_call(7)
    assert taken(budget, 7) == 2


def test_calls_and_retries_are_forgotten_after_ten_seconds():
    budget = RetryBudget(share=0.5, per_s=0)
    for _ in range(10):
        budget.count_call(3)
    assert taken(budget, 3) == 5
    assert taken(budget, 12.9) == 0
    assert taken(budget, 13) == 0  # the calls are forgotten too
    for _ in range(4):
        budget.count_call(13)
    assert taken(budget, 13) == 2


def test_a_clock_that_jumps_far_finds_nothing_of_before():
    budget = RetryBudget(share=1, per_s=0)
    budget.count_call(3)
    assert taken(budget, 1003) == 0
