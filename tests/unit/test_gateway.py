"""From a call to the answer of a worker: who is asked, who is asked next, and what a worker may do to us."""

import asyncio

import orjson
import pytest

from sluice.ejection import FAILURES
from sluice.errors import (
    ContextTooLong,
    GatewayError,
    UpstreamError,
    WorkerFull,
    WorkerRefused,
    WorkerRejected,
    WorkerTimeout,
    WorkerUnavailable,
)
from sluice.exchange import MAX_ERROR_BYTES
from sluice.retry_budget import RetryBudget
from sluice.types import Call, Endpoint, Usage
from tests.support import scripts
from tests.support import vllm_shapes as vllm
from tests.support.raw_server import Connection, Request, Script
from tests.support.scripted_worker import ScriptedWorker
from tests.unit.hot_path import CHAT, PATIENCE_S, Line, line, now, until

SHORT_S = 0.1


async def whole(line: Line, call: Call | None = None) -> bytes:
    async with line.gateway.exchange(call or line.call()) as exchange:
        return exchange.body


async def failure(line: Line, call: Call | None = None) -> GatewayError:
    """The error that comes instead of the answer, with nothing held any more."""
    with pytest.raises(GatewayError) as caught:
        async with asyncio.timeout(PATIENCE_S), line.gateway.exchange(call or line.call()):
            pass
    assert_nothing_is_in_flight(line)
    return caught.value


def assert_nothing_is_in_flight(line: Line) -> None:
    assert repr(line.pool).endswith("0 in flight]>")


def numbers(*workers: ScriptedWorker) -> list[int]:
    return [len(worker.requests) for worker in workers]


# Whole answers


async def test_a_whole_answer_is_the_workers_bytes_with_its_usage():
    async with line() as (here, worker), here.gateway.exchange(here.call()) as exchange:
        assert exchange.content_type == "application/json"
        assert orjson.loads(exchange.body)["choices"][0]["message"]["content"] == "Hello from the scripted worker."
        assert exchange.events is None
        assert exchange.usage == Usage(2, 6, 0, exact=True)


async def test_the_slot_is_held_to_the_last_byte_and_the_connection_is_kept():
    async with line() as (here, worker):
        async with here.gateway.exchange(here.call()):
            assert repr(here.pool) == "<Pool smollm2 [1 workers | 1 in flight]>"
            assert "[1 open, 0 idle]" in here.held[1]
        assert repr(here.pool) == "<Pool smollm2 [1 workers | 0 in flight]>"
        assert "[1 open, 1 idle]" in here.held[1]


async def test_an_exception_of_the_callers_lets_everything_go():
    async with line() as (here, worker):
        with pytest.raises(ZeroDivisionError):
            async with here.gateway.exchange(here.call(stream=True)):
                raise ZeroDivisionError
        assert_nothing_is_in_flight(here)


async def test_the_answer_carries_the_name_that_was_asked_for():
    async with line() as (here, worker):
        assert orjson.loads(await whole(here, here.call(model="gpt-4o-mini")))["model"] == "gpt-4o-mini"


async def test_tokenising_has_no_model_to_rename_and_no_usage():
    async with line() as (here, worker):
        call = here.call(endpoint=Endpoint.TOKENIZE, path="/tokenize", model="alias", body=b'{"prompt":"a b"}')
        async with here.gateway.exchange(call) as exchange:
            assert orjson.loads(exchange.body)["count"] == 2
            assert exchange.usage == Usage()


async def test_a_transcription_may_be_text():
    async with line() as (here, worker):
        path = Endpoint.TRANSCRIPTIONS.value
        worker.on(path, scripts.reply(200, b"1\n00:00 --> 00:01\nHello\n", content_type="text/plain; charset=utf-8"))
        async with here.gateway.exchange(here.call(endpoint=Endpoint.TRANSCRIPTIONS, path=path)) as exchange:
            assert exchange.body.startswith(b"1\n00:00")
            assert exchange.content_type == "text/plain; charset=utf-8"


async def test_the_request_that_goes_up():
    async with line() as (here, worker):
        call = here.call(method="GET", path="/v1/responses/resp_1", headers=(("traceparent", "00-1"),), body=b"")
        worker.on("/v1/responses/resp_1", scripts.reply(200, {}))
        await whole(here, call)
        [request] = worker.requests
        assert (request.method, request.target, request.body) == ("GET", "/v1/responses/resp_1", b"")
        assert request.header("x-request-id") == "req-1-1" and request.header("traceparent") == "00-1"
        assert request.header("authorization") is None


async def test_a_body_may_be_in_pieces():
    async with line() as (here, worker):
        pieces = (b'{"model":"smollm2",', b'"messages":[{"role":"user",', b'"content":"Hi"}]}')
        await whole(here, here.call(body=pieces))
        [request] = worker.requests
        assert request.body == b"".join(pieces)
        assert request.header("content-length") == str(len(request.body))


async def test_a_body_may_depend_on_the_worker_that_gets_it():
    async with line(2) as (here, one, two):
        one.on(CHAT, scripts.queue_full())
        await whole(here, here.call(stamp=lambda url: b'{"model":"smollm2","messages":[],"metadata":"%b"}' % url.encode()))
        assert one.requests[0].json()["metadata"] == one.url
        assert two.requests[0].json()["metadata"] == two.url


# Another worker


ABORTED = vllm.chat_reply({"content": None}, model="smollm2", id="x", prompt=1, completion=0, finish="abort")
REFUSALS = {
    "queue full": scripts.queue_full(),
    "reset": scripts.reset_before_any_byte(),
    "closed": scripts.close_before_any_byte(),
    "aborted before it began": scripts.reply(200, ABORTED),
    "nothing but the end": scripts.stream([vllm.DONE]),
}


@pytest.mark.parametrize("refusal", REFUSALS)
async def test_a_worker_that_did_nothing_is_followed_by_another(refusal):
    async with line(2) as (here, one, two):
        one.on(CHAT, REFUSALS[refusal])
        exchanging = here.gateway.exchange(here.call())
        async with exchanging as exchange:
            assert b"Hello" in exchange.body
            assert (exchanging.attempts, exchanging.worker) == (2, here.workers[1])
            assert [worker.in_flight for worker in here.workers] == [0, 1]
        assert numbers(one, two) == [1, 1]
        assert two.requests[0].header("x-request-id") == "req-1-2"
        assert_nothing_is_in_flight(here)


async def test_a_worker_that_cannot_be_reached_is_followed_by_another():
    async with line(2) as (here, one, two):
        await one.stop()
        assert b"Hello" in await whole(here)
        assert numbers(one, two) == [0, 1]


async def test_a_stream_too_goes_to_another_worker_until_its_first_event():
    async with line(2) as (here, one, two):
        one.on(CHAT, scripts.reset_before_any_byte())
        async with here.gateway.exchange(here.call(stream=True)) as exchange:
            assert exchange.first.startswith(b"data: ")
        assert numbers(one, two) == [1, 1]


@pytest.mark.parametrize(("max_retries", "num_asked"), [(0, 1), (1, 2), (2, 3), (10, 4)])
async def test_as_many_workers_are_asked_as_the_route_allows_and_none_twice(max_retries, num_asked):
    async with line(4, max_retries=max_retries) as (here, *workers):
        for worker in workers:
            worker.on(CHAT, scripts.reset_before_any_byte())
        assert isinstance(await failure(here), WorkerRefused)
        assert numbers(*workers) == [1] * num_asked + [0] * (4 - num_asked)


async def test_workers_that_turn_full_are_passed_by_until_one_is_not():
    async with line(8, max_retries=2) as (here, *workers):
        for worker in workers[:7]:
            worker.on(CHAT, scripts.queue_full())
        assert b"Hello" in await whole(here)
        assert numbers(*workers) == [1] * 8


async def test_a_pool_that_is_full_sees_each_call_at_as_few_workers_as_the_route_allows():
    async with line(6, max_retries=1) as (here, *workers):
        for worker in workers:
            worker.on(CHAT, scripts.queue_full())
        assert isinstance(await failure(here), WorkerFull)
        assert sum(numbers(*workers)) == 6  # nobody knew
        assert isinstance(await failure(here), WorkerFull)
        assert sum(numbers(*workers)) == 8


async def test_a_route_without_retries_passes_nobody_by():
    async with line(2, max_retries=0) as (here, one, two):
        one.on(CHAT, scripts.queue_full())
        assert isinstance(await failure(here), WorkerFull)
        assert numbers(one, two) == [1, 0]


@pytest.mark.parametrize(
    ("last", "kind", "status", "said"),
    [("queue full", WorkerFull, 429, "currently busy"), ("reset", WorkerRefused, 502, "closed the connection")],
)
async def test_when_all_refuse_the_last_one_is_heard(last, kind, status, said):
    async with line(2) as (here, one, two):
        one.on(CHAT, REFUSALS["reset" if last == "queue full" else "queue full"])
        two.on(CHAT, REFUSALS[last])
        error = await failure(here)
        assert (type(error), error.status, error.retryable) == (kind, status, True)
        assert said in error.message


async def test_a_worker_that_falls_ill_meanwhile_is_not_asked_next():
    async with line(3) as (here, one, two, three):

        async def refuse(request: Request, connection: Connection) -> None:
            here.workers[1].judge(is_healthy=False)
            await scripts.queue_full()(request, connection)

        one.on(CHAT, refuse)
        await whole(here)
        assert numbers(one, two, three) == [1, 0, 1]


async def test_no_candidate_is_an_error_of_its_own():
    async with line() as (here, worker):
        here.workers[0].judge(is_healthy=False)
        error = await failure(here)
        assert (type(error), error.status, error.code) == (WorkerUnavailable, 503, "no_worker_available")
        assert ("retry-after", "2") in error.headers()
        assert not worker.requests


async def test_a_pinned_call_goes_to_its_worker_alone():
    async with line(2) as (here, one, two):
        two.on(CHAT, scripts.queue_full())
        assert isinstance(await failure(here, here.call(pinned_worker=two.url)), WorkerRefused)
        assert numbers(one, two) == [0, 1]


# Answers that are errors, and answers that are none


def body_of(num_bytes: int) -> bytes:
    return b'{"error":"' + b"x" * num_bytes + b'"}'


@pytest.mark.parametrize(
    ("script", "status", "kind"),
    [
        (scripts.vllm_error(400, "bad temperature"), 400, WorkerRejected),
        (scripts.reply(400, vllm.context_too_long(8192)), 400, ContextTooLong),
        (scripts.vllm_error(500, "engine dead"), 500, WorkerRejected),
        (scripts.html_error(502), 502, WorkerRejected),
        (scripts.empty(504), 504, WorkerRejected),
        (scripts.empty(204), 502, UpstreamError),
        (scripts.string_error(401), 502, UpstreamError),
        (scripts.reply(200, b"<html>Welcome</html>", content_type="text/html"), 502, UpstreamError),
        (scripts.reply(200, b'[{"choices":[]}]'), 502, UpstreamError),
        (scripts.reply(200, b'{"choices":['), 502, UpstreamError),
        (scripts.empty(200), 502, UpstreamError),
        (scripts.garbage(), 502, UpstreamError),
        (scripts.half_head(), 502, UpstreamError),
        (scripts.half_head("reset"), 502, UpstreamError),
        (scripts.wrong_length({"choices": []}, by=7), 502, UpstreamError),
        (scripts.wrong_length({"choices": []}, by=7, then="reset"), 502, UpstreamError),
        (scripts.wrong_length({"choices": []}, by=-3, then="open"), 502, UpstreamError),
        (scripts.raw(b"HTTP/1.1 200 OK\r\nx: " + b"x" * 1_000_000), 502, UpstreamError),
        (scripts.raw(b"HTTP/1.1 999 Odd\r\ncontent-length: 2\r\n\r\n{}", "open"), 502, UpstreamError),
        (scripts.reply(500, body_of(MAX_ERROR_BYTES)), 502, UpstreamError),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_what_a_worker_says_or_does_instead_of_an_answer_is_an_error_of_ours(script, status, kind, stream):
    async with line(2, max_retries=0) as (here, one, two):
        one.on(CHAT, script)
        error = await failure(here, here.call(stream=stream))
        assert (type(error), error.status) == (kind, status)
        assert not error.retryable
        assert "<" not in error.message and "nginx" not in error.message
        assert numbers(one, two) == [1, 0]
        one.forget_scripts()
        assert b"Hello" in await whole(here)  # and nothing of it is left for the next call


FAULTS = {
    "500": scripts.vllm_error(500, "engine dead"),
    "502 of a balancer": scripts.html_error(502),
    "no HTTP": scripts.garbage(),
    "half a head": scripts.half_head("reset"),
    "half an answer": scripts.wrong_length({"choices": []}, by=7, then="reset"),
    "no JSON": scripts.reply(200, b"<html>Welcome</html>", content_type="text/html"),
    "a key that it does not know": scripts.string_error(401),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("stream", [False, True])
async def test_a_worker_that_may_have_computed_is_followed_by_another_within_the_budget(fault, stream):
    async with line(2, retries=RetryBudget(share=0, per_s=0.1)) as (here, one, two):
        one.on(CHAT, FAULTS[fault])
        assert b"Hello" in await answer_of(here, here.call(stream=stream))
        assert numbers(one, two) == [1, 1]
        await failure(here, here.call(stream=stream))  # that was the only retry of ten seconds
        assert numbers(one, two) == [2, 1]


async def test_refusals_do_not_draw_on_the_budget():
    async with line(2, retries=RetryBudget(share=0, per_s=0)) as (here, one, two):
        one.on(CHAT, scripts.queue_full())
        for _ in range(3):
            await whole(here)
        assert numbers(one, two) == [3, 3]


@pytest.mark.parametrize(
    "script",
    [scripts.vllm_error(400), scripts.vllm_error(404), scripts.vllm_error(429), scripts.vllm_error(501), scripts.empty(413)],
)
async def test_what_every_worker_would_say_is_asked_of_one(script):
    async with line(2) as (here, one, two):
        one.on(CHAT, script)
        await failure(here)
        assert numbers(one, two) == [1, 0]


async def answer_of(line: Line, call: Call) -> bytes:
    """Body or stream, to the end."""
    out = bytearray()
    async with line.gateway.exchange(call) as exchange:
        out += exchange.body + exchange.first
        if call.stream:
            await exchange.pipe(out.extend)
            out += exchange.last
    return bytes(out)


# Time


@pytest.mark.parametrize(
    "script",
    [
        scripts.never_answers(),
        scripts.half_head("stall"),
        scripts.stream([], ending="stall"),
        scripts.stream([b": ping\n\n", b"data: {"], ending="stall"),
    ],
)
async def test_a_worker_without_a_first_event_is_given_up(script):
    async with line(2, max_retries=0, timeouts={"first_event_s": SHORT_S}) as (here, one, two):
        one.on(CHAT, script)
        error = await failure(here, here.call(stream=True))
        assert (type(error), error.status, error.code) == (WorkerTimeout, 504, "worker_timeout")
        assert error.message == "The worker did not answer within 0.1 s."
        await one.wait_aborted(1)
        assert numbers(one, two) == [1, 0]
        await until(lambda: "[0 open, 0 idle]" in here.held[1])


async def test_a_worker_that_is_given_up_is_followed_by_another_while_the_call_has_time():
    async with line(2, timeouts={"first_event_s": SHORT_S}) as (here, one, two):
        one.on(CHAT, scripts.never_answers())
        assert b"Hello" in await answer_of(here, here.call(stream=True))
        await one.wait_aborted(1)
        await failure(here, here.call(stream=True, deadline=now() + SHORT_S / 2))
        assert numbers(one, two) == [2, 1]


@pytest.mark.parametrize("script", [scripts.never_answers(), scripts.wrong_length({"choices": []}, by=7, then="stall")])
async def test_a_whole_answer_has_the_time_of_the_whole_call(script):
    async with line(timeouts={"first_event_s": 0.001, "total_s": SHORT_S}) as (here, worker):
        worker.on(CHAT, script)
        error = await failure(here)
        assert (type(error), error.message) == (WorkerTimeout, "The worker did not answer within 0.1 s.")
        await worker.wait_aborted(1)


async def test_a_whole_answer_is_not_bound_by_the_time_for_a_first_event():
    gate = asyncio.Event()
    async with line(timeouts={"first_event_s": 0.01}) as (here, worker):
        worker.on(CHAT, scripts.reply(200, {"choices": []}, gate=gate), scripts.never_answers())
        plain = asyncio.create_task(whole(here))
        await worker.wait_requests(1)
        with pytest.raises(WorkerTimeout):  # so long at least the other one has waited
            async with here.gateway.exchange(here.call(stream=True)):
                pass
        assert not plain.done()
        gate.set()
        assert await plain == b'{"choices":[]}'


async def test_all_attempts_together_have_the_time_of_one_call():
    async with line(2, timeouts={"total_s": 30}) as (here, one, two):
        one.on(CHAT, scripts.queue_full())
        two.on(CHAT, scripts.never_answers())
        for stream in (False, True):
            error = await failure(here, here.call(stream=stream, deadline=now() + SHORT_S))
            assert (type(error), error.message) == (WorkerTimeout, "The worker did not answer within 0.1 s.")


# The first event


async def test_a_stream_is_opened_by_its_first_event():
    gate = asyncio.Event()
    async with line() as (here, worker):
        worker.on(CHAT, scripts.chat_stream(gates={0: gate}))
        opening = asyncio.create_task(first_of(here))
        await worker.wait_requests(1)
        await until(lambda: here.pool.in_flight == 1)
        assert not opening.done()
        gate.set()
        assert (await opening).startswith(b'data: {"id":')


async def first_of(here: Line, call: Call | None = None) -> bytes:
    async with here.gateway.exchange(call or here.call(stream=True)) as exchange:
        return exchange.first


async def test_comments_and_a_hidden_usage_chunk_are_no_first_event():
    usage = vllm.sse({"model": "smollm2", "choices": [], "usage": vllm.usage(1, 0)})
    word = vllm.sse({"model": "smollm2", "choices": [{"index": 0, "delta": {"content": "a"}}]})
    async with line() as (here, worker):
        worker.on(CHAT, scripts.stream([b": ping\n\n", usage, word], ending="stall"))
        assert await first_of(here, here.call(stream=True, wants_usage=False)) == word


def stream_of(*events: bytes) -> Script:
    return scripts.stream(events)


ERROR_503 = vllm.error_event(503, "The engine is busy", type="Service Unavailable")


@pytest.mark.parametrize(
    ("script", "status", "kind"),
    [
        (scripts.stream_error(0), 500, WorkerRejected),
        (scripts.stream_error(0, status=400, message="bad schema"), 400, WorkerRejected),
        (stream_of(b'data: {"error": "no"}\n\n', vllm.DONE), 502, WorkerRejected),
        (stream_of(b"data: nonsense\n\n"), 502, UpstreamError),
        (stream_of(b"data: [1]\n\n"), 502, UpstreamError),
        (stream_of(), 502, UpstreamError),
        (stream_of(b": only a comment\n\n"), 502, UpstreamError),
        (stream_of(b"data: {"), 502, UpstreamError),
        (scripts.chat_stream(after=0, ending="no_terminator"), 502, UpstreamError),
        (scripts.chat_stream(after=0, ending="reset"), 502, UpstreamError),
    ],
)
async def test_what_fails_before_the_first_event_is_a_real_status(script, status, kind):
    async with line(2, max_retries=0) as (here, one, two):
        one.on(CHAT, script)
        error = await failure(here, here.call(stream=True))
        assert (type(error), error.status) == (kind, status)
        assert numbers(one, two) == [1, 0]


async def test_a_stream_is_what_says_so_of_itself():
    async with line() as (here, worker):
        events = vllm.chat_events(vllm.content_deltas(), model="smollm2")
        headers = [("content-type", "application/json"), ("transfer-encoding", "chunked")]
        worker.on(CHAT, scripts.stream(events, headers=headers))
        error = await failure(here, here.call(stream=True))
        assert (type(error), error.message) == (UpstreamError, "The worker answered a stream with something else.")


async def test_a_full_queue_that_is_told_as_an_event_is_a_refusal_all_the_same():
    async with line(2) as (here, one, two):
        one.on(CHAT, stream_of(ERROR_503, vllm.DONE))
        assert (await first_of(here)).startswith(b'data: {"id":')
        assert numbers(one, two) == [1, 1]


async def test_an_event_without_end_is_cut_off():
    async with line() as (here, worker):
        worker.on(CHAT, scripts.huge_event(9_000_000))
        async with here.gateway.exchange(here.call(stream=True)) as exchange:
            assert exchange.events is not None
            over = exchange.pipe(lambda data: None)
            await over
            assert exchange.events.broken is not None and "8388608 bytes" in exchange.events.broken.message


# Connections


async def test_a_stream_that_was_read_to_its_end_leaves_its_connection_to_the_next_call():
    async with line() as (here, worker):
        for _ in range(2):
            async with here.gateway.exchange(here.call(stream=True)) as exchange:
                await exchange.pipe(lambda data: None)
        assert [request.nth_on_connection for request in worker.requests] == [1, 2]
        assert worker.num_aborted == 0


async def test_a_stream_that_came_in_one_read_leaves_its_connection_too():
    gate = asyncio.Event()
    events = vllm.chat_events(vllm.content_deltas(), model="smollm2")

    async def end_late(request: Request, connection: Connection) -> None:
        """The end of the body in a packet of its own, as uvicorn sends it."""
        await connection.send(scripts.head(200, scripts.STREAM_HEADERS) + scripts.chunk(b"".join(events)))
        await gate.wait()
        await connection.send(b"0\r\n\r\n", last=True)

    async with line() as (here, worker):
        worker.on(CHAT, end_late)
        async with here.gateway.exchange(here.call(stream=True)) as exchange:
            assert exchange.first == b"".join(events)
            over = exchange.pipe(lambda data: None)
            assert not over.done()
            gate.set()
            await over
        assert "[1 open, 1 idle]" in here.held[1]


async def test_a_worker_that_does_not_end_after_its_last_word_is_not_waited_for():
    events = vllm.chat_events(vllm.content_deltas(), model="smollm2")

    async def go_on(request: Request, connection: Connection) -> None:
        await scripts.stream(events, ending="open")(request, connection)
        while not connection.gone.is_set():
            await connection.send(scripts.chunk(b"data: {}\n\n"))
            await asyncio.sleep(0)

    for script in (scripts.stream(events, ending="stall"), go_on):
        async with line(timeouts={"silence_s": SHORT_S}) as (here, worker):
            worker.on(CHAT, script)
            seen: list[bytes] = []
            async with here.gateway.exchange(here.call(stream=True)) as exchange:
                await asyncio.wait_for(exchange.pipe(seen.append), PATIENCE_S)
                assert exchange.events is not None and exchange.events.done
                assert exchange.first + b"".join(seen) == b"".join(events)
            await worker.wait_aborted(1)


async def test_a_stream_is_told_apart_by_its_bytes_not_by_its_reads():
    expected = b"".join(vllm.chat_events(vllm.content_deltas(), model="smollm2", include_usage=True))
    for cut in (scripts.whole, scripts.byte_by_byte, scripts.cut_inside(b"[DONE]")):
        async with line() as (here, worker):
            worker.on(CHAT, scripts.chat_stream(cut=cut))
            seen: list[bytes] = []
            async with here.gateway.exchange(here.call(stream=True)) as exchange:
                await exchange.pipe(seen.append)
                assert exchange.first + b"".join(seen) + exchange.last == expected
                assert exchange.usage == Usage(5, 6, 0, exact=True)


# What workers are told


def failures_to_ejection(line: Line) -> int:
    """How many more failures in a row would eject the first worker."""
    worker = line.workers[0]
    count = 0
    while worker.ejection.until is None:
        worker.failed(now())
        count += 1
    return count


@pytest.mark.parametrize("fault", [*FAULTS, *REFUSALS])
async def test_a_worker_is_told_that_a_call_failed_by_its_fault(fault):
    async with line(2) as (here, one, two):
        one.on(CHAT, (FAULTS | REFUSALS)[fault])
        await whole(here)
        assert failures_to_ejection(here) == FAILURES - 1


@pytest.mark.parametrize("stream", [False, True])
async def test_a_good_answer_wipes_out_what_failed_before(stream):
    async with line() as (here, worker):
        here.workers[0].failed(now())
        await answer_of(here, here.call(stream=stream))
        assert failures_to_ejection(here) == FAILURES


@pytest.mark.parametrize("script", [scripts.vllm_error(400), scripts.vllm_error(429)])
async def test_what_a_worker_says_of_a_request_is_no_failure_of_it(script):
    async with line() as (here, worker):
        worker.on(CHAT, script)
        await failure(here)
        assert failures_to_ejection(here) == FAILURES


async def test_a_worker_whose_streams_all_break_is_ejected_though_they_began_well():
    async with line() as (here, worker):
        worker.on(CHAT, scripts.chat_stream(after=3, ending="reset"))
        for _ in range(FAILURES):
            await answer_of(here, here.call(stream=True))
        assert here.workers[0].ejection.until is not None


async def test_a_worker_on_trial_is_readmitted_by_the_beginning_of_a_stream():
    async with line() as (here, worker):
        worker.on(CHAT, scripts.chat_stream(after=2, ending="stall"))
        failures_to_ejection(here)
        async with here.gateway.exchange(here.call(stream=True)):
            assert here.workers[0].ejection.until is None


async def test_a_prompt_weighs_on_a_worker_until_its_first_event():
    gate = asyncio.Event()
    async with line() as (here, worker):
        worker.on(CHAT, scripts.chat_stream(gates={0: gate}))
        opening = asyncio.create_task(first_of(here, here.call(stream=True, prompt_tokens=7)))
        await worker.wait_requests(1)
        await until(lambda: here.workers[0].prefill_tokens == 7)
        gate.set()
        await opening
        assert here.workers[0].prefill_tokens == 0


async def test_a_second_try_passes_by_workers_that_have_just_failed_others():
    async with line(4) as (here, *workers):
        workers[0].on(CHAT, scripts.queue_full())
        for worker in here.workers[1:3]:
            worker.failed(now())
        await whole(here)
        assert numbers(*workers) == [1, 0, 0, 1]


async def test_but_not_where_there_are_no_others():
    async with line(2) as (here, one, two):
        one.on(CHAT, scripts.queue_full())
        here.workers[1].failed(now())
        await whole(here)
        assert numbers(one, two) == [1, 1]
