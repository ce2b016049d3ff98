"""The answer of /v1/responses with what retrieval gave to it: OpenAI's own `file_search_call` item, its events, annotations.

The item is the first of the output, so every later event's `output_index` goes up by one and its `sequence_number` by as many
events as ours are before it: two numbers are replaced in the bytes of each read, without a parse. Parsed are only the events
that hold a whole text.
"""

from __future__ import annotations

import re
from typing import Any

import orjson

from sluice.retrieval.citations import cited, file_citation
from sluice.retrieval.given import Given
from sluice.wire.events import fields, split

OUTPUT_INDEX = re.compile(rb'("output_index": ?)(\d{1,9})')
SEQUENCE_NUMBER = re.compile(rb'("sequence_number": ?)(\d{1,9})')
WHOLE_TEXT = (
    b'"response.created"',
    b'"response.in_progress"',
    b'"response.output_text.done"',
    b'"response.content_part.done"',
    b'"response.output_item.done"',
    b'"response.completed"',
    b'"response.incomplete"',
)


def whole_response(body: bytes, given: Given) -> bytes:
    """The worker's JSON with the search as its first item, and annotations in its texts."""
    response = orjson.loads(body)
    _add_search(response, given)
    return orjson.dumps(response)


def search_item(given: Given, status: str = "completed") -> dict[str, Any]:
    results = None
    if given.shows_results and status == "completed":
        results = [
            {
                "file_id": source.passage.file_id,
                "filename": source.passage.filename,
                "score": round(source.passage.score, 6),
                "text": source.text,
                "attributes": dict(source.passage.attributes),
            }
            for source in given.sources
        ]
    queries = list(given.queries)
    return {"id": f"fs_{given.id}", "type": "file_search_call", "status": status, "queries": queries, "results": results}


class ResponsesEditor:
    """One stream on its way down. `feed` takes whole events, as `EventStream` passes them on, and returns what goes down."""

    def __init__(self, given: Given) -> None:
        self._given = given
        self._num_ours = 0  # of our events so far: by so much are the worker's numbers behind
        self._has_searched = False

    def feed(self, events: bytes) -> bytes:
        if self._has_searched and not any(name in events for name in WHOLE_TEXT):
            return self._moved(events)
        return b"".join([self._event(event) for event in split(events)])

    def _moved(self, events: bytes) -> bytes:
        events = OUTPUT_INDEX.sub(_one_more, events)
        return SEQUENCE_NUMBER.sub(lambda found: found[1] + b"%d" % (int(found[2]) + self._num_ours), events)

    def _event(self, event: bytes) -> bytes:
        try:
            value = orjson.loads(fields(event)[1] or b"")
        except orjson.JSONDecodeError:
            return event  # a comment, or what a worker should not have sent
        if not isinstance(value, dict):
            return event
        kind = value.get("type")
        number = value.get("sequence_number", 0)
        if kind == "response.created":
            _add_summary(value.get("response"), self._given)
            return _written(value)
        out = b""
        if not self._has_searched and kind != "response.in_progress":
            self._has_searched = True
            out = self._search_events(number)
        if self._has_searched:
            value["sequence_number"] = number + self._num_ours
            if isinstance(value.get("output_index"), int):
                value["output_index"] += 1
        if kind == "response.output_text.done":
            out += self._annotation_events(value)  # which are before it, and so it moves once more
            value["sequence_number"] = number + self._num_ours
        elif kind == "response.content_part.done":
            _annotate(value.get("part"), self._given)
        elif kind == "response.output_item.done":
            _annotate_item(value.get("item"), self._given)
        elif kind in ("response.completed", "response.incomplete"):
            _add_search(value.get("response"), self._given)
        elif kind == "response.in_progress":
            _add_summary(value.get("response"), self._given)
        return out + _written(value)

    def _search_events(self, number: int) -> bytes:
        """The item, from begun to done, with the numbers from `number` on."""
        given = self._given
        place = {"item_id": f"fs_{given.id}", "output_index": 0}
        steps: list[dict[str, Any]] = [
            {"type": "response.output_item.added", "output_index": 0, "item": search_item(given, "in_progress")},
            *({"type": f"response.file_search_call.{step}"} | place for step in ("in_progress", "searching", "completed")),
            {"type": "response.output_item.done", "output_index": 0, "item": search_item(given)},
        ]
        self._num_ours += len(steps)
        return b"".join([_written(step | {"sequence_number": number + i}) for i, step in enumerate(steps)])

    def _annotation_events(self, done: dict[str, Any]) -> bytes:
        """One event for each marker in a text that is complete; `done` is numbered already."""
        found = cited(done["text"], self._given.sources) if isinstance(done.get("text"), str) else []
        place = {name: done.get(name) for name in ("item_id", "output_index", "content_index")}
        events = [
            {"type": "response.output_text.annotation.added"}
            | place
            | {"annotation_index": i, "annotation": file_citation(one), "sequence_number": done["sequence_number"] + i}
            for i, one in enumerate(found)
        ]
        self._num_ours += len(events)
        return b"".join(map(_written, events))


def _one_more(found: re.Match[bytes]) -> bytes:
    return found[1] + b"%d" % (int(found[2]) + 1)


def _written(event: dict[str, Any]) -> bytes:
    return b"event: " + str(event.get("type")).encode() + b"\ndata: " + orjson.dumps(event) + b"\n\n"


def _add_summary(response: Any, given: Given) -> None:
    if isinstance(response, dict):
        response["retrieval"] = given.summary()


def _add_search(response: Any, given: Given) -> None:
    _add_summary(response, given)
    if isinstance(response, dict) and isinstance(output := response.get("output"), list):
        for item in output:
            _annotate_item(item, given)
        response["output"] = [search_item(given), *output]


def _annotate_item(item: Any, given: Given) -> None:
    if isinstance(item, dict) and isinstance(item.get("content"), list):
        for part in item["content"]:
            _annotate(part, given)


def _annotate(part: Any, given: Given) -> None:
    if isinstance(part, dict) and part.get("type") == "output_text" and isinstance(part.get("text"), str):
        part["annotations"] = [file_citation(one) for one in cited(part["text"], given.sources)]
