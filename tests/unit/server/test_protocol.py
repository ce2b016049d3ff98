"""One client's connection, where `test_bad_input` does not look: how many there may be, and how they end."""

import asyncio
import gc
from collections import Counter
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from sluice.exchange import Exchange
from sluice.server.protocol import MAX_REFUSED_CONNECTIONS, Protocol
from sluice.types import Call
from sluice.upstream.connection import Answer
from sluice.upstream.connections import Sending
from sluice.wire.events import EventStream
from tests.support import scripts
from tests.support.scripted_worker import ScriptedWorker
from tests.unit.in_process import ASK, CHAT, JSON, STREAM, Gateway, serving, settings, told


async def test_more_connections_than_allowed_are_told_to_come_again(tmp_path: Path):
    async with serving(settings(tmp_path, "http://127.0.0.1:9", server={"max_connections": 2})) as gateway:
        async with gateway.connect() as one, gateway.connect() as two:
            for client in (one, two):
                await client.send(gateway.bytes("GET", "/livez"))
                assert (await client.read_response()).status == 200
            async with gateway.connect() as three:
                told(response := await three.read_response(), 429, "server_overloaded")
                assert response.header("connection") == "close"
                await three.send(gateway.bytes("GET", "/livez"))
                assert await three.read_rest() == b""
            await one.send(gateway.bytes("GET", "/livez"))
            assert (await one.read_response()).status == 200
        await gateway.until(lambda: not gateway.connections)
        assert (await gateway.request("GET", "/livez")).status == 200


@pytest.mark.asyncio(loop_factories=["asyncio"])  # it opens a hundred while the first one lingers
async def test_connections_far_beyond_that_are_closed_without_a_word(tmp_path: Path):
    async with serving(settings(tmp_path, "http://127.0.0.1:9", server={"max_connections": 1})) as gateway:
        async with AsyncExitStack() as stack:
            clients = [await stack.enter_async_context(gateway.connect()) for _ in range(2 + MAX_REFUSED_CONNECTIONS)]
            assert await clients[-1].read_rest() == b""
            told(await clients[-2].read_response(), 429, "server_overloaded")
            await clients[0].send(gateway.bytes("GET", "/livez"))
            assert (await clients[0].read_response()).status == 200


@pytest.mark.asyncio(loop_factories=["asyncio"])
async def test_an_idle_connection_is_closed_in_time(tmp_path: Path):
    async with serving(settings(tmp_path, "http://127.0.0.1:9", server={"keep_alive_s": 0.05})) as gateway:
        async with gateway.connect() as client:
            for _ in range(2):
                await client.send(gateway.bytes("GET", "/livez"))
                assert (await client.read_response()).status == 200
            assert await client.read_rest() == b""


@pytest.mark.asyncio(loop_factories=["asyncio"])
async def test_a_connection_is_not_idle_while_it_streams(tmp_path: Path):
    gate = asyncio.Event()
    async with ScriptedWorker() as worker:
        worker.on(CHAT, scripts.chat_stream(gates={2: gate}), scripts.chat_stream(gates={2: gate}))
        async with serving(settings(tmp_path, worker, server={"keep_alive_s": 0.02})) as gateway:
            async with gateway.connect() as client:
                await client.send(gateway.bytes("GET", "/livez"))
                await client.read_response()
                await client.send(gateway.bytes("POST", CHAT, json=STREAM))
                await client.read_until(b"Hello")
                asyncio.get_running_loop().call_later(0.06, gate.set)
                await client.read_until(b"[DONE]")


async def test_an_answer_that_waits_in_the_buffer_of_a_closing_connection_waits_no_longer_than_others(tmp_path: Path):
    """Less than what would pause the stream, so that nothing but the closing is left to notice it."""
    async with ScriptedWorker() as worker:
        worker.on(CHAT, scripts.reply(200, {"choices": [], "filler": "x" * 8_000_000}))
        asked = settings(tmp_path, worker, client_timeouts={"write_stall_s": 0.2})
        async with serving(asked) as gateway:
            client = gateway.connect(receive_buffer_bytes=4096)
            await client.__aenter__()
            client.stop_reading()
            await client.send(gateway.bytes("POST", CHAT, json=ASK, headers=[("connection", "close")]))
            await worker.wait_calls(1)
            await gateway.holds_nothing()
            (connection,) = gateway.connections
            connection._stall_timer.unset()  # as if the transport had never paused us
            connection._close()
            await gateway.until(lambda: not gateway.connections)
            await client.leave()


async def test_a_refusal_is_logged_under_the_id_that_the_client_is_given(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    caplog.set_level("INFO", "sluice.server")
    async with serving(settings(tmp_path, "http://127.0.0.1:9")) as gateway, gateway.connect() as client:
        await client.send(b"nonsense\r\n\r\n")
        response = await client.read_response()
        message = caplog.records[-1].getMessage()
        assert message.startswith(f"{response.header('x-request-id')}: refused ('127.0.0.1', {client.local_port})")


@pytest.mark.parametrize("path", [CHAT, "/livez"])
async def test_a_body_that_breaks_off_is_told_once_and_ends_the_connection(tmp_path: Path, path: str):
    async with ScriptedWorker() as worker, serving(settings(tmp_path, worker)) as gateway:
        async with gateway.connect() as client:
            head = gateway.bytes("POST", path, headers=[JSON, ("transfer-encoding", "chunked")])
            if path == CHAT:  # it waits for its body
                await client.send(head)
                await gateway.until(lambda: bool(gateway.server.server_state.tasks))
                head = b""
            await client.send(head + b"no chunk\r\n\r\n")
            told(await client.read_response(), 400)
            await gateway.holds_nothing()  # at once, and not when the connection ends
            assert gateway.connections
            assert await client.read_rest() == b""
        assert not worker.calls()


async def test_a_body_that_breaks_off_behind_other_requests_ends_the_connection_without_an_answer_of_its_own(tmp_path: Path):
    async with ScriptedWorker() as worker, serving(settings(tmp_path, worker)) as gateway:
        worker.on(CHAT, scripts.never_answers())
        async with gateway.connect() as client:
            broken = gateway.bytes("POST", CHAT, headers=[JSON, ("transfer-encoding", "chunked")]) + b"no chunk\r\n"
            await client.send(gateway.bytes("POST", CHAT, json=ASK) + broken)
            assert await client.read_rest() == b""
        await gateway.holds_nothing()


async def test_a_body_that_breaks_off_under_an_answer_ends_the_call(tmp_path: Path):
    """A stored response is asked for without a body; one that comes all the same is not waited for."""
    async with ScriptedWorker(responses_store=True) as worker:
        async with serving(settings(tmp_path, worker, route={"responses_store": True})) as gateway:
            made = (await gateway.request("POST", "/v1/responses", json={"model": "smollm2", "input": "hi"})).json()["id"]
            worker.on(f"/v1/responses/{made}", scripts.never_answers())
            async with gateway.connect() as client:
                await client.send(gateway.bytes("GET", f"/v1/responses/{made}", headers=[("transfer-encoding", "chunked")]))
                await worker.wait_calls(2)
                await client.send(b"no chunk\r\n\r\n")
                told(await client.read_response(), 400)
                await worker.wait_aborted(1)
                await gateway.holds_nothing()
                assert gateway.connections
                assert await client.read_rest() == b""


PER_CALL = (RequestResponseCycle, Call, Exchange, EventStream, Answer, Sending)


async def left_of(gateway: Gateway, requests: list[bytes]) -> tuple[Counter[str], Counter[str]]:
    """How many objects of each kind are still in memory behind these requests, and behind their connection, without the
    collector's help."""
    gc.disable()
    gc.freeze()  # what there was before is neither looked at nor counted

    def left() -> Counter[str]:
        return Counter(type(thing).__name__ for thing in gc.get_objects() if isinstance(thing, (*PER_CALL, Protocol)))

    try:
        async with gateway.connect() as client:
            for request in requests:
                await client.send(request)
                await client.read_response()
            await gateway.holds_nothing()
            behind_requests = left()
        await gateway.until(lambda: not gateway.connections)
        return behind_requests, left()
    finally:
        gc.unfreeze()
        gc.enable()


@pytest.mark.asyncio(loop_factories=["uvloop"])
@pytest.mark.parametrize(
    "options", [{"json": ASK}, {"json": STREAM}, {"json": {}}, {}], ids=["whole", "stream", "refused", "models"]
)
async def test_a_request_leaves_no_work_for_the_collector(tmp_path: Path, options: dict[str, Any]):
    async with ScriptedWorker() as worker, serving(settings(tmp_path, worker)) as gateway:
        method, path = ("POST", CHAT) if options else ("GET", "/v1/models")
        behind_requests, behind_connections = await left_of(gateway, [gateway.bytes(method, path, **options)] * 5)
        assert max(behind_requests.values()) == 1  # the connection has its last one
        assert not behind_connections
