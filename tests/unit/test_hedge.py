"""A second copy of a call whose first event is late: when there is one, which of the two is taken, and what is let go."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from sluice.errors import GatewayError
from sluice.exchange import Exchange
from sluice.gateway import Exchanging
from sluice.hedge import MIN_SAMPLES, FirstEvents
from sluice.worker import EngineLoad
from tests.support import scripts
from tests.support.scripted_worker import ScriptedWorker
from tests.unit.hot_path import CHAT, PATIENCE_S, Line, line, now, until

LATE_S = 0.05
ON = {"enabled": True, "max_percent": 10}


def test_late_is_later_than_nearly_all_others_with_such_prompts():
    times = FirstEvents()
    for k in range(100):
        assert (times.late_s(1000) is None) is (k < MIN_SAMPLES)
        times.learn(600 + k, k / 100)
    assert times.late_s(1000) == 0.95
    assert times.late_s(2000) is None
    for _ in range(200):
        times.learn(1000, 3.0)
    assert times.late_s(1000) == 3.0


@asynccontextmanager
async def hedged(num_workers: int = 2, **settings: object) -> AsyncIterator[tuple[Line, *tuple[ScriptedWorker, ...]]]:
    """A line that knows what is late, has had enough calls for one copy, and workers that are known to be idle."""
    async with line(num_workers, hedge=ON, **settings) as (here, *workers):
        assert here.hedging is not None
        for _ in range(MIN_SAMPLES):
            here.hedging.first_events.learn(0, LATE_S)
            here.hedging.count_call(now())
        for worker in here.workers:
            worker.load = EngineLoad(read_at=now())
        yield here, *workers


async def read(line: Line) -> tuple[bytes, Exchanging]:
    out = bytearray()
    exchanging = line.gateway.exchange(line.call(stream=True, prompt_tokens=0))
    async with asyncio.timeout(PATIENCE_S), exchanging as exchange:
        out += exchange.first
        await exchange.pipe(out.extend)
        out += exchange.last
    await calm(line)
    return bytes(out), exchanging


async def calm(line: Line) -> None:
    assert line.pool.in_flight == 0
    await until(lambda: asyncio.all_tasks() == {asyncio.current_task()} or bool(line.settings))


async def test_a_call_in_time_is_sent_once():
    async with hedged() as (here, one, two):
        _, exchanging = await read(here)
        assert (exchanging.hedge, exchanging.attempts, exchanging.tokens_wasted) == (None, 1, 0)
        assert not two.requests


async def test_a_late_call_is_sent_to_another_worker_and_the_late_one_is_cancelled():
    async with hedged() as (here, one, two):
        one.on(CHAT, scripts.never_answers())
        body, exchanging = await read(here)
        assert b"Hello" in body
        assert (exchanging.hedge, exchanging.attempts, exchanging.worker) == ("copy", 2, here.workers[1])
        await one.wait_aborted(1)


async def test_the_late_one_may_still_be_first():
    gate = asyncio.Event()
    async with hedged() as (here, one, two):
        one.on(CHAT, scripts.chat_stream(gates={0: gate}))
        two.on(CHAT, scripts.never_answers())
        reading = asyncio.create_task(read(here))
        await two.wait_requests(1)
        gate.set()
        body, exchanging = await reading
        assert b"Hello" in body
        assert (exchanging.hedge, exchanging.worker) == ("first", here.workers[0])
        await two.wait_aborted(1)


async def test_where_one_fails_the_other_is_waited_for():
    gate = asyncio.Event()
    async with hedged() as (here, one, two):
        one.on(CHAT, scripts.chat_stream(gates={0: gate}))
        two.on(CHAT, scripts.vllm_error(500))
        reading = asyncio.create_task(read(here))
        await until(lambda: here.workers[1].ejection.num_failures or not two.requests)
        await two.wait_requests(1)
        gate.set()
        body, exchanging = await reading
        assert b"Hello" in body and exchanging.worker is here.workers[0]
        assert here.workers[1].ejection.num_failures


async def test_where_both_fail_a_third_one_is_asked():
    async with hedged(3) as (here, one, two, three):
        here.workers[2].load = None  # so that it gets no copy
        gate = asyncio.Event()

        async def fail_late(request: object, connection: object) -> None:
            await gate.wait()
            await scripts.vllm_error(500)(request, connection)  # type: ignore[arg-type]

        one.on(CHAT, fail_late)
        two.on(CHAT, scripts.vllm_error(500))
        reading = asyncio.create_task(read(here))
        await two.wait_requests(1)
        gate.set()
        body, exchanging = await reading
        assert b"Hello" in body and exchanging.worker is here.workers[2]


@pytest.mark.parametrize(
    "load", [None, EngineLoad(num_waiting=1)], ids=["a worker whose load is unknown", "a worker with a queue"]
)
async def test_no_copy_goes_to(load):
    gate = asyncio.Event()
    async with hedged() as (here, one, two):
        here.workers[1].load = load
        one.on(CHAT, scripts.chat_stream(gates={0: gate}))
        reading = asyncio.create_task(read(here))
        await one.wait_requests(1)
        await asyncio.sleep(LATE_S * 3)
        gate.set()
        assert (await reading)[1].hedge is None
        assert not two.requests


async def test_copies_are_few():
    async with hedged() as (here, one, two):
        one.on(CHAT, scripts.never_answers())
        num_copies = 0
        for _ in range(2):  # 21 and 22 calls allow for two
            num_copies += (await read(here))[1].hedge == "copy"
        assert num_copies == 2
        reading = asyncio.create_task(read(here))
        await one.wait_requests(3)
        await asyncio.sleep(LATE_S * 3)
        assert len(two.requests) == 2
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)
        assert here.pool.in_flight == 0


@pytest.mark.parametrize("num_asked", [1, 2])
async def test_a_client_that_leaves_takes_both_with_it(num_asked):
    async with hedged() as (here, one, two):
        one.on(CHAT, scripts.never_answers())
        two.on(CHAT, scripts.never_answers())
        reading = asyncio.create_task(read(here))
        await [one, two][num_asked - 1].wait_requests(1)
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        assert here.pool.in_flight == 0
        await one.wait_aborted(1)
        await two.wait_aborted(num_asked - 1)


async def test_a_whole_answer_has_no_copy():
    async with hedged() as (here, one, two):
        gate = asyncio.Event()
        one.on(CHAT, scripts.reply(200, {"choices": []}, gate=gate))

        async def whole() -> Exchange:
            async with here.gateway.exchange(here.call()) as exchange:
                return exchange

        reading = asyncio.create_task(whole())
        await one.wait_requests(1)
        await asyncio.sleep(LATE_S * 3)
        gate.set()
        await reading
        assert not two.requests


async def test_what_the_client_did_wrong_is_told_by_whoever_says_it_first():
    async with hedged(1) as (here, one):
        one.on(CHAT, scripts.vllm_error(400))
        with pytest.raises(GatewayError):
            await read(here)
        assert here.pool.in_flight == 0
