"""Which sources an answer really cites, and how they are shown: OpenAI's annotations, and the citations of Azure's shape.

A citation is what the model was given; an annotation is a marker that it wrote. The second is never inferred from the first.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple
from urllib.parse import quote

from sluice.retrieval.prompt_block import Source

MARKER = re.compile(r"\[(\d{1,2})\]|［(\d{1,2})］|【(\d{1,2})】")
FENCE = re.compile(r"[ \t]{0,3}(`{3,}|~{3,})")
TICKS = re.compile("`+")
MAX_ANNOTATIONS = 200  # of one answer


class Cited(NamedTuple):
    """A marker in an answer: its source, and from where to where it stands, in code points."""

    source: Source
    start: int
    end: int


def cited(text: str, sources: Sequence[Source]) -> list[Cited]:
    """The markers of given sources outside code, in order."""
    found: list[Cited] = []
    for start, end in _prose(text):
        for marker in MARKER.finditer(text, start, end):
            number = int(marker[1] or marker[2] or marker[3])
            if 1 <= number <= len(sources) and len(found) < MAX_ANNOTATIONS:
                found.append(Cited(sources[number - 1], marker.start(), marker.end()))
    return found


def url_citation(one: Cited, public_url: str) -> dict[str, Any]:
    """The only annotation that chat completions know."""
    shown = {"url": url_of(one.source, public_url), "title": one.source.title, "start_index": one.start, "end_index": one.end}
    return {"type": "url_citation", "url_citation": shown}


def file_citation(one: Cited) -> dict[str, Any]:
    """The annotation of /v1/responses."""
    passage = one.source.passage
    return {"type": "file_citation", "file_id": passage.file_id, "filename": passage.filename, "index": one.start}


def citations(sources: Sequence[Source], found: Sequence[Cited] = (), *, content: bool = True) -> list[dict[str, Any]]:
    """All that the model was given, each with the places where it was cited."""
    out = []
    for source in sources:
        passage = source.passage
        spans = [{"start_index": one.start, "end_index": one.end} for one in found if one.source is source]
        shown = {
            "index": source.number,
            "spans": spans,
            "file_id": passage.file_id,
            "filename": passage.filename,
            "title": source.title,
            "url": web_url(source),
            "chunk_id": passage.chunk_id,
            "vector_store_id": passage.vector_store_id,
            "score": round(passage.score, 6),
            "attributes": dict(passage.attributes),
        }
        out.append(shown | ({"content": source.text} if content else {}))
    return out


def web_url(source: Source) -> str | None:
    """The address that the passage's attributes name, if it is one for a browser."""
    url = source.passage.attributes.get("url")
    return url if isinstance(url, str) and re.match(r"https?://[^\s\x00-\x1f]+\Z", url, re.IGNORECASE) else None


def url_of(source: Source, public_url: str) -> str:
    return web_url(source) or f"{public_url}/v1/files/{quote(source.passage.file_id, safe='')}/content"


def _prose(text: str) -> Iterator[tuple[int, int]]:
    """What of a Markdown text is neither in a fenced block, closed or not, nor in a code span: an index there cites nothing.

    One pass over the lines, whatever is in them.
    """
    fence = ""
    at = 0
    for line in text.splitlines(keepends=True):
        opened = FENCE.match(line)
        if fence:
            if opened and opened[1].startswith(fence) and not line[opened.end() :].strip(" \t\r\n`~"):
                fence = ""
        elif opened and "`" not in line[opened.end() :]:
            fence = opened[1]
        else:
            for start, end in _outside_spans(line):
                yield at + start, at + end
        at += len(line)


def _outside_spans(line: str) -> Iterator[tuple[int, int]]:
    runs = [(found.start(), found.end()) for found in TICKS.finditer(line)]
    closing: dict[int, int] = {}  # of a run's length, the next run to the right
    partner: list[int | None] = [None] * len(runs)
    for i in reversed(range(len(runs))):
        size = runs[i][1] - runs[i][0]
        partner[i] = closing.get(size)
        closing[size] = i
    at, i = 0, 0
    while i < len(runs):
        close = partner[i]
        if close is not None:
            yield at, runs[i][0]
            at = runs[close][1]
            i = close
        i += 1
    yield at, len(line)
