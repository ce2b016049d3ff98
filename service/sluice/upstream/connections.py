"""The connections to one worker: taken by `async with`, kept while they are fresh, retired before the worker would.

vLLM closes a connection that was idle for 5 s (`VLLM_HTTP_TIMEOUT_KEEP_ALIVE`), and a request sent into that moment is
lost. So an idle connection is dropped after 2.5 s, and when a reused one breaks before any byte came back, the request
goes out once more on a new one: nothing was computed for it.
"""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from collections.abc import Callable
from math import inf
from pathlib import Path
from urllib.parse import urlsplit

from sluice.config import ConfigError
from sluice.errors import GatewayError, WorkerRefused
from sluice.outbox import Outbox
from sluice.types import Body
from sluice.upstream.connection import Answer, Connection

MAX_IDLE_S = 2.5

Headers = tuple[tuple[str, str], ...]


class Connections:
    """All connections to the worker at `url`; `api_key` and `ca_file` are what that worker wants from us; `tls` instead of
    `ca_file` where there is a context already, `server_name` where its certificate has another name than the URL."""

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        ca_file: Path | None = None,
        tls: ssl.SSLContext | None = None,
        server_name: str | None = None,
        connect_s: float = 2.0,
        max_idle_s: float = MAX_IDLE_S,
    ) -> None:
        parts = urlsplit(url)
        self._host = parts.hostname or ""
        self._port = parts.port or (443 if parts.scheme == "https" else 80)
        self._ssl = tls or tls_context(ca_file) if parts.scheme == "https" else None
        self._server_name = server_name if self._ssl is not None else None  # None: the host of the URL
        self._connect_s = connect_s
        self._max_idle_s = max_idle_s
        authorization = f"authorization: Bearer {api_key}\r\n" if api_key else ""
        self._common = f" HTTP/1.1\r\nhost: {parts.netloc}\r\n{authorization}".encode()
        # Idle connections, freshest last; all open ones. Only this class changes them, and never across an await.
        self._idle: deque[Connection] = deque()
        self._open: set[Connection] = set()
        self._sweeper: asyncio.TimerHandle | None = None
        self._outbox = Outbox()

    def __repr__(self) -> str:
        return f"<Connections {self._host}:{self._port} [{len(self._open)} open, {len(self._idle)} idle]>"

    def head(self, method: str, path: str, *, content_type: str, length: int, request_id: str, headers: Headers = ()) -> bytes:
        """The request's head. `headers` come from the client: the caller has chosen them, llhttp has checked them."""
        extra = "".join([f"{name}: {value}\r\n" for name, value in headers]).encode("latin-1") if headers else b""
        return b"%b %b%bcontent-type: %b\r\ncontent-length: %d\r\nx-request-id: %b\r\n%b\r\n" % (
            method.encode(),
            path.encode(),
            self._common,
            content_type.encode(),
            length,
            request_id.encode(),
            extra,
        )

    def send(self, head: bytes, body: Body) -> Sending:
        """Send a request, by `async with`; see `Sending`."""
        return Sending(self, head, body)

    def close(self) -> None:
        if self._sweeper is not None:
            self._sweeper.cancel()
            self._sweeper = None
        self._idle.clear()
        for connection in list(self._open):
            connection.abort()

    def take(self, now: float) -> Connection | None:
        """The freshest idle connection that is still safe to use."""
        while self._idle:
            connection = self._idle.pop()
            if not connection.is_closed and now - connection.idle_since < self._max_idle_s:
                return connection
            connection.abort()
        return None

    async def connect(self, loop: asyncio.AbstractEventLoop) -> Connection:
        """A new connection; raises `WorkerRefused` where there is none to be had within `connect_s`."""
        try:
            async with asyncio.timeout(self._connect_s):
                _, connection = await loop.create_connection(
                    lambda: Connection(loop, self._open.discard, self._outbox),
                    self._host,
                    self._port,
                    ssl=self._ssl,
                    server_hostname=self._server_name,
                )
        except TimeoutError as exc:
            raise WorkerRefused(f"No connection to the worker within {self._connect_s:g} s.") from exc
        except ssl.SSLCertVerificationError as exc:
            raise WorkerRefused("The worker's TLS certificate could not be verified.") from exc
        except ssl.SSLError as exc:
            raise WorkerRefused("No TLS connection to the worker: it speaks another version, or plain HTTP.") from exc
        except (OSError, UnicodeError) as exc:  # the latter from names that DNS cannot spell
            raise WorkerRefused("The worker cannot be reached.") from exc
        if connection.is_closed:  # lost again before we were woken
            raise WorkerRefused("The worker closed the connection before it answered.")
        self._open.add(connection)
        return connection

    def give_back(self, connection: Connection, loop: asyncio.AbstractEventLoop) -> None:
        if not connection.is_reusable or connection.is_closed:
            connection.abort()
            return
        connection.idle_since = loop.time()
        self._idle.append(connection)
        if self._sweeper is None:
            self._sweeper = loop.call_later(self._max_idle_s, self._sweep, loop)

    def _sweep(self, loop: asyncio.AbstractEventLoop) -> None:
        self._sweeper = None
        now = loop.time()
        while self._idle and (self._idle[0].is_closed or now - self._idle[0].idle_since >= self._max_idle_s):
            self._idle.popleft().abort()
        if self._idle:
            due_s = self._idle[0].idle_since + self._max_idle_s - now
            self._sweeper = loop.call_later(max(0.01, due_s), self._sweep, loop)


class Sending:
    """One request on its way: entered when it is written, left when its answer has ended or is not wanted any more.

    Leaving before the end closes the connection: that is what stops a generation in vLLM.
    """

    __slots__ = ("_body", "_connections", "_failure", "_head", "_is_reused", "_loop", "answer", "connection")

    def __init__(self, connections: Connections, head: bytes, body: Body) -> None:
        self._connections = connections
        self._head = head
        self._body = body
        self._failure: GatewayError | None = None

    async def __aenter__(self) -> Sending:
        """Raises `WorkerRefused` where no connection is to be had."""
        self._loop = asyncio.get_running_loop()
        connection = self._connections.take(self._loop.time())
        self._is_reused = connection is not None
        if connection is None:
            connection = await self._connections.connect(self._loop)
        self.connection: Connection = connection
        self.answer: Answer = connection.send(self._head, self._body)
        return self

    async def __aexit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        self._connections.give_back(self.connection, self._loop)

    async def head(self, due: float = inf, late: Callable[[], None] | None = None) -> Answer:
        """Wait for the status and headers of the answer. `late` is called at `due`, and may `fail` this, until `be_patient`.

        Raises `WorkerRefused` where the worker hangs up before it answers anything (a reused connection is tried once more
        on a new one: the worker may have closed it while it was idle), else the error that came instead.
        """
        if late is not None:
            self.connection.patience.set(due, late)
        try:
            await self.answer.has_head()
        except WorkerRefused:
            if not self._is_reused:
                raise
            self._is_reused = False
            self.connection = await self._connections.connect(self._loop)
            if late is not None:
                if self._loop.time() >= due:
                    late()
                self.connection.patience.set(due, late)
            if self._failure is not None:
                raise self._failure from None
            self.answer = self.connection.send(self._head, self._body)
            await self.answer.has_head()
        return self.answer

    def be_patient(self) -> None:
        """What was waited for is there, or is not wanted any more."""
        self.connection.patience.unset()

    def fail(self, error: GatewayError) -> None:
        """Give up waiting, for a reason of the caller's: `error` is what comes instead of the answer."""
        self._failure = error
        self.answer.end(error)


def tls_context(ca_file: Path | None) -> ssl.SSLContext:
    """Verification is always on: against the system's authorities, or against `ca_file` alone."""
    try:
        return ssl.create_default_context(cafile=ca_file)
    except OSError as exc:  # ssl.SSLError is one
        raise ConfigError(f"ca_file {ca_file} is not a file of CA certificates: {exc.strerror}") from exc
