"""The clients of the overload study, and what is reckoned from what they see."""

import asyncio
import json
import math
import os

import pytest

from loadtest.overload.client import Crowd, Result, Shape, firsts, quantile, watch_livez
from loadtest.overload.study import Study, _goodput, resident_mib
from tests.support import scripts
from tests.support.scripted_worker import ScriptedWorker
from tests.unit.hot_path import CHAT, until

SHAPE = Shape(prompt_tokens=8, answer_tokens=4, timeout_ms=500)


def a_result(*, first_s: float | None = 0.1, done_s: float = 1.0, status: int = 200, tokens: int = 10, retry: float = 2.0):
    return Result("a", 0.0, status, first_s, done_s, status == 200, tokens * (status == 200), retry)


async def test_a_call_is_seen_from_its_first_event_to_its_end():
    async with ScriptedWorker() as worker:
        crowd = Crowd("smollm2", [worker.url], {"acme": "sk-1"})
        result = await crowd.ask("acme", SHAPE)
        assert (result.who, result.status, result.is_whole) == ("acme", 200, True)
        assert 2 <= result.answer_tokens <= 6 and 0 < (result.first_s or 0) <= result.done_s
        [request] = worker.calls(CHAT)
        asked = request.json()
        assert request.header("authorization") == "Bearer sk-1" and request.header("x-request-timeout-ms") == "500"
        assert asked["max_tokens"] == asked["min_tokens"] == result.answer_tokens and asked["stream"] is True


def test_a_call_that_retrieves_names_the_store_of_its_tenant_at_that_gateway():
    crowd = Crowd("smollm2", [], {"acme": "sk-1"})
    crowd.stores = {("http://a:1", "acme"): "vs_1", ("http://b:2", "acme"): "vs_2"}
    for (url, _), store in crowd.stores.items():
        head, _, body = crowd._request("acme", Shape(8, 4, searches=True), 4, 1, url).partition(b"\r\n\r\n")
        [tool] = json.loads(body)["tools"]
        assert (tool["type"], tool["vector_store_ids"]) == ("file_search", [store])
        assert f"host: {url[7:]}\r\n" in head.decode()


async def test_a_cut_stream_is_not_whole_and_a_refusal_says_when_to_come_back():
    async with ScriptedWorker() as worker:
        refusal = scripts.reply(429, {"error": "full"}, headers=[("Retry-After-Ms", "1500"), ("connection", "close")])
        worker.on(CHAT, scripts.chat_stream(after=1, ending="reset"), refusal)
        crowd = Crowd("smollm2", [worker.url], {"acme": "sk-1"})
        cut, refused = await crowd.ask("acme", SHAPE), await crowd.ask("acme", SHAPE)
        assert not cut.is_whole and cut.answer_tokens == 0
        assert (refused.status, refused.retry_after_s, refused.first_s) == (429, 1.5, None)
        await worker.stop()
        assert (await crowd.ask("acme", SHAPE)).status == 0


async def test_gateways_are_asked_in_turn_and_a_crowd_does_not_wait_for_answers():
    async with ScriptedWorker() as one, ScriptedWorker() as two:
        crowd = Crowd("smollm2", [one.url, two.url], {"acme": "sk-1"})
        results = await crowd.poisson("acme", SHAPE, rate=200, seconds=0.1)
        assert len(results) == len(one.calls(CHAT)) + len(two.calls(CHAT))
        assert abs(len(one.calls(CHAT)) - len(two.calls(CHAT))) <= 1
        again = await crowd.closed("acme", SHAPE, clients=2, seconds=0.05)
        assert len(again) >= 2 and all(result.is_whole for result in again)


async def test_livez_is_asked_until_it_is_enough():
    async with ScriptedWorker() as worker:
        worker.on("/livez", *[scripts.reply(200, b"ok\n", headers=[("connection", "close")])] * 100)
        seen: list[float] = []
        watching = asyncio.create_task(watch_livez([worker.url], seen, every_s=0))
        await until(lambda: len(seen) >= 3)
        watching.cancel()
        with pytest.raises(asyncio.CancelledError):
            await watching
        assert all(took > 0 for took in seen)


def test_quantiles_and_first_tokens():
    assert quantile([3, 1, 2], 0.5) == 2 and quantile([1, 2], 0.99) == 2 and math.isnan(quantile([], 0.5))
    assert firsts([a_result(), a_result(first_s=None), a_result(first_s=0.3)], lambda one: one.first_s != 0.3) == [0.1]


def test_only_calls_within_their_time_are_goodput():
    begun = a_result(done_s=1.0)  # before as many end as begin
    seen = [begun, a_result(done_s=7.0), a_result(done_s=11.0), a_result(done_s=8.5), a_result(status=429, done_s=7.0)]
    assert _goodput(seen, 8.0) == 10 / 2
    assert 1 < resident_mib(os.getpid()) < 10_000


def judged(**change: object) -> dict[str, bool | None]:
    study = Study(Crowd("m", [], {}), [], [], {}, 1.0, lambda line: None)
    seen = {"goodput": {1.0: 100.0, 3.0: 97.0}, "livez": [0.01], "memory": (50.0, 51.0), "shed_s": 0.02} | change
    results = [a_result(), a_result(status=429, done_s=float(str(seen["shed_s"])))]
    study._judge(seen["goodput"], results, seen["livez"], seen["memory"])  # type: ignore[arg-type]
    return {figure.name: figure.is_met for figure in study.figures if figure.is_met is not None}


def test_a_bar_that_is_missed_is_seen():
    assert set(judged().values()) == {True}
    for change, name in (
        ({"goodput": {1.0: 100.0, 3.0: 90.0}}, "goodput at 3 C"),
        ({"shed_s": 0.04}, "p99 of a shed answer"),
        ({"memory": (50.0, 60.0)}, "memory of the gateways"),
    ):
        missed = [found for found, is_met in judged(**change).items() if not is_met]
        assert len(missed) == 1 and missed[0].startswith(name)
