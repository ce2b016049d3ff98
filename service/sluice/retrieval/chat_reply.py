"""The answer of a chat completion with what retrieval gave to it: whole, or as a stream that is touched at two places.

Of a stream the first event gets the sources and the event that finishes a choice gets the annotations. What lies between goes
through as the bytes it came in; they are kept, and parsed only once a choice is finished.
"""

from __future__ import annotations

import re
from typing import Any

import orjson

from sluice.retrieval.citations import cited, url_citation
from sluice.retrieval.given import Given
from sluice.wire.events import fields, split

FINISHED = re.compile(rb'"finish_reason": ?"')
USAGE = re.compile(rb'"usage": ?\{')
KEPT_BYTES = 262_144  # then they are parsed into text: two milliseconds


def whole_chat(body: bytes, given: Given) -> bytes:
    """The worker's JSON with citations, annotations and the summary; as it is where it holds no choices."""
    reply = orjson.loads(body)
    for choice in _dicts(reply.get("choices")):
        message = choice.get("message")
        if given.shows_citations and isinstance(message, dict):
            text = message.get("content")
            found = cited(text, given.sources) if isinstance(text, str) else []
            message["annotations"] = [url_citation(one, given.public_url) for one in found]
            message["context"] = given.context(found)
    _count(reply, given)
    reply["retrieval"] = given.summary()
    return orjson.dumps(reply)


class ChatEditor:
    """One stream on its way down. `feed` takes whole events, as `EventStream` passes them on, and returns what goes down."""

    def __init__(self, given: Given) -> None:
        self._given = given
        self._has_begun = False
        # What has gone down since the last parse, and the text of each choice before that
        self._kept: list[bytes] = []
        self._num_kept = 0
        self._texts: dict[int, list[str]] = {}

    def feed(self, events: bytes) -> bytes:
        if self._has_begun and FINISHED.search(events) is None and USAGE.search(events) is None:
            self._keep(events)
            return events
        out = []
        for event in split(events):
            value = _chunk(event)
            edited = value is not None and self._edited(value)
            out.append(b"data: " + orjson.dumps(value) + b"\n\n" if edited else event)
        return b"".join(out)

    def _keep(self, events: bytes) -> None:
        if self._given.sources and self._given.shows_citations:
            self._kept.append(events)
            self._num_kept += len(events)
            if self._num_kept > KEPT_BYTES:
                self._parse_kept()

    def _edited(self, chunk: dict[str, Any]) -> bool:
        """Whether something was added to this chunk. Its text counts before its annotations are made."""
        given, is_first = self._given, not self._has_begun
        self._read(chunk)
        edited = _count(chunk, given)
        for choice in _dicts(chunk.get("choices")):
            delta = choice.get("delta")
            if not isinstance(delta, dict) or not given.shows_citations:
                continue
            if is_first:
                delta["context"] = given.context()
                edited = True
            if isinstance(choice.get("finish_reason"), str):
                self._parse_kept()
                text = "".join(self._texts.pop(choice.get("index", 0), ()))
                delta["annotations"] = [url_citation(one, given.public_url) for one in cited(text, given.sources)]
                edited = True
        if is_first:
            self._has_begun = True
            chunk["retrieval"] = given.summary()
        return edited or is_first

    def _parse_kept(self) -> None:
        kept, self._kept, self._num_kept = b"".join(self._kept), [], 0
        for event in split(kept):
            if (chunk := _chunk(event)) is not None:
                self._read(chunk)

    def _read(self, chunk: dict[str, Any]) -> None:
        """Take the text of a chunk; those that were kept before it come first."""
        if self._kept:
            self._parse_kept()
        for choice in _dicts(chunk.get("choices")):
            delta = choice.get("delta")
            if isinstance(delta, dict) and isinstance(delta.get("content"), str):
                self._texts.setdefault(choice.get("index", 0), []).append(delta["content"])


def _chunk(event: bytes) -> dict[str, Any] | None:
    """The JSON object of an event; None for a comment, the end, or what a worker should not have sent."""
    try:
        value = orjson.loads(fields(event)[1] or b"")
    except orjson.JSONDecodeError:
        return None
    return value if isinstance(value, dict) else None


def _dicts(value: Any) -> list[dict[str, Any]]:
    return [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []


def _count(reply: dict[str, Any], given: Given) -> bool:
    """Say how many of the prompt's tokens are sources, as estimated: the worker counts them as prompt."""
    usage = reply.get("usage")
    if not isinstance(usage, dict):
        return False
    details = usage.get("prompt_tokens_details")
    usage["prompt_tokens_details"] = (details if isinstance(details, dict) else {}) | {"retrieval_tokens": given.tokens}
    return True
