"""The store in Redis, on a real server: the contract of all stores, what becomes of it when the server does not do as it
should, and that a gateway that died holds nothing for long.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace

import pytest

from sluice.limits import redis as module
from sluice.limits.base import Kind, StoreAway
from sluice.limits.redis import RedisStore
from tests.support.limit_store_contract import *  # noqa: F403
from tests.support.limit_store_contract import after_settlements, ask, granted, settled, subject
from tests.support.redis_server import RedisServer, find_redis

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(find_redis() is None, reason="NO redis-server HERE: nothing of the store in Redis is tested"),
]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with RedisServer(tmp_path_factory.mktemp("redis")) as running:
        yield running


@asynccontextmanager
async def storing(server: RedisServer, replica: str = "one", timeout_s: float = 10.0) -> AsyncIterator[RedisStore]:
    store = RedisStore(server.url, timeout_s=timeout_s, replica=replica)
    task = asyncio.create_task(store.run())
    try:
        yield store
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


@pytest.fixture
async def store(server: RedisServer) -> AsyncIterator[RedisStore]:
    async with storing(server) as running:
        yield running


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110 - what happens in the server or the background tells no event
            await asyncio.sleep(0.01)


async def test_two_gateways_grant_together_what_the_limit_says(server: RedisServer):
    tenant = subject(rpm=500)
    async with storing(server, "one") as one, storing(server, "two") as two:
        answers = []
        for _ in range(20):
            answers += await asyncio.gather(*(store.reserve(ask(tenant)) for store in [one, two] * 20))

    refilled = 500 * 20 / 60  # were the machine that slow
    num_granted = sum(answer.kind is None for answer in answers)
    assert 500 <= num_granted < 500 + refilled
    assert min(answer.states[0].requests for answer in answers) == 0


async def test_gateways_know_how_many_they_are(server: RedisServer):
    async with storing(server, "three") as three:
        await until(lambda: server.say("ZSCORE", "{sluice}:replicas", "three") not in (b"", b"$-1"))
        async with storing(server, "four") as four:
            await until(lambda: four.num_replicas > three.num_replicas or four.num_replicas >= 2)


async def test_what_was_used_while_the_server_knew_nothing_of_it_is_charged_in_full_and_once(store: RedisStore):
    tenant = subject(rpm=10, tpm=1000)
    call = ask(tenant, tokens=100)
    store.settle(call, 250)
    store.settle(call, 250)

    state = await settled(store, tenant)
    assert (state.requests, state.tokens) == (9, 750)
    assert await granted(store, call)  # a reservation that comes late finds it settled, and takes nothing
    assert (await settled(store, tenant)).tokens == 750


async def test_scripts_that_the_server_has_forgotten_are_loaded_again(server: RedisServer, store: RedisStore):
    tenant = subject(rpm=5)
    assert await granted(store, ask(tenant))
    server.say("SCRIPT", "FLUSH")
    call = ask(tenant)
    assert await granted(store, call)
    server.say("SCRIPT", "FLUSH")
    store.withdraw(call)
    assert (await after_settlements(store, ask(tenant))).states[0].requests == 3


async def test_a_lease_is_renewed_while_its_gateway_lives_and_expires_when_it_does_not(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(module, "LEASE_MS", 4000)
    monkeypatch.setattr(module, "RENEW_S", 0.4)
    tenant = subject(concurrency=1)
    dead = RedisStore(server.url, timeout_s=1.0, replica="dead")  # its background never runs
    async with storing(server, "living") as living, storing(server, "other") as other:
        assert await granted(living, ask(tenant))
        await asyncio.sleep(5)
        assert not await granted(other, ask(tenant))

        second = subject(concurrency=1)
        assert await granted(dead, ask(second))
        assert not await granted(other, ask(second))
        async with asyncio.timeout(60):
            while not await granted(other, ask(second)):  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        await dead._redis.aclose()


async def test_a_server_that_was_killed_is_noticed_at_once_and_so_is_its_return(tmp_path):
    with RedisServer(tmp_path) as server:
        async with storing(server) as store:
            tenant = subject(rpm=5, concurrency=5)
            running = ask(tenant)
            assert await granted(store, running)
            server.kill()
            for refused in (ask(tenant), ask(tenant)):
                with pytest.raises(StoreAway):
                    await store.reserve(refused)
                store.withdraw(refused)
                assert store.is_away
            passed = ask(tenant)
            store.settle(passed, 7)

            server.start()
            await until(lambda: not store.is_away)
            answer = await after_settlements(store, ask(tenant))
            assert answer.kind is Kind.REQUESTS and 12 <= answer.wait_s <= 24  # empty, and that of the outage was charged
            assert server.say("ZCARD", "{sluice}:leases:" + tenant.id) == b":1"  # the one that ran on has its place again
            assert store.num_lost == 0


async def test_where_nobody_may_pass_unchecked_a_server_that_has_lost_its_books_begins_with_empty_buckets(tmp_path):
    with RedisServer(tmp_path) as server:
        async with storing(server) as store:
            closed = replace(subject(rpm=60), fail="closed")
            refused = await store.reserve(ask(closed))
            assert refused.kind is Kind.REQUESTS and 0 < refused.wait_s <= 1
            assert await granted(store, ask(subject(rpm=60)))
            server.say("SET", "{sluice}:since", '"0 new"')
            assert (await store.reserve(ask(closed))).states[0].requests == 59


async def test_a_server_that_hangs_holds_a_call_no_longer_than_the_time_out_and_then_not_at_all(tmp_path):
    with RedisServer(tmp_path) as server:
        async with storing(server, timeout_s=1.0) as store:
            tenant = subject(rpm=50)
            assert await granted(store, ask(tenant))
            server.freeze()
            assert not store.is_away
            asked = []
            for _ in range(module.MAX_SLOW):
                if store.is_away:  # its own renewals hang too, and may have been what told it
                    break
                pair = [ask(tenant), ask(tenant)]
                asked += pair
                began = time.monotonic()
                results = await asyncio.gather(*map(store.reserve, pair), return_exceptions=True)
                assert all(isinstance(result, StoreAway) for result in results)
                assert time.monotonic() - began < 15
            await until(lambda: store.is_away)
            with pytest.raises(StoreAway):
                await store.reserve(ask(tenant))
            for call in asked:
                store.withdraw(call)

            server.thaw()
            await until(lambda: not store.is_away)
            answer = await after_settlements(store, ask(tenant))
            assert answer.states[0].requests in (48, 49)  # a little has flowed in; what it executed late was taken back


async def test_a_gateway_that_ends_settles_first(server: RedisServer):
    tenant = subject(tpm=1000)
    async with storing(server, "ending") as ending:
        calls = [ask(tenant, tokens=1) for _ in range(300)]
        await asyncio.gather(*map(ending.reserve, calls))
        for call in calls:
            ending.settle(call, 3)
    async with storing(server, "next") as following:
        assert 95 <= (await settled(following, tenant)).tokens <= 110  # 900 used; a little has flowed in


@pytest.mark.parametrize(
    "said", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"$3\r\nyes\r\n" * 9, b"-OOM no memory\r\n" * 9, b":1\r\n" * 9]
)
async def test_what_does_not_answer_as_redis_does_is_away(said: bytes):
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while await reader.read(65_536):
                writer.write(said * 9)
        writer.close()

    listener = await asyncio.start_server(answer, "127.0.0.1", 0)
    port = listener.sockets[0].getsockname()[1]
    store = RedisStore(f"redis://127.0.0.1:{port}/0", timeout_s=0.3, replica="one")
    for _ in range(module.MAX_SLOW):
        with pytest.raises(StoreAway):
            await store.reserve(ask(subject(rpm=5)))
    assert store.is_away
    await store._redis.aclose()
    listener.close()
