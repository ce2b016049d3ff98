"""vLLM 0.32.0's shapes of OpenAI's Responses and Anthropic's Messages; neither stream ends in `[DONE]`."""

from collections.abc import Sequence

from tests.support.vllm_shapes import CREATED, Json, sse

ITEM_ID = "msg_bcf8a123cf6fa14f"


def response_object(text: str | None, *, model: str, id: str, prompt: int, completion: int) -> Json:
    """A Response; without text it is still in progress."""
    part: Json = {"annotations": [], "text": text, "type": "output_text", "logprobs": None}
    item = {"id": ITEM_ID, "content": [part], "role": "assistant", "status": "completed", "type": "message"}
    counted = {
        "input_tokens": prompt,
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0, "input_tokens_per_turn": []}
        | {"cached_tokens_per_turn": []},
        "output_tokens": completion,
        "output_tokens_details": {"reasoning_tokens": 0, "tool_output_tokens": 0, "output_tokens_per_turn": []}
        | {"tool_output_tokens_per_turn": []},
        "total_tokens": prompt + completion,
    }
    return {
        "id": id,
        "created_at": CREATED,
        "incomplete_details": None,
        "instructions": None,
        "metadata": None,
        "model": model,
        "object": "response",
        "output": [] if text is None else [item | {"phase": None}],
        "parallel_tool_calls": True,
        "temperature": 1.0,
        "tool_choice": "none",
        "tools": [],
        "top_p": 1.0,
        "background": False,
        "max_output_tokens": 2048,
        "max_tool_calls": None,
        "previous_response_id": None,
        "prompt": None,
        "reasoning": None,
        "service_tier": "auto",
        "status": "in_progress" if text is None else "completed",
        "text": None,
        "top_logprobs": None,
        "truncation": "disabled",
        "usage": None if text is None else counted,
        "user": None,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "kv_transfer_params": None,
        "ec_transfer_params": None,
        "input_messages": None,
        "output_messages": None,
    }


def response_events(words: Sequence[str], *, model: str, id: str, prompt: int) -> list[bytes]:
    begun = response_object(None, model=model, id=id, prompt=prompt, completion=0)
    whole = response_object("".join(words), model=model, id=id, prompt=prompt, completion=len(words))
    item: Json = {
        "id": ITEM_ID,
        "content": [],
        "role": "assistant",
        "status": "in_progress",
        "type": "message",
        "phase": None,
    }
    part = {"annotations": [], "text": "", "type": "output_text", "logprobs": []}
    place: Json = {"item_id": ITEM_ID, "output_index": 0}
    text: Json = place | {"content_index": 0}
    steps: list[tuple[str, Json]] = [
        ("response.created", {"response": begun}),
        ("response.in_progress", {"response": begun}),
        ("response.output_item.added", {"item": item, "output_index": 0}),
        ("response.content_part.added", text | {"part": part}),
        *(("response.output_text.delta", text | {"delta": word, "logprobs": []}) for word in words),
        ("response.output_text.done", text | {"text": "".join(words), "logprobs": []}),
        ("response.content_part.done", text | {"part": whole["output"][0]["content"][0]}),
        ("response.output_item.done", {"item": whole["output"][0], "output_index": 0}),
        ("response.completed", {"response": whole}),
    ]
    return [sse(data | {"sequence_number": number, "type": name}, name) for number, (name, data) in enumerate(steps)]


def no_such_response(id: str) -> Json:
    message = f"Response with id '{id}' not found."
    return {"error": {"message": message, "type": "invalid_request_error", "param": "response_id", "code": 404}}


def message_reply(content: Sequence[Json], *, model: str, id: str, prompt: int, completion: int, stop: str) -> Json:
    counted = {"input_tokens": prompt, "output_tokens": completion}
    counted |= {"cache_creation_input_tokens": 0, "cache_read_input_tokens": 0}
    head = {"id": id, "type": "message", "role": "assistant", "content": list(content), "model": model}
    return head | {"stop_reason": stop, "usage": counted}


def message_events(words: Sequence[str], *, model: str, id: str, prompt: int, stop: str = "end_turn") -> list[bytes]:
    head: Json = {"id": id, "type": "message", "role": "assistant", "content": [], "model": model}
    head |= {"stop_reason": None, "stop_sequence": None, "usage": {"input_tokens": prompt, "output_tokens": 0}}
    counted = {"input_tokens": prompt, "output_tokens": len(words)}
    counted |= {"cache_creation_input_tokens": 0, "cache_read_input_tokens": 0}
    block = {"content_block": {"type": "text", "text": ""}, "index": 0}
    steps: list[tuple[str, Json]] = [
        ("message_start", {"message": head}),
        ("content_block_start", block),
        *(("content_block_delta", {"delta": {"type": "text_delta", "text": word}, "index": 0}) for word in words),
        ("content_block_stop", {"index": 0}),
        ("message_delta", {"delta": {"stop_reason": stop, "stop_sequence": None}, "usage": counted}),
        ("message_stop", {}),
    ]
    return [sse({"type": name} | data, name) for name, data in steps]


def message_error(message: str, *, type: str = "BadRequestError") -> Json:
    """Anthropic's envelope around vLLM's class names."""
    return {"type": "error", "error": {"type": type, "message": message}}


def message_error_event(message: str) -> bytes:
    return sse({"type": "error", "error": {"type": "internal_error", "message": message}}, "error")
