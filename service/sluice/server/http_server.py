"""uvicorn's server with our protocol: how it is made, on which socket it listens, and which signals stop it."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import uvicorn

from sluice.config import ClientTimeouts, Server
from sluice.outbox import Outbox
from sluice.server.protocol import Leaving, Protocol


class HttpServer(uvicorn.Server):
    """uvicorn's server without its hold on signals: `stop` makes it drain, and `serve` returns once all calls have ended.

    Calls that are still running after `drain_timeout_s`, or at a second `stop`, or when `serve` is cancelled, are cut off as
    if their clients had left: they let go of what they hold, and have their lines in the access log.
    """

    def __init__(
        self, config: uvicorn.Config, drain_timeout_s: float, on_started: Callable[[], None], leaving: Leaving
    ) -> None:
        super().__init__(config)
        self._leaving = leaving
        self._grace: asyncio.TimerHandle | None = None
        self.servers: list[asyncio.Server] = []
        self._drain_timeout_s = drain_timeout_s
        self._on_started = on_started

    def stop(self, grace_s: float = 0.0) -> None:
        """Drain. For `grace_s` calls are still taken, and each connection is closed behind its answer: a client that keeps
        connections asks elsewhere next. A second `stop` cuts everything off."""
        if self._leaving.is_so:
            self._cut()
        self._end_grace()
        if grace_s and not self._leaving.is_so:
            self._grace = asyncio.get_running_loop().call_later(grace_s, self._exit)
        else:
            self._exit()
        self._leaving.is_so = True

    def _exit(self) -> None:
        self.should_exit = True

    def _end_grace(self) -> None:
        if self._grace is not None:
            self._grace.cancel()
            self._grace = None

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        try:
            await super().serve(sockets)
        finally:
            self._end_grace()
            for server in self.servers:
                server.close()
            self._cut()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._on_started()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop listening, and drain. Who has connected and waits to be accepted is served: closing would reset them."""
        loop = asyncio.get_running_loop()
        timer = loop.call_later(self._drain_timeout_s, self._cut)
        late = [
            loop.create_task(self._adopt(accepted)) for listener in sockets or () for accepted in _not_accepted_yet(listener)
        ]
        try:
            await super().shutdown(sockets)
            await asyncio.gather(*late)
        finally:
            timer.cancel()

    async def _adopt(self, accepted: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        _, protocol = await loop.connect_accepted_socket(self._protocol, accepted)
        protocol.shutdown()

    def _protocol(self) -> Protocol:
        config, state = self.config, self.server_state
        made: Protocol = config.http_protocol_class(config=config, server_state=state, app_state=self.lifespan.state)  # type: ignore
        return made

    def _cut(self) -> None:
        for connection in list(self.server_state.connections):
            connection.transport.abort()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def make_server(
    app: Any,
    settings: Server,
    timeouts: ClientTimeouts,
    *,
    port: int,
    drain_timeout_s: float,
    on_started: Callable[[], None] | None = None,
) -> HttpServer:
    """A server on `port` that is not running yet."""
    leaving = Leaving()
    protocol = partial(Protocol, timeouts=timeouts, max_connections=settings.max_connections, leaving=leaving, outbox=Outbox())
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=port,
        loop="none",
        http=protocol,  # type: ignore[arg-type]
        ws="none",
        interface="asgi3",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=settings.keep_alive_s,  # type: ignore[arg-type]  # uvicorn takes fractions too
        timeout_graceful_shutdown=None,  # `HttpServer` ends the drain: uvicorn would print a traceback for every call
        backlog=4096,
    )
    return HttpServer(config, drain_timeout_s, on_started or _nothing, leaving)


def bind(host: str, port: int) -> socket.socket:
    """A listening socket; raises `OSError` where the port is taken, before anything else was started."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError:
        listener.close()
        raise
    listener.setblocking(False)
    return listener


def _not_accepted_yet(listener: socket.socket) -> Iterator[socket.socket]:
    """The connections that wait at a listener which is about to be closed."""
    with suppress(BlockingIOError):
        while True:
            accepted, _ = listener.accept()
            accepted.setblocking(False)
            yield accepted


@contextmanager
def stopping_on_signals(loop: asyncio.AbstractEventLoop, stop: Callable[[], None]) -> Iterator[None]:
    """Call `stop` on SIGTERM and SIGINT while the block runs."""
    signals = (signal.SIGTERM, signal.SIGINT)
    for number in signals:
        loop.add_signal_handler(number, stop)
    try:
        yield
    finally:
        for number in signals:
            loop.remove_signal_handler(number)


def _nothing() -> None:
    pass
