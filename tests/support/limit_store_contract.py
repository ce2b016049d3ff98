"""What every store of limits must do. The tests of each store import these functions and give them a fixture `store`.

Buckets refill so slowly that a test sees nothing of it: three a minute is one in twenty seconds.
"""

import asyncio
import itertools
import random

from sluice.limits.base import Ask, Kind, LimitStore, Subject

_names = itertools.count(1)


def subject(name: str = "", **limits: int) -> Subject:
    """A subject that no test before has used."""
    id = name or f"tenant:t{next(_names)}"
    return Subject(id, id, "open", **limits)


def ask(*subjects: Subject, tokens: int = 10, gpu_ms: int = 0, id: str = "") -> Ask:
    return Ask(id or f"req-{next(_names)}", subjects, tokens, gpu_ms)


async def granted(store: LimitStore, asked: Ask) -> bool:
    return (await store.reserve(asked)).kind is None


async def test_requests_are_granted_up_to_the_limit_and_then_refused_with_the_wait(store: LimitStore):
    tenant = subject(rpm=3)
    answers = [await store.reserve(ask(tenant)) for _ in range(5)]

    assert [answer.kind for answer in answers] == [None, None, None, Kind.REQUESTS, Kind.REQUESTS]
    assert [answer.states[0].requests for answer in answers] == [2, 1, 0, 0, 0]
    assert 15 < answers[3].wait_s <= 20
    assert 55 < answers[3].states[0].requests_full_s <= 60
    assert answers[0].states[0].tokens == -1


async def test_tokens_are_reserved_by_estimate(store: LimitStore):
    tenant = subject(tpm=100)
    first, second, third = [await store.reserve(ask(tenant, tokens=40)) for _ in range(3)]

    assert (first.states[0].tokens, second.states[0].tokens) == (60, 20)
    assert third.kind is Kind.TOKENS and 11 < third.wait_s <= 12.1
    assert first.states[0].requests == -1


async def test_what_was_not_used_is_given_back_and_what_was_used_beyond_is_charged(store: LimitStore):
    tenant = subject(tpm=1000)
    less, more = ask(tenant, tokens=400), ask(tenant, tokens=100)
    await store.reserve(less)
    await store.reserve(more)
    store.settle(less, 30)
    store.settle(more, 500)

    assert (await settled(store, tenant)).tokens == 470


async def test_an_overshoot_delays_the_next_calls(store: LimitStore):
    tenant = subject(tpm=100)
    call = ask(tenant, tokens=10)
    await store.reserve(call)
    store.settle(call, 300)

    answer = await after_settlements(store, ask(tenant, tokens=10))
    assert answer.kind is Kind.TOKENS and 120 < answer.wait_s <= 126.1
    assert answer.states[0].tokens == 0


async def test_a_call_larger_than_the_limit_goes_when_the_bucket_is_full(store: LimitStore):
    tenant = subject(tpm=100)

    assert await granted(store, ask(tenant, tokens=250))
    answer = await store.reserve(ask(tenant, tokens=1))
    assert answer.kind is Kind.TOKENS and 88 < answer.wait_s <= 90.7


async def test_places_are_held_until_they_are_settled(store: LimitStore):
    tenant = subject(concurrency=2)
    one, two = ask(tenant), ask(tenant)
    assert await granted(store, one) and await granted(store, two)
    refused = await store.reserve(ask(tenant))
    assert refused.kind is Kind.CONCURRENCY and refused.wait_s == 1

    store.settle(one, 5)
    assert (await after_settlements(store, ask(tenant))).kind is None
    assert not await granted(store, ask(tenant))


async def test_a_budget_is_not_exceeded_and_waits_for_the_calendar(store: LimitStore):
    for kind, limits in (
        (Kind.TOKENS_DAY, {"tokens_per_day": 100}),
        (Kind.TOKENS_MONTH, {"tokens_per_month": 100}),
        (Kind.GPU_DAY, {"gpu_ms_per_day": 100}),
        (Kind.GPU_MONTH, {"gpu_ms_per_month": 100}),
    ):
        tenant = subject(**limits)
        assert await granted(store, ask(tenant, tokens=60, gpu_ms=60))
        refused = await store.reserve(ask(tenant, tokens=60, gpu_ms=60))
        assert refused.kind is kind
        assert 0 < refused.wait_s <= (86_400 if kind in (Kind.TOKENS_DAY, Kind.GPU_DAY) else 31 * 86_400)
        assert await granted(store, ask(tenant, tokens=40, gpu_ms=40))
        assert not await granted(store, ask(tenant, tokens=0, gpu_ms=0))


async def test_a_settlement_gives_the_budget_back_what_was_not_used(store: LimitStore):
    tenant = subject(tokens_per_day=100, gpu_ms_per_month=100)
    call = ask(tenant, tokens=100, gpu_ms=100)
    await store.reserve(call)
    store.settle(call, 20, 30)

    assert (await after_settlements(store, ask(tenant, tokens=81, gpu_ms=1))).kind is Kind.TOKENS_DAY
    assert (await store.reserve(ask(tenant, tokens=1, gpu_ms=71))).kind is Kind.GPU_MONTH
    assert await granted(store, ask(tenant, tokens=80, gpu_ms=70))


async def test_all_subjects_are_reserved_or_none(store: LimitStore):
    tenant, key = subject(rpm=10, tpm=1000), subject(rpm=1)
    assert await granted(store, ask(tenant, key))
    refused = await store.reserve(ask(tenant, key))

    assert (refused.kind, refused.by) == (Kind.REQUESTS, 1)
    assert refused.states[0].requests == 9 and refused.states[0].tokens == 990


async def test_the_limit_with_the_longest_wait_is_told(store: LimitStore):
    tenant = subject(rpm=60, tokens_per_day=10)
    await store.reserve(ask(tenant, tokens=10))

    assert (await store.reserve(ask(tenant, tokens=10))).kind is Kind.TOKENS_DAY


async def test_the_same_ask_again_is_granted_without_a_second_debit(store: LimitStore):
    tenant = subject(rpm=2, tpm=100, concurrency=1)
    call = ask(tenant)
    first, again = await store.reserve(call), await store.reserve(call)

    assert first.kind is again.kind is None
    assert again.states[0].requests == 1 and again.states[0].tokens == 90


async def test_a_second_settlement_does_nothing(store: LimitStore):
    tenant = subject(rpm=5, tpm=100, concurrency=5)
    call = ask(tenant)
    await store.reserve(call)
    store.settle(call, 30)
    store.settle(call, 30)
    store.abandon(call)
    store.withdraw(call)

    state = await settled(store, tenant)
    assert (state.requests, state.tokens) == (4, 70)


async def test_what_is_abandoned_keeps_its_debit_and_gives_its_place_back(store: LimitStore):
    tenant = subject(rpm=5, tpm=100, concurrency=1)
    call = ask(tenant, tokens=30)
    await store.reserve(call)
    store.abandon(call)

    state = await settled(store, tenant)
    assert (state.requests, state.tokens) == (4, 70)
    assert await granted(store, ask(tenant))


async def test_what_is_withdrawn_leaves_nothing_behind(store: LimitStore):
    tenant = subject(rpm=5, tpm=100, concurrency=1, tokens_per_day=100)
    call = ask(tenant, tokens=100)
    await store.reserve(call)
    store.withdraw(call)
    store.withdraw(ask(tenant))  # it was never reserved, as far as the store knows

    state = await settled(store, tenant)
    assert (state.requests, state.tokens) == (5, 100)
    assert await granted(store, ask(tenant, tokens=100))


async def test_names_that_look_like_keys_and_patterns_are_names(store: LimitStore):
    odd = subject("tenant:{a} *:\x7f ü", rpm=1)

    assert await granted(store, ask(odd))
    assert not await granted(store, ask(odd))


async def test_any_order_of_calls_leaves_what_a_plain_count_says(store: LimitStore):
    """A model beside the store: buckets that never refill, over random reservations, settlements and abandonments."""
    for seed in range(12):
        drawn = random.Random(seed)
        tenant = subject(rpm=drawn.randrange(3, 30), tpm=drawn.randrange(200, 2000), concurrency=drawn.randrange(1, 8))
        requests, tokens, running = tenant.rpm, tenant.tpm, []
        for _ in range(60):
            if running and drawn.random() < 0.5:
                call = running.pop(drawn.randrange(len(running)))
                used = drawn.choice([call.tokens, 0, drawn.randrange(0, 2 * call.tokens)])
                if drawn.random() < 0.2:
                    store.abandon(call)
                else:
                    store.settle(call, used)
                    tokens = min(tenant.tpm, tokens + call.tokens - used)
                continue
            call = ask(tenant, tokens=drawn.randrange(1, 120))
            fits = requests >= 1 and tokens >= min(call.tokens, tenant.tpm) and len(running) < tenant.concurrency
            answer = await after_settlements(store, call)
            assert (answer.kind is None) == fits, (seed, answer, requests, tokens, len(running))
            if fits:
                requests, tokens = requests - 1, tokens - call.tokens
                running.append(call)
            assert abs(answer.states[0].tokens - max(0, tokens)) <= tenant.tpm / 50, (seed, answer, tokens)
            assert answer.states[0].requests == requests
        for call in running:
            store.abandon(call)


async def after_settlements(store: LimitStore, asked: Ask):
    """The answer once all that was settled has arrived."""
    async with asyncio.timeout(60):
        await store.flush()
    return await store.reserve(asked)


async def settled(store: LimitStore, tenant: Subject):
    """What the tenant has left."""
    async with asyncio.timeout(60):
        await store.flush()
    probe = ask(Subject(tenant.id, tenant.id, "open", tenant.rpm, tenant.tpm), tokens=0)
    answer = await store.reserve(probe)
    store.withdraw(probe)
    async with asyncio.timeout(60):
        await store.flush()
    state = answer.states[0]
    state.requests += (answer.kind is None) * (tenant.rpm > 0)
    return state
