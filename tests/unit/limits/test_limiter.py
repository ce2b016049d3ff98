"""What clients are told of their limits, and what limits do while the store is away."""

import asyncio
from typing import Any

import pytest

from sluice.config import LimitsSettings
from sluice.errors import BudgetSpent, LimitsAway, RateLimited
from sluice.limits.base import Answer, Ask, StoreAway
from sluice.limits.limiter import Limiter, Reservation, duration
from sluice.limits.memory import MemoryStore
from sluice.limits.rules import Rules
from sluice.types import Call, Endpoint, Tenant

ACME = Tenant("acme", "k1")


class AwayStore:
    """A store that cannot be asked; it notes what it will have to be told."""

    is_away = True
    num_lost = 0

    def __init__(self, num_replicas: int = 1) -> None:
        self.num_replicas = num_replicas
        self.told: list[tuple[str, str, int]] = []
        self.waits = False

    async def reserve(self, ask: Ask) -> Answer:
        if self.waits:
            await asyncio.Event().wait()
        raise StoreAway

    def settle(self, ask: Ask, tokens: int, gpu_ms: int = 0) -> None:
        self.told.append(("settle", ask.id, tokens))

    def abandon(self, ask: Ask) -> None:
        self.told.append(("abandon", ask.id, 0))

    def withdraw(self, ask: Ask) -> None:
        self.told.append(("withdraw", ask.id, 0))

    async def run(self) -> None:
        return

    async def flush(self) -> None:
        return


def memory() -> MemoryStore:
    return MemoryStore(lambda: 100.0, lambda: 1_800_000_000.0)


def limiter(store: Any = None, **default: Any) -> Limiter:
    rules = Rules(LimitsSettings.model_validate({"default": default} if default else {}))
    fallback = memory()
    return Limiter(rules, store or fallback, fallback)


def reservation(limits: Limiter, id: str = "req-1", tokens: int = 40, user: str = "") -> Reservation:
    return limits.reservation(
        Call(id, ACME, "llama", Endpoint.CHAT, "/", prompt_tokens=tokens // 2, output_tokens=tokens - tokens // 2, user=user)
    )


def told(reserved: Reservation) -> dict[str, str]:
    return {name.decode(): value.decode() for name, value in reserved.headers}


@pytest.mark.parametrize(
    "seconds, said",
    [
        *((0, "0ms"), (0.0004, "1ms"), (0.012, "12ms"), (1, "1s"), (1.5, "1.5s"), (59.9999, "1m0s")),
        *((-1, "0ms"), (360, "6m0s"), (61.25, "1m1.25s"), (3600, "1h0m0s"), (90_061, "25h1m1s")),
    ],
)
def test_durations_are_written_as_openai_writes_them(seconds: float, said: str):
    assert duration(seconds).decode() == said


async def test_what_is_not_limited_costs_nothing_and_says_nothing():
    limits = limiter()
    one, two = reservation(limits), reservation(limits)
    async with one:
        one.spend(5)
    assert one is two and one.headers == []


async def test_the_answer_says_what_is_left_of_the_tightest_limits():
    limits = limiter(rpm=60, tpm=6000, per_key={"rpm": 10}, routes={"llama": {"tpm": 60_000}})
    async with reservation(limits) as reserved:
        assert told(reserved) == {
            "x-ratelimit-limit-requests": "10",
            "x-ratelimit-remaining-requests": "9",
            "x-ratelimit-reset-requests": "6s",
            "x-ratelimit-limit-tokens": "6000",
            "x-ratelimit-remaining-tokens": "5960",
            "x-ratelimit-reset-tokens": "400ms",
        }


async def test_a_call_is_charged_what_it_has_spent_and_one_that_never_began_only_its_request():
    limits = limiter(rpm=60, tpm=6000)
    async with reservation(limits, "a") as reserved:
        reserved.spend(500)
    async with reservation(limits, "b"):
        pass
    async with reservation(limits, "c", tokens=0) as last:
        assert told(last)["x-ratelimit-remaining-tokens"] == "5500"
        assert told(last)["x-ratelimit-remaining-requests"] == "57"


async def test_a_refusal_says_who_may_do_what_and_when_to_come_back():
    limits = limiter(rpm=2)
    async with reservation(limits, "a"), reservation(limits, "b"):
        with pytest.raises(RateLimited) as caught:
            await reservation(limits, "c").__aenter__()
    error = caught.value
    assert error.message == "Rate limit reached for tenant acme: 2 requests per minute. Try again in 30s."
    headers = dict(error.headers())
    assert (error.code, error.status, headers["x-should-retry"]) == ("rate_limit_exceeded", 429, "true")
    assert (headers["retry-after"], headers["retry-after-ms"]) == ("30", "30000")
    assert (headers["x-ratelimit-remaining-requests"], headers["x-ratelimit-reset-requests"]) == ("0", "1m0s")
    assert sum(limits.num_refused.values()) == 1


async def test_a_spent_budget_is_not_worth_waiting_for():
    limits = limiter(tokens_per_day=50)
    async with reservation(limits, "a") as reserved:
        reserved.spend(50)
    with pytest.raises(BudgetSpent, match="The budget of tenant acme is used up: 50 tokens a day. It is renewed in 16h0m0s."):
        await reservation(limits, "b").__aenter__()


async def test_persons_have_their_own_and_nobody_else_is_told_their_name():
    limits = limiter(per_user={"rpm": 1})
    async with reservation(limits, "a", user="ada"), reservation(limits, "b", user="bob"):
        with pytest.raises(RateLimited, match="Rate limit reached for this user: 1 requests"):
            await reservation(limits, "c", user="ada").__aenter__()


async def test_open_limits_let_pass_without_the_store_say_so_and_are_charged_later():
    store = AwayStore()
    limits = limiter(store, rpm=1, fail="open")
    for id in ("a", "b"):
        async with reservation(limits, id) as reserved:
            assert told(reserved) == {"x-sluice-limits": "open"}
            reserved.spend(7)
    assert store.told == [("settle", "a", 7), ("settle", "b", 7)]
    assert limits.num_without_store["open"] == 2


async def test_closed_limits_refuse_without_the_store_and_say_so():
    store = AwayStore()
    limits = limiter(store, rpm=1, fail="closed", per_key={"rpm": 5, "fail": "open"})
    with pytest.raises(LimitsAway) as caught:
        await reservation(limits, "a").__aenter__()
    assert ("x-sluice-limits", "closed, open") in caught.value.headers()
    assert caught.value.code == "server_overloaded" and caught.value.retryable
    assert store.told == [("withdraw", "a", 0)]


async def test_local_limits_count_this_gateways_part_without_the_store():
    store = AwayStore(num_replicas=3)
    limits = limiter(store, rpm=6, fail="local")
    for id in ("a", "b"):
        async with reservation(limits, id) as reserved:
            assert told(reserved)["x-sluice-limits"] == "local"
            assert told(reserved)["x-ratelimit-limit-requests"] == "2"
    with pytest.raises(RateLimited):
        await reservation(limits, "c").__aenter__()
    assert store.told == [("settle", "a", 0), ("settle", "b", 0), ("withdraw", "c", 0)]


async def test_a_call_that_ends_while_the_store_is_asked_takes_back_what_it_asked_for():
    store = AwayStore()
    store.waits = True
    task = asyncio.create_task(reservation(limiter(store, rpm=1), "a").__aenter__())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert store.told == [("withdraw", "a", 0)]
