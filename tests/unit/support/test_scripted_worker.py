"""The fake worker does what it says: what it is trusted for elsewhere is shown here."""

import asyncio

import pytest

from tests.support import scripts
from tests.support import vllm_shapes as vllm
from tests.support.asgi_client import AsgiCall, lifespan
from tests.support.raw_http import RawClient, event_data, events, request, request_bytes
from tests.support.scripted_worker import ScriptedWorker

CHAT = "/v1/chat/completions"
ASK = {"model": "smollm2", "messages": [{"role": "user", "content": "Say hi"}]}


def ask(**members: object) -> bytes:
    return request_bytes("POST", CHAT, json=ASK | members)


async def test_it_answers_as_vllm_does():
    async with ScriptedWorker(max_model_len=2048) as worker:
        assert (await request(worker.url, "GET", "/health")).body == b""
        assert (await request(worker.url, "GET", "/v1/models")).json()["data"][0]["max_model_len"] == 2048
        chat = await request(worker.url, "POST", CHAT, json=ASK)
        unknown = await request(worker.url, "POST", CHAT, json=ASK | {"model": "nope"})
        nothing = await request(worker.url, "GET", "/v1/models/smollm2")

    assert chat.json()["choices"][0]["message"]["content"] == "Hello from the scripted worker."
    assert chat.json()["usage"]["total_tokens"] == 8
    assert (unknown.status, unknown.json()["error"]["code"]) == (404, 404)
    assert (nothing.status, nothing.json()) == (404, {"detail": "Not Found"})


async def test_a_stream_has_a_usage_chunk_only_when_asked():
    async with ScriptedWorker() as worker:
        plain = await request(worker.url, "POST", CHAT, json=ASK | {"stream": True})
        options = {"stream": True, "stream_options": {"include_usage": True}}
        counted = await request(worker.url, "POST", CHAT, json=ASK | options)

    assert plain.body.endswith(vllm.DONE) and b'"choices":[]' not in plain.body
    assert [event["choices"] for event in event_data(counted.body)[-2:-1]] == [[]]
    assert len(events(counted.body)) == len(events(plain.body)) + 1


async def test_it_records_requests_with_their_connection():
    async with ScriptedWorker() as worker, RawClient(worker.url) as client:
        await client.send(request_bytes("POST", CHAT, json=ASK, headers=[("x-one", "1")]))
        await client.read_response()
        await client.send(ask(max_tokens=2))
        second = await client.read_response()

        assert [r.nth_on_connection for r in worker.requests] == [1, 2]
        assert worker.requests[0].header("x-one") == "1"
        assert worker.requests[1].json()["max_tokens"] == 2
        assert second.json()["choices"][0]["finish_reason"] == "length"
        assert worker.num_connections_made == 1


async def test_a_client_that_leaves_early_is_an_abort_and_one_that_leaves_late_is_none():
    async with ScriptedWorker() as worker:
        worker.on(CHAT, scripts.chat_stream(after=2, ending="stall"), None)
        async with RawClient(worker.url) as client:
            await client.send(ask(stream=True))
            await client.read_head()
            assert b'"role":"assistant"' in await client.read_chunk()
            assert worker.num_running == 1
        await worker.wait_aborted(1)
        async with RawClient(worker.url) as client:
            await client.send(ask())
            await client.read_response()
        await worker.until(lambda: not worker.connections)

        assert (worker.num_aborted, worker.num_running) == (1, 0)


async def test_a_gate_holds_an_event_back():
    gate = asyncio.Event()
    async with ScriptedWorker() as worker, RawClient(worker.url) as client:
        worker.on(CHAT, scripts.chat_stream(["a", "b"], gates={2: gate}))
        await client.send(ask(stream=True))
        await client.read_head()
        before = [await client.read_chunk() for _ in range(2)]
        gate.set()
        after = await client.read_chunk()

    assert b'"content":"a"' in before[1] and b'"content":"b"' in after


@pytest.mark.parametrize("cut", [scripts.whole, scripts.byte_by_byte, scripts.cut_inside(b'"choices":[]')])
async def test_however_a_stream_is_cut_its_bytes_are_the_same(cut):
    async with ScriptedWorker() as worker:
        worker.on(CHAT, scripts.chat_stream(cut=cut))
        got = await request(worker.url, "POST", CHAT, json=ASK)

    assert got.body == b"".join(vllm.chat_events(vllm.content_deltas(), model="smollm2", include_usage=True))


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        (scripts.reset_before_any_byte(), b""),
        (scripts.close_before_any_byte(), b""),
        (scripts.half_head(), b"content-le"),
        (scripts.garbage(), b"this is no HTTP"),
        (scripts.wrong_length(b"{}", by=5), b"content-length: 7\r\ncontent-type: application/json\r\n\r\n{}"),
        (scripts.wrong_length(b"{}", by=-1), b"content-length: 1\r\ncontent-type: application/json\r\n\r\n{}"),
        (scripts.chat_stream(["a"], after=2, ending="reset"), b'"content":"a"'),
        (scripts.chat_stream(["a"], done=False, ending="no_terminator"), b'"choices":[]'),
        (scripts.chat_stream(["a"], finish="abort"), b'"finish_reason":"abort"'),
        (scripts.stream_error(after=2), b'"code": 500}}\n\n\r\ne\r\ndata: [DONE]'),
        (scripts.html_error(502), b"<h1>502</h1>"),
        (scripts.queue_full(), b'"type":"Service Unavailable"'),
        (scripts.huge_event(100_000), b"x" * 100_000),
        (scripts.chat_stream(["a"], crlf=True), b"data: [DONE]\r\n\r\n"),
    ],
)
async def test_ready_made_scripts_write_what_they_say(script, expected):
    async with ScriptedWorker() as worker, RawClient(worker.url) as client:
        worker.on(CHAT, script)
        await client.send(request_bytes("POST", CHAT, json=ASK, headers=[("connection", "close")]))
        assert expected in await client.read_rest()


async def test_a_worker_that_never_answers_waits_for_the_client_to_leave():
    async with ScriptedWorker() as worker:
        worker.on(CHAT, scripts.never_answers())
        async with RawClient(worker.url) as client:
            await client.send(ask())
            await worker.wait_requests(1)
        await worker.wait_aborted(1)


async def test_a_reused_connection_may_close_before_any_byte():
    async with ScriptedWorker() as worker, RawClient(worker.url) as client:
        worker.on_reuse = scripts.close_before_any_byte
        await client.send(ask())
        assert (await client.read_response()).status == 200
        await client.send(ask())
        assert await client.read_rest() == b""
        assert worker.num_aborted == 0


async def test_idle_connections_can_be_closed_and_the_worker_killed_and_started_again():
    async with ScriptedWorker() as worker, RawClient(worker.url) as client:
        await client.send(ask())
        await client.read_response()
        assert await worker.close_idle() == 1
        assert await client.read_rest() == b""
        url = worker.url
        await worker.stop()
        with pytest.raises(ConnectionRefusedError):
            await request(url, "GET", "/health")
        await worker.start()
        assert worker.url == url and (await request(url, "GET", "/health")).status == 200


async def test_its_key_guards_what_vllms_guards():
    async with ScriptedWorker(api_key="sk-worker") as worker:
        good = [("authorization", "Bearer sk-worker")]
        assert (await request(worker.url, "POST", CHAT, json=ASK)).json() == {"error": "Unauthorized"}
        assert (await request(worker.url, "POST", CHAT, json=ASK, headers=good)).status == 200
        assert (await request(worker.url, "GET", "/health")).status == 200


async def test_a_broken_script_fails_the_test():
    async def broken(request, connection):
        raise ValueError("a bug in the script")

    with pytest.raises(AssertionError, match="a bug in the script"):
        async with ScriptedWorker() as worker, RawClient(worker.url) as client:
            worker.on(CHAT, broken)
            await client.send(ask())
            await client.read_rest()


async def test_the_asgi_client_reads_piecewise_and_leaves():
    heard = []

    async def app(scope, receive, send):
        heard.append((await receive())["body"])
        await send({"type": "http.response.start", "status": 200, "headers": [(b"x-a", b"b")]})
        await send({"type": "http.response.body", "body": b"one", "more_body": True})
        heard.append((await receive())["type"])

    async with AsgiCall(app, "POST", "/", body=b"hi") as call:
        assert await call.read_until(b"one") == b"one"
        assert (call.status, call.header("x-a"), call.is_complete) == (200, "b", False)
        await call.disconnect()

    assert heard == [b"hi", "http.disconnect"]


async def test_the_asgi_client_runs_a_lifespan():
    async def app(scope, receive, send):
        assert (await receive())["type"] == "lifespan.startup"
        scope["state"]["ready"] = True
        await send({"type": "lifespan.startup.complete"})
        assert (await receive())["type"] == "lifespan.shutdown"
        await send({"type": "lifespan.shutdown.complete"})

    async with lifespan(app) as state:
        assert state == {"ready": True}
