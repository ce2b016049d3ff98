"""The way from the relay to one client that costs no task wake-up.

Bytes that the upstream connection reads are framed and written into the client's transport within the same turn of the
event loop. Flow control goes both ways: the protocol tells the pump when the client reads too slowly, and when it has left.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Protocol, Self

from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, RequestResponseCycle

from sluice.asgi import Headers
from sluice.outbox import Outbox


class Client(Protocol):
    """What the pump needs of the client's connection, which in turn calls the open pump's `gone`, `on_pause`, `on_resume`."""

    transport: asyncio.Transport
    flow: FlowControl
    outbox: Outbox
    pump: Pump | None


class Pump:
    """The way to one client; see `sluice.relay.Downstream` for the rules of use."""

    __slots__ = (
        "_client", "_cycle", "_extra", "_is_chunked", "_owner", "_transport", "is_gone", "on_pause", "on_resume",
        "started", "write_chunk",
    )  # fmt: skip

    def __init__(self, client: Client, cycle: RequestResponseCycle) -> None:
        self.started = False
        self.is_gone = False
        self.on_pause: Callable[[], None] = _nothing
        self.on_resume: Callable[[], None] = _nothing
        self.write_chunk: Callable[[bytes], None] | None = None
        self._client = client
        self._cycle = cycle
        self._transport = client.transport
        self._extra: Headers = []
        self._is_chunked = True
        self._owner: asyncio.Task[Any] | None = None

    def bind(self, extra: Headers) -> Pump:
        """Give the headers that every answer to this request carries."""
        self._extra = extra
        return self

    def whole_body(self) -> bytes | None:
        """The request's body, if all of it has arrived. It is handed over: the server keeps no copy while the call runs."""
        cycle: Any = self._cycle  # its body is bytes where the protocol has put them there, else a bytearray
        if cycle.more_body:
            return None
        body, cycle.body = bytes(cycle.body), b""
        return body

    @property
    def is_paused(self) -> bool:
        return self._client.flow.write_paused

    async def __aenter__(self) -> Self:
        self._owner = asyncio.current_task()
        self._client.pump = self
        if self._cycle.disconnected or self._transport.is_closing():
            self.gone()
        else:
            self._client.flow.resume_reading()  # a closed connection is noticed only while it is read
        return self

    async def __aexit__(self, *exc: object) -> None:
        if self._client.pump is self:
            self._client.pump = None
        self._owner = None
        self._cycle.scope.pop("extensions", None)  # scope, pump and cycle hold each other: leave no work for the collector
        self.on_pause = self.on_resume = _nothing
        self.write_chunk = None

    def respond(self, status: int, headers: Headers, body: bytes) -> None:
        length = (b"content-length", b"%d" % len(body))
        self._head(status, [*headers, length], b"" if self._cycle.scope["method"] == "HEAD" else body, is_whole=True)
        self._complete()

    def start(self, status: int, headers: Headers, first: bytes) -> None:
        self._is_chunked = self._cycle.scope["http_version"] == "1.1"
        if self._is_chunked:
            self.write_chunk = self._pass
            framed = b"%x\r\n%b\r\n" % (len(first), first) if first else b""
            self._head(status, [*headers, (b"transfer-encoding", b"chunked")], framed)
        else:
            self._cycle.keep_alive = False
            self._head(status, headers, first)

    def write(self, data: bytes) -> None:
        if self.is_gone or not data:  # an empty chunk would be the last one
            return
        self._transport.write(b"%x\r\n%b\r\n" % (len(data), data) if self._is_chunked else data)

    def _pass(self, chunk: bytes) -> None:
        if not self.is_gone:
            self._transport.write(chunk)

    def finish(self, last: bytes = b"") -> None:
        if not self.is_gone:
            if self._is_chunked:
                self._transport.write(b"%x\r\n%b\r\n0\r\n\r\n" % (len(last), last) if last else b"0\r\n\r\n")
            elif last:
                self._transport.write(last)
        self._complete()

    def gone(self) -> None:
        """The client has left, or what it sends cannot be read any further."""
        self.is_gone = True
        if self._owner is not None:
            self._owner.cancel()

    def _head(self, status: int, headers: Headers, rest: bytes, *, is_whole: bool = False) -> None:
        cycle = self._cycle
        self.started = cycle.response_started = True
        cycle.waiting_for_100_continue = False
        if self.is_gone:
            return
        lines = [STATUS_LINE[status]]
        for name, value in cycle.default_headers:
            lines.append(b"%b: %b\r\n" % (name, value))
        for name, value in headers:
            lines.append(b"%b: %b\r\n" % (name, value))
        for name, value in self._extra:
            lines.append(b"%b: %b\r\n" % (name, value))
        if not cycle.keep_alive or cycle.more_body:
            lines.append(b"connection: close\r\n")
        lines.append(b"\r\n")
        lines.append(rest)
        message = b"".join(lines)
        if is_whole and cycle.keep_alive:
            self._client.outbox.write(self._transport, message)
        else:
            self._client.outbox.flush()
            self._transport.write(message)

    def _complete(self) -> None:
        cycle = self._cycle
        cycle.response_complete = True
        cycle.message_event.set()
        cycle.on_response()


def _nothing() -> None:
    pass
