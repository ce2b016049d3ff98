"""The gateway's own answer where nothing was found and the call wants no answer without sources (`on_empty: refuse`).

It is written as a worker would write it, and then passes the same editors: status, summary and events are those of any answer.
"""

from __future__ import annotations

from typing import Any

import orjson

from sluice.retrieval.chat_reply import ChatEditor, whole_chat
from sluice.retrieval.given import Given
from sluice.retrieval.responses_reply import ResponsesEditor, whole_response
from sluice.types import Call, Endpoint
from sluice.wire.prompt_size import classes_of

NOTHING = "The sources hold no answer to this question."
NOTHING_CJK = "所提供的资料中没有这个问题的答案。"
NO_USAGE = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}
Json = dict[str, Any]


def refusal(call: Call, given: Given, *, created_at: float) -> tuple[str, bytes]:
    """Content type and body of the answer."""
    text = NOTHING_CJK if classes_of("".join(given.queries))[1] else NOTHING
    if call.endpoint is Endpoint.RESPONSES:
        events = _response_events(call, text, int(created_at))
        if not call.stream:
            return "application/json", whole_response(orjson.dumps(events[-1]["response"]), given)
        lines = b"".join(
            b"event: " + event["type"].encode() + b"\ndata: " + orjson.dumps(event | {"sequence_number": i}) + b"\n\n"
            for i, event in enumerate(events)
        )
        return "text/event-stream", ResponsesEditor(given).feed(lines)
    head = {"id": f"chatcmpl-{call.id}", "created": int(created_at), "model": call.model}
    if not call.stream:
        return "application/json", whole_chat(orjson.dumps(_chat(head, text, max(1, call.num_choices))), given)
    chunks = _chunks(head | {"object": "chat.completion.chunk"}, text, call)
    editor = ChatEditor(given)
    return "text/event-stream", b"".join([editor.feed(chunk) for chunk in chunks]) + b"data: [DONE]\n\n"


def _chat(head: Json, text: str, num_choices: int) -> Json:
    message: Json = {"role": "assistant", "content": text, "refusal": None, "annotations": []}
    choices = [{"index": i, "message": message, "logprobs": None, "finish_reason": "stop"} for i in range(num_choices)]
    return head | {"object": "chat.completion", "choices": choices, "usage": NO_USAGE}


def _chunks(head: Json, text: str, call: Call) -> list[bytes]:
    out = []
    for i in range(max(1, call.num_choices)):
        for delta, reason in (({"role": "assistant", "content": ""}, None), ({"content": text}, None), ({}, "stop")):
            choice = {"index": i, "delta": delta, "logprobs": None, "finish_reason": reason}
            out.append(head | {"choices": [choice]})
    if call.wants_usage:
        out.append(head | {"choices": [], "usage": NO_USAGE})
    return [b"data: " + orjson.dumps(chunk) + b"\n\n" for chunk in out]


def _response_events(call: Call, text: str, created_at: int) -> list[Json]:
    """A stream of one text; its last event holds the whole response."""
    item_id = f"msg_{call.id}"
    empty: Json = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
    part = empty | {"text": text}
    item: Json = {"id": item_id, "type": "message", "role": "assistant", "status": "completed", "content": [part]}
    begun: Json = {
        **{"id": f"resp_{call.id}", "object": "response", "created_at": created_at, "model": call.model, "output": []},
        **{"status": "in_progress", "error": None, "incomplete_details": None, "instructions": None, "metadata": None},
        **{"parallel_tool_calls": True, "temperature": None, "tool_choice": "auto", "tools": [], "top_p": None, "usage": None},
    }
    usage: Json = {
        **{"input_tokens": 0, "input_tokens_details": {"cached_tokens": 0}, "output_tokens": 0},
        **{"output_tokens_details": {"reasoning_tokens": 0}, "total_tokens": 0},
    }
    whole = begun | {"status": "completed", "output": [item], "usage": usage}
    place: Json = {"item_id": item_id, "output_index": 0, "content_index": 0}
    return [
        {"type": "response.created", "response": begun},
        {"type": "response.in_progress", "response": begun},
        {"type": "response.output_item.added", "output_index": 0, "item": item | {"status": "in_progress", "content": []}},
        {"type": "response.content_part.added", "part": empty} | place,
        {"type": "response.output_text.delta", "delta": text, "logprobs": []} | place,
        {"type": "response.output_text.done", "text": text, "logprobs": []} | place,
        {"type": "response.content_part.done", "part": part} | place,
        {"type": "response.output_item.done", "output_index": 0, "item": item},
        {"type": "response.completed", "response": whole},
    ]
