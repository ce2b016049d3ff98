"""What a good answer looks like on the wire, and what goes up to the worker."""

import asyncio
from typing import Any

import pytest

from tests.e2e.gateway import RunningGateway
from tests.support import scripts
from tests.support import vllm_shapes as vllm
from tests.support.raw_http import RawClient, event_data, request_bytes
from tests.support.scripted_worker import ScriptedWorker

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="session")]

CHAT = "/v1/chat/completions"
ASK: dict[str, Any] = {"model": "smollm2", "messages": [{"role": "user", "content": "Say hi"}]}
STREAM = ASK | {"stream": True}
ALLOWED_UP = {"host", "content-type", "content-length", "accept", "accept-encoding", "user-agent", "x-request-id"}
ALLOWED_UP |= {"authorization", "traceparent", "tracestate", "connection"}


def key_of(gateway: RunningGateway) -> tuple[str, str]:
    return ("authorization", f"Bearer {gateway.key}")


async def test_a_stream_has_the_headers_that_proxies_and_browsers_need(
    scripted_gateway: RunningGateway, worker: ScriptedWorker
):
    response = await scripted_gateway.request("POST", CHAT, json=STREAM, headers=[("accept-encoding", "gzip, br")])

    assert response.status == 200
    assert response.header("content-type") == "text/event-stream; charset=utf-8"
    assert response.header("cache-control") == "no-cache"
    assert response.header("x-accel-buffering") == "no"
    assert response.header("content-length") is None
    assert response.header("content-encoding") is None
    assert response.header("x-request-id")


async def test_a_stream_of_the_workers_own_name_is_its_bytes(scripted_gateway: RunningGateway, worker: ScriptedWorker):
    response = await scripted_gateway.request("POST", CHAT, json=STREAM | {"stream_options": {"include_usage": True}})
    sent = worker.calls()[0]

    expected = vllm.chat_events(
        vllm.content_deltas(),
        model="smollm2",
        id=f"chatcmpl-{sent.header('x-request-id')}",
        prompt=2,
        include_usage=True,
    )
    assert response.body == b"".join(expected)


@pytest.mark.parametrize("name", ["gpt-4o-mini", "acme/tiny"])
@pytest.mark.parametrize("stream", [False, True])
async def test_the_answer_carries_the_name_that_was_asked_for(
    scripted_gateway: RunningGateway, worker: ScriptedWorker, name: str, stream: bool
):
    response = await scripted_gateway.request("POST", CHAT, json=ASK | {"model": name, "stream": stream})
    answers = event_data(response.body)[:-1] if stream else [response.json()]

    assert worker.calls()[0].json()["model"] == "smollm2"
    assert {answer["model"] for answer in answers} == {name}


@pytest.mark.parametrize("cut", [scripts.whole, scripts.byte_by_byte, scripts.cut_inside(b'"choices":[]')])
@pytest.mark.parametrize("in_one_write", [False, True])
async def test_no_usage_chunk_unasked_wherever_it_is_cut(
    scripted_gateway: RunningGateway, worker: ScriptedWorker, cut: Any, in_one_write: bool
):
    worker.on(CHAT, scripts.chat_stream(include_usage=True, cut=cut, in_one_write=in_one_write))
    response = await scripted_gateway.request("POST", CHAT, json=STREAM)

    assert worker.calls()[0].json()["stream_options"]["include_usage"] is True
    assert all(event == "[DONE]" or event["choices"] for event in event_data(response.body))
    assert response.body == b"".join(
        event
        for event in vllm.chat_events(vllm.content_deltas(), model="smollm2", include_usage=True)
        if b'"choices":[]' not in event
    )


async def test_one_id_role_first_one_finish_reason_done_last(scripted_gateway: RunningGateway, worker: ScriptedWorker):
    response = await scripted_gateway.request("POST", CHAT, json=STREAM | {"n": 2, "temperature": 1})
    *events, done = event_data(response.body)

    assert done == "[DONE]"
    assert len({(event["id"], event["created"]) for event in events}) == 1
    first: dict[int, Any] = {}
    reasons: dict[int, list[str]] = {0: [], 1: []}
    for event in events:
        for choice in event["choices"]:
            first.setdefault(choice["index"], choice["delta"])
            if choice["finish_reason"]:
                reasons[choice["index"]].append(choice["finish_reason"])
    assert [delta["role"] for delta in first.values()] == ["assistant", "assistant"]
    assert reasons == {0: ["stop"], 1: ["stop"]}


async def test_events_come_one_by_one_even_where_compression_is_welcome(
    scripted_gateway: RunningGateway, worker: ScriptedWorker
):
    gates = {k: asyncio.Event() for k in (1, 2)}
    worker.on(CHAT, scripts.chat_stream(["one", "two"], gates=gates))
    async with RawClient(scripted_gateway.url) as client:
        headers = [key_of(scripted_gateway), ("accept-encoding", "gzip, br, zstd")]
        await client.send(request_bytes("POST", CHAT, json=STREAM, headers=headers))
        assert (await client.read_head()).status == 200
        assert b'"role":"assistant"' in await client.read_chunk()
        gates[1].set()
        assert b"one" in await client.read_chunk()
        gates[2].set()
        await client.read_until(b"[DONE]")


async def test_crlf_line_ends_are_passed_as_they_are(scripted_gateway: RunningGateway, worker: ScriptedWorker):
    worker.on(CHAT, scripts.chat_stream(crlf=True, include_usage=True))
    response = await scripted_gateway.request("POST", CHAT, json=STREAM)
    assert response.body.endswith(b"data: [DONE]\r\n\r\n")
    assert b'"choices":[]' not in response.body


async def test_an_event_of_a_megabyte_passes(scripted_gateway: RunningGateway, worker: ScriptedWorker):
    worker.on(CHAT, scripts.huge_event(2**20))
    response = await scripted_gateway.request("POST", CHAT, json=STREAM)
    assert b"x" * 2**20 in response.body
    assert response.body.endswith(vllm.DONE)


# What goes up


async def test_no_header_of_the_client_goes_up_but_those_allowed(scripted_gateway: RunningGateway, worker: ScriptedWorker):
    hostile = ["cookie", "x-api-key", "x-vllm-priority", "x-data-parallel-rank", "x-session-id", "x-forwarded-for"]
    hostile += ["endpoint-load-metrics-format", "openai-organization", "x-stainless-lang", "x-openwebui-user-id", "te"]
    hostile += ["expect", "upgrade", "proxy-authorization", "forwarded", "origin", "referer", "range", "x-any"]
    headers = [
        (name, "JSON" if name != "expect" else "100-continue") for name in hostile if name not in ("upgrade", "x-api-key")
    ]
    headers += [("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"), ("x-request-id", "mine")]
    response = await scripted_gateway.request("POST", CHAT, json=ASK, headers=headers)
    while response.status == 100:
        pytest.fail("an interim reply was taken for the answer")

    [sent] = worker.calls()
    assert response.status == 200
    names = [name for name, _ in sent.headers]
    assert set(names) <= ALLOWED_UP, set(names) - ALLOWED_UP
    assert len(names) == len(set(names))
    assert scripted_gateway.key not in str(sent.headers) and scripted_gateway.key.encode() not in sent.body
    assert (
        sent.header(
            "traceparent",
        )
        is not None
    )
    assert sent.header("x-request-id") not in (None, "mine")
    assert response.header("x-request-id") == "mine"


async def test_no_header_of_the_worker_comes_down_but_those_allowed(scripted_gateway: RunningGateway, worker: ScriptedWorker):
    extra = [
        ("set-cookie", "a=b"),
        ("x-internal", "10.0.0.1"),
        ("x-request-id", "theirs"),
        ("access-control-allow-origin", "*"),
    ]
    body = vllm.chat_reply({"content": "hi"}, model="smollm2", id="chatcmpl-1", prompt=1, completion=1)
    worker.on(CHAT, scripts.reply(200, body, headers=extra))
    response = await scripted_gateway.request("POST", CHAT, json=ASK)

    names = {name for name, _ in response.headers}
    assert not names & {"set-cookie", "x-internal", "access-control-allow-origin"}
    assert "uvicorn" not in str(response.headers)
    assert response.header("x-request-id") != "theirs"


async def test_unknown_members_reach_the_worker_unchanged(scripted_gateway: RunningGateway, worker: ScriptedWorker):
    extra = {"top_k": 5, "chat_template_kwargs": {"enable_thinking": False}, "min_p": 0.1, "future": [1, {"a": None}]}
    await scripted_gateway.request("POST", CHAT, json=ASK | extra)
    sent = worker.calls()[0].json()
    assert {name: sent[name] for name in extra} == extra


@pytest.mark.parametrize(
    "member",
    ["priority", "kv_transfer_params", "ec_transfer_params", "vllm_xargs", "request_id", "session_id", "cache_salt"]
    + ["chat_template", "mm_processor_kwargs", "media_io_kwargs"],
)
async def test_members_that_steer_the_engine_never_go_up(scripted_gateway: RunningGateway, worker: ScriptedWorker, member: str):
    response = await scripted_gateway.request("POST", CHAT, json=ASK | {member: {"a": 1}})
    assert response.status in (200, 400)
    assert all(member not in call.json() for call in worker.calls())


@pytest.mark.parametrize("url", ["http://169.254.169.254/latest", "https://example.com/a.png", "file:///etc/passwd"])
async def test_image_urls_are_data_only(scripted_gateway: RunningGateway, worker: ScriptedWorker, url: str):
    part = {"type": "image_url", "image_url": {"url": url}}
    response = await scripted_gateway.request("POST", CHAT, json=ASK | {"messages": [{"role": "user", "content": [part]}]})
    assert response.status == 400
    assert not worker.calls()


async def test_the_short_paths_go_up_as_the_long_ones(scripted_gateway: RunningGateway, worker: ScriptedWorker):
    for path in ("/chat/completions", "/v1/v1/chat/completions", "/v1/chat/completions/"):
        assert (await scripted_gateway.request("POST", path, json=ASK)).status == 200, path
    assert {call.path for call in worker.calls()} == {CHAT}
