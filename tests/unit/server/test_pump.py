"""What the pump writes, byte for byte, and to whom it writes nothing."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from sluice.outbox import Outbox
from sluice.server.pump import Pump

HEADERS = [(b"content-type", b"text/event-stream")]


class Wire(asyncio.Transport):
    """A transport that keeps what is written."""

    def __init__(self) -> None:
        super().__init__()
        self.data = b""
        self.is_closed = False

    def write(self, data: Any) -> None:
        self.data += data

    def is_closing(self) -> bool:
        return self.is_closed

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...


class Client:
    """The connection of one client with one request, as the protocol would have it."""

    def __init__(self, method: str = "POST", http_version: str = "1.1", keep_alive: bool = True) -> None:
        self.transport = Wire()
        self.flow = FlowControl(self.transport)
        self.outbox = Outbox()
        self.pump: Pump | None = None
        self.num_completed = 0
        self.cycle = RequestResponseCycle(
            scope={"type": "http", "method": method, "http_version": http_version},  # type: ignore[typeddict-item]
            transport=self.transport,
            flow=self.flow,
            logger=None,  # type: ignore[arg-type]
            access_logger=None,  # type: ignore[arg-type]
            access_log=False,
            default_headers=[(b"date", b"today")],
            message_event=asyncio.Event(),
            expect_100_continue=True,
            keep_alive=keep_alive,
            on_response=self._completed,
        )
        self.cycle.more_body = False

    def _completed(self) -> None:
        self.num_completed += 1


async def sent(client: Client, use: Callable[[Pump], None]) -> bytes:
    pump = Pump(client, client.cycle).bind([(b"x-request-id", b"7")])
    async with pump:
        assert client.pump is pump
        use(pump)
    assert client.pump is None
    client.outbox.flush()
    return client.transport.data


async def test_an_answer_is_one_write_with_all_headers():
    client = Client()
    data = await sent(client, lambda pump: pump.respond(404, [(b"a", b"b")], b"gone"))

    assert data == b"HTTP/1.1 404 Not Found\r\ndate: today\r\na: b\r\ncontent-length: 4\r\nx-request-id: 7\r\n\r\ngone"
    assert client.cycle.response_started and client.cycle.response_complete and client.num_completed == 1
    assert not client.cycle.waiting_for_100_continue


async def test_the_answer_to_head_says_how_long_it_would_be():
    assert (await sent(Client("HEAD"), lambda pump: pump.respond(200, [], b"four"))).endswith(
        b"content-length: 4\r\nx-request-id: 7\r\n\r\n"
    )


def stream(pump: Pump) -> None:
    pump.start(200, HEADERS, b"one")
    pump.write(b"")
    pump.write(b"two and three")
    pump.finish()


async def test_a_stream_is_chunked_and_an_empty_write_does_not_end_it():
    data = await sent(Client(), stream)
    headers = b"content-type: text/event-stream\r\ntransfer-encoding: chunked\r\nx-request-id: 7\r\n\r\n"
    assert data == b"HTTP/1.1 200 OK\r\ndate: today\r\n" + headers + b"3\r\none\r\nd\r\ntwo and three\r\n0\r\n\r\n"


async def test_the_last_bytes_of_a_stream_go_down_with_its_end_in_one_write():
    def ends(pump: Pump) -> None:
        pump.start(200, HEADERS, b"one")
        pump.finish(b"two")

    assert (await sent(Client(), ends)).endswith(b"3\r\none\r\n3\r\ntwo\r\n0\r\n\r\n")
    old = Client(http_version="1.0", keep_alive=False)
    assert (await sent(old, ends)).endswith(b"\r\n\r\nonetwo")


async def test_a_chunk_goes_down_as_it_came_where_the_answer_is_chunked():
    def passes(pump: Pump) -> None:
        assert pump.write_chunk is None
        pump.start(200, HEADERS, b"one")
        assert pump.write_chunk is not None
        pump.write_chunk(b"3\r\ntwo\r\n")
        pump.is_gone = True
        pump.write_chunk(b"5\r\nthree\r\n")

    assert (await sent(Client(), passes)).endswith(b"\r\n\r\n3\r\none\r\n3\r\ntwo\r\n")

    def cannot(pump: Pump) -> None:
        pump.start(200, HEADERS, b"one")
        assert pump.write_chunk is None

    assert (await sent(Client(http_version="1.0", keep_alive=False), cannot)).endswith(b"\r\n\r\none")


async def test_a_stream_may_begin_with_nothing():
    def early(pump: Pump) -> None:
        pump.start(200, HEADERS, b"")
        pump.finish()

    assert (await sent(Client(), early)).endswith(b"x-request-id: 7\r\n\r\n0\r\n\r\n")


async def test_a_client_of_http_1_0_is_sent_the_bytes_alone():
    client = Client(http_version="1.0", keep_alive=False)
    data = await sent(client, stream)

    assert data.endswith(b"x-request-id: 7\r\nconnection: close\r\n\r\nonetwo and three")
    assert b"transfer-encoding" not in data


@pytest.mark.parametrize(("keep_alive", "more_body"), [(False, False), (True, True)])
async def test_it_says_so_where_the_connection_ends_with_the_answer(keep_alive: bool, more_body: bool):
    client = Client(keep_alive=keep_alive)
    client.cycle.more_body = more_body
    assert b"\r\nconnection: close\r\n\r\n" in await sent(client, lambda pump: pump.respond(200, [], b""))


async def test_a_body_that_is_there_is_handed_over_once_and_not_kept():
    client = Client()
    client.cycle.body += b"body"
    client.cycle.more_body = True
    pump = Pump(client, client.cycle)
    assert pump.whole_body() is None

    client.cycle.more_body = False
    assert pump.whole_body() == b"body"
    assert client.cycle.body == b""


@pytest.mark.parametrize("use", [stream, lambda pump: pump.respond(200, [], b"body")])
async def test_to_a_client_that_has_left_nothing_is_written(use: Callable[[Pump], None]):
    def leave_first(pump: Pump) -> None:
        pump.gone()
        use(pump)
        assert pump.started and pump.is_gone

    client = Client()
    await asyncio.wait({asyncio.create_task(sent(client, leave_first))})
    assert client.transport.data == b""
    assert client.num_completed == 1


@pytest.mark.parametrize("how", ["disconnected", "closing"])
async def test_a_client_that_left_before_its_answer_began_cancels_the_call(how: str):
    client = Client()
    client.cycle.disconnected = how == "disconnected"
    client.transport.is_closed = how == "closing"

    async def call() -> None:
        async with Pump(client, client.cycle):
            await asyncio.Event().wait()

    task = asyncio.create_task(call())
    await asyncio.wait({task})
    assert task.cancelled()
    assert client.pump is None


async def test_it_leaves_a_pump_alone_that_has_taken_its_place():
    client = Client()
    following = Pump(client, client.cycle)
    async with Pump(client, client.cycle):
        client.pump = following
    assert client.pump is following
