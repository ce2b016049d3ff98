"""The rest of a broken stream, as another worker sends it, made into the stream that the client knows.

Same id, model and creation time; no second beginning; usage as if one worker had done it all. What comes of
/v1/completions becomes events of chat, in vLLM's shape, where the client asked for chat.
"""

from __future__ import annotations

from typing import Any

import orjson

from sluice.errors import UpstreamError
from sluice.types import Endpoint
from sluice.wire.emitted import Emitted
from sluice.wire.events import BORDER, MAX_EVENT_BYTES, fields, split

DONE = b"data: [DONE]\n\n"


class SeamMismatch(UpstreamError):
    """The text that was made anew differs from what the client has: this way on is wrong."""


class Splice:
    """Takes what one worker sends and gives what the client's `EventStream` is fed with.

    `num_prompt` and `num_made` are the tokens that this worker was given as prompt and as the beginning of the answer; None
    where it was given the call anew. `num_given` is how many that were together, as far as is known. `overlap` is text that
    it makes anew and that the client has: it is compared, and `SeamMismatch` is raised before anything else has gone down.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        emitted: Emitted,
        *,
        num_prompt: int | None = None,
        num_made: int = 0,
        num_given: int = 0,
        overlap: str = "",
    ) -> None:
        self._is_chat = endpoint is Endpoint.CHAT
        self._head = emitted.head
        self._num_prompt = num_prompt
        self._num_made = num_made
        self._overlap = overlap
        self._has_finished = False
        self._tail = b""
        self.num_recomputed = num_given  # tokens that are computed a second time: all that it was given, until it has said more

    def feed(self, data: bytes) -> bytes:
        data = self._tail + data
        cut = 0
        for border in BORDER.finditer(data, max(0, len(self._tail) - 4)):
            cut = border.end()
        self._tail = data[cut:]
        if len(self._tail) > MAX_EVENT_BYTES:
            raise UpstreamError(f"The worker sent an event of more than {MAX_EVENT_BYTES} bytes.")
        return b"".join([self._event(event) for event in split(data[:cut])])

    def _event(self, data: bytes) -> bytes:
        _, payload = fields(data)
        if payload is None:
            return b""
        if payload == b"[DONE]":
            # Alone it is what a worker says that is shutting down: then the stream is still broken.
            return DONE if self._has_finished else b""
        try:
            event = orjson.loads(payload)
        except orjson.JSONDecodeError:
            return data
        if not isinstance(event, dict) or event.get("error") or not isinstance(event.get("choices"), list):
            return data
        event = self._head | {name: value for name, value in event.items() if name not in self._head}
        if event["choices"]:
            return self._choices(event)
        self._sum_usage(event)
        return _written(event)

    def _choices(self, event: dict[str, Any]) -> bytes:
        choice = event["choices"][0]
        if not isinstance(choice, dict):
            return _written(event)
        is_text = self._is_chat and "text" in choice
        part = choice if "text" in choice else choice.get("delta")
        if not isinstance(part, dict):
            return _written(event)
        name = "text" if "text" in choice else "content"
        text, finish = part.get(name), choice.get("finish_reason")
        if self._overlap and isinstance(text, str):
            text = part[name] = self._past_overlap(text, finish)
        part.pop("role", None)
        if not text and not finish and not any(part[other] for other in part.keys() - {name, "index"}):
            return b""
        self._has_finished = self._has_finished or bool(finish)
        if is_text:
            event["choices"] = [_as_chat(choice)]
        return _written(event)

    def _past_overlap(self, text: str, finish: str | None) -> str:
        common = min(len(text), len(self._overlap))
        if text[:common] != self._overlap[:common] or (finish and common < len(self._overlap)):
            raise SeamMismatch("The worker went on otherwise.")
        self._overlap = self._overlap[common:]
        return text[common:]

    def _sum_usage(self, event: dict[str, Any]) -> None:
        usage = event.get("usage")
        if not isinstance(usage, dict):
            return
        prompt, completion = usage.get("prompt_tokens"), usage.get("completion_tokens")
        if type(prompt) is not int or type(completion) is not int:
            return
        details = usage.get("prompt_tokens_details")
        cached = details.get("cached_tokens") if isinstance(details, dict) else None
        self.num_recomputed = prompt - (cached if type(cached) is int else 0)
        if self._num_prompt is None:
            return
        total = self._num_prompt + self._num_made + completion
        usage |= {"prompt_tokens": self._num_prompt, "completion_tokens": self._num_made + completion, "total_tokens": total}
        if isinstance(details, dict) and type(cached) is int:
            details["cached_tokens"] = min(cached, self._num_prompt)


def ending(endpoint: Endpoint, emitted: Emitted, *, num_prompt: int, num_made: int) -> bytes:
    """The end of a stream that has all of its text: what finishes it, its usage, `[DONE]`."""
    out = []
    num_tokens = num_made
    if emitted.finish_reason is None:
        choice = {"index": 0, "text": "", "logprobs": None, "finish_reason": "length", "stop_reason": None}
        out.append(_written(emitted.head | {"choices": [_as_chat(choice) if endpoint is Endpoint.CHAT else choice]}))
    elif emitted.finish_reason == "stop" and emitted.stop_reason is None:
        num_tokens += 1  # the token that ends an answer counts, and has no text
    usage = {"prompt_tokens": num_prompt, "total_tokens": num_prompt + num_tokens, "completion_tokens": num_tokens}
    return b"".join([*out, _written(emitted.head | {"choices": [], "usage": usage}), DONE])


def _as_chat(choice: dict[str, Any]) -> dict[str, Any]:
    """A choice of /v1/completions as one of a chat stream."""
    out = {"index": 0, "delta": {"content": choice["text"]}, "logprobs": None, "finish_reason": choice.get("finish_reason")}
    if choice.get("finish_reason"):
        out["stop_reason"] = choice.get("stop_reason")
    return out | {"token_ids": None}


def _written(event: dict[str, Any]) -> bytes:
    return b"data: " + orjson.dumps(event) + b"\n\n"
