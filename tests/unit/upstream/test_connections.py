"""The connections to one worker, over real sockets: kept, retired, replaced, encrypted, and let go of whatever happens."""

import asyncio
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import orjson
import pytest
import trustme

from sluice.config import ConfigError
from sluice.errors import UpstreamError, WorkerRefused, WorkerTimeout
from sluice.outbox import Outbox
from sluice.upstream.connection import Connection
from sluice.upstream.connections import MAX_IDLE_S, Connections
from tests.support import scripts
from tests.support.scripted_worker import ScriptedWorker
from tests.unit.hot_path import ASK, CHAT, full_backlog, now, until
from tests.unit.upstream.transport import Transport

BODY = orjson.dumps(ASK)


@asynccontextmanager
async def connections_to(url: str, **options: Any) -> AsyncIterator[Connections]:
    """Connections that are closed, and gone, afterwards."""
    connections = Connections(url, **options)
    try:
        yield connections
    finally:
        connections.close()
        await until(lambda: repr(connections).endswith("[0 open, 0 idle]>"))


def head_of(connections: Connections, body: bytes = BODY, **options: Any) -> bytes:
    asked: dict[str, Any] = {"content_type": "application/json", "length": len(body), "request_id": "req-1-1"}
    return connections.head("POST", CHAT, **(asked | options))


async def send(connections: Connections, body: bytes = BODY) -> tuple[int, bytes]:
    """One request and its whole answer."""
    async with connections.send(head_of(connections, body), body) as sending:
        answer = await sending.head()
        return answer.status, await answer.read(1_000_000)


def state(connections: Connections) -> str:
    return repr(connections).partition("[")[2].removesuffix("]>")


# Kept and retired


async def test_a_connection_is_kept_for_the_next_call():
    async with ScriptedWorker() as worker, connections_to(worker.url) as connections:
        for _ in range(3):
            assert (await send(connections))[0] == 200
        assert [request.nth_on_connection for request in worker.requests] == [1, 2, 3]
        assert repr(connections) == f"<Connections 127.0.0.1:{worker.url.rpartition(':')[2]} [1 open, 1 idle]>"


async def test_an_error_answer_is_no_reason_to_close():
    async with ScriptedWorker() as worker, connections_to(worker.url) as connections:
        worker.on(CHAT, scripts.queue_full(), None)
        assert [(await send(connections))[0] for _ in range(2)] == [503, 200]
        assert worker.num_connections_made == 1


async def test_two_calls_at_once_take_two_connections_and_the_freshest_is_used_next():
    async with ScriptedWorker() as worker, connections_to(worker.url) as connections:
        head = head_of(connections)
        async with connections.send(head, BODY) as first, connections.send(head, BODY) as second:
            for sending in (first, second):
                await (await sending.head()).read(1_000_000)
            assert state(connections) == "2 open, 0 idle"
        assert state(connections) == "2 open, 2 idle"  # the first one went back last
        await send(connections)
        assert worker.requests[2].connection == worker.requests[0].connection


async def test_a_connection_that_was_idle_too_long_is_not_used():
    async with ScriptedWorker() as worker, connections_to(worker.url) as connections:
        await send(connections)
        assert connections.take(now() + MAX_IDLE_S) is None
        assert state(connections).endswith("0 idle")
        await worker.until(lambda: not worker.connections)
        await send(connections)
        assert worker.num_connections_made == 2


async def test_idle_connections_are_closed_when_their_time_is_up():
    async with ScriptedWorker() as worker, connections_to(worker.url, max_idle_s=0.02) as connections:
        head = head_of(connections)
        async with connections.send(head, BODY) as first, connections.send(head, BODY) as second:
            for sending in (first, second):
                await (await sending.head()).read(1_000_000)
        await worker.until(lambda: not worker.connections)
        assert worker.num_aborted == 0
        await until(lambda: state(connections) == "0 open, 0 idle")


async def test_each_connection_is_retired_in_its_own_time():
    clock, connections = Clock(), Connections("http://worker")
    older, fresher = idle_connection(), idle_connection()
    connections.give_back(older, clock)  # type: ignore[arg-type]
    clock.advance(1.0)
    connections.give_back(fresher, clock)  # type: ignore[arg-type]
    clock.advance(MAX_IDLE_S - 1.0)
    assert (older.is_closed, fresher.is_closed) == (True, False)
    clock.advance(0.99)
    assert not fresher.is_closed
    clock.advance(0.02)
    assert fresher.is_closed
    assert not clock.timers and repr(connections).endswith("0 idle]>")


async def test_a_connection_that_the_worker_closed_is_not_used_again():
    async with ScriptedWorker() as worker, connections_to(worker.url) as connections:
        await send(connections)
        assert await worker.close_idle() == 1
        await until(lambda: state(connections).startswith("0 open"))
        assert (await send(connections))[0] == 200
        assert [request.nth_on_connection for request in worker.requests] == [1, 1]


async def test_a_worker_that_asks_to_close_is_obeyed():
    async with ScriptedWorker() as worker, connections_to(worker.url) as connections:
        worker.on(CHAT, scripts.reply(200, {}, headers=[("connection", "close")]))
        await send(connections)
        assert state(connections).endswith("0 idle")
        await send(connections)
        assert worker.num_connections_made == 2


async def test_an_answer_that_is_longer_than_announced_spoils_its_connection():
    async with ScriptedWorker() as worker, connections_to(worker.url) as connections:
        worker.on(CHAT, scripts.wrong_length({"a": 1}, by=-3, then="open"), None)
        with pytest.raises(UpstreamError):
            await send(connections)
        assert state(connections).endswith("0 idle")
        assert (await send(connections))[0] == 200
        assert worker.num_connections_made == 2


async def test_to_leave_before_the_end_is_to_hang_up():
    async with ScriptedWorker() as worker, connections_to(worker.url) as connections:
        worker.on(CHAT, scripts.chat_stream(after=2, ending="stall"))
        async with connections.send(head_of(connections), BODY) as sending:
            await (await sending.head()).some()
        await worker.wait_aborted(1)
        await until(lambda: state(connections) == "0 open, 0 idle")


async def test_close_leaves_nothing_open():
    async with ScriptedWorker() as worker, connections_to(worker.url) as connections:
        async with connections.send(head_of(connections), BODY) as busy:
            await (await busy.head()).read(1_000_000)
            await send(connections)
            connections.close()
            await until(lambda: state(connections) == "0 open, 0 idle")
        assert state(connections) == "0 open, 0 idle"
        assert (await send(connections))[0] == 200  # who comes late is served, on a new one


# The keep-alive race


@pytest.mark.parametrize("ending", [scripts.reset_before_any_byte, scripts.close_before_any_byte])
async def test_a_reused_connection_that_breaks_before_any_byte_is_replaced_once(ending):
    async with ScriptedWorker() as worker, connections_to(worker.url) as connections:
        await send(connections)
        worker.on_reuse = ending
        assert (await send(connections))[0] == 200
        assert [request.nth_on_connection for request in worker.requests] == [1, 2, 1]
        assert worker.requests[1].body == worker.requests[2].body == BODY


async def test_the_replacement_is_not_replaced_again():
    async with ScriptedWorker() as worker, connections_to(worker.url) as connections:
        await send(connections)
        worker.on(CHAT, scripts.reset_before_any_byte())
        with pytest.raises(WorkerRefused, match="before it answered"):
            await send(connections)
        assert len(worker.requests) == 3
        await until(lambda: state(connections) == "0 open, 0 idle")


async def test_a_new_connection_that_breaks_is_not_tried_again():
    async with ScriptedWorker() as worker, connections_to(worker.url) as connections:
        worker.on(CHAT, scripts.reset_before_any_byte())
        with pytest.raises(WorkerRefused, match="before it answered"):
            await send(connections)
        assert len(worker.requests) == 1


async def test_a_reused_connection_that_breaks_after_a_byte_is_not_sent_to_again():
    async with ScriptedWorker() as worker, connections_to(worker.url) as connections:
        await send(connections)
        worker.on_reuse = lambda: scripts.half_head("reset")
        with pytest.raises(UpstreamError) as caught:
            await send(connections)
        assert type(caught.value) is UpstreamError
        assert len(worker.requests) == 2


async def test_a_worker_that_has_gone_for_good_is_not_found_again():
    async with ScriptedWorker() as worker, connections_to(worker.url) as connections:
        await send(connections)
        async with connections.send(head_of(connections), BODY) as sending:
            await worker.stop()
            with pytest.raises(WorkerRefused, match="cannot be reached"):
                await sending.head()


async def test_patience_that_ends_while_the_replacement_connects_is_not_forgotten():
    async with ScriptedWorker() as worker, connections_to(worker.url) as connections:
        await send(connections)
        worker.on_reuse = scripts.reset_before_any_byte
        async with connections.send(head_of(connections), BODY) as sending:
            heading = asyncio.create_task(sending.head())
            await until(lambda: sending.answer.ended)
            sending.fail(WorkerTimeout("too slow"))  # the answer that it could end has ended already
            with pytest.raises(WorkerTimeout):
                await heading
        assert len(worker.requests) == 2


# No connection


async def test_nobody_listens():
    async with connections_to(f"http://127.0.0.1:{free_port()}") as connections:
        with pytest.raises(WorkerRefused, match="cannot be reached"):
            await send(connections)


async def test_a_host_that_no_name_service_can_be_asked_for():
    async with connections_to("http://a..b:80") as connections:
        with pytest.raises(WorkerRefused, match="cannot be reached"):
            await send(connections)


async def test_a_worker_that_does_not_accept_is_given_up():
    with full_backlog() as port:
        async with connections_to(f"http://127.0.0.1:{port}", connect_s=0.05) as connections:
            with pytest.raises(WorkerRefused, match=r"within 0.05 s"):
                await send(connections)
            assert state(connections) == "0 open, 0 idle"


async def test_a_caller_that_is_cancelled_while_it_connects_leaves_nothing():
    with full_backlog() as port:
        async with connections_to(f"http://127.0.0.1:{port}", connect_s=10) as connections:
            connecting = asyncio.create_task(send(connections))
            await until(lambda: True)
            await asyncio.sleep(0)
            connecting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await connecting
            assert state(connections) == "0 open, 0 idle"


async def test_a_listener_that_hangs_up_at_once_has_refused():
    async with listening(HangsUp) as port, connections_to(f"http://127.0.0.1:{port}") as connections:
        for _ in range(10):  # before or after we have written: either way there was no byte
            with pytest.raises(WorkerRefused):
                await send(connections)
        await until(lambda: state(connections) == "0 open, 0 idle")


async def test_a_connection_that_was_lost_before_we_were_woken_is_not_kept():
    """The kernel's order of events is not ours to choose: here the loop's connect hands over what is closed already."""
    async with ScriptedWorker() as worker, connections_to(worker.url) as connections:
        loop = asyncio.get_running_loop()

        class Loop:
            async def create_connection(self, *args: Any, **options: Any) -> Any:
                transport, connection = await loop.create_connection(*args, **options)
                transport.abort()
                await until(lambda: connection.is_closed)
                return transport, connection

        with pytest.raises(WorkerRefused, match="before it answered"):
            await connections.connect(Loop())  # type: ignore[arg-type]
        assert state(connections) == "0 open, 0 idle"


# What goes up


async def test_the_request_as_the_worker_reads_it():
    async with ScriptedWorker(api_key="sk-worker") as worker:
        async with connections_to(worker.url, api_key="sk-worker") as connections:
            head = head_of(connections, request_id="req-7-1", headers=(("traceparent", "00-ab\xe9"),))
            async with connections.send(head, BODY) as sending:
                assert (await sending.head()).status == 200
        [request] = worker.requests
    assert (request.method, request.target, request.body) == ("POST", CHAT, BODY)
    assert request.headers == (
        ("host", worker.url.removeprefix("http://")),
        ("authorization", "Bearer sk-worker"),
        ("content-type", "application/json"),
        ("content-length", str(len(BODY))),
        ("x-request-id", "req-7-1"),
        ("traceparent", "00-ab\xe9"),
    )


async def test_without_a_key_of_the_worker_none_is_sent():
    async with ScriptedWorker() as worker, connections_to(worker.url) as connections:
        await send(connections)
        assert worker.requests[0].header("authorization") is None


async def test_a_large_body_arrives_whole():
    body = orjson.dumps(ASK | {"metadata": {"x": "y" * 5_000_000}})
    async with ScriptedWorker() as worker, connections_to(worker.url) as connections:
        assert (await send(connections, body))[0] == 200
        assert worker.requests[0].body == body


@pytest.mark.parametrize(
    ("url", "host"),
    [("http://worker", "worker:80"), ("https://worker", "worker:443"), ("http://[::1]:81", "::1:81")],
)
def test_the_port_is_the_schemes_unless_it_is_named(url, host):
    assert repr(Connections(url)) == f"<Connections {host} [0 open, 0 idle]>"


# TLS


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def ca_file(authority: trustme.CA, tmp_path: Path) -> Path:
    path = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(path))
    return path


def server_tls(authority: trustme.CA, name: str = "127.0.0.1") -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(name).configure_cert(context)
    return context


async def test_a_private_authority_is_trusted_where_it_is_named(authority, ca_file):
    async with ScriptedWorker(tls=server_tls(authority)) as worker, connections_to(worker.url, ca_file=ca_file) as connections:
        for _ in range(2):
            assert (await send(connections))[0] == 200
        assert worker.num_connections_made == 1


async def test_over_tls_too_a_broken_kept_connection_is_replaced(authority, ca_file):
    async with ScriptedWorker(tls=server_tls(authority)) as worker, connections_to(worker.url, ca_file=ca_file) as connections:
        await send(connections)
        worker.on_reuse = scripts.close_before_any_byte
        assert (await send(connections))[0] == 200
        assert await worker.close_idle() == 1
        await until(lambda: state(connections).startswith("0 open"))
        assert (await send(connections))[0] == 200


async def test_over_tls_too_to_leave_is_to_hang_up(authority, ca_file):
    async with ScriptedWorker(tls=server_tls(authority)) as worker, connections_to(worker.url, ca_file=ca_file) as connections:
        worker.on(CHAT, scripts.chat_stream(after=2, ending="stall"))
        async with connections.send(head_of(connections), BODY) as sending:
            await (await sending.head()).some()
        await worker.wait_aborted(1)


@pytest.mark.parametrize("named", ["another authority", "no authority", "another host"])
async def test_a_certificate_that_cannot_be_verified_is_a_refusal(authority, ca_file, named, tmp_path):
    trusted: Path | None = ca_file
    if named == "another authority":
        trusted = tmp_path / "other.pem"
        trustme.CA().cert_pem.write_to_path(str(trusted))
    elif named == "no authority":
        trusted = None
    tls = server_tls(authority, "worker.example" if named == "another host" else "127.0.0.1")
    async with ScriptedWorker(tls=tls) as worker, connections_to(worker.url, ca_file=trusted) as connections:
        with pytest.raises(WorkerRefused, match="certificate could not be verified"):
            await send(connections)
        assert not worker.requests
        await until(lambda: state(connections) == "0 open, 0 idle")


async def test_plain_http_on_a_tls_port_is_a_refusal():
    async with listening(SpeaksPlainly) as port, connections_to(f"https://127.0.0.1:{port}") as connections:
        with pytest.raises(WorkerRefused, match="No TLS connection"):
            await send(connections)
        await until(lambda: state(connections) == "0 open, 0 idle")


@pytest.mark.parametrize("content", [None, b"no certificate"])
def test_a_ca_file_that_is_none_is_said_at_the_start(tmp_path, content):
    path = tmp_path / "ca.pem"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match="ca.pem is not a file of CA certificates"):
        Connections("https://127.0.0.1:1", ca_file=path)


# Sockets that a test plays


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class HangsUp(asyncio.Protocol):
    """Resets whoever comes."""

    def connection_made(self, transport: Any) -> None:
        sock = transport.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        transport.abort()


class SpeaksPlainly(asyncio.Protocol):
    """Answers anything with plain HTTP and hangs up, as uvicorn does where it expects no TLS."""

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.transport.write(b"HTTP/1.1 400 Bad Request\r\n\r\nInvalid HTTP request received.")
        self.transport.close()


@asynccontextmanager
async def listening(protocol: type[asyncio.Protocol]) -> AsyncIterator[int]:
    """The port of a server that speaks this protocol."""
    server = await asyncio.get_running_loop().create_server(protocol, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


class Clock:
    """The part of an event loop that tells the time and wakes, moved by hand."""

    def __init__(self) -> None:
        self.now = 0.0
        self.timers: list[tuple[float, Callable[..., None], tuple[Any, ...]]] = []

    def time(self) -> float:
        return self.now

    def call_later(self, delay_s: float, callback: Callable[..., None], *args: Any) -> None:
        self.timers.append((self.now + delay_s, callback, args))

    def advance(self, by_s: float) -> None:
        self.now += by_s
        due = [timer for timer in self.timers if timer[0] <= self.now]
        self.timers = [timer for timer in self.timers if timer[0] > self.now]
        for _, callback, args in due:
            callback(*args)


def idle_connection() -> Connection:
    connection = Connection(asyncio.get_running_loop(), lambda _: None, Outbox())
    connection.connection_made(Transport())
    connection.is_reusable = True
    return connection
