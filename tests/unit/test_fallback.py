"""A call that no worker of its route can take, and the route that takes it instead."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import orjson
import pytest

from sluice.errors import GatewayError, WorkerFull, WorkerUnavailable
from sluice.gateway import Exchanging, Gateway
from sluice.types import Call
from sluice.wire.requests import MAX_REREAD_BYTES
from tests.support import scripts
from tests.support.scripted_worker import ScriptedWorker
from tests.unit.hot_path import CHAT, Line, now


@asynccontextmanager
async def two_routes() -> AsyncIterator[tuple[Gateway, Line, ScriptedWorker, ScriptedWorker]]:
    """The route smollm2 with one worker, which falls back to `spare` with another, that calls its model `small`."""
    async with ScriptedWorker() as one, ScriptedWorker(model="small") as other:
        async with Line(one, fallback="spare") as here, Line(other, served_model="small") as spare:
            yield Gateway({"smollm2": here.served, "spare": spare.served}, now), here, one, other


async def answer(gateway: Gateway, call: Call) -> tuple[bytes, Exchanging]:
    exchanging = gateway.exchange(call)
    async with exchanging as exchange:
        out = bytearray(exchange.body + exchange.first)
        if call.stream:
            await exchange.pipe(out.extend)
            out += exchange.last
    return bytes(out), exchanging


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("why", ["full", "away", "ill"])
async def test_another_route_takes_what_this_one_cannot(why, stream):
    async with two_routes() as (gateway, here, one, other):
        if why == "full":
            one.on(CHAT, scripts.queue_full())
        elif why == "away":
            await one.stop()
        else:
            here.workers[0].judge(is_healthy=False)
        body, exchanging = await answer(gateway, here.call(stream=stream))
        assert b"Hello" in body and b'"model":"smollm2"' in body and b'"model":"small"' not in body
        assert exchanging.fell_back and exchanging.worker is not None and exchanging.worker.url == other.url
        [request] = other.requests
        assert request.json()["model"] == "small"
        assert request.json()["messages"] == [{"role": "user", "content": "Say hi"}]


async def test_a_worker_that_may_have_computed_is_no_reason():
    async with two_routes() as (gateway, here, one, other):
        one.on(CHAT, scripts.vllm_error(500))
        with pytest.raises(GatewayError):
            await answer(gateway, here.call())
        assert not other.requests


async def test_where_the_other_one_cannot_either_its_word_is_told():
    async with two_routes() as (gateway, here, one, other):
        here.workers[0].judge(is_healthy=False)
        other.on(CHAT, scripts.queue_full())
        with pytest.raises(WorkerFull):
            await answer(gateway, here.call())


@pytest.mark.parametrize("why", ["pinned", "stamped", "large"])
async def test_some_calls_stay(why):
    async with two_routes() as (gateway, here, one, other):
        here.workers[0].judge(is_healthy=False)
        call = here.call()
        if why == "pinned":
            call = replace(call, pinned_worker=one.url)
        elif why == "stamped":
            call = replace(call, stamp=lambda url: b"{}")
        else:
            call = replace(call, body=(orjson.dumps({"model": "smollm2", "messages": []}), b" " * MAX_REREAD_BYTES))
        with pytest.raises(WorkerUnavailable):
            await answer(gateway, call)
        assert not other.requests


async def test_a_call_that_its_route_can_take_stays():
    async with two_routes() as (gateway, here, one, other):
        _, exchanging = await answer(gateway, here.call())
        assert not exchanging.fell_back and not other.requests
