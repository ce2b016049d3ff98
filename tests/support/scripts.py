"""Ready-made replies of a worker that is well, slow, broken or hostile: each is a script for `RawServer`."""

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Literal

import orjson

from tests.support import vllm_shapes as vllm
from tests.support.raw_server import Connection, Request, Script
from tests.support.vllm_shapes import Json

Cut = Callable[[bytes], Iterable[bytes]]
Ending = Literal["end", "no_terminator", "reset", "stall", "open"]

PHRASES = {200: "OK", 400: "Bad Request", 401: "Unauthorized", 403: "Forbidden", 404: "Not Found"}
PHRASES |= {405: "Method Not Allowed", 422: "Unprocessable Content", 429: "Too Many Requests"}
PHRASES |= {500: "Internal Server Error", 502: "Bad Gateway", 503: "Service Unavailable", 504: "Gateway Timeout"}

STREAM_HEADERS = (("content-type", "text/event-stream; charset=utf-8"), ("transfer-encoding", "chunked"))


def head(status: int, headers: Iterable[tuple[str, str]]) -> bytes:
    """Status line and headers as uvicorn writes them."""
    lines = [f"HTTP/1.1 {status} {PHRASES.get(status, 'Unknown')}", "date: Sat, 21 Nov 2026 23:47:14 GMT"]
    lines += ["server: uvicorn", *(f"{name}: {value}" for name, value in headers)]
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n"


def chunk(data: bytes) -> bytes:
    """One chunk of the chunked transfer coding."""
    return b"%x\r\n%b\r\n" % (len(data), data)


# Whole replies


def reply(
    status: int,
    body: Json | bytes = b"",
    *,
    content_type: str = "application/json",
    headers: Sequence[tuple[str, str]] = (),
    gate: asyncio.Event | None = None,
) -> Script:
    """A whole reply in one write, once the gate (if any) is open."""

    async def script(request: Request, connection: Connection) -> None:
        if gate is not None:
            await gate.wait()
        data = body if isinstance(body, bytes) else orjson.dumps(body)
        own = [("content-length", str(len(data))), ("content-type", content_type), *headers]
        await connection.send(head(status, own) + data, last=True)

    return script


def vllm_error(status: int, message: str = "no", *, type: str = "BadRequestError", param: str | None = None) -> Script:
    """`code` is an integer and `type` the name of a Python class."""
    return reply(status, vllm.error(status, message, type=type, param=param))


def string_error(status: int, message: str = "Unauthorized") -> Script:
    return reply(status, {"error": message})


def detail_error(status: int, detail: str = "Not Found") -> Script:
    """The framework's own: unknown paths, wrong methods, unreadable bodies."""
    return reply(status, {"detail": detail})


def html_error(status: int) -> Script:
    """What a load balancer in front of the worker says."""
    page = f"<html><head><title>{status} Bad Gateway</title></head><body><h1>{status}</h1>nginx 10.1.2.3</body></html>"
    return reply(status, page.encode(), content_type="text/html")


def empty(status: int) -> Script:
    return reply(status, b"")


def queue_full() -> Script:
    """--max-num-queued-reqs is reached: nothing was computed, and there is no Retry-After."""
    return reply(503, vllm.queue_full())


# Replies that break HTTP, or never come


def raw(data: bytes, then: Ending = "no_terminator") -> Script:
    """Any bytes at all."""
    return _written([data], then)


def garbage() -> Script:
    return raw(b"\x00\xff\x15 this is no HTTP \r\n\r\n" * 4)


def half_head(then: Ending = "no_terminator") -> Script:
    """The status line and half a header."""
    return raw(b"HTTP/1.1 200 OK\r\nserver: uvicorn\r\ncontent-le", then)


def wrong_length(body: Json | bytes, *, by: int, then: Ending = "no_terminator") -> Script:
    """A content-length that promises `by` bytes more (or fewer, if negative) than come."""
    data = body if isinstance(body, bytes) else orjson.dumps(body)
    length = ("content-length", str(len(data) + by))
    return raw(head(200, [length, ("content-type", "application/json")]) + data, then)


def never_answers() -> Script:
    return raw(b"", "stall")


def reset_before_any_byte() -> Script:
    return raw(b"", "reset")


def close_before_any_byte() -> Script:
    return raw(b"", "no_terminator")


# Streams


def whole(data: bytes) -> Iterable[bytes]:
    """One chunk per event, as vLLM sends it."""
    return [data]


def byte_by_byte(data: bytes) -> Iterable[bytes]:
    return (data[i : i + 1] for i in range(len(data)))


def cut_inside(marker: bytes) -> Cut:
    """Cuts through the middle of `marker`, wherever it stands."""

    def cut(data: bytes) -> Iterable[bytes]:
        pieces = data.split(marker)
        middle = len(marker) // 2
        for number, piece in enumerate(pieces):
            before = marker[middle:] if number else b""
            after = marker[:middle] if number < len(pieces) - 1 else b""
            yield before + piece + after

    return cut


def with_crlf(events: Iterable[bytes]) -> list[bytes]:
    return [event.replace(b"\n", b"\r\n") for event in events]


def stream(
    events: Iterable[bytes],
    *,
    ending: Ending = "end",
    after: int | None = None,
    gates: Mapping[int, asyncio.Event] | None = None,
    cut: Cut = whole,
    in_one_write: bool = False,
    headers: Sequence[tuple[str, str]] = STREAM_HEADERS,
) -> Script:
    """A chunked event stream.

    `after` keeps only that many events before the `ending`: the end of a whole body, a FIN without the last chunk, a
    reset, silence until the client leaves, or (`open`) nothing, so that the connection waits for its next request.
    `gates[k]` holds event k back until the test opens it; `cut` splits events into chunks. With `in_one_write`
    everything goes out at once.
    """
    sent = list(events)[:after]
    framed = [b"".join(chunk(piece) for piece in cut(event)) for event in sent]
    if cut is not whole and not in_one_write:
        framed = [chunk(piece) for event in sent for piece in cut(event)]
        assert not gates, "gates count events, and here each write is a piece of one"
    writes = [head(200, headers), *framed]
    if in_one_write:
        writes = [b"".join(writes)]
    return _written(writes, ending, {k + 1: gate for k, gate in (gates or {}).items()})


def _written(writes: Sequence[bytes], ending: Ending, gates: Mapping[int, asyncio.Event] | None = None) -> Script:
    """Write by write, waiting before those that have a gate, and then the ending."""

    async def script(request: Request, connection: Connection) -> None:
        for number, data in enumerate(writes):
            if gates and number in gates:
                await gates[number].wait()
            if data:
                await connection.send(data)
        if ending == "end":
            await connection.send(b"0\r\n\r\n", last=True)
        elif ending == "no_terminator":
            await connection.close()
        elif ending == "reset":
            await connection.reset()
        elif ending == "stall":
            await connection.gone.wait()

    return script


def chat_stream(
    words: Sequence[str] = vllm.WORDS,
    *,
    model: str = "smollm2",
    include_usage: bool = True,
    finish: str = "stop",
    done: bool = True,
    ending: Ending = "end",
    after: int | None = None,
    gates: Mapping[int, asyncio.Event] | None = None,
    cut: Cut = whole,
    crlf: bool = False,
    in_one_write: bool = False,
) -> Script:
    """A chat stream of these words. Event 0 is the role, event k the k-th word; the usage and `[DONE]` come last.

    Broken ones: `finish="abort"` (the worker ended it), `done=False` (no `[DONE]`), and the endings of `stream`.
    """
    events = vllm.chat_events(vllm.content_deltas(words), model=model, include_usage=include_usage, finish=finish)
    events = events if done else events[:-1]
    events = with_crlf(events) if crlf else events
    return stream(events, ending=ending, after=after, gates=gates, cut=cut, in_one_write=in_one_write)


def stream_error(after: int = 0, *, message: str = "Internal server error", status: int = 500) -> Script:
    """vLLM's failure after the 200: `after` good events, the error event, and `[DONE]` all the same."""
    events = vllm.chat_events(vllm.content_deltas(), model="smollm2")[:after]
    return stream([*events, vllm.error_event(status, message), vllm.DONE])


def huge_event(num_bytes: int) -> Script:
    """A good stream with one event of that many bytes."""
    return chat_stream(["x" * num_bytes, "."])
