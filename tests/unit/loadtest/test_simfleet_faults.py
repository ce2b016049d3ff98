"""Each fault as a client of the worker sees it."""

import asyncio
import json
from typing import Any

import httpx
import pytest

from loadtest.simfleet.faults import BadOrder, parse_chaos, parse_order, parse_words
from loadtest.simfleet.fleet import Fleet
from tests.unit.loadtest.simfleet_client import ASK, FOREVER, client, events, fleet, order, text_of, until, unverified


async def control(running: Fleet, path: str = "/sim/fault", **members: Any) -> dict[str, Any]:
    async with unverified() as http:
        return (await http.post(running.control_url + path, json=members)).json()  # type: ignore[no-any-return]


async def test_a_killed_worker_resets_its_streams_and_comes_back_empty() -> None:
    async with fleet() as running, client(running) as http:
        before = await text_of(http, ASK)
        stream = events(http, FOREVER)
        await anext(stream)
        assert await control(running, kind="kill", worker=0, for_s=10.0) == {"ordered": "kill", "workers": [0]}
        with pytest.raises(httpx.ReadError):
            async for _ in stream:
                pass
        with pytest.raises(httpx.ConnectError):
            await http.get("/health")
        await until(running, state="up", num_starts=2)
        assert running.workers[0].engine.cache.match([1]) == 0
        assert await text_of(http, ASK) == before


async def test_a_killed_worker_stays_away_until_it_is_restarted() -> None:
    async with fleet() as running, client(running) as http:
        await order(http, kind="kill", how="close")
        await until(running, state="down")
        await control(running, kind="restart", worker=0)
        await until(running, state="up", num_starts=2)


async def test_a_stalled_worker_sends_nothing_but_keeps_its_sockets() -> None:
    async with fleet() as running, client(running) as http:
        stream = events(http, FOREVER)
        await anext(stream)
        await order(http, kind="stall")
        await until(running, faults=["stall"])
        made = running.state()["workers"][0]["generation_tokens"]
        assert (await http.get("/health")).status_code == 200
        for _ in range(20):  # in which it would have made hundreds of tokens
            assert (await http.get("/version")).status_code == 200
        assert running.state()["workers"][0]["generation_tokens"] == made
        await order(http, kind="clear")
        rest = [event async for event in stream]
    assert rest[-1] == "[DONE]"


async def test_a_stall_ends_by_itself() -> None:
    async with fleet() as running, client(running) as http:
        await order(http, kind="stall", for_s=5.0)
        assert len(await text_of(http, ASK)) > 40
        assert running.state()["workers"][0]["faults"] == []


async def test_a_slow_first_token_is_that_much_later() -> None:
    async with fleet(worker={"enable_per_request_metrics": True}) as running, client(running) as http:
        await order(http, kind="slow_first_token", delay_s=30.0)
        await text_of(http, ASK)
        page = (await http.get("/metrics")).text
    seconds = next(line for line in page.splitlines() if line.startswith("vllm:time_to_first_token_seconds_sum"))
    assert float(seconds.split()[-1]) > 30


async def test_a_slow_worker_takes_so_many_times_as_long_a_step() -> None:
    async with fleet(worker={"enable_per_request_metrics": True}) as running, client(running) as http:
        await order(http, kind="slow", factor=7.0)
        await until(running, faults=["slow"])
        metrics = (await http.post("/v1/chat/completions", json=ASK)).json()["metrics"]
    assert metrics["mean_itl_ms"] == pytest.approx(70.0)


@pytest.mark.parametrize(("how", "error"), [("reset", httpx.ReadError), ("close", httpx.RemoteProtocolError)])
async def test_a_stream_is_cut_after_so_many_events(how: str, error: type[Exception]) -> None:
    async with fleet() as running, client(running) as http:
        await order(http, kind="cut", events=4, how=how)
        seen = []
        with pytest.raises(error):
            async for event in events(http, FOREVER):
                seen.append(event)
        await until(running, replies=0, running=0)
    assert len(seen) == 4


async def test_streams_that_run_already_are_cut_too() -> None:
    async with fleet() as running, client(running) as http:
        stream = events(http, FOREVER)
        await anext(stream)
        await order(http, kind="cut", events=1)
        with pytest.raises(httpx.ReadError):
            async for _ in stream:
                pass


async def test_garbage_is_no_http_or_no_chunk_or_no_json() -> None:
    async with fleet() as running, client(running) as http:
        await order(http, kind="garbage", how="not_http")
        with pytest.raises(httpx.RemoteProtocolError):
            await http.post("/v1/chat/completions", json=ASK)
        await order(http, kind="garbage", how="chunk", events=2)
        with pytest.raises(httpx.RemoteProtocolError):
            _ = [event async for event in events(http, ASK)]
        await order(http, kind="garbage", how="broken_json", events=2)
        with pytest.raises(json.JSONDecodeError):
            _ = [event async for event in events(http, ASK)]
        await order(http, kind="clear")
        assert len([event async for event in events(http, ASK)]) == 42


async def test_a_storm_refuses_a_share_of_the_work_and_nothing_else() -> None:
    async with fleet(seed=3) as running, client(running) as http:
        await order(http, kind="storm", share=0.5)
        statuses = [(await http.post("/v1/chat/completions", json=ASK)).status_code for _ in range(40)]
        assert (await http.get("/health")).status_code == 200
    assert 10 < statuses.count(503) < 30 and statuses.count(503) + statuses.count(200) == 40


async def test_metrics_go_stale_lie_and_hang() -> None:
    running_now = 'vllm:num_requests_running{engine="0",model_name="smollm2"} '
    async with fleet() as running, client(running) as http:

        async def reported() -> str:
            page = (await http.get("/metrics")).text
            return next(line for line in page.splitlines() if line.startswith(running_now)).removeprefix(running_now)

        await order(http, kind="stale_metrics")
        assert await reported() == "0.0"
        stream = events(http, FOREVER)
        await anext(stream)
        assert await reported() == "0.0"
        await order(http, kind="clear")
        assert await reported() == "1.0"
        await order(http, kind="lying_metrics", running=77)
        assert await reported() == "77.0"
        await order(http, kind="hanging_metrics")
        with pytest.raises(httpx.ReadTimeout):
            await http.get("/metrics", timeout=0.05)
        assert (await http.get("/health")).status_code == 200
        await stream.aclose()


async def test_a_slow_start_has_a_closed_port_or_is_unhealthy_for_a_while() -> None:
    async with fleet() as running, client(running) as http:
        await order(http, kind="slow_start", how="closed", for_s=20.0)
        await until(running, state="down")
        with pytest.raises(httpx.ConnectError):
            await http.get("/health")
        await until(running, state="up", faults=[])
        await order(http, kind="slow_start", how="unhealthy", for_s=20.0)
        await until(running, state="up", num_starts=3)
        assert (await http.get("/health")).status_code == 503
        assert (await http.post("/v1/chat/completions", json=ASK)).status_code == 503
        await until(running, faults=[])
        assert (await http.get("/health")).status_code == 200


async def test_sigterm_without_a_timeout_ends_streams_with_an_error_event_and_done() -> None:
    async with fleet() as running, client(running) as http:
        stream = events(http, FOREVER)
        await anext(stream)
        await order(http, kind="drain", timeout_s=0, for_s=5.0)
        rest = [event async for event in stream]
        await until(running, state="up", num_starts=2)
    assert rest[-2]["error"]["type"] == "InternalServerError" and rest[-1] == "[DONE]"


async def test_sigterm_may_end_streams_with_an_abort_or_leave_them_hanging() -> None:
    async with fleet() as running, client(running) as http:
        stream = events(http, FOREVER)
        await anext(stream)
        await order(http, kind="drain", timeout_s=0, how="abort", for_s=5.0)
        rest = [event async for event in stream]
        assert rest[-2]["choices"][0]["finish_reason"] == "abort"
        await until(running, state="up", num_starts=2)
        stream = events(http, FOREVER)
        await anext(stream)
        await order(http, kind="drain", timeout_s=0, how="hang")
        await until(running, state="draining")
        with pytest.raises(httpx.ConnectError):
            async with unverified() as other:
                await other.get(running.workers[0].url + "/health")
        await stream.aclose()
        await until(running, state="down")


async def test_a_drain_with_time_finishes_streams_refuses_new_ones_and_exits() -> None:
    async with fleet() as running, client(running) as http:
        stream = events(http, {**FOREVER, "max_tokens": 500})
        await anext(stream)
        await order(http, kind="drain", timeout_s=600.0)
        await until(running, state="draining")
        refused = await http.post("/v1/chat/completions", json=ASK)
        assert (refused.status_code, refused.json()["error"]["message"]) == (
            500,
            "cannot schedule new futures after shutdown",
        )
        ids = {"prompt": [1000, 1001], "max_tokens": 9}
        assert [event async for event in events(http, ids, "/v1/completions")] == ["[DONE]"]
        aborted = (await http.post("/v1/completions", json=ids)).json()
        assert aborted["choices"][0]["finish_reason"] == "abort" and aborted["usage"]["completion_tokens"] == 0
        rest = [event async for event in stream]
        await until(running, state="down")
    assert rest[-2]["choices"][0]["finish_reason"] == "length"


async def test_an_engine_that_dies_ends_streams_with_an_error_and_then_the_server() -> None:
    async with fleet() as running, client(running) as http:
        stream = events(http, FOREVER)
        await anext(stream)
        await order(http, kind="engine_dead")
        rest = [event async for event in stream]
        assert (await http.get("/health")).status_code == 503
        assert (await http.post("/v1/chat/completions", json=ASK)).status_code == 500
        await until(running, state="down")
    assert rest[-2]["error"]["code"] == 500 and rest[-1] == "[DONE]"


async def test_an_order_can_be_for_later_and_for_some_workers_only() -> None:
    async with fleet(3) as running:
        assert (await control(running, kind="storm", worker=[0, 2], after_s=1.0, for_s=5.0))["workers"] == [0, 2]
        assert [worker["faults"] for worker in running.state()["workers"]] == [[], [], []]
        await until(running, 2, faults=["storm"])
        assert [worker["faults"] for worker in running.state()["workers"]] == [["storm"], [], ["storm"]]
        await until(running, 2, faults=[])


async def test_an_order_replaces_one_of_its_kind_and_is_not_ended_by_the_others_time() -> None:
    async with fleet() as running, client(running) as http:
        await order(http, kind="storm", for_s=1.0)
        await order(http, kind="storm")
        await order(http, kind="slow", after_s=3.0)
        await until(running, faults=["slow", "storm"])


async def num_up(http: httpx.AsyncClient, running: Fleet) -> int:
    """How many workers are up, by a round trip in which some of the worker's time passes."""
    states = (await http.get(running.control_url + "/sim/state")).json()["workers"]
    return [worker["state"] for worker in states].count("up")


async def test_chaos_strikes_one_after_the_other_and_spares_the_last_one_up() -> None:
    async with fleet(3) as running, unverified() as http:
        kill = {"kind": "kill"}
        assert (await control(running, "/sim/chaos", order=kill, every_s=1.0, for_s=20.0))["times"] == 20
        async with asyncio.timeout(60):
            while await num_up(http, running) > 1:
                pass
        assert [await num_up(http, running) for _ in range(50)] == [1] * 50


async def test_bad_orders_are_refused_and_say_why() -> None:
    async with fleet() as running:
        assert "nope" in (await control(running, kind="nope"))["error"]
        assert (await control(running, kind="kill", worker=7))["error"] == "no worker 7: there are 0 to 0"
    for words, said in (("kind=kill,how=garbage", "reset, close"), ("kind=cut,share=2", "share"), ("stall", "NAME=VALUE")):
        with pytest.raises(BadOrder, match=said):
            parse_words(words)
    with pytest.raises(BadOrder, match="every_s"):
        parse_chaos(b'{"order": {"kind": "kill"}, "every_s": 0}')


def test_an_order_on_a_command_line_is_the_same_as_one_in_json() -> None:
    data = b'{"kind": "cut", "worker": 3, "events": 9, "share": 0.5, "how": "close"}'
    assert parse_words("kind=cut,worker=3,events=9,share=0.5,how=close") == parse_order(data)
