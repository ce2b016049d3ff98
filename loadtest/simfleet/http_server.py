"""HTTP/1.1 for a simulated worker: one protocol object a connection, httptools to parse, no task and no framework.

Behaves like uvicorn as far as a gateway can tell: the head of a stream goes out before its first event, each event is a
chunk of its own, idle connections are closed after the keep-alive time, pipelined requests wait their turn. A client
that leaves is told to the handler at once. What a slow reader does not take waits in memory: an answer is small.
"""

import asyncio
import socket
import struct
from collections.abc import Callable, Iterable
from email.utils import formatdate
from http import HTTPStatus
from typing import Any, cast
from urllib.parse import parse_qs

import httptools
import orjson

_REASONS = {status.value: status.phrase for status in HTTPStatus}
_LINGER_0 = struct.pack("ii", 1, 0)

Headers = Iterable[tuple[str, str]]


class Request:
    """One request, complete. Header names are lower case."""

    __slots__ = ("body", "headers", "method", "path", "query")

    def __init__(self, method: str, target: bytes, headers: dict[str, str], body: bytes) -> None:
        path, _, query = target.partition(b"?")
        self.method = method
        self.path = path.decode("latin-1")
        self.query: dict[str, list[str]] = parse_qs(query.decode("latin-1")) if query else {}
        self.headers = headers
        self.body = body


class Reply:
    """The answer to one request: `send` it whole, or `start` it, `write` pieces of it and `end` it.

    After the client has left all of them do nothing. `on_gone` is called once if it leaves before the end.
    """

    __slots__ = ("_chunked", "_connection", "_keep_alive", "is_open", "on_gone")

    def __init__(self, connection: "Connection", *, keep_alive: bool, chunked: bool) -> None:
        self._connection = connection
        self._keep_alive = keep_alive and chunked
        self._chunked = chunked
        self.is_open = True
        self.on_gone: Callable[[], None] | None = None

    def send(
        self, status: int, body: bytes = b"", content_type: str | None = "application/json", headers: Headers = ()
    ) -> None:
        """The whole reply."""
        if self.is_open:
            head = self._head(status, content_type, headers)
            self._connection.write(b"%scontent-length: %d\r\n\r\n%s" % (head, len(body), body))
            self._finish()

    def json(self, status: int, value: Any, headers: Headers = ()) -> None:
        """The whole reply, as JSON."""
        self.send(status, orjson.dumps(value), headers=headers)

    def start(self, content_type: str, headers: Headers = ()) -> None:
        """The head of a reply of unknown length."""
        if self.is_open:
            head = self._head(200, content_type, headers)
            self._connection.write(head + (b"transfer-encoding: chunked\r\n\r\n" if self._chunked else b"\r\n"))

    def write(self, pieces: Iterable[bytes]) -> None:
        """Some pieces of the body, each a chunk, in one go."""
        if not self.is_open:
            return
        if self._chunked:
            self._connection.write(b"".join([b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces]))
        else:
            self._connection.write(b"".join(pieces))

    def end(self) -> None:
        """The end of a reply of unknown length."""
        if self.is_open:
            if self._chunked:
                self._connection.write(b"0\r\n\r\n")
            self._finish()

    def raw(self, data: bytes) -> None:
        """Bytes that need not be HTTP."""
        if self.is_open:
            self._connection.write(data)

    def cut(self, *, reset: bool) -> None:
        """Drop the connection in the middle."""
        self._connection.drop(reset=reset)

    def gone(self) -> None:
        """The connection is lost."""
        if self.is_open:
            self.is_open = False
            if self.on_gone is not None:
                self.on_gone()

    def _head(self, status: int, content_type: str | None, headers: Headers) -> bytes:
        lines = [
            f"HTTP/1.1 {status} {_REASONS.get(status, '')}",
            f"date: {formatdate(usegmt=True)}",
            "server: uvicorn",
            "vary: Origin",
        ]
        if content_type is not None:
            lines.append(f"content-type: {content_type}")
        lines += [f"{name}: {value}" for name, value in headers]
        if not self._keep_alive:
            lines.append("connection: close")
        return ("\r\n".join(lines) + "\r\n").encode("latin-1")

    def _finish(self) -> None:
        self.is_open = False
        self.on_gone = None
        self._connection.reply_finished(keep_alive=self._keep_alive)


Handler = Callable[[Request, Reply], None]


class Connection(asyncio.Protocol):
    """Its state: the request being read, the reply under way, and requests that came meanwhile."""

    def __init__(self, server: "HttpServer") -> None:
        self._server = server
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpRequestParser(self)
        self._idle_timer: asyncio.TimerHandle | None = None
        self._target = b""
        self._headers: dict[str, str] = {}
        self._body: list[bytes] = []
        self._reply: Reply | None = None
        self._pipelined: list[tuple[Request, bool, bool]] = []

    # -- asyncio.Protocol --------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are no subclass of asyncio's.
        self._transport = cast(asyncio.Transport, transport)
        self._server.connections.add(self)
        if not self._server.is_listening:  # accepted, but the port was closed before it was its turn
            self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._server.connections.discard(self)
        self._transport = None
        self._stop_idle_timer()
        self._pipelined.clear()
        if self._reply is not None:
            self._reply.gone()
            self._reply = None

    def data_received(self, data: bytes) -> None:
        self._stop_idle_timer()
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self.drop(reset=False)
        except httptools.HttpParserError:
            if self._transport is not None:
                body = b"Invalid HTTP request received."
                head = f"content-type: text/plain; charset=utf-8\r\nconnection: close\r\ncontent-length: {len(body)}"
                self._transport.write(f"HTTP/1.1 400 Bad Request\r\n{head}\r\n\r\n".encode() + body)
                self._transport.close()

    # -- httptools ---------------------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        self._target, self._headers, self._body = b"", {}, []

    def on_url(self, url: bytes) -> None:
        self._target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        if self._headers.get("expect", "").lower() == "100-continue":
            self.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, data: bytes) -> None:
        self._body.append(data)

    def on_message_complete(self) -> None:
        request = Request(self._parser.get_method().decode(), self._target, self._headers, b"".join(self._body))
        keep_alive, chunked = self._parser.should_keep_alive(), self._parser.get_http_version() != "1.0"
        if self._reply is None:
            self._answer(request, keep_alive, chunked)
        else:
            self._pipelined.append((request, keep_alive, chunked))

    # -- for Reply and the server ------------------------------------------------------------------------------------

    def write(self, data: bytes) -> None:
        if self._transport is not None:
            self._transport.write(data)

    def reply_finished(self, *, keep_alive: bool) -> None:
        self._reply = None
        if self._transport is None:
            return
        if not keep_alive:
            self._transport.close()
        elif self._pipelined:
            self._loop.call_soon(self._answer_next)
        else:
            self._idle_timer = self._loop.call_later(self._server.keep_alive_s, self._transport.close)

    def drop(self, *, reset: bool) -> None:
        """Close at once, what is unsent is lost; with `reset` the other side gets a TCP reset."""
        if self._transport is not None:
            if reset and (sock := self._transport.get_extra_info("socket")) is not None:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_0)
            self._transport.abort()

    def _answer(self, request: Request, keep_alive: bool, chunked: bool) -> None:
        self._reply = Reply(self, keep_alive=keep_alive, chunked=chunked)
        self._server.handler(request, self._reply)

    def _answer_next(self) -> None:
        if self._pipelined and self._reply is None:
            self._answer(*self._pipelined.pop(0))

    def _stop_idle_timer(self) -> None:
        if self._idle_timer is not None:
            self._idle_timer.cancel()
            self._idle_timer = None


class HttpServer:
    """One listening port and its connections."""

    def __init__(self, handler: Handler, *, keep_alive_s: float = 5.0) -> None:
        self.handler = handler
        self.keep_alive_s = keep_alive_s
        self._server: asyncio.Server | None = None
        self.connections: set[Connection] = set()

    @property
    def is_listening(self) -> bool:
        return self._server is not None

    async def open(self, host: str, port: int) -> int:
        """Listen; port 0 takes a free one. Returns the port. OSError if it is taken."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: Connection(self), host, port, backlog=2048)
        return int(self._server.sockets[0].getsockname()[1])

    def stop_listening(self) -> None:
        """Refuse new connections; those that are open stay."""
        if self._server is not None:
            self._server.close()
            self._server = None

    def close(self, *, reset: bool) -> None:
        """Stop listening and drop every connection, as the end of the process does."""
        self.stop_listening()
        for connection in list(self.connections):
            connection.drop(reset=reset)
