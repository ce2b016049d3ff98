"""What a client has got of a stream that broke, read from the bytes that `EventStream` has kept of it.

Only a stream of plain text, one answer of it, can be continued: everything else that a model may have begun (a tool call,
reasoning, probabilities) lives in a parser of the lost worker. `CannotResume` says which it was.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import orjson

from sluice.types import Endpoint
from sluice.wire.events import fields, split


class CannotResume(Exception):
    """This stream cannot be continued on another worker without being wrong; the text says why."""


class Emitted(NamedTuple):
    """A broken stream so far. `head` holds the members that are the same in all of its events."""

    head: dict[str, Any]
    text: str
    finish_reason: str | None = None
    stop_reason: Any = None
    has_usage: bool = False  # only `[DONE]` is missing


HEAD = ("id", "object", "created", "model")
# Of a choice and of a delta: what may be there. Everything else must be null or empty.
PLAIN = frozenset({"index", "delta", "text", "finish_reason", "stop_reason", "role", "content"})
NAMED = {
    "tool_calls": "a tool call has begun",
    "function_call": "a tool call has begun",
    "reasoning": "its reasoning has begun",
    "reasoning_content": "its reasoning has begun",
    "logprobs": "it carries logprobs",
    "token_ids": "it carries token ids",
}


def read_emitted(endpoint: Endpoint, kept: bytes) -> Emitted:
    """What has gone down of a chat or completions stream; raises `CannotResume`."""
    reader = _Reader(endpoint)
    for number, piece in enumerate(kept.split(b"\0")):
        if number % 2:
            for event in split(piece):
                reader.event(event)
        elif piece:
            reader.text += _unescaped(piece)
    if reader.head is None:
        raise CannotResume("nothing is known of it")
    return Emitted(reader.head, reader.text, reader.finish_reason, reader.stop_reason, reader.has_usage)


class _Reader:
    def __init__(self, endpoint: Endpoint) -> None:
        self.is_chat = endpoint is Endpoint.CHAT
        self.head: dict[str, Any] | None = None
        self.text = ""
        self.finish_reason: str | None = None
        self.stop_reason: Any = None
        self.has_usage = False

    def event(self, data: bytes) -> None:
        _, payload = fields(data)
        if payload is None:
            return
        event = _object(payload)
        if self.head is None:
            self.head = {name: event[name] for name in HEAD if name in event}
        choices = event.get("choices")
        if choices == []:
            self.has_usage = self.has_usage or event.get("usage") is not None
            return
        if not isinstance(choices, list) or any(not isinstance(choice, dict) for choice in choices):
            raise CannotResume("it holds events of another kind")
        for choice in choices:
            self.choice(choice)

    def choice(self, choice: dict[str, Any]) -> None:
        delta = choice.get("delta") if self.is_chat else choice
        if not isinstance(delta, dict):
            raise CannotResume("it holds events of another kind")
        for name, value in (choice | delta).items():
            if value and name not in PLAIN:
                raise CannotResume(NAMED.get(name, f"it carries `{name}`"))
        text = delta.get("content" if self.is_chat else "text") or ""
        if choice.get("index") and (text or choice.get("finish_reason")):
            raise CannotResume("it holds several answers")
        if not isinstance(text, str):
            raise CannotResume("it holds events of another kind")
        self.text += text
        self.finish_reason = choice.get("finish_reason") or self.finish_reason
        self.stop_reason = choice.get("stop_reason")


def _object(payload: bytes) -> dict[str, Any]:
    try:
        event = orjson.loads(payload)
    except orjson.JSONDecodeError as exc:
        raise CannotResume("it holds an event that is not JSON") from exc
    if not isinstance(event, dict):
        raise CannotResume("it holds an event that is not JSON")
    return event


def _unescaped(piece: bytes) -> str:
    try:
        text: str = orjson.loads(b'"%b"' % piece)
    except orjson.JSONDecodeError as exc:
        raise CannotResume("it holds an event that is not JSON") from exc
    return text
