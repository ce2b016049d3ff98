"""The store in memory: the contract of all stores, and time, which here is a clock of the test's."""

from datetime import UTC, datetime

import pytest

from sluice.limits.base import Kind
from sluice.limits.memory import MAX_IDLE_BOOKS, MemoryStore
from tests.support.limit_store_contract import *  # noqa: F403
from tests.support.limit_store_contract import ask, granted, subject


class Clock:
    def __init__(self, time: float) -> None:
        self.time = time

    def __call__(self) -> float:
        return self.time


NEW_YEARS_EVE = datetime(2026, 12, 31, 23, 59, tzinfo=UTC).timestamp()


@pytest.fixture
def clock() -> Clock:
    return Clock(1000.0)


@pytest.fixture
def wall_clock() -> Clock:
    return Clock(NEW_YEARS_EVE)


@pytest.fixture
def store(clock: Clock, wall_clock: Clock) -> MemoryStore:
    return MemoryStore(clock, wall_clock)


async def test_buckets_fill_up_steadily_and_no_further_than_their_limit(store: MemoryStore, clock: Clock):
    tenant = subject(rpm=60, tpm=600)
    for _ in range(60):
        assert await granted(store, ask(tenant, tokens=10))
    clock.time += 1.5
    answer = await store.reserve(ask(tenant, tokens=10))
    assert answer.states[0].requests == 0 and answer.states[0].requests_full_s == pytest.approx(59.5)
    assert (await store.reserve(ask(tenant, tokens=10))).wait_s == pytest.approx(0.5)

    clock.time += 3600
    assert (await store.reserve(ask(tenant, tokens=10))).states[0].requests == 59


async def test_over_any_time_no_more_is_granted_than_a_full_bucket_and_its_flow(store: MemoryStore, clock: Clock):
    tenant = subject(rpm=100)
    num_granted = 0
    for _ in range(10_000):
        num_granted += await granted(store, ask(tenant, tokens=0))
        clock.time += 0.03

    assert num_granted == 100 + 500 - 1  # 300 s at 100 a minute; the last one is not full yet


async def test_a_day_and_a_month_begin_with_full_budgets(store: MemoryStore, clock: Clock, wall_clock: Clock):
    tenant = subject(tokens_per_day=100, tokens_per_month=170)
    late = ask(tenant, tokens=100)
    assert await granted(store, late)
    refused = await store.reserve(ask(tenant, tokens=1))
    assert refused.kind is Kind.TOKENS_DAY and refused.wait_s == 60

    wall_clock.time += 60
    store.settle(late, 130)  # begun last year: only the excess is this year's
    assert await granted(store, ask(tenant, tokens=70))
    assert (await store.reserve(ask(tenant, tokens=1))).wait_s == 86_400

    wall_clock.time += 86_400
    assert await granted(store, ask(tenant, tokens=70))
    refused = await store.reserve(ask(tenant, tokens=1))
    assert refused.kind is Kind.TOKENS_MONTH and refused.wait_s == 30 * 86_400


async def test_subjects_that_have_nothing_to_remember_are_forgotten(store: MemoryStore, clock: Clock):
    busy, spent = subject(rpm=2, concurrency=1), subject(tokens_per_day=5)
    assert await granted(store, ask(busy, spent, tokens=5))
    for n in range(MAX_IDLE_BOOKS - 2):
        call = ask(subject(f"user:{n}", rpm=5))
        await store.reserve(call)
        store.settle(call, 0)
    clock.time += 120
    await store.reserve(ask(subject(rpm=1)))

    assert repr(store) == "<MemoryStore [3 books, 2 open]>"
    assert not await granted(store, ask(busy)) and not await granted(store, ask(spent, tokens=1))
