"""The two ways down, the pump of our server and plain ASGI, keep the same contract: nobody can tell which one it was."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Protocol

import pytest
import pytest_asyncio

from tests.support import scripts
from tests.support import vllm_shapes as vllm
from tests.support.asgi_client import AsgiCall
from tests.support.raw_http import RawClient, Response, event_data
from tests.support.scripted_worker import ScriptedWorker
from tests.unit.in_process import ASK, CHAT, STREAM, Gateway, serving, settings, told

pytestmark = pytest.mark.asyncio(loop_scope="module")

Json = dict[str, Any]


class Talk(Protocol):
    """One call of a client that reads as it pleases."""

    async def read_until(self, marker: bytes) -> None: ...
    async def whole(self) -> Response: ...
    async def leave(self) -> None: ...
    def stop_reading(self) -> None: ...
    def read_on(self) -> None: ...


class PumpTalk:
    """Over a socket."""

    def __init__(self, client: RawClient) -> None:
        self._client = client
        self._transport = client._writer.transport

    async def read_until(self, marker: bytes) -> None:
        await self._client.read_until(marker)

    async def whole(self) -> Response:
        return await self._client.read_response()

    async def leave(self) -> None:
        await self._client.leave()

    def stop_reading(self) -> None:
        self._client.stop_reading()

    def read_on(self) -> None:
        self._transport.resume_reading()  # type: ignore[attr-defined]


class AsgiTalk:
    """By hand, as any other server would do it."""

    def __init__(self, call: AsgiCall) -> None:
        self._call = call

    async def read_until(self, marker: bytes) -> None:
        await self._call.read_until(marker)

    async def whole(self) -> Response:
        body = await self._call.finished()
        assert self._call.status is not None
        return Response(self._call.status, tuple(self._call.headers), body)

    async def leave(self) -> None:
        await self._call.disconnect()

    def stop_reading(self) -> None:
        self._call.pause()

    def read_on(self) -> None:
        self._call.resume()


Way = Callable[..., Any]


@asynccontextmanager
async def by_pump(gateway: Gateway, body: Json, **options: Any) -> AsyncIterator[Talk]:
    async with gateway.connect(receive_buffer_bytes=16_384) as client:
        await client.send(gateway.bytes("POST", CHAT, json=body, **options))
        yield PumpTalk(client)


@asynccontextmanager
async def by_asgi(gateway: Gateway, body: Json, **options: Any) -> AsyncIterator[Talk]:
    async with gateway.asgi("POST", CHAT, json=body, **options) as call:
        yield AsgiTalk(call)


@pytest.fixture(params=[by_pump, by_asgi])
def way(request: pytest.FixtureRequest) -> Way:
    chosen: Way = request.param
    return chosen


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def both(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[tuple[Gateway, ScriptedWorker]]:
    route = {"timeouts": {"first_event_s": 0.5, "silence_s": 0.5, "total_s": 5}}
    async with ScriptedWorker() as worker, serving(settings(tmp_path_factory.mktemp("g"), worker, route=route)) as gateway:
        yield gateway, worker


@pytest_asyncio.fixture(loop_scope="module")
async def worker(both: tuple[Gateway, ScriptedWorker]) -> ScriptedWorker:
    both[1].forget()
    return both[1]


@pytest_asyncio.fixture(loop_scope="module")
async def gateway(both: tuple[Gateway, ScriptedWorker], worker: ScriptedWorker) -> AsyncIterator[Gateway]:
    yield both[0]
    await both[0].holds_nothing()


def stream_events(**options: Any) -> list[bytes]:
    return vllm.chat_events(vllm.content_deltas(), model="smollm2", **options)


async def test_a_whole_answer_is_the_workers_byte_for_byte(way: Way, gateway: Gateway, worker: ScriptedWorker):
    body = b'{"id":"x",  "choices":[],"usage":{"prompt_tokens":1,"completion_tokens":2}, "model":"smollm2"}'
    worker.on(CHAT, scripts.reply(200, body))
    async with way(gateway, ASK) as talk:
        response = await talk.whole()

    assert (response.status, response.body) == (200, body)
    assert response.header("content-type") == "application/json"
    assert response.header("content-length") == str(len(body))


async def test_a_stream_is_the_workers_byte_for_byte(way: Way, gateway: Gateway, worker: ScriptedWorker):
    worker.on(CHAT, scripts.stream(stream_events(include_usage=True)))
    async with way(gateway, STREAM | {"stream_options": {"include_usage": True}}) as talk:
        response = await talk.whole()

    assert response.body == b"".join(stream_events(include_usage=True))
    assert response.header("content-type") == "text/event-stream; charset=utf-8"


@pytest.mark.parametrize("num_bytes", [100, 60_000])
async def test_events_come_as_soon_as_the_worker_sends_them(way: Way, gateway: Gateway, worker: ScriptedWorker, num_bytes: int):
    gates = {2: asyncio.Event(), 3: asyncio.Event()}
    worker.on(CHAT, scripts.chat_stream(["one", "x" * num_bytes, "three"], gates=gates))
    async with way(gateway, STREAM) as talk:
        await talk.read_until(b'"one"')
        gates[2].set()
        await talk.read_until(b'xxx"')
        gates[3].set()
        await talk.read_until(b"data: [DONE]\n\n")


async def test_an_error_is_told_as_a_status_and_a_body(way: Way, gateway: Gateway, worker: ScriptedWorker):
    worker.on(CHAT, scripts.vllm_error(400, "too hot", param="temperature"))
    async with way(gateway, STREAM) as talk:
        assert told(await talk.whole(), 400, param="temperature") == "too hot"


async def test_an_error_after_the_first_event_is_an_event_and_the_end(way: Way, gateway: Gateway, worker: ScriptedWorker):
    worker.on(CHAT, scripts.chat_stream(after=3, ending="reset"))
    async with way(gateway, STREAM) as talk:
        response = await talk.whole()

    *events, last = event_data(response.body)
    assert response.status == 200 and len(events) == 3
    assert last["error"].keys() == {"message", "type", "param", "code"}
    assert last["error"]["code"] == "worker_failed"


async def test_what_fails_before_the_first_event_is_no_stream(way: Way, gateway: Gateway, worker: ScriptedWorker):
    worker.on(CHAT, scripts.chat_stream(after=0, ending="stall"))
    async with way(gateway, STREAM) as talk:
        told(await talk.whole(), 504, "worker_timeout")
    await worker.wait_aborted(1)


async def test_a_refused_request_is_told_why(way: Way, gateway: Gateway, worker: ScriptedWorker):
    async with way(gateway, ASK, key="sk-wrong") as talk:
        told(await talk.whole(), 401, "invalid_api_key")
    async with way(gateway, ASK | {"model": "gpt-9"}) as talk:
        told(await talk.whole(), 404, "model_not_found", param="model")
    assert not worker.calls()


@pytest.mark.parametrize("body", [ASK, STREAM])
async def test_a_client_that_leaves_before_the_answer_frees_the_worker(
    way: Way, gateway: Gateway, worker: ScriptedWorker, body: Json
):
    worker.on(CHAT, scripts.never_answers())
    async with way(gateway, body) as talk:
        await worker.wait_calls(1)
        await talk.leave()
        await worker.wait_aborted(1)


async def test_a_client_that_leaves_in_a_stream_frees_the_worker(way: Way, gateway: Gateway, worker: ScriptedWorker):
    worker.on(CHAT, scripts.chat_stream(gates={3: asyncio.Event()}))
    async with way(gateway, STREAM) as talk:
        await talk.read_until(b"from")
        await talk.leave()
        await worker.wait_aborted(1)


@pytest.mark.parametrize(
    "words", [["begin", *["x" * 50_000] * 200], ["x" * 7_000_000, *["y" * 50_000] * 100]], ids=["many", "the first is huge"]
)
async def test_a_client_that_stops_reading_stops_the_worker_and_loses_nothing(
    way: Way, gateway: Gateway, worker: ScriptedWorker, words: list[str]
):
    worker.on(CHAT, scripts.chat_stream(words))
    async with way(gateway, STREAM | {"stream_options": {"include_usage": True}}) as talk:
        talk.stop_reading()
        await gateway.until(lambda: any(not one._writable.is_set() for one in worker.connections))
        talk.read_on()
        response = await talk.whole()

    data = event_data(response.body)
    assert data[-1] == "[DONE]"
    assert "".join(event["choices"][0]["delta"].get("content", "") for event in data[:-2]) == "".join(words)


async def test_a_200_that_was_committed_early_is_followed_by_comments_and_then_by_the_stream(
    way: Way, tmp_path: Path, worker: ScriptedWorker
):
    gate = asyncio.Event()
    worker.on(CHAT, scripts.chat_stream(gates={0: gate}, include_usage=False))
    async with serving(settings(tmp_path, worker, route={"keep_alive_before_first_event_s": 0.05})) as gateway:
        async with way(gateway, STREAM) as talk:
            await talk.read_until(b": keep-alive\n\n")
            gate.set()
            await talk.read_until(b"data: [DONE]\n\n")


async def test_an_error_behind_an_early_200_is_an_event(way: Way, tmp_path: Path, worker: ScriptedWorker):
    gate = asyncio.Event()
    worker.on(CHAT, scripts.reply(400, vllm.error(400, "too hot"), gate=gate))
    async with serving(settings(tmp_path, worker, route={"keep_alive_before_first_event_s": 0.05})) as gateway:
        async with way(gateway, STREAM) as talk:
            opener = asyncio.get_running_loop().call_later(0.12, gate.set)
            response = await talk.whole()
            opener.cancel()

    assert response.status == 200
    assert response.body.startswith(b": keep-alive\n\n")
    (error,) = event_data(response.body)
    assert error["error"]["message"] == "too hot"


async def test_bodies_together_are_bounded_and_who_is_too_much_may_come_again(way: Way, tmp_path: Path, worker: ScriptedWorker):
    gate = asyncio.Event()
    large = ASK | {"user": "x" * 700_000}
    worker.on(CHAT, scripts.reply(200, b'{"choices":[]}', gate=gate))
    async with serving(settings(tmp_path, worker, server={"max_buffered_bytes": 2**20})) as gateway:
        async with way(gateway, large) as first:
            await worker.wait_calls(1)
            assert gateway.held[0] > 700_000
            async with way(gateway, large) as second:
                response = await second.whole()
                told(response, 429, "server_overloaded")
                assert (response.header("retry-after"), response.header("x-should-retry")) == ("2", "true")
            async with way(gateway, ASK) as small:
                gate.set()
                assert (await small.whole()).status == 200
            assert (await first.whole()).status == 200
        await gateway.holds_nothing()
        async with way(gateway, large) as again:
            assert (await again.whole()).status == 200
