"""One kept connection to a worker, and the answer that is on its way on it.

What a worker may do, and what becomes of it: it refuses or resets before any byte (`WorkerRefused`: another may take the
call); is silent (`WorkerTimeout`, by the caller's clock); sends what is no HTTP, headers without end, half an answer, or a
second answer at once (`UpstreamError`). An answer must announce its length or be chunked: one that ends with the connection
cannot be told from one that was cut. A connection on which anything was odd is closed, never used again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final

import httptools

from sluice.errors import GatewayError, UpstreamError, WorkerRefused
from sluice.outbox import Outbox
from sluice.timers import LazyTimer
from sluice.types import Body

MAX_STATUS = 599
# Checked read by read: what comes before the body, and what is no body behind it (trailers, the frames of chunks).
MAX_HEAD_BYTES = 65_536
MAX_BARE_BYTES = 4_194_304
MAX_COPIED_BYTES = 65_536  # of a body, to be one write with its head


def _size_lines(num_bytes: int) -> list[bytes | None]:
    """How a read of so many bytes begins, up to that many, where it is one whole chunk; None: no chunk is so long."""
    lines: list[bytes | None] = [None] * (num_bytes + 1)
    for size in range(1, num_bytes):
        line = b"%x\r\n" % size
        if (length := len(line) + size + 2) <= num_bytes:
            lines[length] = line
    return lines


MAX_CHUNK_BYTES: Final = 2048  # of those that are known without a parser
SIZE_LINES: Final = _size_lines(MAX_CHUNK_BYTES)


class Sink:
    """Where the body of an answer goes read by read, and who is told of its end."""

    def take(self, data: bytes, chunk: bytes) -> None:
        """A read's part of the body. Where that came as one whole chunk, `chunk` is it with its frame, else empty."""
        raise NotImplementedError

    def end(self) -> None:
        raise NotImplementedError


class Answer:
    """What a worker sends back for one request. Its state is the head, the body so far, and how it ended.

    The body is gathered here until the connection is given a sink; from then on it passes this object by.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.status = 0
        self.headers: dict[str, str] = {}
        self.num_bytes = 0
        self.ended = False
        self.error: GatewayError | None = None
        self.sink: Sink | None = None  # that is told of the end
        self._parts: list[bytes] = []
        self._loop = loop
        self._waiter: asyncio.Future[None] | None = None

    # The connection's side
    def data(self, data: bytes) -> None:
        self.num_bytes += len(data)
        self._parts.append(data)
        self._wake()

    def head(self, status: int, headers: dict[str, str]) -> None:
        self.status = status
        self.headers = headers
        self._wake()

    def end(self, error: GatewayError | None = None) -> None:
        if self.ended:
            return
        self.ended = True
        self.error = error
        self._wake()
        sink, self.sink = self.sink, None
        if sink is not None:
            sink.end()

    # The reader's side
    async def has_head(self) -> None:
        """Wait for status and headers; raises the error that came instead."""
        while not self.status:
            await self._progress()

    async def read(self, limit_bytes: int) -> bytes:
        """The whole body; raises what broke it, or `UpstreamError` where it is larger than we hold."""
        while not self.ended and self.num_bytes <= limit_bytes:
            await self._progress()
        if self.num_bytes > limit_bytes:
            raise UpstreamError(f"The worker's answer is larger than {limit_bytes} bytes.")
        if self.error is not None:
            raise self.error
        return self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)

    async def some(self) -> bytes:
        """The next bytes of the body; empty at its end. Raises what broke it."""
        while not self._parts:
            if self.ended:
                if self.error is not None:
                    raise self.error
                return b""
            await self._progress()
        return self.gathered()

    def gathered(self) -> bytes:
        """What has come and was not taken yet."""
        data = b"".join(self._parts)
        self._parts.clear()
        return data

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def _progress(self) -> None:
        if self.error is not None:
            raise self.error
        self._waiter = self._loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None


class Connection(asyncio.Protocol):
    """One TCP or TLS connection. It is idle (`answer` is None), busy until its answer has ended, or closed."""

    def __init__(self, loop: asyncio.AbstractEventLoop, on_lost: Callable[[Connection], None], outbox: Outbox) -> None:
        self.answer: Answer | None = None
        self.idle_since = 0.0
        self.num_answers = 0
        self.patience = LazyTimer(loop)  # of who waits for an answer
        self.is_reusable = False  # the last answer ended cleanly and the worker keeps the connection
        self._loop = loop
        self._on_lost = on_lost
        self._outbox = outbox
        self._transport: asyncio.Transport | None = None
        # Where the body goes, once somebody takes it read by read
        self._sink: Sink | None = None
        self._is_at_border = False  # between two chunks, and the last read was one whole chunk: the next may be too
        # The answer being parsed
        self._headers: list[tuple[bytes, bytes]] = []
        self._bare_bytes = 0  # in reads that brought no body
        self.is_complete = False  # the answer's end has been read, though its last bytes may still be on their way to the sink
        self._keeps_alive = False
        self._body: list[bytes] = []
        self.on_body = self._body.append  # called by the parser, without a Python frame
        self._parser: Any = httptools.HttpResponseParser(self)

    def __repr__(self) -> str:
        state = "closed" if self.is_closed else "idle" if self.answer is None else "busy"
        return f"<Connection {state}, {self.num_answers} answers>"

    @property
    def is_closed(self) -> bool:
        return self._transport is None or self._transport.is_closing()

    def send(self, head: bytes, body: Body) -> Answer:
        """Start one request; the connection must be idle."""
        assert self._transport is not None and self.answer is None
        self.answer = Answer(self._loop)
        self.is_reusable = False
        self._bare_bytes = 0
        if isinstance(body, tuple):
            self._transport.writelines((head, *body))
        elif len(body) > MAX_COPIED_BYTES:
            self._outbox.write(self._transport, head, body)
        else:
            self._outbox.write(self._transport, head + body)
        return self.answer

    def pipe(self, answer: Answer, sink: Sink) -> None:
        """Hand every further read to `sink` from within the event loop's read, and tell it when the answer has ended.

        `answer` is the one that `send` returned; it may have ended by now.
        """
        if data := answer.gathered():
            sink.take(data, b"")
        if answer.ended:
            sink.end()
        else:
            self._sink = sink
            answer.sink = sink

    def pause(self) -> None:
        if self._transport is not None:
            self._transport.pause_reading()

    def resume(self) -> None:
        if self._transport is not None:
            self._transport.resume_reading()

    def abort(self) -> None:
        """Close at once. The worker sees the reset and stops generating."""
        if self._transport is not None:
            self._transport.abort()

    # asyncio.Protocol
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        sink = self._sink
        if self._is_at_border and sink is not None and len(data) <= MAX_CHUNK_BYTES:
            # One event in one chunk in one read, as vLLM sends them, passes the parser by: it stays where it is.
            line = SIZE_LINES[len(data)]
            if line is not None and data.startswith(line) and data.endswith(b"\r\n"):
                sink.take(data[len(line) : -2], data)
                return
        answer = self.answer
        if answer is None:
            self.abort()  # a worker that speaks unasked, or goes on after the end of its answer
            return
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self._fail(answer, "The worker's answer is not HTTP.")
            return
        self._is_at_border = False
        if self._body:
            body = self._body[0] if len(self._body) == 1 else b"".join(self._body)
            self._body.clear()
            if sink is None:
                answer.data(body)
            elif data == b"%x\r\n%b\r\n" % (len(body), body):
                # A worker can write what only looks so, inside of a chunk. It spoils its own answer with that: what goes down
                # was looked at all the same, and the connection is given up when its end is not found.
                self._is_at_border = True
                sink.take(body, data)
            else:
                sink.take(body, b"")
        elif not self.is_complete:
            self._bare_bytes += len(data)
            if self._bare_bytes > (MAX_BARE_BYTES if answer.status else MAX_HEAD_BYTES):
                self._fail(answer, "The worker's headers are too large.")
                return
        if self.is_complete:
            self.is_complete = False
            self.num_answers += 1
            self.is_reusable = self._keeps_alive and not self.is_closed
            self._end(answer)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = self._parser = None  # the parser holds us
        self.patience.close()
        self._on_lost(self)
        answer = self.answer
        if answer is None:
            return
        if not answer.status and not self._bare_bytes:
            self._end(answer, WorkerRefused("The worker closed the connection before it answered."))
        else:
            self._end(answer, UpstreamError("The worker closed the connection in the middle of its answer."))

    # httptools
    def on_message_begin(self) -> None:
        if self.is_complete:
            raise httptools.HttpParserError("a second answer to one request")
        self._headers = []

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers.append((name, value))

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        if status > MAX_STATUS:
            raise httptools.HttpParserError("a status that HTTP does not know")
        if status >= 200:
            assert self.answer is not None
            headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in self._headers}
            self.answer.head(status, headers)

    def on_message_complete(self) -> None:
        if self._parser.get_status_code() >= 200:
            self.is_complete = True
            self._keeps_alive = self._parser.should_keep_alive()  # only here does the parser still know

    def _fail(self, answer: Answer, message: str) -> None:
        self._body.clear()
        self.abort()
        self._end(answer, UpstreamError(message))

    def _end(self, answer: Answer, error: GatewayError | None = None) -> None:
        self.answer = self._sink = None
        self._is_at_border = False
        answer.end(error)
