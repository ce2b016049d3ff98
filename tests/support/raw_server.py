"""An HTTP/1.1 server whose replies are raw bytes from a script: it knows requests, connections and nothing else."""

import asyncio
import socket
import ssl
import struct
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Self

import httptools
import orjson

PATIENCE_S = 60.0  # how long a wait_... may take before the test fails: only what hangs takes so long


@dataclass(frozen=True)
class Request:
    """One whole request as it came."""

    method: str
    target: str
    headers: tuple[tuple[str, str], ...]  # names in lower case, in order, repeated ones kept
    body: bytes
    connection: int  # the number of the connection that it came on
    nth_on_connection: int  # 1 for the first; more: a kept-alive connection was used again

    @property
    def path(self) -> str:
        return self.target.partition("?")[0]

    def header(self, name: str) -> str | None:
        """The value of a header that may occur once."""
        values = [value for key, value in self.headers if key == name]
        assert len(values) <= 1, f"{name} occurs {len(values)} times"
        return values[0] if values else None

    def json(self) -> Any:
        return orjson.loads(self.body)


Script = Callable[[Request, "Connection"], Awaitable[None]]


class Connection(asyncio.Protocol):
    """One connection of a client. A script may do to it whatever a broken, slow or hostile server does."""

    def __init__(self, server: "RawServer", number: int) -> None:
        self.number = number
        self.gone = asyncio.Event()  # the client left, or we closed
        self._server = server
        self._transport: asyncio.Transport
        self._parser = httptools.HttpRequestParser(self)
        self._writable = asyncio.Event()
        self._writable.set()

        # The request that is being read, and those that wait for their turn
        self._target = b""
        self._headers: list[tuple[str, str]] = []
        self._body: list[bytes] = []
        self._num_requests = 0
        self._waiting: deque[Request] = deque()

        # The reply that is being written
        self._task: asyncio.Task[None] | None = None
        self._reply_is_complete = False
        self._closed_by_us = False

    # What scripts use

    async def send(self, data: bytes, *, last: bool = False) -> None:
        """Write bytes; `last` says that the reply is whole, so that a client which leaves now aborts nothing."""
        self._reply_is_complete = self._reply_is_complete or last
        self._transport.write(data)
        await self._writable.wait()

    async def close(self) -> None:
        """Send what is written, then FIN."""
        self._closed_by_us = True
        self._transport.close()
        await self.gone.wait()

    async def reset(self) -> None:
        """RST, as a server process that was killed."""
        self._closed_by_us = True
        sock = self._transport.get_extra_info("socket")
        if sock is not None and sock.fileno() >= 0:  # the client may just have closed it
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._transport.abort()
        await self.gone.wait()

    async def drop(self) -> None:
        """Reset, whatever the script is doing."""
        if self._task is not None:
            self._task.cancel()
        await self.reset()

    @property
    def is_idle(self) -> bool:
        return self._task is None and not self.gone.is_set()

    # asyncio's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]
        self._server.connections.add(self)
        self._server.num_connections_made += 1
        self._server.changed()

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as exc:
            self._server.errors.append(exc)
            self._transport.abort()

    def eof_received(self) -> None:
        """A client that closes its side has left: uvicorn, and so vLLM, treats it so too."""

    def connection_lost(self, exc: Exception | None) -> None:
        self.gone.set()
        self._writable.set()
        self._server.connections.discard(self)
        if self._task is not None and not self._closed_by_us:
            if not self._reply_is_complete:
                self._server.num_aborted += 1
            self._task.cancel()
        self._server.changed()

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    # httptools' side

    def on_message_begin(self) -> None:
        self._target, self._headers, self._body = b"", [], []

    def on_url(self, url: bytes) -> None:
        self._target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers.append((name.decode("latin-1").lower(), value.decode("latin-1")))

    def on_body(self, body: bytes) -> None:
        self._body.append(body)

    def on_message_complete(self) -> None:
        self._num_requests += 1
        request = Request(
            method=self._parser.get_method().decode(),
            target=self._target.decode("latin-1"),
            headers=tuple(self._headers),
            body=b"".join(self._body),
            connection=self.number,
            nth_on_connection=self._num_requests,
        )
        self._server.requests.append(request)
        self._waiting.append(request)
        self._server.changed()
        if self._task is None:
            self._next()

    def _next(self) -> None:
        if self._waiting and not self._transport.is_closing():
            self._reply_is_complete = False
            self._task = asyncio.get_running_loop().create_task(self._run(self._waiting.popleft()))

    async def _run(self, request: Request) -> None:
        try:
            await self._server.script_for(request)(request, self)
            if (request.header("connection") or "").lower() == "close":
                self._transport.close()
        except Exception as exc:  # noqa: BLE001 - a bug in a script fails the test, in RawServer.__aexit__
            self._server.errors.append(exc)
            self._transport.abort()
        finally:
            self._task = None
            self._server.changed()
            self._next()


class RawServer:
    """Listens on a free loopback port, runs a script for each request and records what happened.

    Requests are recorded when they are whole. `num_aborted` counts the clients that closed before their reply was
    complete. The wait_... methods return as soon as it is so and fail the test after PATIENCE_S.
    """

    def __init__(self, *, tls: ssl.SSLContext | None = None) -> None:
        self._tls = tls
        self._listener: asyncio.Server | None = None
        self._port = 0
        self._num_numbers = 0
        self._waiters: list[asyncio.Future[None]] = []
        self.requests: list[Request] = []
        self.connections: set[Connection] = set()
        self.num_connections_made = 0
        self.num_aborted = 0
        self.errors: list[BaseException] = []

    def script_for(self, request: Request) -> Script:
        raise NotImplementedError

    @property
    def url(self) -> str:
        return f"{'https' if self._tls else 'http'}://127.0.0.1:{self._port}"

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.stop()
        if self.errors:
            raise AssertionError(f"a script or a request was broken: {self.errors!r}") from self.errors[0]

    async def start(self) -> None:
        """Listen; after a stop() on the same port again, as a worker that was restarted."""
        loop = asyncio.get_running_loop()
        self._listener = await loop.create_server(self._connection, "127.0.0.1", self._port, ssl=self._tls)
        self._port = self._listener.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Stop listening and reset every connection, as a worker that was killed."""
        if self._listener is None:
            return
        self._listener.close()
        self._listener = None
        for connection in list(self.connections):
            await connection.drop()

    def _connection(self) -> Connection:
        self._num_numbers += 1
        return Connection(self, self._num_numbers)

    async def close_idle(self) -> int:
        """Close the connections on which nothing happens, as vLLM does after five seconds. How many they were."""
        idle = [connection for connection in self.connections if connection.is_idle]
        for connection in idle:
            await connection.close()
        return len(idle)

    # What tests wait for

    def changed(self) -> None:
        """Wake those who wait for a change."""
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    async def until(self, condition: Callable[[], bool], *, within_s: float = PATIENCE_S) -> None:
        """Return once `condition()` holds; it is asked again after every event of this server."""
        try:
            async with asyncio.timeout(within_s):
                while not condition():
                    waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
                    self._waiters.append(waiter)
                    await waiter
        except TimeoutError:
            raise AssertionError(f"not within {within_s} s: {self!r}") from None

    async def wait_requests(self, num: int, *, within_s: float = PATIENCE_S) -> Request:
        """Until `num` requests came since the start (or the last reset); the newest of them."""
        await self.until(lambda: len(self.requests) >= num, within_s=within_s)
        return self.requests[num - 1]

    async def wait_aborted(self, num: int, *, within_s: float = PATIENCE_S) -> None:
        await self.until(lambda: self.num_aborted >= num, within_s=within_s)

    async def wait_idle(self, *, within_s: float = PATIENCE_S) -> None:
        """Until no reply is being written."""
        await self.until(lambda: all(connection.is_idle for connection in self.connections), within_s=within_s)

    @property
    def num_running(self) -> int:
        """How many replies are being written now."""
        return sum(not connection.is_idle for connection in self.connections)

    def __repr__(self) -> str:
        return (
            f"<{type(self).__name__} {self.url} [{len(self.requests)} requests, {self.num_running} running, "
            f"{self.num_aborted} aborted | {len(self.connections)} of {self.num_connections_made} connections open]>"
        )
