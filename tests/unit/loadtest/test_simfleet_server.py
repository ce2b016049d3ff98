"""A simulated worker over real sockets: sleep, adapters, limits, connections, resumed answers."""

import asyncio
import json
import re

import pytest

from tests.unit.loadtest.simfleet_client import (
    ASK,
    FOREVER,
    PLAIN,
    client,
    connection,
    events,
    fleet,
    text_of,
    until,
    unverified,
)


def chat_request(body: dict[str, object]) -> bytes:
    data = json.dumps(body).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(data)}"
    return head.encode() + b"\r\n\r\n" + data


@pytest.mark.parametrize("num_events", [2, 3, 17])
async def test_a_stream_is_continued_on_another_worker_to_the_letter(num_events: int) -> None:
    """As a gateway does it: ids of the prompt and of the text so far, through completions."""
    async with fleet(2) as running, client(running, 0) as first, client(running, 1) as second:
        whole = await text_of(first, ASK)
        so_far = ""
        async for event in events(first, ASK):
            so_far += event["choices"][0]["delta"]["content"]
            num_events -= 1
            if not num_events:
                break
        ids = (await second.post("/tokenize", json={"messages": ASK["messages"]})).json()["tokens"]
        emitted = (await second.post("/tokenize", json={"prompt": so_far, "add_special_tokens": False})).json()["tokens"]
        ask = {"prompt": ids + emitted, "max_tokens": 40 - len(emitted), "ignore_eos": True}
        rest = await text_of(second, ask, "/v1/completions")
    assert so_far + rest == whole


@pytest.mark.parametrize(("trims", "is_exact"), [(False, True), (True, False)])
async def test_a_final_message_is_continued_exactly_unless_the_template_trims_it(trims: bool, is_exact: bool) -> None:
    async with fleet(worker={"trim_template": trims}) as running, client(running) as http:
        whole = await text_of(http, ASK)
        cut = whole[: whole.index(" ", 30) + 1]
        said = [*ASK["messages"], {"role": "assistant", "content": cut}]
        flags = {"continue_final_message": True, "add_generation_prompt": False}
        tokens = (await http.post("/tokenize", json={"messages": said, **flags, "return_token_strs": True})).json()
        assert (tokens["token_strs"][-1] == "Ġ") is is_exact


async def test_tools_and_the_generation_prompt_are_a_part_of_the_prompt() -> None:
    tool = {"type": "function", "function": {"name": "weather", "parameters": {}}}
    async with fleet() as running, client(running) as http:

        async def strings(**more: object) -> str:
            body = {"messages": ASK["messages"], "return_token_strs": True, **more}
            return "".join((await http.post("/tokenize", json=body)).json()["token_strs"])

        assert "weather" in await strings(tools=[tool])
        assert (await strings()).endswith("<|im_start|>assistantĊ")
        assert not (await strings(add_generation_prompt=False)).endswith("assistantĊ")


async def test_requests_to_a_sleeping_worker_hang_until_it_wakes() -> None:
    async with fleet() as running, client(running) as http:
        assert (await http.post("/sleep?level=1")).json() == {"status": "sleeping", "level": 1}
        asleep = 'vllm:engine_sleep_state{engine="0",model_name="smollm2",sleep_state="weights_offloaded"} 1.0'
        waiting = asyncio.create_task(text_of(http, ASK))
        await until(running, replies=1)
        assert (await http.get("/health")).status_code == 200
        assert (await http.get("/is_sleeping")).json() == {"is_sleeping": True}
        assert asleep in (await http.get("/metrics")).text
        assert (await http.post("/wake_up?tags=weights")).json() == {"status": "sleeping", "tags": ["weights"]}
        assert not waiting.done()
        assert (await http.post("/wake_up")).json() == {"status": "awake", "tags": None}
        assert len(await waiting) > 40


async def test_falling_asleep_aborts_what_runs_and_drops_the_cache() -> None:
    async with fleet() as running, client(running) as http:
        stream = events(http, FOREVER)
        for _ in range(3):
            await anext(stream)
        await http.post("/sleep")
        rest = [event async for event in stream]
        await http.post("/wake_up")
        usage = (await http.post("/v1/chat/completions", json=FOREVER | {"max_tokens": 1})).json()["usage"]
    assert rest[-2]["choices"][0]["finish_reason"] == "abort" and rest[-1] == "[DONE]"
    assert usage["prompt_tokens_details"]["cached_tokens"] == 0


async def test_an_aborted_answer_does_not_tell_what_would_have_stopped_it() -> None:
    async with fleet(warp=4.0) as running, client(running) as http:
        words = [choice["choices"][0]["delta"]["content"] async for choice in events(http, ASK) if choice != "[DONE]"]
        stream = events(http, {**ASK, "stop": words[25]})
        for _ in range(5):
            await anext(stream)
        await http.post("/sleep")
        rest = [event async for event in stream]
    assert rest[-2]["choices"][0]["finish_reason"] == "abort"
    assert rest[-2]["choices"][0]["stop_reason"] is None


async def test_sleeping_can_wait_for_what_runs() -> None:
    async with fleet() as running, client(running) as http:
        stream = events(http, ASK)
        await anext(stream)
        await http.post("/sleep?mode=wait")
        rest = [event async for event in stream]
    assert rest[-2]["choices"][0]["finish_reason"] == "length"


async def test_adapters_come_and_go_and_show_their_parent() -> None:
    async with fleet() as running, client(running) as http:
        load = {"lora_name": "ada", "lora_path": "/adapters/ada"}
        assert (await http.post("/v1/load_lora_adapter", json=load)).text.startswith("Success")
        assert (await http.post("/v1/load_lora_adapter", json=load)).status_code == 400
        cards = (await http.get("/v1/models")).json()["data"]
        base, adapted = await text_of(http, ASK), await text_of(http, {**ASK, "model": "ada"})
        assert (await http.post("/v1/unload_lora_adapter", json={"lora_name": "ada"})).status_code == 200
        gone = await http.post("/v1/chat/completions", json={**ASK, "model": "ada"})
    assert [(card["id"], card["parent"]) for card in cards] == [("smollm2", None), ("ada", "smollm2")]
    assert base != adapted
    assert (gone.status_code, gone.json()["error"]["param"]) == (404, "model")


async def test_a_full_queue_is_a_503_that_computes_nothing() -> None:
    async with fleet(worker={"max_num_queued_reqs": 1}) as running, client(running) as http:
        stream = events(http, FOREVER)
        await anext(stream)
        refused = await http.post("/v1/chat/completions", json=ASK)
        page = (await http.get("/metrics")).text
        await stream.aclose()
        await until(running, running=0)
        assert (await http.post("/v1/chat/completions", json=ASK)).status_code == 200
    assert refused.status_code == 503
    assert refused.json()["error"]["type"] == "Service Unavailable" and "retry-after" not in refused.headers
    assert 'vllm:admission_rejections_total{model_name="smollm2",reason="max_num_queued_reqs"} 1.0' in page
    assert re.search(r"vllm:request_params_n_count\{.*\} 1\.0", page)


async def test_some_metrics_are_given_below_their_path_and_by_the_path_itself_all() -> None:
    names = ["vllm:num_requests_running", "vllm:generation_tokens_total", "vllm:cache_config_info"]
    query = {"name[]": names}
    async with fleet() as running, client(running) as http:
        some, whole = (await http.get("/metrics/", params=query)).text, (await http.get("/metrics", params=query)).text
        assert (await http.get("/metrics/")).text == whole
    assert [line.partition("{")[0] for line in some.splitlines() if not line.startswith("#")] == names
    assert len(whole) > 20 * len(some)


async def test_a_client_that_leaves_is_forgotten_at_once_waiting_or_streaming() -> None:
    async with fleet(warp=0.1, worker={"profile": PLAIN.changed(max_num_seqs=1)}) as running:
        async with connection(running) as (_, first), connection(running) as (_, second):
            first.write(chat_request({**FOREVER, "stream": True}))
            second.write(chat_request({**FOREVER, "stream": True}))
            await until(running, running=1, waiting=1)
        await until(running, running=0, waiting=0, replies=0, kv_usage=0.0)


async def test_the_head_of_a_stream_is_sent_before_its_first_token() -> None:
    async with fleet(warp=0.001) as running:
        async with connection(running) as (reader, writer):
            writer.write(chat_request({**ASK, "stream": True}))
            head = await reader.readuntil(b"\r\n\r\n")
            assert b"200 OK" in head and b"text/event-stream" in head
            assert running.state()["workers"][0]["generation_tokens"] == 0


async def test_pipelined_requests_are_answered_in_order_and_idle_connections_closed() -> None:
    async with fleet(worker={"keep_alive_s": 0.01}) as running:
        async with connection(running) as (reader, writer):
            writer.write(chat_request(ASK) + b"GET /version HTTP/1.1\r\nhost: x\r\n\r\n")
            replies = await reader.read()
    assert 0 < replies.index(b"chat.completion") < replies.index(b'{"version":"0.32.0"}')


async def test_http_1_0_clients_get_streams_that_end_with_the_connection() -> None:
    async with fleet(worker={"keep_alive_s": 600.0}) as running, asyncio.timeout(60):
        async with connection(running) as (reader, writer):
            writer.write(
                chat_request({**ASK, "stream": True, "max_tokens": 2}).replace(
                    b"HTTP/1.1", b"HTTP/1.0\r\nconnection: keep-alive", 1
                )
            )
            head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    assert b"transfer-encoding" not in head
    assert body.startswith(b"data: {") and body.endswith(b"data: [DONE]\n\n")


async def test_what_is_no_http_is_a_400_and_a_closed_connection() -> None:
    async with fleet() as running:
        async with connection(running) as (reader, writer):
            writer.write(b"\x16\x03\x01 nonsense\r\n\r\n")
            assert (await reader.read()).startswith(b"HTTP/1.1 400")


async def test_the_key_guards_v1_alone() -> None:
    async with fleet(worker={"api_key": "secret"}) as running, client(running) as http:
        refused = await http.get("/v1/models")
        assert (refused.status_code, refused.json()) == (401, {"error": "Unauthorized"})
        assert (await http.get("/v1/models", headers={"authorization": "Bearer secret"})).status_code == 200
        assert (await http.get("/metrics")).status_code == 200


async def test_the_request_id_header_names_the_reply_and_orca_headers_come_when_asked_for() -> None:
    async with fleet() as running, client(running) as http:
        headers = {"x-request-id": "abc", "endpoint-load-metrics-format": "TEXT"}
        reply = await http.post("/v1/chat/completions", json=ASK, headers=headers)
    assert reply.json()["id"] == "chatcmpl-abc"
    load = "TEXT named_metrics.kv_cache_usage_perc=0.0, named_metrics.num_requests_waiting=0.0"
    assert reply.headers["endpoint-load-metrics"] == load


async def test_salted_prompts_share_no_cache_and_a_reset_forgets_it() -> None:
    ask = {"prompt": list(range(1000, 1200)), "max_tokens": 1}
    async with fleet() as running, client(running) as http:

        async def cached(**more: str) -> int:
            reply = (await http.post("/v1/completions", json={**ask, **more})).json()
            return int(reply["usage"]["prompt_tokens_details"]["cached_tokens"])

        assert [await cached(), await cached(), await cached(cache_salt="tenant")] == [0, 192, 0]
        assert (await http.post("/reset_prefix_cache")).json() == {"success": True}
        assert await cached() == 0


async def test_load_is_told_only_where_tracking_is_on() -> None:
    for tracking, load in ((False, 0), (True, 1)):
        async with fleet(worker={"enable_server_load_tracking": tracking}) as running, client(running) as http:
            stream = events(http, FOREVER)
            await anext(stream)
            assert (await http.get("/load")).json() == {"server_load": load}
            await stream.aclose()


async def test_time_warp_shortens_every_answer_but_not_what_the_worker_says_of_it() -> None:
    async with fleet(warp=1000.0, worker={"enable_per_request_metrics": True}) as running, client(running) as http:
        metrics = (await http.post("/v1/chat/completions", json={**ASK, "max_tokens": 101})).json()["metrics"]
    assert metrics["generation_time_ms"] == pytest.approx(1000.0)
    assert metrics["mean_itl_ms"] == pytest.approx(10.0)


async def test_a_taken_port_is_an_error_and_leaves_nothing_open() -> None:
    async with fleet() as running:
        taken = running.workers[0].port
        with pytest.raises(OSError, match=str(taken)):
            async with fleet(port=taken):
                pass
        async with unverified() as http:
            assert (await http.get(running.control_url + "/sim/fleet")).json()["workers"][0]["url"] == running.workers[0].url
