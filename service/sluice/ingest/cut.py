"""Cuts a text into passages: at headings, then at blank lines, then at the ends of sentences, then by size, with an overlap.

Sizes are tokens as they are estimated for any model: four characters of ASCII, one and a half of Chinese, two of other scripts.
A passage is a slice of the text, so it can be shown in its place; the headings above it are its title.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from sluice.ingest.base import Text
from sluice.retrieval.tokens import CJK

MAX_TITLE_CHARS = 200
_CJK = re.compile(f"[{CJK}\u3000-\u303f\uff00-\uffef]")
_HEADING = re.compile(r"^(#{1,6})[ \t]+(.*?)[ \t]*#*[ \t]*$", re.MULTILINE)
_FENCE = re.compile(r"^[ \t]*(```|~~~)[^\n]*\n.*?(?:^[ \t]*\1[ \t]*$|\Z)", re.MULTILINE | re.DOTALL)
_PARAGRAPH = re.compile(r"\n[ \t]*\n\s*")
_SENTENCE = re.compile(r"[。！？；…]+[」』”’）】]*\s*|[.!?;]+[\"')\]]*\s+|\n(?=[ \t]*(?:[-*+|]|\d{1,3}[.)])[ \t])")


class Passage(NamedTuple):
    """`text` is the file's text from `char_start` to `char_end`."""

    text: str
    title: str
    char_start: int
    char_end: int


class _Unit(NamedTuple):
    """The smallest part that is not torn apart: a sentence."""

    start: int
    end: int
    tokens: float
    ends_paragraph: bool


def estimated_tokens(text: str) -> float:
    if text.isascii():
        return len(text) / 4
    num_ascii = len(text.encode("ascii", "ignore"))
    num_cjk = len(_CJK.findall(text))
    return num_ascii / 4 + num_cjk / 1.5 + (len(text) - num_ascii - num_cjk) / 2


def cut(source: Text, max_tokens: int, overlap_tokens: int) -> Iterator[Passage]:
    """The passages in their order, each with something that the ones before it had not."""
    end = 0
    for passage in _passages(source, max_tokens, overlap_tokens):
        if passage.char_end > end:
            end = passage.char_end
            yield passage


def _passages(source: Text, max_tokens: int, overlap_tokens: int) -> Iterator[Passage]:
    """Short sections that follow each other share one."""
    text = source.text
    pending: list[_Unit] = []
    title = ""
    for start, end, path in _sections(text, source.has_headings):
        size = sum(unit.tokens for unit in pending)
        tokens = estimated_tokens(text[start:end])
        if pending and (size > max_tokens / 4 or size + tokens > max_tokens):
            yield from _packed(text, pending, title, max_tokens, overlap_tokens)
            pending = []
        if not pending:
            title = path
        # A section that fits into one passage is not looked at more closely.
        pending += [_Unit(start, end, tokens, True)] if tokens <= max_tokens else _units(text, start, end, max_tokens)
    yield from _packed(text, pending, title, max_tokens, overlap_tokens)


def _sections(text: str, has_headings: bool) -> Iterator[tuple[int, int, str]]:
    """Start, end and headings of each section; a section begins with its own heading line."""
    if not has_headings:
        yield 0, len(text), ""
        return
    fences = [match.span() for match in _FENCE.finditer(text)] if "```" in text or "~~~" in text else []
    start, path, fence = 0, list[tuple[int, str]](), 0
    for match in _HEADING.finditer(text):
        while fence < len(fences) and fences[fence][1] <= match.start():
            fence += 1
        if fence < len(fences) and fences[fence][0] <= match.start():
            continue  # a comment in code
        if match.start() > start:
            yield start, match.start(), _title(path)
        start = match.start()
        level = len(match[1])
        path = [*((above, name) for above, name in path if above < level), (level, match[2])]
    yield start, len(text), _title(path)


def _title(path: list[tuple[int, str]]) -> str:
    return " > ".join(name for _, name in path if name)[-MAX_TITLE_CHARS:]


def _units(text: str, start: int, end: int, max_tokens: int) -> Iterator[_Unit]:
    at = start
    while at < end:
        gap = _PARAGRAPH.search(text, at, end)
        paragraph_end = gap.end() if gap else end
        while at < paragraph_end:
            found = _SENTENCE.search(text, at, paragraph_end)
            stop = found.end() if found else paragraph_end
            tokens = estimated_tokens(text[at:stop])
            while tokens > max_tokens:  # no sentence is that long: a table, code, or a text without any stops
                middle, size = stop, tokens
                while size > max_tokens:
                    middle = _middle(text, at, middle, max_tokens / size)
                    size = estimated_tokens(text[at:middle])
                yield _Unit(at, middle, size, False)
                at = middle
                tokens = estimated_tokens(text[at:stop])
            yield _Unit(at, stop, tokens, stop == paragraph_end)
            at = stop


def _middle(text: str, start: int, stop: int, share: float) -> int:
    """Where to tear what is too long: at the last line's end of the first part of it, at the last space, or anywhere."""
    goal = start + max(1, int((stop - start) * share * 0.9))
    for gap in ("\n", " "):
        found = text.rfind(gap, start + (goal - start) // 2, goal)
        if found > start:
            return found + 1
    return goal


def _packed(text: str, units: list[_Unit], title: str, max_tokens: int, overlap_tokens: int) -> Iterator[Passage]:
    """As many units to a passage as fit; the next one begins with the last of them that fit into the overlap."""
    first = 0
    while first < len(units):
        stop, size = first, 0.0
        while stop < len(units) and size + units[stop].tokens <= max_tokens:
            size += units[stop].tokens
            stop += 1
        stop = max(stop, first + 1)
        if stop < len(units):
            stop = _at_paragraph(units, first, stop, size)
        yield from _passage(text, units[first].start, units[stop - 1].end, title)
        if stop == len(units):
            return
        back, shared = stop, 0.0
        while back - 1 > first and shared + units[back - 1].tokens <= overlap_tokens:
            back -= 1
            shared += units[back].tokens
        while back < stop and shared + units[stop].tokens > max_tokens:  # the next one must bring something new
            shared -= units[back].tokens
            back += 1
        first = back


def _at_paragraph(units: list[_Unit], first: int, stop: int, size: float) -> int:
    """The last end of a paragraph before `stop`, where at least half of the passage stays."""
    kept = size
    for at in range(stop - 1, first, -1):
        if units[at].ends_paragraph:
            return at + 1
        kept -= units[at].tokens
        if kept < size / 2:
            break
    return stop


def _passage(text: str, start: int, end: int, title: str) -> Iterator[Passage]:
    piece = text[start:end]
    lead = len(piece) - len(piece.lstrip())
    piece = piece.strip()
    if piece:
        yield Passage(piece, title, start + lead, start + lead + len(piece))
