"""Whole answers of a worker, sans-I/O: errors into OpenAI's shape, usage, the model's name, an aborted choice.

Source: vLLM 0.32 `entrypoints/serve/engine/protocol.py` (ErrorResponse: integer `code`, class name as `type`),
FastAPI's `{"detail": ...}`, the string `error` of vLLM's key check; OpenAI's error object for what goes down.
"""

from __future__ import annotations

import re
from json import JSONDecodeError, JSONDecoder
from typing import Any

import orjson

from sluice.errors import ContextTooLong, GatewayError, UpstreamError, WorkerFull, WorkerRefused, WorkerRejected
from sluice.types import Usage

MAX_MESSAGE = 2000
TAIL_BYTES = 4096
MAX_STEP_MS = 86_400_000.0
MAX_USAGE_OBJECTS = 8  # usage itself, and the details in it
TOO_LONG = ("maximum context length", "cannot be greater than max_model_len")
VALID_ALIASES = re.compile(r" Valid aliases: .*$", re.DOTALL)
_TAIL = JSONDecoder()


def usage_of(usage: Any, metrics: Any = None) -> Usage | None:
    """OpenAI's, the Responses API's and Anthropic's usage members, as they are spelled there.

    `metrics` is vLLM's member of that name (`--enable-per-request-metrics`): how long its steps worked on the request.
    """
    if not isinstance(usage, dict):
        return None
    prompt, completion = usage.get("prompt_tokens"), usage.get("completion_tokens")
    details = usage.get("prompt_tokens_details")
    if prompt is None and completion is None:
        prompt, completion = usage.get("input_tokens"), usage.get("output_tokens")
        details = usage.get("input_tokens_details")
        if prompt is None and completion is None:
            return None
    cached = details.get("cached_tokens") if isinstance(details, dict) else usage.get("cache_read_input_tokens")
    return Usage(_count(prompt), _count(completion), _count(cached), exact=True, step_ms=_step_ms(metrics))


def _step_ms(metrics: Any) -> float:
    if not isinstance(metrics, dict):
        return 0.0
    parts = [metrics.get(name) for name in ("time_to_first_token_ms", "generation_time_ms")]
    return sum([float(part) for part in parts if isinstance(part, int | float) and 0 <= part <= MAX_STEP_MS])


def usage_of_body(body: bytes) -> Usage | None:
    """Usage of a whole JSON answer, found from its end: vLLM writes it after the choices. None where there is none."""
    at = body.rfind(b'"usage":')
    if at < 0:
        return None
    end = at
    for _ in range(MAX_USAGE_OBJECTS):
        end = body.find(b"}", end) + 1
        if not end:
            return None
        try:
            return usage_of(orjson.loads(body[at + 8 : end]), _metrics_of_body(body, end))
        except orjson.JSONDecodeError:
            continue  # that brace closed one of the details
    return None


def _metrics_of_body(body: bytes, start: int) -> Any:
    """vLLM writes them after the usage."""
    at = body.find(b'"metrics":{', start)
    if at < 0:
        return None
    try:
        return _TAIL.raw_decode(body[at + 10 : at + TAIL_BYTES].decode(errors="replace"))[0]
    except JSONDecodeError:
        return None


def checked(body: bytes, *, model: str, reasoning_content: bool) -> bytes:
    """A worker's 200 as it may go down, under the name that the client asked for.

    Raises `WorkerRefused` for an answer that the worker aborted without a word (as one does that is shutting down),
    `UpstreamError` for one aborted half-way or for a body that is no JSON object.
    """
    if body[:1] != b"{" or body.rstrip()[-1:] != b"}":
        raise UpstreamError("The worker's answer is not a JSON object.")
    if body.find(b'"abort"') >= 0 or body.find(b'"error"') >= 0:
        _raise_if_failed(body)
    if reasoning_content and body.find(b'"reasoning"') >= 0:
        body = with_reasoning_content(body)
    return renamed(body, model) if model else body


def renamed(body: bytes, model: str) -> bytes:
    """The answer with its own `model` put back to the asked name; the rest of the bytes as they were."""
    ours = orjson.dumps(model)
    at = body.find(b'"model":')
    start = at + 8 + (body[at + 8 : at + 9] == b" ")
    if at < 0 or body.startswith(ours, start):
        return body
    try:
        theirs, _ = _TAIL.raw_decode(body[start : start + TAIL_BYTES].decode(errors="replace"))
    except JSONDecodeError:
        return body
    spelled = orjson.dumps(theirs) if isinstance(theirs, str) else b"\0"
    return body[:start] + ours + body[start + len(spelled) :] if body.startswith(spelled, start) else body


def with_reasoning_content(payload: bytes) -> bytes:
    """The same JSON with every message's or delta's `reasoning` written a second time as `reasoning_content`.

    vLLM renamed the member; clients of both spellings exist. The only place where an answer is re-serialised.
    """
    try:
        value = orjson.loads(payload)
    except orjson.JSONDecodeError:
        return payload
    for choice in value.get("choices") or [] if isinstance(value, dict) else []:
        for member in ("message", "delta"):
            part = choice.get(member) if isinstance(choice, dict) else None
            if isinstance(part, dict) and part.get("reasoning") is not None:
                part.setdefault("reasoning_content", part["reasoning"])
    return orjson.dumps(value)


def rejection(status: int, body: bytes, path: str = "") -> GatewayError:
    """A worker's error answer of any shape (object, string, `detail`, HTML, nothing) as an error of ours.

    vLLM's 503 means that its queue is full and nothing was computed: `WorkerFull`, so that another worker may take
    the call. A worker that does not know our key is our own fault, and the client is told a 502.
    """
    message, param, kind = _said(body)
    if status == 503:
        return WorkerFull(message) if message else WorkerRefused("The worker is not available.")
    if status < 400:
        return UpstreamError(f"The worker answered with status {status}, which is no answer to an API call.")
    if status in (401, 403):
        return UpstreamError(f"The worker refused the gateway with status {status}; check the route's worker key.")
    if status in (404, 405) and message in ("", "Not Found", "Method Not Allowed"):
        return WorkerRejected(404, f"The workers of this model do not serve {path or 'this endpoint'}.")
    if status == 422:
        status = 400
    if status == 400 and (kind == "context_length_exceeded" or any(words in message for words in TOO_LONG)):
        return ContextTooLong(message, param=param)
    if status >= 500:
        return WorkerRejected(status, message or "The worker failed on this call.", param=param, code="worker_failed")
    code = "model_not_found" if status == 404 and param == "model" else None
    return WorkerRejected(status, message or f"The worker answered with status {status}.", param=param, code=code)


def _raise_if_failed(body: bytes) -> None:
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError as exc:
        raise UpstreamError("The worker's answer is not JSON.") from exc
    if value.get("error") and "choices" not in value and value.get("object") != "response":
        raise rejection(502, body)
    choices = value.get("choices")
    aborted = [c for c in choices if c.get("finish_reason") == "abort"] if isinstance(choices, list) else []
    if aborted and not any((c.get("message") or {}).get("content") or c.get("text") for c in aborted):
        raise WorkerRefused("The worker is shutting down and did not start this answer.")
    if aborted:
        raise UpstreamError("The worker aborted this answer before it was complete.")


def _said(body: bytes) -> tuple[str, str | None, str | None]:
    """Message, param and code or type of an error body, whatever its shape; texts that are no JSON are not repeated."""
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError:
        return "", None, None
    error = value.get("error", value.get("detail", value)) if isinstance(value, dict) else None
    if isinstance(error, str):
        return error[:MAX_MESSAGE], None, None
    if not isinstance(error, dict):
        return "", None, None
    message = error.get("message")
    param = error.get("param")
    kind = error.get("code") if isinstance(error.get("code"), str) else error.get("type")
    text = VALID_ALIASES.sub("", message) if isinstance(message, str) else ""
    return text[:MAX_MESSAGE], param if isinstance(param, str) else None, kind if isinstance(kind, str) else None


def _count(value: Any) -> int:
    return value if isinstance(value, int) and value >= 0 else 0
