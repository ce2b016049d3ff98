"""Event streams, sans-I/O: what of a worker's stream may go to the client, and what it says about its end.

Whole events go through as bytes; only an incomplete last event is held back, so that whatever follows (an error event, a
resumed stream) begins at an event's border. Nothing is parsed but the first event and those that hold one of four names:
raw quotes cannot occur inside a JSON string, so a hit is a whole name or value, and the parse decides which.

Source: vLLM 0.32 `entrypoints/openai/chat_completion/serving.py`, `openai/responses/api_router.py`,
`anthropic/serving.py`; the WHATWG's "Server-sent events" for the framing.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import orjson

from sluice.errors import GatewayError, UpstreamError
from sluice.types import Endpoint, Usage
from sluice.wire.replies import rejection, usage_of, with_reasoning_content

MAX_EVENT_BYTES = 8_388_608
TEXT = re.compile(rb'"(?:content|text)":"((?:[^"\\]|\\.)*+)"')
WRITTEN = re.compile(rb'(?:[^"\\]|\\.)*+')  # what stands between the quotes of a JSON string
BORDER = re.compile(rb"\r\n\r\n|\n\n|\r\r|\r\n\n|\n\r\n")


class Dialect:
    """How streams of one endpoint end and fail. This one: chat, completions, transcriptions, which end in `[DONE]`."""

    end_marker = b"[DONE]"

    def ends(self, name: str, data: bytes) -> bool:
        return data == b"[DONE]"

    def failure(self, name: str, event: dict[str, Any]) -> GatewayError | None:
        """The error that this event is, if it is one: an error event, or a choice that the worker aborted."""
        if event.get("error"):
            return _mid_stream(event)
        choices = event.get("choices")
        if isinstance(choices, list) and any(
            isinstance(choice, dict) and choice.get("finish_reason") == "abort" for choice in choices
        ):
            return UpstreamError("The worker aborted this answer before it was complete.")
        return None

    def is_usage_only(self, event: dict[str, Any]) -> bool:
        return event.get("choices") == [] and isinstance(event.get("usage"), dict)

    def usage(self, event: dict[str, Any]) -> Usage | None:
        return usage_of(event.get("usage"), event.get("metrics"))

    def error_event(self, error: GatewayError) -> bytes:
        """What tells a client that its stream broke. No end marker follows it."""
        return b"data: " + orjson.dumps(error.envelope()) + b"\n\n"


class ResponsesDialect(Dialect):
    """`/v1/responses`: named events; the last one carries the whole response and its usage."""

    end_marker = b'"usage"'

    def ends(self, name: str, data: bytes) -> bool:
        return name in ("response.completed", "response.incomplete")

    def failure(self, name: str, event: dict[str, Any]) -> GatewayError | None:
        if name == "error" or event.get("type") == "error":
            return _mid_stream(event if event.get("error") else {"error": event})
        if event.get("type") == "response.failed":
            response = event.get("response")
            return _mid_stream(response if isinstance(response, dict) and response.get("error") else {})
        return None

    def is_usage_only(self, event: dict[str, Any]) -> bool:
        return False

    def usage(self, event: dict[str, Any]) -> Usage | None:
        response = event.get("response")
        return usage_of(response.get("usage")) if isinstance(response, dict) else None

    def error_event(self, error: GatewayError) -> bytes:
        body = {"type": "error", "message": error.message, "code": error.code, "param": error.param}
        return b"event: error\ndata: " + orjson.dumps(body | error.envelope()) + b"\n\n"


class MessagesDialect(Dialect):
    """Anthropic's `/v1/messages`: named events, ended by `message_stop`; usage in two halves."""

    end_marker = b"message_stop"

    def __init__(self) -> None:
        self._prompt = Usage()

    def ends(self, name: str, data: bytes) -> bool:
        return name == "message_stop"

    def failure(self, name: str, event: dict[str, Any]) -> GatewayError | None:
        return _mid_stream(event) if event.get("type") == "error" or event.get("error") else None

    def is_usage_only(self, event: dict[str, Any]) -> bool:
        return False

    def usage(self, event: dict[str, Any]) -> Usage | None:
        message = event.get("message")
        if isinstance(message, dict):
            self._prompt = usage_of(message.get("usage")) or self._prompt
            return None
        found = usage_of(event.get("usage"))
        if found is None or found.prompt_tokens:
            return found
        return Usage(self._prompt.prompt_tokens, found.completion_tokens, self._prompt.cached_tokens, exact=True)

    def error_event(self, error: GatewayError) -> bytes:
        return b"event: error\ndata: " + orjson.dumps({"type": "error"} | error.envelope()) + b"\n\n"


def dialect_of(endpoint: Endpoint) -> Dialect:
    if endpoint is Endpoint.RESPONSES:
        return ResponsesDialect()
    return MessagesDialect() if endpoint is Endpoint.MESSAGES else Dialect()


class EventStream:
    """One stream on its way through. `feed` takes what the socket gave and returns what may be written to the client.

    `model` is the name that the client asked for; a worker that answers under another is corrected in every event.
    After each `feed` look at `ended`: then either `done` is true, or `broken` says what went wrong.
    """

    def __init__(
        self,
        dialect: Dialect,
        *,
        model: str,
        hide_usage: bool = False,
        reasoning_content: bool = False,
        max_kept_bytes: int = 0,
    ) -> None:
        self.dialect = dialect
        self._model = model
        self._hide_usage = hide_usage
        self._reasoning_content = reasoning_content
        self._end_marker = dialect.end_marker
        # The incomplete last event; events so far; what the stream has said of itself
        self._tail = b""
        self.num_events = 0
        self.started = False
        self._is_plain = False  # the first event is behind us, and no event has to be rewritten
        self.ended = False
        self.done = False
        self.broken: GatewayError | None = None
        self._usage: Usage | None = None
        # What the last event of text was, before its text and after it: the next one differs in the text alone
        self._before = b"\0"
        self._after = b""
        self._text_from, self._text_to = 1, 0  # where the text of such an event lies
        # What has gone down, to be read by `emitted` if the stream breaks: whole events between zero bytes, and of those that
        # differ from the one before in their text alone that text. None: it is not kept, or has become too much.
        self.kept: bytearray | None = bytearray() if max_kept_bytes else None
        self._max_kept_bytes = max_kept_bytes
        # `"model":"theirs"` and what to write instead, learnt from the first event
        self._theirs = b""
        self._ours = b""

    @property
    def usage(self) -> Usage:
        """As the worker counted it, else one token for each event: marked as not exact."""
        return self._usage or Usage(completion_tokens=self.num_events, exact=False)

    def feed(self, data: bytes) -> bytes:
        """The part of `data` (and of what was held back) that may go down now: whole events, possibly none."""
        if (
            data.startswith(self._before)
            and data.endswith(self._after)
            and (text := data[self._text_from : self._text_to]).find(b'"') < 0
            and self._is_plain
            and not self._tail
        ):  # one event of text, and no quote in the text: no name is in it that was not in the last one
            self.num_events += 1
            kept = self.kept
            if kept is not None:
                kept += text
                if len(kept) > self._max_kept_bytes:
                    self.kept = None
            return data.replace(self._theirs, self._ours) if self._theirs else data
        if not self._is_plain or self._tail or data[-2:] != b"\n\n":
            return b"" if self.ended else self._feed_slowly(data)
        if (
            data.find(b'"usage"') >= 0
            or data.find(b'"error"') >= 0
            or data.find(b'"abort"') >= 0
            or data.find(self._end_marker) >= 0
        ):
            return self._inspect(data)
        self.num_events += data.count(b"\n\n")
        passed = data.replace(self._theirs, self._ours) if self._theirs else data
        self._keep(data, passed)
        self._learn_shape(data)
        return passed

    def revive(self) -> None:
        """A broken stream goes on: what is fed next begins at the border of an event, where it was cut."""
        self.ended = False
        self.broken = None
        self._tail = b""
        self._is_plain = self.started and not self._reasoning_content

    def _keep(self, data: bytes, passed: bytes) -> None:
        """Keep what goes down, which `data` has become. Of several events in one read that differ in their text, the text."""
        kept = self.kept
        if kept is None:
            return
        if data.startswith(self._before) and data.endswith(self._after):
            text = data.replace(self._after + self._before, b"")[self._text_from : self._text_to]
            kept += text if text.find(b'"') < 0 or WRITTEN.fullmatch(text) else b"\0%b\0" % passed
        else:
            kept += b"\0%b\0" % passed
        if len(kept) > self._max_kept_bytes:
            self.kept = None

    def _learn_shape(self, data: bytes) -> None:
        """Where the text stands in an event of chat or completions that holds none of the four names."""
        if data.find(b"\n\n") == len(data) - 2 and (text := TEXT.search(data)) is not None:
            self._before, self._after = data[: text.start(1)], data[text.end(1) :]
            self._text_from, self._text_to = len(self._before), -len(self._after)

    def finish(self) -> None:
        """The worker's body is over. Without its end marker the stream is broken, whatever it looks like."""
        if not self.ended:
            self.fail(UpstreamError("The worker ended this stream before it was complete."))

    def fail(self, error: GatewayError) -> None:
        """The stream is broken: by what it said, or by what became of its worker."""
        if not self.ended:
            self.ended = True
            self._is_plain = False
            self.broken = error

    def _feed_slowly(self, data: bytes) -> bytes:
        data = self._tail + data
        cut = 0
        for border in BORDER.finditer(data, max(0, len(self._tail) - 4)):
            cut = border.end()
        self._tail = data[cut:]
        if len(self._tail) > MAX_EVENT_BYTES:
            self.fail(UpstreamError(f"The worker sent an event of more than {MAX_EVENT_BYTES} bytes."))
            return b""
        return self._inspect(data[:cut]) if cut else b""

    def _inspect(self, data: bytes) -> bytes:
        """Pass on whole events one by one, parsing those that may matter."""
        out = []
        for event in split(data):
            if self._keeps(event):
                out.append(self._mirrored(event) if self._reasoning_content else event)
            if self.ended:
                break
        passed = b"".join(out)
        if self._theirs:
            passed = passed.replace(self._theirs, self._ours)
        self._keep(b"", passed)
        return passed

    def _keeps(self, event: bytes) -> bool:
        """Look into one event. False: the client must not see it."""
        name, payload = fields(event)
        if payload is None:
            return self.started  # a comment, or a field that no client reads: nothing before the first event
        self.num_events += 1
        if self.dialect.ends(name, payload):
            if payload != b"[DONE]":
                self._read(name, payload)
            self.done = self.broken is None
            self.ended = True
            self._is_plain = False
            return self.done
        if self.started and not self._may_matter(event):
            return True
        return self._read(name, payload)

    def _mirrored(self, event: bytes) -> bytes:
        if event.find(b'"reasoning"') < 0:
            return event
        _, payload = fields(event)
        return event if payload is None else b"data: " + with_reasoning_content(payload) + b"\n\n"

    def _may_matter(self, event: bytes) -> bool:
        return event.find(b'"usage"') >= 0 or event.find(b'"error"') >= 0 or event.find(b'"abort"') >= 0

    def _read(self, name: str, payload: bytes) -> bool:
        try:
            event = orjson.loads(payload)
        except orjson.JSONDecodeError:
            event = None
        if not isinstance(event, dict):
            self.fail(UpstreamError("The worker sent an event that is not a JSON object."))
            return False
        if failure := self.dialect.failure(name, event):
            self.fail(failure)
            return False
        if not self.started:
            self.started = True
            self._is_plain = not self._reasoning_content
            self._learn_model(event, payload)
        if usage := self.dialect.usage(event):
            self._usage = usage
            if self.dialect.is_usage_only(event):
                self.num_events -= 1
                return not self._hide_usage
        return True

    def _learn_model(self, event: dict[str, Any], payload: bytes) -> None:
        holder = next((event[k] for k in ("response", "message") if isinstance(event.get(k), dict)), event)
        theirs = holder.get("model")
        if not self._model or not isinstance(theirs, str) or theirs == self._model:
            return
        for separator in (b":", b": "):
            spelled = b'"model"' + separator + orjson.dumps(theirs)
            if spelled in payload:
                self._theirs, self._ours = spelled, b'"model"' + separator + orjson.dumps(self._model)


def split(data: bytes) -> Iterator[bytes]:
    """The whole events that `data` consists of."""
    start = 0
    for border in BORDER.finditer(data):
        yield data[start : border.end()]
        start = border.end()


def fields(event: bytes) -> tuple[str, bytes | None]:
    """The name of an event and its data, or None where it has none."""
    if event.startswith(b"data: ") and event.find(b"\n") == len(event) - 2:
        return "", event[6:-2]  # as vLLM writes them
    name, data = "", []
    for line in event.splitlines():
        if line.startswith(b"data:"):
            data.append(line[5:].removeprefix(b" "))
        elif line.startswith(b"event:"):
            name = line[6:].strip().decode(errors="replace")
    return name, b"\n".join(data) if data else None


def _mid_stream(event: dict[str, Any]) -> GatewayError:
    """An error event of the worker as an error of ours; before the first event it becomes a real status."""
    error = event.get("error")
    status = error.get("code") if isinstance(error, dict) else None
    if not isinstance(status, int) or not 400 <= status <= 599:
        status = 502
    return rejection(status, orjson.dumps(event))
