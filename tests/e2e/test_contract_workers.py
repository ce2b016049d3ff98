"""The error contract, row by row, over raw HTTP: what clients are told when a worker is wrong, broken or silent."""

from typing import Any

import pytest

from tests.e2e.gateway import RunningGateway
from tests.support import scripts
from tests.support import vllm_shapes as vllm
from tests.support.openai_error import assert_error
from tests.support.raw_http import event_data
from tests.support.scripted_worker import ScriptedWorker

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="session")]

CHAT = "/v1/chat/completions"
ASK: dict[str, Any] = {"model": "smollm2", "messages": [{"role": "user", "content": "Say hi"}]}


async def test_a_workers_400_stays_a_400(scripted_gateway: RunningGateway, worker: ScriptedWorker):
    worker.on(CHAT, scripts.vllm_error(400, "temperature must be non-negative", param="temperature"))
    error = assert_error(await scripted_gateway.request("POST", CHAT, json=ASK), 400, None, param="temperature")
    assert error["message"] == "temperature must be non-negative"
    assert error["type"] == "invalid_request_error"


async def test_a_workers_422_becomes_a_400(scripted_gateway: RunningGateway, worker: ScriptedWorker):
    worker.on(CHAT, scripts.vllm_error(422, "no such image", type="UnprocessableEntityError"))
    assert_error(await scripted_gateway.request("POST", CHAT, json=ASK), 400)


@pytest.mark.parametrize("stream", [False, True])
async def test_too_long_a_prompt_says_so_in_openais_code(
    scripted_gateway: RunningGateway, worker: ScriptedWorker, stream: bool
):
    worker.on(CHAT, scripts.reply(400, vllm.context_too_long(8192)))
    response = await scripted_gateway.request("POST", CHAT, json=ASK | {"stream": stream})
    error = assert_error(response, 400, "context_length_exceeded")
    assert "maximum context length" in error["message"]


BROKEN_WORKERS = {
    "500": (scripts.vllm_error(500, "boom", type="InternalServerError"), 500, 502),
    "502 of a load balancer": (scripts.html_error(502), 502, 502),
    "503 as HTML": (scripts.html_error(503), 502, 503),
    "queue full": (scripts.queue_full(), 429, 503),
    "scaling": (scripts.string_error(503, "The model is currently scaling."), 429, 503),
    "HTML with 200": (scripts.reply(200, b"<html>hi</html>", content_type="text/html"), 502, 502),
    "empty 200": (scripts.empty(200), 502, 502),
    "JSON of another kind": (scripts.reply(200, b"[1,2]"), 502, 502),
    "its key is not ours": (scripts.string_error(401), 502, 502),
    "forbidden": (scripts.vllm_error(403, "no", type="PermissionDeniedError"), 502, 502),
    "a redirect": (scripts.reply(302, b"", headers=[("location", "http://127.0.0.1:1/")]), 502, 502),
    "garbage": (scripts.garbage(), 502, 502),
    "half a header": (scripts.half_head(), 502, 502),
    "a length too long": (scripts.wrong_length(b'{"id":"a"}', by=100), 502, 502),
    "reset": (scripts.reset_before_any_byte(), 502, 503),
    "closed": (scripts.close_before_any_byte(), 502, 503),
    "two heads": (scripts.raw(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 5\r\n\r\n{}"), 502, 502),
    "a status of 99": (scripts.raw(b"HTTP/1.1 99 Low\r\ncontent-length: 2\r\n\r\n{}"), 502, 502),
    "a header of 1 MB": (scripts.raw(b"HTTP/1.1 200 OK\r\nx: " + b"a" * 2**20 + b"\r\n\r\n"), 502, 502),
}


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize(("script", "low", "high"), BROKEN_WORKERS.values(), ids=BROKEN_WORKERS.keys())
async def test_a_broken_worker_is_a_clear_5xx(
    scripted_gateway: RunningGateway, worker: ScriptedWorker, script: Any, low: int, high: int, stream: bool
):
    worker.on(CHAT, script)
    response = await scripted_gateway.request("POST", CHAT, json=ASK | {"stream": stream})

    assert low <= response.status <= high
    error = assert_error(response, response.status)
    assert "nginx" not in error["message"]
    assert response.header("x-should-retry") in ("true", "false")


async def test_a_worker_that_is_not_there_is_a_clear_5xx(scripted_gateway: RunningGateway):
    response = await scripted_gateway.request("POST", CHAT, json=ASK | {"model": "absent"})
    assert response.status in (502, 503)
    assert_error(response, response.status)


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
async def test_a_worker_that_never_answers_is_504_and_is_let_go(
    scripted_gateway: RunningGateway, worker: ScriptedWorker, stream: bool
):
    worker.on(CHAT, scripts.never_answers())
    response = await scripted_gateway.request("POST", CHAT, json=ASK | {"model": "impatient", "stream": stream})
    assert_error(response, 504)
    await worker.wait_aborted(1)


async def test_an_error_that_vllm_hides_behind_a_200_is_a_real_status(scripted_gateway: RunningGateway, worker: ScriptedWorker):
    message = "Requested sample logprobs of 500, which is greater than max allowed: 20"
    event = vllm.error_event(400, message, type="BadRequestError", param="logprobs")
    worker.on(CHAT, scripts.stream([event, vllm.DONE]))
    response = await scripted_gateway.request("POST", CHAT, json=ASK | {"stream": True})
    assert_error(response, 400, None, param="logprobs")


BROKEN_STREAMS = {
    "an error event": scripts.stream_error(after=3),
    "reset": scripts.chat_stream(after=3, ending="reset"),
    "closed within the body": scripts.chat_stream(after=3, ending="no_terminator"),
    "ended without [DONE]": scripts.chat_stream(done=False),
    "cut short": scripts.chat_stream(after=3),
    "aborted by the worker": scripts.chat_stream(finish="abort"),
    "half an event": scripts.stream([*vllm.chat_events(vllm.content_deltas(), model="smollm2")[:3], b'data: {"id":"c']),
}


@pytest.mark.parametrize("script", BROKEN_STREAMS.values(), ids=BROKEN_STREAMS.keys())
async def test_a_stream_that_breaks_says_so_and_never_looks_finished(
    scripted_gateway: RunningGateway, worker: ScriptedWorker, script: Any
):
    worker.on(CHAT, script)
    response = await scripted_gateway.request("POST", CHAT, json=ASK | {"stream": True})

    assert response.status == 200
    *good, last = event_data(response.body)
    assert "[DONE]" not in good
    assert last["error"].keys() == {"message", "type", "param", "code"}
    assert isinstance(last["error"]["message"], str)
    reasons = [choice["finish_reason"] for event in good for choice in event["choices"]]
    assert "abort" not in reasons


async def test_a_stream_that_falls_silent_ends_in_an_error_event_and_the_worker_is_let_go(
    scripted_gateway: RunningGateway, worker: ScriptedWorker
):
    worker.on(CHAT, scripts.chat_stream(after=3, ending="stall"))
    response = await scripted_gateway.request("POST", CHAT, json=ASK | {"model": "impatient", "stream": True})
    events = event_data(response.body)
    assert [len(event.get("choices", ())) for event in events] == [1, 1, 1, 0]
    assert "silent" in events[-1]["error"]["message"]
    await worker.wait_aborted(1)
