"""A benchmark of wrong answers is worth nothing: each kind of wrong answer is told from a right one."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import orjson
import pytest

from loadtest.bench import engine
from loadtest.bench.answers import Ask, WrongAnswer, check, make_ask, prompt_text
from loadtest.bench.client import GapLog, connected
from loadtest.bench.shape import chat_reply, chat_stream
from tests.unit.loadtest.bench_peer import close_all, patience, peer

STREAMED = make_ask("here", "sk-1", "smollm2", 20, stream=True)
PLAIN = make_ask("here", "sk-1", "smollm2", 20)


def unchunked(parts: list[bytes]) -> bytes:
    return b"".join(b"".join(part.split(b"\r\n")[1::2]) for part in parts)


def stream_body(model: str = "smollm2", num_tokens: int = 20) -> bytes:
    parts = chat_stream("chatcmpl-1", 1, model, num_tokens, include_usage=False)
    deltas = [parts.deltas[number % len(parts.deltas)] for number in range(num_tokens - 1)]
    return unchunked([parts.role, *deltas, parts.end])


def reply_body(num_tokens: int = 20) -> bytes:
    return chat_reply("chatcmpl-1", 1, "smollm2", num_tokens).partition(b"\r\n\r\n")[2]


def test_what_the_worker_says_is_right() -> None:
    check(STREAMED, 200, stream_body(), deep=True)
    check(STREAMED, 200, b": keep-alive\n\n" + stream_body(), deep=True)
    check(PLAIN, 200, reply_body(), deep=True)


def swapped(body: bytes) -> bytes:
    events = body.split(b"\n\n")
    events[3], events[4] = events[4], events[3]
    return b"\n\n".join(events)


@pytest.mark.parametrize(
    ("ask", "status", "body", "complaint"),
    [
        (STREAMED, 500, b"oops", "status 500"),
        (STREAMED, 200, stream_body().removesuffix(b"data: [DONE]\n\n"), "does not end in"),
        (STREAMED, 200, stream_body(num_tokens=19), "20 events instead of 21"),
        (STREAMED, 200, stream_body(model="other"), "'smollm2' and one id"),
        (STREAMED, 200, swapped(stream_body()), "the text of the stream"),
        (STREAMED, 200, stream_body().replace(b"chatcmpl-1", b"chatcmpl-2", 1), "one id"),
        (PLAIN, 200, reply_body()[:50], "not a whole reply"),
        (PLAIN, 200, reply_body(19), "instead of"),
        (PLAIN, 200, reply_body().replace(b" sluice", b" slews!"), "instead of"),
    ],
)
def test_a_wrong_answer_is_told(ask: Ask, status: int, body: bytes, complaint: str) -> None:
    with pytest.raises(WrongAnswer, match=complaint):
        check(ask, status, body, deep=True)


def test_a_prompt_has_the_size_that_was_asked_for_on_the_wire() -> None:
    assert len(orjson.dumps(prompt_text(65_536))) == 65_536 + len('""')


def test_a_request_carries_the_key_and_its_length() -> None:
    head, _, body = STREAMED.request.partition(b"\r\n\r\n")

    assert b"Authorization: Bearer sk-1" in head
    assert b"Content-Length: %d" % len(body) in head
    assert orjson.loads(body)["stream"] is True


@asynccontextmanager
async def a_worker() -> AsyncIterator[int]:
    worker = engine.Worker("smollm2", engine.Turns(is_told=False))
    async with patience(), await engine.serve(0, worker) as server:
        yield server.sockets[0].getsockname()[1]
        await close_all(worker.open)


async def test_a_crew_asks_and_finds_the_answers_right() -> None:
    gap_log = GapLog()
    gap_log.into_s = gaps_s = []
    async with a_worker() as port, connected(port, 3, gap_log) as crew:
        await crew.ask(STREAMED, 2)

    assert len(gaps_s) == 3 * 2 * 21  # 21 chunks and [DONE] a stream: one gap fewer than events


@pytest.mark.parametrize("piece_bytes", [1, 7, 100, 100_000])
async def test_every_event_is_noted_wherever_a_gateway_cuts_the_stream(piece_bytes: int) -> None:
    body = stream_body()
    seen: list[int] = []

    async def cut_anew(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
        for at in range(0, len(body), piece_bytes):
            piece = body[at : at + piece_bytes]
            writer.write(b"%x\r\n%s\r\n" % (len(piece), piece))
        writer.write(b"0\r\n\r\n")
        await reader.read()

    async with peer(cut_anew) as port:
        async with connected(port, 1, lambda _, num_events: seen.append(num_events)) as crew:
            await crew.ask(STREAMED, 1)

    assert sum(seen) == 22


async def test_a_large_request_arrives_whole() -> None:
    large = make_ask("here", "sk-1", "smollm2", engine.TOKENS_UNREAD, contents=(prompt_text(2_000_000),))
    async with a_worker() as port, connected(port, 1) as crew:
        await crew.ask(large, 2)


async def test_a_connection_that_closes_within_an_answer_is_a_wrong_answer() -> None:
    async def cut(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\ndata:\r\n")

    async with peer(cut) as port:
        async with connected(port, 1) as crew:
            with pytest.raises(WrongAnswer, match="closed within an answer"):
                await crew.ask(STREAMED, 1)


async def test_what_is_not_http_is_a_wrong_answer() -> None:
    async def babble(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"hello there\r\n\r\n")
        await reader.read()

    async with peer(babble) as port:
        async with connected(port, 1) as crew:
            with pytest.raises(WrongAnswer, match="not HTTP"):
                await crew.ask(PLAIN, 1)


async def test_an_answer_that_never_comes_is_a_wrong_answer() -> None:
    async def stall(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    async with peer(stall) as port:
        async with connected(port, 2) as crew:
            with pytest.raises(WrongAnswer, match="2 of 2 clients wait"):
                await crew.ask(PLAIN, 1, within_s=0.01)
