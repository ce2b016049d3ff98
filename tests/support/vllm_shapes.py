"""What vLLM 0.32.0 sends, member by member and in its order: taken from its wire, with and without streaming.

Pure functions that return JSON objects and SSE events. Ids and times are fixed, so that two replies to the same request
are the same bytes.
"""

from collections.abc import Sequence
from typing import Any

import orjson

CREATED = 1_795_304_834
FINGERPRINT = "vllm-0.32.0-fb2265b1"
DONE = b"data: [DONE]\n\n"
WORDS = ("Hello", " from", " the", " scripted", " worker", ".")

Json = dict[str, Any]


def sse(data: Json, event: str | None = None) -> bytes:
    """One event as vLLM frames it."""
    name = b"event: " + event.encode() + b"\n" if event else b""
    return name + b"data: " + orjson.dumps(data) + b"\n\n"


# Errors: five shapes, none of them OpenAI's


def error(status: int, message: str, *, type: str = "BadRequestError", param: str | None = None) -> Json:
    """vLLM's own error object: `code` is the integer status."""
    return {"error": {"message": message, "type": type, "param": param, "code": status}}


def unknown_model(asked: str, served: str) -> Json:
    message = f"The model `{asked}` does not exist. Valid aliases: {served}."
    return error(404, message, type="NotFoundError", param="model")


def context_too_long(limit: int) -> Json:
    message = (
        f"This model's maximum context length is {limit} tokens. However, your prompt contains at least {limit + 1} "
        "input tokens, which exceeds this limit even without any output tokens. Please reduce the length of the input "
        f"prompt. (parameter=input_tokens, value={limit + 1})"
    )
    return error(400, message, param="input_tokens")


def missing_member(name: str) -> Json:
    detail = f"{{'type': 'missing', 'loc': 'body.{name}', 'msg': 'Field required', 'input': '<dict of 1 items>'}}"
    return error(400, f"1 validation error:\n  {detail}", type="Bad Request", param=f"body.{name}")


def queue_full() -> Json:
    message = "The engine is currently busy and cannot accept new requests. "
    message += "Please try again later or on a different instance."
    return error(503, message, type="Service Unavailable")


def not_multimodal(model: str) -> Json:
    return error(400, f"{model} is not a multimodal model")


def error_event(status: int, message: str, *, type: str = "InternalServerError", param: str | None = None) -> bytes:
    """An error after the 200; vLLM writes it with spaces, and `[DONE]` after it."""
    inner = f'{{"message": "{message}", "type": "{type}", "param": {orjson.dumps(param).decode()}, "code": {status}}}'
    return b'data: {"error": ' + inner.encode() + b"}\n\n"


# Chat


def usage(prompt: int, completion: int, *, cached: int = 0) -> Json:
    return {
        "prompt_tokens": prompt,
        "total_tokens": prompt + completion,
        "completion_tokens": completion,
        "prompt_tokens_details": {"cached_tokens": cached, "created_cache_tokens": 0},
    }


def chat_reply(message: Json, *, model: str, id: str, prompt: int, completion: int, finish: str = "stop", n: int = 1) -> Json:
    """A whole answer; `message` has at least `content`."""
    whole = {"role": "assistant", "content": None, "refusal": None, "annotations": None, "audio": None}
    whole |= {"function_call": None, "reasoning": None} | message
    choices = [
        {"index": index, "message": whole, "logprobs": None, "finish_reason": finish, "stop_reason": None}
        | {"token_ids": None, "routed_experts": None}
        for index in range(n)
    ]
    counted = usage(prompt, completion * n)
    counted["prompt_tokens_details"]["multimodal_tokens"] = None
    counted["completion_tokens_details"] = None
    return {
        "id": id,
        "object": "chat.completion",
        "created": CREATED,
        "model": model,
        "choices": choices,
        "service_tier": None,
        "system_fingerprint": FINGERPRINT,
        "usage": counted,
        "prompt_logprobs": None,
        "prompt_token_ids": None,
        "prompt_text": None,
        "kv_transfer_params": None,
        "ec_transfer_params": None,
        "metrics": None,
    }


def chat_events(
    deltas: Sequence[Json],
    *,
    model: str,
    id: str = "chatcmpl-0123456789abcdef",
    prompt: int = 5,
    include_usage: bool = False,
    continuous_usage: bool = False,
    finish: str = "stop",
    n: int = 1,
) -> list[bytes]:
    """A stream: role first, the deltas of each choice in turn, the reason to finish on the last, usage, `[DONE]`."""
    head = {"id": id, "object": "chat.completion.chunk", "created": CREATED, "model": model}
    events = []
    num_sent = 0

    def chunk(choice: Json, tail: Json | None = None) -> bytes:
        counted: Json = {}
        if continuous_usage:
            counted = {"prompt_tokens": prompt, "total_tokens": prompt + num_sent, "completion_tokens": num_sent}
            counted = {"usage": counted | {"completion_tokens_details": None}}
        return sse(head | {"choices": [choice]} | counted | (tail or {}))

    for index in range(n):
        role = {"index": index, "delta": {"role": "assistant", "content": ""}, "logprobs": None, "finish_reason": None}
        events.append(chunk(role, {"prompt_token_ids": None, "prompt_text": None}))
    for position, delta in enumerate(deltas):
        for index in range(n):
            num_sent += 1
            choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": None, "token_ids": None}
            if position < len(deltas) - 1:
                events.append(chunk(choice))
                continue
            choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish}
            choice |= {"stop_reason": None, "token_ids": None}
            events.append(chunk(choice, {} if include_usage else {"system_fingerprint": FINGERPRINT}))
    if include_usage:
        last = head | {"choices": [], "usage": usage(prompt, num_sent), "system_fingerprint": FINGERPRINT}
        events.append(sse(last))
    return [*events, DONE]


def content_deltas(words: Sequence[str] = WORDS) -> list[Json]:
    return [{"content": word} for word in words]


def reasoning_deltas(thoughts: Sequence[str], words: Sequence[str]) -> list[Json]:
    """A reasoning model's stream: vLLM's member is `reasoning`, which OpenAI's clients knew as `reasoning_content`."""
    return [{"reasoning": thought} for thought in thoughts] + content_deltas(words)


def tool_call_deltas(
    name: str, arguments: Sequence[str], *, id: str = "chatcmpl-tool-0123456789abcdef", index: int | None = 0
) -> list[Json]:
    """A tool call in pieces; with `index=None` it is left out, as some servers do."""
    place = {} if index is None else {"index": index}
    first = {"id": id, "type": "function"} | place | {"function": {"name": name, "arguments": ""}}
    pieces = [place | {"function": {"arguments": piece}} for piece in arguments]
    return [{"tool_calls": [call]} for call in (first, *pieces)]


# Completions


def completion_reply(text: str, *, model: str, id: str, prompt: int, completion: int, finish: str = "length") -> Json:
    counted = usage(prompt, completion)
    counted["prompt_tokens_details"]["multimodal_tokens"] = None
    counted["completion_tokens_details"] = None
    choice = {"index": 0, "text": text, "logprobs": None, "finish_reason": finish, "stop_reason": None}
    choice |= {"token_ids": None, "prompt_logprobs": None, "prompt_token_ids": None, "routed_experts": None}
    return {
        "id": id,
        "object": "text_completion",
        "created": CREATED,
        "model": model,
        "choices": [choice],
        "service_tier": None,
        "system_fingerprint": FINGERPRINT,
        "usage": counted,
        "kv_transfer_params": None,
        "ec_transfer_params": None,
        "metrics": None,
    }


def completion_events(words: Sequence[str], *, model: str, id: str, prompt: int, include_usage: bool = False) -> list[bytes]:
    head = {"id": id, "object": "text_completion", "created": CREATED, "model": model}
    events = []
    for position, word in enumerate(words):
        finish = "length" if position == len(words) - 1 else None
        choice = {"index": 0, "text": word, "logprobs": None, "finish_reason": finish, "stop_reason": None}
        events.append(sse(head | {"choices": [choice | {"prompt_token_ids": None, "token_ids": None}]}))
    if include_usage:
        counted = usage(prompt, len(words))
        counted["prompt_tokens_details"] = {"cached_tokens": 0}
        events.append(sse(head | {"choices": [], "usage": counted, "system_fingerprint": FINGERPRINT}))
    return [*events, DONE]


# Models, embeddings and the other small replies


def model_list(model: str, *, max_model_len: int) -> Json:
    allowed = {"allow_create_engine": False, "allow_sampling": True, "allow_logprobs": True}
    allowed |= {"allow_search_indices": False, "allow_view": True, "allow_fine_tuning": False}
    permission = {"id": "modelperm-baa4db3c24d824ca", "object": "model_permission", "created": CREATED} | allowed
    permission |= {"organization": "*", "group": None, "is_blocking": False}
    card = {"id": model, "object": "model", "created": CREATED, "owned_by": "vllm", "root": f"/models/{model}"}
    card |= {"parent": None, "max_model_len": max_model_len, "permission": [permission]}
    return {"object": "list", "data": [card]}


def embedding_reply(vectors: Sequence[Sequence[float] | str], *, model: str, id: str, prompt: int) -> Json:
    data = [{"index": index, "object": "embedding", "embedding": vector} for index, vector in enumerate(vectors)]
    counted = {"prompt_tokens": prompt, "total_tokens": prompt, "completion_tokens": 0, "prompt_tokens_details": None}
    counted |= {"completion_tokens_details": None}
    return {"id": id, "object": "list", "created": CREATED, "model": model, "data": data, "usage": counted}


def rerank_reply(documents: Sequence[str], *, model: str, id: str, top_n: int, prompt: int) -> Json:
    results = [
        {"index": index, "document": {"text": text, "multi_modal": None}, "relevance_score": 1 / (index + 1)}
        for index, text in enumerate(documents[:top_n])
    ]
    return {"id": id, "model": model, "usage": {"prompt_tokens": prompt, "total_tokens": prompt}, "results": results}


def score_reply(num: int, *, model: str, id: str, prompt: int) -> Json:
    data = [{"index": index, "object": "score", "score": 1 / (index + 1)} for index in range(num)]
    counted = {"prompt_tokens": prompt, "total_tokens": prompt, "completion_tokens": 0, "prompt_tokens_details": None}
    counted |= {"completion_tokens_details": None}
    return {"id": id, "object": "list", "created": CREATED, "model": model, "data": data, "usage": counted}
