"""Connections on both sides: kept, reset, flooded, left early, never read, and requests that try to be two."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from tests.e2e.gateway import RunningGateway, serving
from tests.support import scripts
from tests.support import vllm_shapes as vllm
from tests.support.openai_error import assert_error
from tests.support.raw_http import RawClient, request_bytes
from tests.support.scripted_worker import ScriptedWorker

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="session")]

CHAT = "/v1/chat/completions"
ASK: dict[str, Any] = {"model": "smollm2", "messages": [{"role": "user", "content": "Say hi"}]}
STREAM = ASK | {"stream": True}


def key_of(gateway: RunningGateway) -> tuple[str, str]:
    return ("authorization", f"Bearer {gateway.key}")


# Towards the worker


async def test_a_reset_before_any_byte_on_a_reused_connection_is_nobodys_business(
    scripted_gateway: RunningGateway, worker: ScriptedWorker
):
    assert (await scripted_gateway.request("POST", CHAT, json=ASK)).status == 200
    worker.on_reuse = scripts.reset_before_any_byte
    for _ in range(4):
        assert (await scripted_gateway.request("POST", CHAT, json=ASK)).status == 200


@pytest_asyncio.fixture(loop_scope="session")
async def pair(worker: ScriptedWorker, twin: ScriptedWorker, tmp_path: Path) -> AsyncIterator[RunningGateway]:
    """A gateway for one test, in front of two workers in turn: what fails is remembered, and would change the next test."""
    workers = {"static": [worker.url, twin.url]}
    settings = {"routes": {"pair": {"workers": workers, "served_model": "smollm2", "policy": "round_robin"}}}
    async with serving(tmp_path, settings) as gateway:
        yield gateway


@pytest.mark.parametrize("body", [ASK, STREAM], ids=["whole", "stream"])
@pytest.mark.parametrize(
    "script",
    [
        *(scripts.reset_before_any_byte(), scripts.close_before_any_byte(), scripts.queue_full(), scripts.string_error(503)),
        *(scripts.vllm_error(500), scripts.half_head(), scripts.garbage(), scripts.html_error(502)),
    ],
    ids=["reset", "closed", "queue full", "scaling", "500", "half a header", "garbage", "HTML"],
)
async def test_a_worker_that_fails_before_its_first_event_is_followed_by_another(
    pair: RunningGateway, worker: ScriptedWorker, twin: ScriptedWorker, script: Any, body: Any
):
    worker.on(CHAT, script)
    for _ in range(2):  # one of them begins with this worker
        assert (await pair.request("POST", CHAT, json=body | {"model": "pair"})).status == 200
    assert len(twin.calls()) == 2
    assert len(worker.calls()) >= 1
    # What a kept connection lost goes to the same worker once more, as the same attempt.
    first, second = ({call.header("x-request-id") for call in one.calls()} for one in (worker, twin))
    assert len(second) == 2 and not first & second, "every attempt has an id of its own"


@pytest.mark.parametrize("body", [ASK, STREAM], ids=["whole", "stream"])
async def test_a_request_that_a_worker_finds_wrong_goes_to_no_other(
    pair: RunningGateway, worker: ScriptedWorker, twin: ScriptedWorker, body: Any
):
    worker.on(CHAT, scripts.vllm_error(400))
    answers = [await pair.request("POST", CHAT, json=body | {"model": "pair"}) for _ in range(2)]
    assert sorted(answer.status for answer in answers) == [200, 400]
    assert (len(worker.calls()), len(twin.calls())) == (1, 1)


async def test_where_all_workers_refuse_each_was_asked_once(pair: RunningGateway, worker: ScriptedWorker, twin: ScriptedWorker):
    worker.on(CHAT, scripts.queue_full())
    twin.on(CHAT, scripts.queue_full())
    response = await pair.request("POST", CHAT, json=ASK | {"model": "pair"})
    assert response.status in (429, 502, 503)
    assert_error(response, response.status)
    assert response.header("x-should-retry") == "true"
    assert (len(worker.calls()), len(twin.calls())) == (1, 1)


async def test_round_robin_shares_the_calls_out(pair: RunningGateway, worker: ScriptedWorker, twin: ScriptedWorker):
    for _ in range(6):
        await pair.request("POST", CHAT, json=ASK | {"model": "pair"})
    assert (len(worker.calls()), len(twin.calls())) == (3, 3)


async def test_idle_connections_that_the_worker_closed_are_not_used_again(
    scripted_gateway: RunningGateway, worker: ScriptedWorker
):
    for _ in range(4):
        assert (await scripted_gateway.request("POST", CHAT, json=ASK)).status == 200
        await worker.close_idle()


async def test_what_a_worker_sends_too_much_is_never_the_next_answer(scripted_gateway: RunningGateway, worker: ScriptedWorker):
    body = vllm.chat_reply({"content": "mine"}, model="smollm2", id="chatcmpl-1", prompt=1, completion=1)
    second = scripts.head(200, [("content-length", "2"), ("content-type", "application/json")]) + b"{}"

    async def two_replies(request: Any, connection: Any) -> None:
        await scripts.reply(200, body)(request, connection)
        await connection.send(second)

    worker.on(CHAT, two_replies, None)
    first = await scripted_gateway.request("POST", CHAT, json=ASK)
    then = await scripted_gateway.request("POST", CHAT, json=ASK)
    if first.status == 200:  # it may have been whole before the rest came
        assert first.json()["choices"][0]["message"]["content"] == "mine"
    else:
        assert_error(first, 502)
    assert then.json()["choices"][0]["message"]["content"] == "".join(vllm.WORDS)


# Clients that leave


@pytest.mark.parametrize("how", ["leave", "reset"])
@pytest.mark.parametrize(
    ("script", "body", "reads"),
    [
        (scripts.never_answers(), ASK, b""),
        (scripts.never_answers(), STREAM, b""),
        (scripts.chat_stream(after=2, ending="stall"), STREAM, b"Hello"),
        (scripts.raw(scripts.head(200, [("content-length", "500")]) + b"{", "stall"), ASK, b""),
    ],
    ids=["before a whole answer", "before the first event", "in a stream", "within a whole answer"],
)
async def test_a_client_that_leaves_frees_the_worker(
    scripted_gateway: RunningGateway, worker: ScriptedWorker, script: Any, body: Any, reads: bytes, how: str
):
    worker.on(CHAT, script)
    async with RawClient(scripted_gateway.url) as client:
        await client.send(request_bytes("POST", CHAT, json=body, headers=[key_of(scripted_gateway)]))
        await worker.wait_calls(1)
        if reads:
            await client.read_until(reads)
        await client.leave() if how == "leave" else await client.reset()
        await worker.wait_aborted(1, within_s=10)


async def test_a_client_that_never_reads_slows_the_worker_down(scripted_gateway: RunningGateway, worker: ScriptedWorker):
    num_sent = 0
    event = vllm.sse(
        {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "smollm2"}
        | {"choices": [{"index": 0, "delta": {"content": "x" * 2**16}, "finish_reason": None}]}
    )

    async def endless(request: Any, connection: Any) -> None:
        nonlocal num_sent
        await connection.send(scripts.head(200, scripts.STREAM_HEADERS))
        while num_sent < 2_000:
            await connection.send(scripts.chunk(event))
            num_sent += 1

    worker.on(CHAT, endless)
    async with RawClient(scripted_gateway.url, receive_buffer_bytes=4096) as client:
        client.stop_reading()
        await client.send(request_bytes("POST", CHAT, json=STREAM, headers=[key_of(scripted_gateway)]))
        before = -1
        while num_sent != before:  # until it stands still
            before = num_sent
            await asyncio.sleep(0.3)
        assert 0 < num_sent < 400, f"{num_sent} events of 64 KiB went into a client that reads none"
        await client.reset()
    await worker.wait_aborted(1)


async def test_pipelined_requests_are_answered_in_order(scripted_gateway: RunningGateway, worker: ScriptedWorker):
    headers = [key_of(scripted_gateway)]
    async with RawClient(scripted_gateway.url) as client:
        await client.send(
            request_bytes("POST", CHAT, json=ASK | {"max_tokens": 1}, headers=headers)
            + request_bytes("POST", CHAT, json=STREAM, headers=headers)
            + request_bytes("GET", "/v1/models", headers=headers)
        )
        first, second, third = [await client.read_response() for _ in range(3)]
    assert first.json()["choices"][0]["message"]["content"] == "Hello"
    assert second.body.endswith(vllm.DONE)
    assert third.json()["object"] == "list"


@pytest.mark.parametrize(
    "headers",
    [
        [("content-length", "5"), ("transfer-encoding", "chunked")],
        [("content-length", "5"), ("content-length", "6")],
        [("transfer-encoding", "chunked, identity")],
        [("transfer-encoding", "xchunked")],
        [("content-length", "-1")],
        [("content-length", "+5")],
        [("content-length", "5, 5")],
    ],
    ids=lambda headers: "; ".join(f"{name}: {value}" for name, value in headers),
)
async def test_conflicting_lengths_never_become_a_second_request(
    scripted_gateway: RunningGateway, worker: ScriptedWorker, headers: Any
):
    smuggled = request_bytes("POST", CHAT, json=ASK, headers=[key_of(scripted_gateway)])
    async with RawClient(scripted_gateway.url) as client:
        json = ("content-type", "application/json")
        head = request_bytes("POST", CHAT, headers=[key_of(scripted_gateway), json, *headers])
        await client.send(head + b"0\r\n\r\n" + smuggled)
        said = await client.read_rest()
    assert said.startswith((b"HTTP/1.1 400 ", b"HTTP/1.1 501 ")) or said == b""
    assert said.count(b"HTTP/1.1 ") <= 1
    assert not worker.calls()


async def test_expect_100_continue_is_answered(scripted_gateway: RunningGateway, worker: ScriptedWorker):
    whole = request_bytes("POST", CHAT, json=ASK, headers=[key_of(scripted_gateway), ("expect", "100-continue")])
    head, _, body = whole.partition(b"\r\n\r\n")
    async with RawClient(scripted_gateway.url) as client:
        await client.send(head + b"\r\n\r\n")
        assert (await client.read_head()).status == 100
        await client.send(body)
        assert (await client.read_response()).status == 200


async def test_the_gateway_holds_nothing_after_all_this(scripted_gateway: RunningGateway, worker: ScriptedWorker):
    response = await scripted_gateway.request("POST", CHAT, json=ASK)
    assert response.status == 200
    await worker.wait_idle()
    assert worker.num_running == 0


# Heads


async def test_too_large_headers_are_431_in_json(scripted_gateway: RunningGateway, worker: ScriptedWorker):
    for headers in ([("x-large", "a" * 70_000)], [(f"x-{number}", "a" * 60) for number in range(1_500)]):
        response = await scripted_gateway.request("POST", CHAT, json=ASK, headers=headers)
        assert response.status == 431
        assert response.json()["error"].keys() == {"message", "type", "param", "code"}
    assert not worker.calls()


@pytest.mark.parametrize("name", ["authorization", "content-type", "host", "x-api-key"])
async def test_a_header_that_decides_may_stand_only_once(scripted_gateway: RunningGateway, worker: ScriptedWorker, name: str):
    headers = [key_of(scripted_gateway), (name, "application/json"), (name, "text/plain")]
    async with RawClient(scripted_gateway.url) as client:
        await client.send(request_bytes("POST", CHAT, json=ASK, headers=headers))
        assert_error(await client.read_response(), 400)
    assert not worker.calls()


@pytest.mark.parametrize("sent", [b"\r\n\r\n\r\nhello\r\n\r\n", b"\x16\x03\x01\x02\x00\x01", b"GET / HTTP/9.9\r\n\r\n"])
async def test_what_is_no_http_is_answered_in_json_or_cut(
    scripted_gateway: RunningGateway, worker: ScriptedWorker, sent: bytes
):
    async with RawClient(scripted_gateway.url) as client:
        await client.send(sent)
        said = await client.read_rest()
    head, _, body = said.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 ") or said == b""
    assert not said or (b'"error"' in body and b"x-request-id: " in head.lower())


@pytest.mark.parametrize("body", [ASK, STREAM], ids=["whole", "stream"])
async def test_http_1_0_gets_no_chunks_and_the_end_of_the_connection(
    scripted_gateway: RunningGateway, worker: ScriptedWorker, body: Any
):
    asked = request_bytes("POST", CHAT, json=body, headers=[key_of(scripted_gateway)]).replace(b"HTTP/1.1", b"HTTP/1.0", 1)
    async with RawClient(scripted_gateway.url) as client:
        await client.send(asked)
        head, _, rest = (await client.read_rest()).partition(b"\r\n\r\n")
    assert b" 200 " in head and b"transfer-encoding" not in head.lower()
    assert rest.endswith(vllm.DONE) if body is STREAM else rest.startswith(b"{") and rest.endswith(b"}")


async def test_a_kept_connection_is_closed_when_it_was_idle_as_long_as_is_configured(worker: ScriptedWorker, tmp_path: Path):
    settings = {"server": {"keep_alive_s": 0.2}, "routes": {"smollm2": {"workers": {"static": [worker.url]}}}}
    async with serving(tmp_path, settings) as gateway, RawClient(gateway.url) as client:
        for _ in range(2):
            await client.send(request_bytes("GET", "/livez"))
            assert (await client.read_response()).status == 200
        async with asyncio.timeout(30):
            assert await client.read_rest() == b""
