"""The way down of a call whose trace is to hold its answer: what goes down is read on its way, and its text kept up to a bound.

There is one only for a sampled call, and only where `tracing.capture_content` says so: it parses every event.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

import orjson

from sluice.asgi import Headers
from sluice.relay import Downstream
from sluice.wire.events import fields, split

MAX_CAPTURED_BYTES = 65_536


class Captured:
    """A `Downstream` in front of another one, which does all the work."""

    write_chunk: None = None

    def __init__(self, inner: Downstream) -> None:
        self._inner = inner
        self._kept = bytearray()

    @property
    def answer(self) -> str:
        """A whole answer as it went down; of a stream its text, of all choices in the order in which it came."""
        return self._kept[:MAX_CAPTURED_BYTES].decode(errors="replace")

    async def __aenter__(self) -> Self:
        self._inner = await self._inner.__aenter__()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._inner.__aexit__(*exc)

    def respond(self, status: int, headers: Headers, body: bytes) -> None:
        self._kept += body[:MAX_CAPTURED_BYTES]
        self._inner.respond(status, headers, body)

    def start(self, status: int, headers: Headers, first: bytes) -> None:
        self._keep(first)
        self._inner.start(status, headers, first)

    def write(self, data: bytes) -> None:
        self._keep(data)
        self._inner.write(data)

    def finish(self, last: bytes = b"") -> None:
        self._keep(last)
        self._inner.finish(last)

    @property
    def started(self) -> bool:
        return self._inner.started

    @property
    def is_gone(self) -> bool:
        return self._inner.is_gone

    @property
    def is_paused(self) -> bool:
        return self._inner.is_paused

    @property
    def on_pause(self) -> Callable[[], None]:
        return self._inner.on_pause

    @on_pause.setter
    def on_pause(self, callback: Callable[[], None]) -> None:
        self._inner.on_pause = callback

    @property
    def on_resume(self) -> Callable[[], None]:
        return self._inner.on_resume

    @on_resume.setter
    def on_resume(self, callback: Callable[[], None]) -> None:
        self._inner.on_resume = callback

    def _keep(self, events: bytes) -> None:
        for event in split(events):
            if len(self._kept) >= MAX_CAPTURED_BYTES:
                return
            _, payload = fields(event)
            if payload is not None:
                self._kept += text_of(payload).encode(errors="replace")


def text_of(payload: bytes) -> str:
    """What an event adds to an answer: its text, its reasoning, the arguments of its tool calls. Of any API that we speak;
    nothing of what is not understood, which a worker may send."""
    try:
        event = orjson.loads(payload)
    except orjson.JSONDecodeError:
        return ""
    delta = event.get("delta") if isinstance(event, dict) else None
    if isinstance(delta, str):  # responses
        return delta
    said = _strings(delta, "thinking", "text", "partial_json")  # messages
    for choice in _items(event, "choices"):  # chat, completions
        said += _strings(choice, "text")
        holder = choice.get("delta") if isinstance(choice, dict) else None
        said += _strings(holder, "reasoning", "content")
        for tool_call in _items(holder, "tool_calls"):
            said += _strings(tool_call.get("function") if isinstance(tool_call, dict) else None, "name", "arguments")
    return "".join(said)


def _items(holder: Any, name: str) -> list[Any]:
    found = holder.get(name) if isinstance(holder, dict) else None
    return found if isinstance(found, list) else []


def _strings(holder: Any, *names: str) -> list[str]:
    return [value for name in names if isinstance(value := holder.get(name), str)] if isinstance(holder, dict) else []
