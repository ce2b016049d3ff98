"""The mock worker answers as vLLM does, or the benchmark measures a fiction."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import orjson
import pytest

from loadtest.bench import engine
from loadtest.bench.answers import sse_data
from loadtest.bench.shape import expected_text
from tests.unit.loadtest.bench_peer import close_all, patience


@asynccontextmanager
async def a_worker(pace_s: float = 0.0) -> AsyncIterator[int]:
    worker = engine.Worker("smollm2", engine.Turns(is_told=False), pace_s)
    async with patience(), await engine.serve(0, worker) as server:
        yield server.sockets[0].getsockname()[1]
        await close_all(worker.open)


async def talk(port: int, request: bytes) -> tuple[bytes, bytes]:
    """Sends the request and reads head and body, chunks joined."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(request)
        head = await reader.readuntil(b"\r\n\r\n")
        return head, await read_body(reader, head)
    finally:
        writer.close()
        await writer.wait_closed()


async def read_body(reader: asyncio.StreamReader, head: bytes) -> bytes:
    if b"transfer-encoding: chunked" not in head:
        return await reader.readexactly(int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0]))
    body = b""
    while size := int(await reader.readuntil(b"\r\n"), 16):
        body += await reader.readexactly(size)
        assert await reader.readexactly(2) == b"\r\n"
    return body


def post(body: bytes, *headers: bytes, path: bytes = b"/v1/chat/completions") -> bytes:
    head = [b"POST %s HTTP/1.1" % path, b"Host: worker", b"Content-Length: %d" % len(body), *headers]
    return b"\r\n".join(head) + b"\r\n\r\n" + body


def chat(**members: object) -> bytes:
    return orjson.dumps({"model": "smollm2", "messages": [{"role": "user", "content": "Why?"}], **members})


async def test_a_stream_is_the_role_one_chunk_a_token_and_done() -> None:
    async with a_worker() as port:
        head, body = await talk(port, post(chat(stream=True, max_tokens=11)))
    data = sse_data(body)
    chunks = [orjson.loads(item) for item in data[:-1]]
    choices = [chunk["choices"][0] for chunk in chunks]

    assert b"content-type: text/event-stream" in head
    assert data[-1] == b"[DONE]"
    assert choices[0]["delta"] == {"role": "assistant", "content": ""}
    assert "".join(choice["delta"]["content"] for choice in choices) == expected_text(11)
    assert [choice["finish_reason"] for choice in choices] == [None] * 11 + ["length"]
    assert len({(chunk["id"], chunk["created"], chunk["model"]) for chunk in chunks}) == 1
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert not any("usage" in chunk for chunk in chunks)  # vLLM leaves it out


async def test_usage_comes_in_a_chunk_without_choices_when_it_is_asked_for() -> None:
    async with a_worker() as port:
        _, body = await talk(port, post(chat(stream=True, max_tokens=3, stream_options={"include_usage": True})))
    usage_chunk = orjson.loads(sse_data(body)[-2])

    assert usage_chunk["choices"] == []
    assert usage_chunk["usage"] == {"prompt_tokens": 31, "completion_tokens": 3, "total_tokens": 34}


async def test_a_stream_of_one_token_is_whole() -> None:
    async with a_worker() as port:
        _, body = await talk(port, post(chat(stream=True, max_tokens=1)))

    assert [orjson.loads(item)["choices"][0]["finish_reason"] for item in sse_data(body)[:-1]] == [None, "length"]


async def test_a_paced_stream_says_the_same() -> None:
    async with a_worker(pace_s=0.001) as port:
        _, body = await talk(port, post(chat(model="alias", stream=True, max_tokens=5)))

    assert len(sse_data(body)) == 7
    assert orjson.loads(sse_data(body)[0])["model"] == "alias"


async def test_a_reply_has_vllms_members_and_exact_usage() -> None:
    async with a_worker() as port:
        _, body = await talk(port, post(chat(max_tokens=4), b"x-request-id: mine"))
    reply = orjson.loads(body)

    assert list(reply) == [
        *("id", "object", "created", "model", "choices", "service_tier", "system_fingerprint", "usage"),
        *("prompt_logprobs", "prompt_token_ids", "prompt_text", "kv_transfer_params", "ec_transfer_params", "metrics"),
    ]
    assert reply["id"] == "chatcmpl-mine"
    assert reply["choices"][0]["message"]["content"] == expected_text(4)
    assert reply["usage"]["completion_tokens"] == 4


async def test_a_connection_serves_one_request_after_the_other() -> None:
    async with a_worker() as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        seen = []
        for stream in (True, False, True):
            writer.write(post(chat(stream=stream, max_tokens=2)))
            body = await read_body(reader, await reader.readuntil(b"\r\n\r\n"))
            seen.append(body.count(b"data: "))
        writer.close()
        await writer.wait_closed()

    assert seen == [4, 0, 4]


async def test_a_body_too_large_to_read_gets_a_reply_all_the_same() -> None:
    body = chat(stream=True, max_tokens=2, padding="x" * engine.READ_BODY_BYTES)
    async with a_worker() as port:
        _, reply = await talk(port, post(body))

    assert orjson.loads(reply)["usage"]["completion_tokens"] == engine.TOKENS_UNREAD


@pytest.mark.parametrize("body", [b"{", b"[]", b"{}", b'{"model":"smollm2","max_tokens":"many"}'])
async def test_a_body_that_is_not_a_chat_is_a_400_with_vllms_integer_code(body: bytes) -> None:
    async with a_worker() as port:
        head, answer = await talk(port, post(body))

    assert head.startswith(b"HTTP/1.1 400 ")
    assert orjson.loads(answer)["error"]["code"] == 400


async def test_the_pages_that_a_gateway_probes_are_there() -> None:
    async with a_worker() as port:
        health = await talk(port, b"GET /health HTTP/1.1\r\n\r\n")
        _, models = await talk(port, b"GET /v1/models HTTP/1.1\r\n\r\n")
        _, metrics = await talk(port, b"GET /metrics HTTP/1.1\r\n\r\n")
        lost = await talk(port, b"GET /nowhere HTTP/1.1\r\n\r\n")

    assert health[0].startswith(b"HTTP/1.1 200 ") and health[1] == b""
    assert [card["id"] for card in orjson.loads(models)["data"]] == ["smollm2"]
    assert b'vllm:num_requests_running{engine="0",model_name="smollm2"} 0.0' in metrics
    assert lost[0].startswith(b"HTTP/1.1 404 ")


async def test_a_client_that_leaves_ends_its_stream() -> None:
    worker = engine.Worker("smollm2", engine.Turns(is_told=False), pace_s=1.0)
    loop = asyncio.get_running_loop()
    lost = loop.create_future()

    class Watched(engine.Connection):
        def connection_lost(self, exc: Exception | None) -> None:
            super().connection_lost(exc)
            lost.set_result(None)

    async with patience(), await loop.create_server(lambda: Watched(worker), "127.0.0.1", 0) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.sockets[0].getsockname()[1])
        writer.write(post(chat(stream=True, max_tokens=9)))
        await reader.readuntil(b"\r\n\r\n")
        assert worker.num_running == 1
        writer.close()
        await writer.wait_closed()
        await lost

    assert worker.num_running == 0


async def test_streams_that_go_flat_out_write_no_more_events_than_there_are_streams_until_some_are_seen() -> None:
    turns = engine.Turns(is_told=True)
    worker = engine.Worker("smollm2", turns)
    async with patience(), await engine.serve(0, worker) as server:
        readers = []
        for _ in range(3):
            reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname()[:2])
            writer.write(post(chat(stream=True, max_tokens=9)))
            readers.append((reader, writer))
        roles = [await read_event(reader) for reader, _ in readers]
        assert [b'"role"' in event for event in roles] == [True] * 3

        assert turns.num_unseen == 3
        turns.seen(2)
        seconds = [await read_event(reader) for reader, _ in readers[:2]]
        assert [b'" the"' in event for event in seconds] == [True] * 2
        assert turns.num_unseen == 3
        for _, writer in readers:
            writer.transport.abort()
        await close_all(worker.open)


async def read_event(reader: asyncio.StreamReader) -> bytes:
    event = await reader.readuntil(b"\n\n\r\n")
    return event.rpartition(b"data: ")[2]
