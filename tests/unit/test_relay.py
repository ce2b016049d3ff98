"""What a client sees of a call: streams event by event, errors before and after the start, and what its own ways cost."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import replace
from typing import Any

import orjson
import pytest

from sluice.asgi import Message
from sluice.errors import BadRequest, UpstreamError, WorkerTimeout
from sluice.relay import HIGH_WATER_BYTES, AsgiDownstream, Relay, refuse
from sluice.types import Call, Endpoint, Outcome, Source, Usage
from tests.support import scripts
from tests.support import vllm_shapes as vllm
from tests.support.asgi_client import AsgiCall
from tests.support.raw_server import Connection, Request, Script
from tests.unit.hot_path import CHAT, PATIENCE_S, Client, Line, full_backlog, line, now, until

SHORT_S = 0.1
TOTAL_S = 0.3  # long enough for a call to begin, on a machine that is busy too
COMMENT = b": keep-alive\n\n"
EVENTS = vllm.chat_events(vllm.content_deltas(), model="smollm2", include_usage=True)


async def relayed(here: Line, client: Client, call: Call | None = None) -> Outcome:
    """A stream, or the given call, run to its end."""
    async with asyncio.timeout(PATIENCE_S), client:
        return await relay_of(here, call or here.call(stream=True)).run(client)


def relay_of(here: Line, call: Call) -> Relay:
    return Relay(here.gateway, call, now, early_s=here.settings.keep_alive_before_first_event_s)


async def last_event(client: Client) -> Any:
    """The error that a broken stream ends in."""
    assert client.is_complete and client.body.endswith(b"\n\n")
    assert b"[DONE]" not in client.body
    return orjson.loads(client.body[:-2].rpartition(b"\n\n")[2].removeprefix(b"data: "))["error"]


def assert_nothing_is_in_flight(here: Line) -> None:
    assert repr(here.pool).endswith("0 in flight]>")


# Whole answers


async def test_a_whole_answer_comes_with_its_type_and_length_of_the_bytes():
    async with line() as (here, worker):
        client = Client()
        outcome = await relayed(here, client, here.call())
    assert (client.status, client.header("content-type"), client.is_complete) == (200, "application/json", True)
    assert client.json()["choices"][0]["message"]["content"] == "Hello from the scripted worker."
    assert (outcome.status, outcome.source, outcome.code) == (200, None, None)
    assert (outcome.worker, outcome.attempts, outcome.usage) == (worker.url, 1, Usage(2, 6, 0, exact=True))
    assert outcome.first_event_s is None
    assert outcome.overhead_s is not None and 0 < outcome.overhead_s < outcome.duration_s


async def test_an_error_is_a_status_in_openais_shape():
    async with line() as (here, worker):
        worker.on(CHAT, scripts.vllm_error(400, "bad temperature", param="temperature"))
        client = Client()
        outcome = await relayed(here, client, here.call())
    assert (client.status, client.header("x-should-retry")) == (400, "false")
    assert client.json() == {
        "error": {"message": "bad temperature", "type": "invalid_request_error", "param": "temperature", "code": None}
    }
    assert (outcome.status, outcome.source, outcome.worker) == (400, Source.DOWNSTREAM, worker.url)


async def test_usage_is_that_of_the_last_attempt():
    async with line(2) as (here, one, two):
        refusal = vllm.error_event(503, "The engine is busy", type="Service Unavailable")
        one.on(CHAT, scripts.stream([refusal, vllm.DONE]))
        await two.stop()
        outcome = await relayed(here, Client())
        assert (outcome.worker, outcome.attempts, outcome.usage) == (two.url, 2, Usage())


async def test_the_worker_that_failed_is_named_even_where_it_could_not_be_reached():
    async with line(2) as (here, one, two):
        await one.stop()
        await two.stop()
        outcome = await relayed(here, Client(), here.call())
        assert (outcome.status, outcome.source, outcome.code) == (502, Source.UPSTREAM, "worker_unreachable")
        assert (outcome.worker, outcome.attempts, outcome.overhead_s) == (two.url, 2, None)


async def test_no_worker_is_a_503_that_says_when_to_come_back():
    async with line() as (here, worker):
        here.workers[0].judge(is_healthy=False)
        client = Client()
        outcome = await relayed(here, client, here.call())
    assert (client.status, client.header("retry-after"), client.header("x-should-retry")) == (503, "2", "true")
    assert (outcome.worker, outcome.attempts, outcome.usage) == (None, 0, Usage())


# Streams


async def test_a_stream_is_the_workers_bytes():
    async with line() as (here, worker):
        worker.on(CHAT, scripts.chat_stream())
        client = Client()
        outcome = await relayed(here, client)
    assert client.body == b"".join(EVENTS) and client.is_complete
    assert (client.status, client.header("content-type")) == (200, "text/event-stream; charset=utf-8")
    assert (client.header("cache-control"), client.header("x-accel-buffering")) == ("no-cache", "no")
    assert (outcome.status, outcome.source, outcome.usage) == (200, None, Usage(5, 6, 0, exact=True))
    assert outcome.first_event_s is not None and 0 < outcome.first_event_s <= outcome.duration_s


@pytest.mark.parametrize(("model", "is_unchanged"), [("smollm2", True), ("alias", False)])
async def test_what_goes_down_unchanged_keeps_the_chunks_it_came_in(model: str, is_unchanged: bool):
    gates = {k: asyncio.Event() for k in range(1, 8)}
    async with line() as (here, worker):
        worker.on(CHAT, scripts.chat_stream(gates=gates))
        client = Client(takes_chunks=True)
        running = asyncio.create_task(relayed(here, client, replace(here.call(stream=True), model=model)))
        for k, gate in gates.items():
            await client.read_until(b"data: ", times=k)
            gate.set()
        await running
    assert client.body == b"".join(EVENTS).replace(b'"model":"smollm2"', b'"model":"%b"' % model.encode())
    assert client.is_complete and (client.num_chunks > 1) == is_unchanged


async def test_each_event_comes_when_it_is_sent():
    gates = {k: asyncio.Event() for k in range(1, 8)}
    async with line() as (here, worker):
        worker.on(CHAT, scripts.chat_stream(gates=gates))
        client = Client()
        running = asyncio.create_task(relayed(here, client))
        for k, gate in gates.items():
            await client.read_until(b"data: ", times=k)
            assert client.body.count(b"data: ") == k
            gate.set()
        await running
        assert client.body.endswith(vllm.DONE)


async def test_nothing_is_said_before_the_first_event():
    gate = asyncio.Event()
    async with line() as (here, worker):
        worker.on(CHAT, scripts.chat_stream(gates={0: gate}))
        client = Client()
        running = asyncio.create_task(relayed(here, client))
        await worker.wait_requests(1)
        await until(lambda: here.pool.in_flight == 1)
        assert not client.started
        gate.set()
        await running
        assert client.writes[0].startswith(b"data: ")


async def test_an_error_as_the_first_event_is_a_status():
    async with line() as (here, worker):
        worker.on(CHAT, scripts.stream_error(0, status=400, message="bad schema"))
        client = Client()
        outcome = await relayed(here, client)
    assert (client.status, client.json()["error"]["message"]) == (400, "bad schema")
    assert outcome.status == 400


@pytest.mark.parametrize("cut", [scripts.whole, scripts.byte_by_byte, scripts.cut_inside(b'"usage"')])
async def test_usage_that_the_client_did_not_ask_for_is_read_and_withheld(cut):
    async with line() as (here, worker):
        worker.on(CHAT, scripts.chat_stream(cut=cut))
        client = Client()
        outcome = await relayed(here, client, here.call(stream=True, wants_usage=False))
    assert client.body == b"".join(event for event in EVENTS if b'"choices":[]' not in event)
    assert outcome.usage == Usage(5, 6, 0, exact=True)


@pytest.mark.parametrize("cut", [scripts.whole, scripts.byte_by_byte])
async def test_every_event_carries_the_name_that_was_asked_for(cut):
    async with line() as (here, worker):
        worker.on(CHAT, scripts.chat_stream(cut=cut))
        client = Client()
        await relayed(here, client, here.call(stream=True, model="gpt-4o-mini"))
    assert client.body == b"".join(EVENTS).replace(b'"smollm2"', b'"gpt-4o-mini"')


async def test_reasoning_is_doubled_where_the_route_asks_for_it():
    events = vllm.chat_events(vllm.reasoning_deltas(["Hm"], ["Hi"]), model="smollm2")
    async with line(reasoning_content=True) as (here, worker):
        worker.on(CHAT, scripts.stream(events))
        client = Client()
        await relayed(here, client)
    assert b'"reasoning":"Hm","reasoning_content":"Hm"' in client.body


async def test_a_stream_that_came_in_one_read_is_relayed_like_any_other():
    async with line() as (here, worker):
        worker.on(CHAT, scripts.chat_stream(in_one_write=True))
        client = Client()
        outcome = await relayed(here, client)
        assert client.body == b"".join(EVENTS) and client.is_complete
        assert (outcome.status, outcome.usage) == (200, Usage(5, 6, 0, exact=True))
        assert "[1 open, 1 idle]" in here.held[1]


# Streams that break


@pytest.mark.parametrize(
    ("events", "ending", "said"),
    [
        (EVENTS[:3], "reset", "in the middle of its answer"),
        (EVENTS[:3], "no_terminator", "in the middle of its answer"),
        (EVENTS[:3], "end", "before it was complete"),
        (EVENTS[:-1], "end", "before it was complete"),
        ([*EVENTS[:3], b"data: {"], "end", "before it was complete"),
        ([*EVENTS[:3], b'data: {"error" nonsense\n\n', vllm.DONE], "end", "not a JSON object"),
        ([*EVENTS[:3], vllm.error_event(500, "Internal server error"), vllm.DONE], "end", "Internal server error"),
        (vllm.chat_events(vllm.content_deltas(), model="smollm2", finish="abort"), "end", "aborted"),
    ],
)
@pytest.mark.parametrize("in_one_write", [False, True])
async def test_a_stream_that_breaks_says_so_and_has_no_clean_end(events, ending, said, in_one_write):
    async with line() as (here, worker):
        worker.on(CHAT, scripts.stream(events, ending=ending, in_one_write=in_one_write))
        client = Client()
        outcome = await relayed(here, client)
        assert client.body.startswith(EVENTS[0])
        error = await last_event(client)
        assert said in error["message"] and set(error) == {"message", "type", "param", "code"}
        assert outcome.status in (500, 502) and outcome.source is Source.UPSTREAM
        assert_nothing_is_in_flight(here)
        worker.forget_scripts()
        assert (await relayed(here, Client())).status == 200


async def test_a_stream_that_ends_in_garbage_is_broken():
    gate = asyncio.Event()

    async def garble(request: Request, connection: Connection) -> None:
        await connection.send(scripts.head(200, scripts.STREAM_HEADERS) + scripts.chunk(EVENTS[0]))
        await gate.wait()
        await connection.send(b"zz\r\n")
        await connection.gone.wait()

    async with line() as (here, worker):
        worker.on(CHAT, garble)
        client = Client()
        running = asyncio.create_task(relayed(here, client))
        await client.read_until(EVENTS[0])
        gate.set()
        assert (await running).status == 502
        assert "not HTTP" in (await last_event(client))["message"]


@pytest.mark.parametrize(
    ("endpoint", "events", "marker"),
    [
        (Endpoint.RESPONSES, [vllm.sse({"type": "response.created", "response": {"model": "smollm2"}}, "response.created")],
         b'event: error\ndata: {"type":"error","message":'),
        (Endpoint.MESSAGES, [vllm.sse({"type": "message_start", "message": {"model": "smollm2"}}, "message_start")],
         b'event: error\ndata: {"type":"error","error":{"message":'),
    ],
)  # fmt: skip
async def test_a_broken_stream_is_told_in_the_dialect_of_its_endpoint(endpoint, events, marker):
    async with line() as (here, worker):
        worker.on(endpoint.value, scripts.stream(events))
        client = Client()
        await relayed(here, client, here.call(stream=True, endpoint=endpoint, path=endpoint.value))
    assert client.body.startswith(events[0]) and marker in client.body


async def test_a_worker_that_falls_silent_is_given_up():
    async with line(timeouts={"silence_s": SHORT_S}) as (here, worker):
        worker.on(CHAT, scripts.chat_stream(after=3, ending="stall"))
        client = Client()
        outcome = await relayed(here, client)
        assert "fell silent for 0.1 s" in (await last_event(client))["message"]
        assert (outcome.status, outcome.code) == (504, "worker_timeout")
        assert outcome.usage == Usage(completion_tokens=3)
        await worker.wait_aborted(1)


async def test_a_stream_that_takes_too_long_is_cut():
    async with line(timeouts={"total_s": TOTAL_S}, keep_alive_s=0.01) as (here, worker):
        worker.on(CHAT, scripts.chat_stream(after=3, ending="stall"))
        client = Client()
        outcome = await relayed(here, client)
        assert "took longer than 0.3 s" in (await last_event(client))["message"]
        assert outcome.status == 504
        await worker.wait_aborted(1)


async def test_time_that_was_up_before_the_stream_is_piped_is_up():
    async with line() as (here, worker):
        worker.on(CHAT, scripts.chat_stream(after=1, ending="stall"))
        async with here.gateway.exchange(here.call(stream=True, deadline=now() + TOTAL_S)) as exchange:
            is_up = asyncio.Event()
            asyncio.get_running_loop().call_at(exchange.call.deadline, is_up.set)
            await is_up.wait()
            await exchange.pipe(lambda data: None)
            assert exchange.events is not None and isinstance(exchange.events.broken, WorkerTimeout)


# Keep-alives


async def test_a_silent_worker_is_covered_by_comments_between_events():
    gate = asyncio.Event()
    async with line(keep_alive_s=0.03) as (here, worker):
        worker.on(CHAT, scripts.chat_stream(gates={2: gate}))
        client = Client()
        running = asyncio.create_task(relayed(here, client))
        await client.read_until(EVENTS[1])
        begun_at = now()
        await client.read_until(COMMENT, times=3)
        assert now() - begun_at > 0.08
        assert client.body.startswith(b"".join(EVENTS[:2]) + COMMENT * 3)
        gate.set()
        await running
    assert client.body.replace(COMMENT, b"") == b"".join(EVENTS)


async def test_comments_are_no_sign_of_life_of_the_worker():
    async with line(keep_alive_s=0.01, timeouts={"silence_s": SHORT_S}) as (here, worker):
        worker.on(CHAT, scripts.chat_stream(after=2, ending="stall"))
        client = Client()
        await relayed(here, client)
        assert COMMENT in client.body
        assert "fell silent" in (await last_event(client))["message"]


async def test_without_keep_alives_a_silent_stream_is_silent():
    async with line(keep_alive_s=None, timeouts={"silence_s": SHORT_S}) as (here, worker):
        worker.on(CHAT, scripts.chat_stream(after=2, ending="stall"))
        client = Client()
        await relayed(here, client)
        assert COMMENT not in client.body


async def test_a_route_may_answer_before_the_first_event():
    gate = asyncio.Event()
    async with line(keep_alive_before_first_event_s=0.01) as (here, worker):
        worker.on(CHAT, scripts.chat_stream(gates={0: gate}))
        client = Client()
        running = asyncio.create_task(relayed(here, client))
        await client.read_until(COMMENT, times=2)
        assert (client.status, client.header("content-type")) == (200, "text/event-stream; charset=utf-8")
        gate.set()
        outcome = await running
        assert client.body.replace(COMMENT, b"") == b"".join(EVENTS) and client.is_complete
        assert outcome.status == 200


async def test_the_comments_before_the_first_event_end_with_it():
    gate = asyncio.Event()
    async with line(keep_alive_before_first_event_s=0.01, keep_alive_s=None, timeouts={"silence_s": SHORT_S}) as (here, worker):
        worker.on(CHAT, scripts.chat_stream(after=1, gates={0: gate}, ending="stall"))
        client = Client()
        running = asyncio.create_task(relayed(here, client))
        await client.read_until(COMMENT)
        gate.set()
        await running
        assert COMMENT not in client.body.partition(EVENTS[0])[2]


async def test_after_an_early_answer_a_failure_is_an_event():
    gate = asyncio.Event()
    async with line(keep_alive_before_first_event_s=0.01) as (here, worker):
        worker.on(CHAT, scripts.reply(400, vllm.context_too_long(8192), gate=gate))
        client = Client()
        running = asyncio.create_task(relayed(here, client))
        await client.read_until(COMMENT)
        gate.set()
        outcome = await running
        error = await last_event(client)
        assert (client.status, outcome.status, error["code"]) == (200, 400, "context_length_exceeded")


async def test_a_worker_that_is_fast_enough_leaves_the_early_answer_unused():
    async with line(keep_alive_before_first_event_s=30) as (here, worker):
        worker.on(CHAT, scripts.vllm_error(400))
        client = Client()
        await relayed(here, client)
        assert client.status == 400


async def test_a_whole_answer_is_never_begun_early():
    gate = asyncio.Event()
    async with line(keep_alive_before_first_event_s=0.001) as (here, worker):
        worker.on(CHAT, scripts.reply(400, {"error": "no"}, gate=gate), scripts.chat_stream(gates={0: gate}))
        client, other = Client(), Client()
        running = asyncio.create_task(relayed(here, client, here.call()))
        await worker.wait_requests(1)
        beside = asyncio.create_task(relayed(here, other))
        await other.read_until(COMMENT, times=2)
        assert not client.started
        gate.set()
        await running
        await beside
        assert client.status == 400


# Clients that read slowly

LARGE = vllm.sse({"model": "smollm2", "choices": [{"index": 0, "delta": {"content": "x" * 60_000}}]})
NUM_LARGE = 400  # 24 MB: more than twice all the kernel's buffers on the way


class Flood:
    """A worker's stream of many large events; `stalled` once the worker can write no more."""

    def __init__(self) -> None:
        self.num_sent = 0
        self.stalled = asyncio.Event()

    async def __call__(self, request: Request, connection: Connection) -> None:
        await connection.send(scripts.head(200, scripts.STREAM_HEADERS))
        for _ in range(NUM_LARGE):
            sending = asyncio.ensure_future(connection.send(scripts.chunk(LARGE)))
            self.num_sent += 1
            for _ in range(100):
                if sending.done():
                    break
                await asyncio.sleep(0)
            else:
                self.stalled.set()
            await sending
        await connection.send(scripts.chunk(vllm.DONE) + b"0\r\n\r\n", last=True)


async def test_while_a_client_does_not_read_the_worker_is_not_read():
    async with line() as (here, worker):
        flood = Flood()
        worker.on(CHAT, flood)
        client = Client()
        running = asyncio.create_task(relayed(here, client))
        await client.read_until(b"data: ")
        client.on_pause()
        held = len(client.body)
        await asyncio.wait_for(flood.stalled.wait(), PATIENCE_S)
        assert len(client.body) == held
        assert flood.num_sent < NUM_LARGE / 2
        client.on_resume()
        outcome = await running
        assert client.body == LARGE * NUM_LARGE + vllm.DONE
        assert outcome.status == 200


async def test_under_any_server_what_waits_for_a_slow_client_is_bounded():
    async with line() as (here, worker):
        flood = Flood()
        worker.on(CHAT, flood)
        app, server = App(here), Server()
        server.may_send.clear()
        running = asyncio.create_task(app(None, server.receive, server.send))
        await asyncio.wait_for(flood.stalled.wait(), PATIENCE_S)
        assert flood.num_sent < NUM_LARGE / 2
        assert app.downstream is not None
        assert app.downstream.num_bytes < HIGH_WATER_BYTES + 400_000  # one read more than it should
        server.may_send.set()
        await asyncio.wait_for(running, PATIENCE_S)
        assert b"".join(server.bodies) == LARGE * NUM_LARGE + vllm.DONE
        assert app.outcome is not None and app.outcome.status == 200


async def test_a_pause_is_no_silence_of_the_worker():
    async with line(timeouts={"silence_s": SHORT_S}) as (here, worker):
        gate = asyncio.Event()
        worker.on(CHAT, scripts.chat_stream(gates={2: gate}), scripts.chat_stream(after=2, ending="stall"))
        slow, brisk = Client(), Client()
        running = asyncio.create_task(relayed(here, slow))
        await slow.read_until(EVENTS[1])
        slow.on_pause()
        for _ in range(2):  # others of the same age are given up meanwhile
            assert (await relayed(here, brisk := Client())).status == 504
        slow.on_resume()
        gate.set()
        assert (await running).status == 200
        assert b"error" in brisk.body and slow.body == b"".join(EVENTS)


async def test_silence_is_counted_from_the_end_of_a_pause():
    stalled = scripts.chat_stream(after=2, ending="stall")
    async with line(timeouts={"silence_s": 0.05}) as (here, worker), line(timeouts={"silence_s": 0.08}) as (there, other):
        worker.on(CHAT, stalled)
        other.on(CHAT, stalled)
        client = Client()
        running = asyncio.create_task(relayed(here, client))
        await client.read_until(EVENTS[1])
        client.on_pause()
        assert (await relayed(there, Client())).status == 504  # 0.08 s have passed
        resumed_at = now()
        client.on_resume()
        assert (await running).status == 504
        assert now() - resumed_at > 0.045


async def test_a_client_that_does_not_read_gets_no_comments_either():
    async with line(keep_alive_s=0.01) as (here, worker):
        gate = asyncio.Event()
        worker.on(CHAT, scripts.chat_stream(gates={2: gate}))
        slow, brisk = Client(), Client()
        both = [asyncio.create_task(relayed(here, client)) for client in (slow, brisk)]
        await slow.read_until(EVENTS[1])
        slow.on_pause()
        held = slow.body
        await brisk.read_until(COMMENT, times=5)
        assert slow.body == held
        slow.on_resume()
        gate.set()
        assert [outcome.status for outcome in await asyncio.gather(*both)] == [200, 200]


async def test_a_client_that_never_reads_on_is_cut_when_its_time_is_up():
    async with line(timeouts={"total_s": TOTAL_S}) as (here, worker):
        worker.on(CHAT, scripts.chat_stream(after=2, ending="stall"))
        client = Client()
        running = asyncio.create_task(relayed(here, client))
        await client.read_until(EVENTS[1])
        client.on_pause()
        assert (await running).status == 504
        await worker.wait_aborted(1)


class FullAt(Client):
    """A client whose buffer is full once a marker was written to it, and that reads on only when it is told to."""

    def __init__(self, marker: bytes) -> None:
        super().__init__()
        self._marker = marker
        self.full = asyncio.Event()

    def write(self, data: bytes) -> None:
        super().write(data)
        if self._marker in data and not self.full.is_set():
            self.full.set()
            self.on_pause()


def ending_when(event: asyncio.Event) -> Script:
    """A whole stream whose body ends in a packet of its own."""

    async def script(request: Request, connection: Connection) -> None:
        await scripts.stream(EVENTS, ending="open")(request, connection)
        await event.wait()
        await connection.send(b"0\r\n\r\n", last=True)

    return script


@pytest.mark.parametrize("ending", ["at once", "late", "in error"])
async def test_a_connection_that_was_paused_to_the_end_reads_again_for_the_next_call(ending):
    gate = asyncio.Event()
    async with line() as (here, worker):
        client = FullAt(b"error" if ending == "in error" else b"[DONE]")
        broken = [EVENTS[0], vllm.error_event(500, "no"), vllm.DONE]
        firsts = {
            "at once": scripts.chat_stream(in_one_write=True),
            "late": ending_when(client.full),
            "in error": scripts.stream(broken, in_one_write=True),
        }
        worker.on(CHAT, firsts[ending], scripts.chat_stream(gates={2: gate}))
        await relayed(here, client)
        following = asyncio.create_task(relayed(here, next_client := Client()))
        await next_client.read_until(EVENTS[1])
        client.on_pause()  # the first client's, which has nothing to do with the connection any more
        gate.set()
        assert (await following).status == 200
        assert [request.nth_on_connection for request in worker.requests] == [1, 2]


async def test_a_client_that_reads_on_too_late_does_not_resume_the_next_call():
    gate = asyncio.Event()
    async with line() as (here, worker):
        worker.on(CHAT, None, scripts.chat_stream(gates={2: gate}))
        client, next_client = FullAt(b"[DONE]"), Client()
        await relayed(here, client)
        following = asyncio.create_task(relayed(here, next_client))
        await next_client.read_until(EVENTS[1])
        next_client.on_pause()
        held = next_client.body
        client.on_resume()
        gate.set()
        await worker.wait_idle()  # all of it is written
        await turns(50)
        assert next_client.body == held
        next_client.on_resume()
        assert (await following).status == 200
        assert [request.nth_on_connection for request in worker.requests] == [1, 2]


async def turns(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def test_a_first_event_that_fills_the_buffer_pauses_the_worker_too():
    async with line() as (here, worker):
        flood = Flood()
        worker.on(CHAT, flood)
        client = FullAt(b"data: ")
        running = asyncio.create_task(relayed(here, client))
        await asyncio.wait_for(flood.stalled.wait(), PATIENCE_S)
        assert client.body.count(b"data: ") < 10
        client.leave()
        assert (await running).status == 499


# Clients that leave


@pytest.mark.parametrize(
    ("script", "stream"),
    [
        (scripts.never_answers(), False),
        (scripts.never_answers(), True),
        (scripts.wrong_length({"choices": []}, by=7, then="stall"), False),
        (scripts.stream([], ending="stall"), True),
        (scripts.stream([b": ping\n\n"], ending="stall"), True),
    ],
)
async def test_a_client_that_leaves_before_the_answer_stops_the_worker(script, stream):
    async with line() as (here, worker):
        worker.on(CHAT, script)
        client = Client()
        running = asyncio.create_task(relayed(here, client, here.call(stream=stream)))
        await worker.wait_requests(1)
        client.leave()
        outcome = await running
        await worker.wait_aborted(1)
        assert (outcome.status, outcome.source, outcome.code) == (499, Source.DOWNSTREAM, "client_left")
        assert (outcome.worker, outcome.attempts, client.started) == (worker.url, 1, False)
        assert_nothing_is_in_flight(here)
        await until(lambda: "[0 open, 0 idle]" in here.held[1])


async def test_a_client_that_leaves_while_we_connect_was_never_sent_for():
    with full_backlog() as port:
        async with Line(f"http://127.0.0.1:{port}") as here:
            client = Client()
            running = asyncio.create_task(relayed(here, client, here.call()))
            await until(lambda: here.pool.in_flight == 1)
            client.leave()
            outcome = await running
            assert (outcome.status, outcome.overhead_s) == (499, None)
            assert here.held == ["<Pool smollm2 [1 workers | 0 in flight]>", f"<Connections 127.0.0.1:{port} [0 open, 0 idle]>"]


async def test_a_client_that_leaves_mid_stream_stops_the_worker():
    async with line() as (here, worker):
        worker.on(CHAT, scripts.chat_stream(after=3, ending="stall"))
        client = Client()
        running = asyncio.create_task(relayed(here, client))
        await client.read_until(EVENTS[2])
        client.leave()
        outcome = await running
        await worker.wait_aborted(1)
        assert (outcome.status, outcome.code, outcome.usage) == (499, "client_left", Usage(completion_tokens=3))
        assert not client.is_complete
        await until(lambda: "[0 open, 0 idle]" in here.held[1])


async def test_a_client_that_leaves_after_an_early_answer_has_left_all_the_same():
    async with line(keep_alive_before_first_event_s=0.01) as (here, worker):
        worker.on(CHAT, scripts.never_answers())
        client = Client()
        running = asyncio.create_task(relayed(here, client))
        await client.read_until(COMMENT)
        client.leave()
        outcome = await running
        assert (outcome.status, outcome.code) == (499, "client_left")
        await worker.wait_aborted(1)


async def test_a_client_that_leaves_after_the_last_event_has_had_its_answer():
    gate = asyncio.Event()

    async def end_late(request: Request, connection: Connection) -> None:
        await scripts.stream(EVENTS, ending="open")(request, connection)
        await gate.wait()

    async with line() as (here, worker):
        worker.on(CHAT, end_late)
        client = Client()
        running = asyncio.create_task(relayed(here, client))
        await client.read_until(b"[DONE]")
        client.leave()
        outcome = await running
        assert (outcome.status, outcome.code) == (200, None)
        gate.set()


async def test_a_task_that_somebody_else_cancels_is_cancelled():
    async with line() as (here, worker):
        worker.on(CHAT, scripts.never_answers())
        running = asyncio.create_task(relayed(here, Client()))
        await worker.wait_requests(1)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        await worker.wait_aborted(1)
        assert_nothing_is_in_flight(here)


async def test_the_task_of_a_client_that_left_may_go_on():
    async with line() as (here, worker):
        worker.on(CHAT, scripts.never_answers())
        client = Client()

        async def serve() -> int:
            await relayed(here, client)
            await asyncio.sleep(0)  # an access line, say
            task = asyncio.current_task()
            assert task is not None
            return task.cancelling()

        running = asyncio.create_task(serve())
        await worker.wait_requests(1)
        client.leave()
        assert await running == 0


# Our own mistakes


async def test_a_mistake_of_ours_is_a_500_with_a_line_in_the_log_and_nothing_held(caplog):
    def stamp(url: str) -> bytes:
        raise ZeroDivisionError("secret detail")

    async with line() as (here, worker):
        client = Client()
        with caplog.at_level(logging.ERROR, "sluice.relay"):
            outcome = await relayed(here, client, here.call(stamp=stamp))
        assert (client.status, client.json()["error"]["code"]) == (500, "internal_error")
        assert b"secret" not in client.body
        assert (outcome.status, outcome.source) == (500, Source.GATEWAY)
        assert "req-1" in caplog.text and "secret detail" in caplog.text
        assert_nothing_is_in_flight(here)


@pytest.mark.parametrize(("endpoint", "outer"), [(Endpoint.MESSAGES, "error"), (Endpoint.CHAT, None), (None, None)])
async def test_a_refusal_is_in_the_shape_of_its_endpoint(endpoint, outer):
    client = Client()
    refuse(client, BadRequest("no", param="model"), endpoint)
    assert client.status == 400
    assert client.json().get("type") == outer
    assert client.json()["error"]["param"] == "model"


# Under any ASGI server


class WatchedDownstream(AsgiDownstream):
    """One whose buffer a test may look into."""

    @property
    def num_bytes(self) -> int:
        return sum(len(message.get("body", b"")) for message in self._messages)


class App:
    """An ASGI application that relays one call."""

    def __init__(self, here: Line, **call: Any) -> None:
        self._here = here
        self._call = {"stream": True} | call
        self.outcome: Outcome | None = None
        self.downstream: WatchedDownstream | None = None

    async def __call__(
        self, scope: Any, receive: Callable[[], Awaitable[Message]], send: Callable[[Message], Awaitable[None]]
    ) -> None:
        extra: Iterable[tuple[bytes, bytes]] = [(b"x-request-id", b"req-1")]
        async with WatchedDownstream(receive, send, extra) as self.downstream:
            self.outcome = await relay_of(self._here, self._here.call(**self._call)).run(self.downstream)


async def test_over_asgi_a_stream_comes_event_by_event_with_the_headers_of_every_answer():
    gate = asyncio.Event()
    async with line() as (here, worker):
        worker.on(CHAT, scripts.chat_stream(gates={2: gate}))
        async with AsgiCall(App(here), "POST", CHAT) as client:
            assert await client.started() == 200
            assert client.header("x-request-id") == "req-1" and client.header("content-length") is None
            await client.read_until(EVENTS[1])
            assert client.body == b"".join(EVENTS[:2])
            gate.set()
            assert await client.finished() == b"".join(EVENTS)


async def test_over_asgi_a_whole_answer_has_a_length():
    async with line() as (here, worker):
        app = App(here, stream=False)
        async with AsgiCall(app, "POST", CHAT) as client:
            body = await client.finished()
        assert client.header("content-length") == str(len(body))
        assert app.outcome is not None and app.outcome.status == 200


async def test_over_asgi_a_large_answer_waits_for_nobody():
    large = {"choices": [{"message": {"content": "x" * HIGH_WATER_BYTES}}]}
    async with line() as (here, worker):
        worker.on(CHAT, scripts.reply(200, large))
        async with AsgiCall(App(here, stream=False), "POST", CHAT) as client:
            client.pause()
            await worker.wait_requests(1)
            client.resume()
            assert orjson.loads(await client.finished()) == large


@pytest.mark.parametrize("script", [scripts.never_answers(), scripts.chat_stream(after=2, ending="stall")])
async def test_over_asgi_a_client_that_leaves_stops_the_worker(script):
    async with line() as (here, worker):
        worker.on(CHAT, script)
        app = App(here)
        async with AsgiCall(app, "POST", CHAT) as client:
            await worker.wait_requests(1)
            await client.disconnect()
        await worker.wait_aborted(1)
        assert app.outcome is not None and app.outcome.status == 499
        assert_nothing_is_in_flight(here)


async def test_over_asgi_a_client_that_leaves_while_it_does_not_read_is_let_go():
    async with line() as (here, worker):
        flood = Flood()
        worker.on(CHAT, flood)
        app = App(here)
        async with AsgiCall(app, "POST", CHAT) as client:
            await client.started()
            client.pause()
            await asyncio.wait_for(flood.stalled.wait(), PATIENCE_S)
            await client.disconnect()
        await worker.wait_aborted(1)
        assert app.outcome is not None and app.outcome.status == 499


class Server:
    """The two ends of an ASGI call. `send` waits while it may not, or fails as told."""

    def __init__(self, error: Exception | None = None, fails_at: bytes = b"") -> None:
        self._error = error
        self._fails_at = fails_at
        self.may_send = asyncio.Event()
        self.may_send.set()
        self.has_left = asyncio.Event()
        self.bodies: list[bytes] = []

    async def receive(self) -> Message:
        await self.has_left.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        await self.may_send.wait()
        body = message.get("body", b"")
        if self._error is not None and self._fails_at in body:
            raise self._error
        self.bodies.append(body)


async def test_a_client_that_leaves_without_ever_reading_is_not_waited_for():
    async with line() as (here, worker):
        worker.on(CHAT, scripts.chat_stream(after=2, ending="stall"))
        app, server = App(here), Server()
        server.may_send.clear()
        running = asyncio.create_task(app(None, server.receive, server.send))
        await worker.wait_requests(1)
        await until(lambda: app.downstream is not None and app.downstream.num_bytes > 0)
        server.has_left.set()
        await asyncio.wait_for(running, PATIENCE_S)
        assert app.outcome is not None and app.outcome.status == 499


async def test_a_send_that_fails_for_want_of_a_client_is_its_leaving():
    async with line() as (here, worker):
        worker.on(CHAT, scripts.chat_stream(after=2, ending="stall"))
        app, server = App(here), Server(OSError("gone"), b"data: ")
        await asyncio.wait_for(app(None, server.receive, server.send), PATIENCE_S)
        assert app.outcome is not None and app.outcome.status == 499
        await worker.wait_aborted(1)


async def test_a_send_that_fails_at_the_very_end_changes_nothing():
    async with line() as (here, worker):
        app, server = App(here), Server(OSError("gone"), b"[DONE]")
        await asyncio.wait_for(app(None, server.receive, server.send), PATIENCE_S)
        assert app.outcome is not None and app.outcome.status == 200


async def test_a_fault_of_the_server_is_not_hidden():
    async with line() as (here, worker):
        app, server = App(here), Server(ZeroDivisionError(), b"[DONE]")
        with pytest.raises(ZeroDivisionError):
            await asyncio.wait_for(app(None, server.receive, server.send), PATIENCE_S)


async def test_an_exception_in_the_block_ends_both_tasks():
    tasks = asyncio.all_tasks()
    server = Server(OSError(), b"never")
    with pytest.raises(UpstreamError):
        async with AsgiDownstream(server.receive, server.send, []):
            await asyncio.sleep(0)
            raise UpstreamError("no")
    assert asyncio.all_tasks() == tasks
