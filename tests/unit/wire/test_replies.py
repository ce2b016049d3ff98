"""Whole answers of a worker: usage, names, aborts, and errors of any shape."""

import json

import orjson
import pytest

from sluice.errors import ContextTooLong, UpstreamError, WorkerFull, WorkerRefused, WorkerRejected
from sluice.types import Source, Usage
from sluice.wire.replies import checked, rejection, renamed, usage_of, usage_of_body


def reply(**more) -> bytes:
    answer = {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "model": "smollm2",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "Hi"}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 12, "total_tokens": 14, "completion_tokens": 2, "prompt_tokens_details": None},
        "prompt_logprobs": None,
    }
    return json.dumps(answer | more, separators=(",", ":")).encode()


def test_usage_is_read_from_the_end_of_the_body():
    assert usage_of_body(reply()) == Usage(12, 2, 0, exact=True)


def test_usage_with_spaces_is_read_too():
    assert usage_of_body(json.dumps(orjson.loads(reply())).encode()) == Usage(12, 2, 0, exact=True)


@pytest.mark.parametrize("body", [b"{}", b'{"usage":', b'{"usage":null}', b'{"usage":{"x":1}}', b'{"usage":[1]}'])
def test_a_body_without_usage_has_none(body):
    assert usage_of_body(body) is None


@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        ({"input_tokens": 3, "output_tokens": 1, "input_tokens_details": {"cached_tokens": 2}}, Usage(3, 1, 2, exact=True)),
        ({"input_tokens": 3, "output_tokens": 1, "cache_read_input_tokens": 2}, Usage(3, 1, 2, exact=True)),
        ({"prompt_tokens": 3, "total_tokens": 3}, Usage(3, 0, 0, exact=True)),
        ({"prompt_tokens": "3", "completion_tokens": -1}, Usage(0, 0, 0, exact=True)),
        (None, None),
    ],
)
def test_usage_in_each_dialect(usage, expected):
    assert usage_of(usage) == expected


def test_a_reply_under_the_asked_name_passes_as_the_same_object():
    body = reply()

    assert checked(body, model="smollm2", reasoning_content=False) is body


def test_only_the_replys_own_model_is_renamed():
    body = reply(choices=[{"message": {"content": '"model":"smollm2"'}}])

    sent = checked(body, model="gpt-4o-mini", reasoning_content=False)

    assert orjson.loads(sent) == orjson.loads(body) | {"model": "gpt-4o-mini"}


def test_a_model_after_a_space_is_renamed():
    assert renamed(b'{"model": "a", "x": 1}', "b") == b'{"model": "b", "x": 1}'


@pytest.mark.parametrize("body", [b"{}", b'{"model":7}', b'{"model":', b'{"model":"a}'])
def test_a_reply_without_a_readable_model_is_left_alone(body):
    assert renamed(body, "b") == body


@pytest.mark.parametrize("body", [b"", b"<html>", b"[1]", b'{"a":1', b"null"])
def test_what_is_no_json_object_is_the_workers_failure(body):
    with pytest.raises(UpstreamError, match="not a JSON object"):
        checked(body, model="m", reasoning_content=False)


def test_an_answer_aborted_before_a_word_may_be_asked_for_elsewhere():
    body = reply(choices=[{"message": {"content": ""}, "finish_reason": "abort"}])

    with pytest.raises(WorkerRefused):
        checked(body, model="m", reasoning_content=False)


@pytest.mark.parametrize("choice", [{"message": {"content": "Hal"}}, {"text": "Hal"}])
def test_an_answer_aborted_half_way_is_a_failure(choice):
    with pytest.raises(UpstreamError, match="aborted") as caught:
        checked(reply(choices=[choice | {"finish_reason": "abort"}]), model="m", reasoning_content=False)

    assert not caught.value.retryable


def test_an_error_under_a_200_is_an_error():
    body = b'{"error":{"message":"odd","code":500}}'

    with pytest.raises(WorkerRejected, match="odd"):
        checked(body, model="m", reasoning_content=False)


def test_words_about_errors_and_aborts_are_only_words():
    body = reply(error=None, choices=[{"message": {"content": '"error" "abort"'}, "finish_reason": "stop"}])

    assert checked(body, model="smollm2", reasoning_content=False) is body


def test_markers_in_what_is_no_json_are_garbage():
    with pytest.raises(UpstreamError, match="not JSON"):
        checked(b'{"error"}', model="m", reasoning_content=False)


def test_reasoning_is_doubled_only_where_the_route_asks_for_it():
    body = reply(choices=[{"message": {"content": "Hi", "reasoning": "hm"}, "finish_reason": "stop"}])

    assert checked(body, model="smollm2", reasoning_content=False) is body
    message = orjson.loads(checked(body, model="smollm2", reasoning_content=True))["choices"][0]["message"]
    assert message == {"content": "Hi", "reasoning": "hm", "reasoning_content": "hm"}


def vllm_error(message: str, type: str, code: int, param: str | None = None) -> bytes:
    return json.dumps({"error": {"message": message, "type": type, "param": param, "code": code}}).encode()


@pytest.mark.parametrize(
    ("status", "body", "kind", "seen"),
    [
        (400, vllm_error("bad", "BadRequestError", 400, "n"), WorkerRejected, (400, "bad", "n", None)),
        (
            400,
            vllm_error("This model's maximum context length is 8192 tokens.", "BadRequestError", 400, "input_tokens"),
            ContextTooLong,
            (400, "This model's maximum context length is 8192 tokens.", "input_tokens", "context_length_exceeded"),
        ),
        (
            400,
            vllm_error("max_tokens=5000 cannot be greater than max_model_len=2048", "BadRequestError", 400),
            ContextTooLong,
            (400, "max_tokens=5000 cannot be greater than max_model_len=2048", None, "context_length_exceeded"),
        ),
        (422, vllm_error("no image", "UnprocessableEntityError", 422), WorkerRejected, (400, "no image", None, None)),
        (
            404,
            vllm_error("The model `x` does not exist. Valid aliases: a, b.", "NotFoundError", 404, "model"),
            WorkerRejected,
            (404, "The model `x` does not exist.", "model", "model_not_found"),
        ),
        (
            404,
            vllm_error("Response with id 'r' not found.", "invalid_request_error", 404, "response_id"),
            WorkerRejected,
            (404, "Response with id 'r' not found.", "response_id", None),
        ),
        (404, b'{"detail":"Not Found"}', WorkerRejected, (404, "The workers of this model do not serve /v1/x.", None, None)),
        (
            405,
            b'{"detail":"Method Not Allowed"}',
            WorkerRejected,
            (404, "The workers of this model do not serve /v1/x.", None, None),
        ),
        (500, vllm_error("boom", "InternalServerError", 500), WorkerRejected, (500, "boom", None, "worker_failed")),
        (500, b"<html>oops</html>", WorkerRejected, (500, "The worker failed on this call.", None, "worker_failed")),
        (503, vllm_error("full", "Service Unavailable", 503), WorkerFull, (429, "full", None, "server_overloaded")),
        (503, b'{"error":"scaling"}', WorkerFull, (429, "scaling", None, "server_overloaded")),
        (503, b"<html>", WorkerRefused, (502, "The worker is not available.", None, "worker_unreachable")),
        (429, b"", WorkerRejected, (429, "The worker answered with status 429.", None, None)),
        (400, b'{"detail":"Cannot parse the body"}', WorkerRejected, (400, "Cannot parse the body", None, None)),
        (400, b"[1]", WorkerRejected, (400, "The worker answered with status 400.", None, None)),
        (400, b'{"error":7}', WorkerRejected, (400, "The worker answered with status 400.", None, None)),
    ],
)
def test_a_workers_error_of_any_shape_becomes_openais(status, body, kind, seen):
    error = rejection(status, body, "/v1/x")

    assert type(error) is kind
    said = error.envelope()["error"]
    assert (error.status, said["message"], said["param"], said["code"]) == seen
    assert isinstance(said["type"], str)


@pytest.mark.parametrize("status", [204, 301, 401, 403])
def test_a_worker_that_does_not_let_us_in_is_not_the_clients_fault(status):
    error = rejection(status, b'{"error":"Unauthorized"}')

    assert error.status == 502 and error.source is Source.UPSTREAM
    assert "Unauthorized" not in error.message
