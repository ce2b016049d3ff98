"""How the server starts, drains and is cut off."""

import asyncio
import os
import signal
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from sluice.config import ClientTimeouts, Server
from sluice.server.http_server import HttpServer, bind, make_server, stopping_on_signals
from tests.support.raw_http import PATIENCE_S, RawClient, request_bytes

App = Callable[[Any, Any, Any], Awaitable[None]]
HELLO = request_bytes("GET", "/")


class Held:
    """An app whose answers wait for the test. `left` says how each one ended."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.arrived = asyncio.Event()
        self.left: list[str] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.arrived.set()
        gone = asyncio.create_task(self._gone(receive))
        ready = asyncio.create_task(self.gate.wait())
        done, waiting = await asyncio.wait({gone, ready}, return_when=asyncio.FIRST_COMPLETED)
        for task in waiting:
            task.cancel()
        self.left.append("gone" if gone in done else "answered")
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"hi"})

    async def _gone(self, receive: Any) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass


@asynccontextmanager
async def running(app: App, *, drain_timeout_s: float = 10) -> AsyncIterator[tuple[HttpServer, str, asyncio.Task[None]]]:
    started = asyncio.Event()
    server = make_server(app, Server(), ClientTimeouts(), port=0, drain_timeout_s=drain_timeout_s, on_started=started.set)
    with bind("127.0.0.1", 0) as listener:
        task = asyncio.create_task(server.serve(sockets=[listener]))
        await started.wait()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        try:
            yield server, url, task
        finally:
            server.stop()
            server.stop()
            await asyncio.wait({task})


async def test_a_drain_refuses_new_connections_closes_idle_ones_and_waits_for_answers():
    app = Held()
    async with running(app) as (server, url, task):
        async with RawClient(url) as busy, RawClient(url) as idle:
            await busy.send(HELLO)
            await app.arrived.wait()
            server.stop()
            assert await idle.read_rest() == b""
            with pytest.raises(OSError):
                await RawClient(url).__aenter__()
            assert not task.done()
            app.gate.set()
            response = await busy.read_response()
            assert (response.body, response.header("connection")) == (b"hi", "close")
        await asyncio.wait_for(task, PATIENCE_S)
    assert app.left == ["answered"]


async def test_a_connection_from_before_a_drain_may_still_bring_its_request_and_no_second_one():
    app = Held()
    app.gate.set()
    async with running(app) as (server, url, task):
        async with RawClient(url) as fresh, RawClient(url) as half:
            await half.send(HELLO[:10])
            server.stop()
            with pytest.raises(OSError):
                while True:  # until it no longer listens
                    async with RawClient(url):
                        await asyncio.sleep(0)
            await fresh.send(HELLO)
            response = await fresh.read_response()
            assert (response.body, response.header("connection")) == (b"hi", "close")
            assert await fresh.read_rest() == b""
            await half.send(HELLO[10:])
            assert (await half.read_response()).header("connection") == "close"
        await asyncio.wait_for(task, PATIENCE_S)


async def test_a_connection_from_before_a_drain_that_brings_nothing_is_closed():
    async with running(Held()) as (server, url, task), RawClient(url) as silent:
        server.stop()
        assert await silent.read_rest() == b""
        await asyncio.wait_for(task, PATIENCE_S)


async def test_who_waits_to_be_accepted_when_the_listener_closes_is_served():
    app = Held()
    app.gate.set()
    started = asyncio.Event()
    server = make_server(app, Server(), ClientTimeouts(), port=0, drain_timeout_s=10, on_started=started.set)
    with bind("127.0.0.1", 0) as listener:
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        await started.wait()
        with socket.create_connection(listener.getsockname()) as waiting:  # the loop has not turned since
            waiting.sendall(HELLO)
            waiting.setblocking(False)
            await server.shutdown([listener])
            assert b"connection: close" in (said := await asyncio.get_running_loop().sock_recv(waiting, 65_536))
            assert said.endswith(b"hi")
        serving.cancel()
        await asyncio.wait({serving})


@pytest.mark.asyncio(loop_factories=["asyncio"])
async def test_in_the_grace_before_a_drain_calls_are_taken_and_their_connections_closed_behind_them():
    app = Held()
    app.gate.set()
    async with running(app) as (server, url, task):
        async with RawClient(url) as kept, RawClient(url) as idle:
            await kept.send(HELLO)
            assert (await kept.read_response()).header("connection") is None
            server.stop(grace_s=0.2)
            async with RawClient(url) as new:
                for client in (kept, new):
                    await client.send(HELLO)
                    response = await client.read_response()
                    assert (response.status, response.header("connection")) == (200, "close")
                    assert await client.read_rest() == b""
            assert await idle.read_rest() == b""  # when the grace is over
        await asyncio.wait_for(task, PATIENCE_S)
        with pytest.raises(OSError):
            await RawClient(url).__aenter__()


async def test_a_second_stop_ends_the_grace_and_cuts():
    app = Held()
    async with running(app) as (server, url, task), RawClient(url) as client:
        await client.send(HELLO)
        await app.arrived.wait()
        server.stop(grace_s=60)
        server.stop(grace_s=60)
        assert await client.read_rest() == b""
        await asyncio.wait_for(task, PATIENCE_S)
    assert app.left == ["gone"]


async def test_a_second_stop_cuts_what_still_runs():
    app = Held()
    async with running(app) as (server, url, task), RawClient(url) as client:
        await client.send(HELLO)
        await app.arrived.wait()
        server.stop()
        server.stop()
        assert await client.read_rest() == b""
        await asyncio.wait_for(task, PATIENCE_S)
    assert app.left == ["gone"]


async def test_a_drain_that_takes_too_long_is_cut():
    app = Held()
    async with running(app, drain_timeout_s=0.05) as (server, url, task), RawClient(url) as client:
        await client.send(HELLO)
        await app.arrived.wait()
        server.stop()
        assert await client.read_rest() == b""
        await asyncio.wait_for(task, PATIENCE_S)
    assert app.left == ["gone"]


async def test_a_server_that_is_cancelled_lets_go_of_its_clients():
    app = Held()
    async with running(app) as (_, url, task), RawClient(url) as client:
        await client.send(HELLO)
        await app.arrived.wait()
        task.cancel()
        assert await client.read_rest() == b""
        await asyncio.wait({task})
        assert task.cancelled()
    assert app.left == ["gone"]


def test_a_port_that_is_taken_is_an_error_and_leaves_nothing_open():
    with bind("127.0.0.1", 0) as listener:
        listener.listen()
        with pytest.raises(OSError, match="in use"):
            bind("127.0.0.1", listener.getsockname()[1])


@pytest.mark.skipif(not socket.has_ipv6, reason="there is no IPv6 here")
def test_an_address_with_colons_is_ipv6():
    try:
        with bind("::1", 0) as listener:
            assert listener.family == socket.AF_INET6
    except OSError as exc:
        pytest.skip(f"no IPv6 loopback here: {exc}")


async def test_signals_stop_while_the_block_runs_and_not_after():
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        before = signal.getsignal(number)
        with stopping_on_signals(asyncio.get_running_loop(), stopped.set):
            os.kill(os.getpid(), number)
            await asyncio.wait_for(stopped.wait(), PATIENCE_S)
        stopped.clear()
        signal.signal(number, before)
