"""The text of a file, whatever its kind: `extract` is the one function that ingestion calls."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from typing import Any, Final

from sluice.ingest.base import Kind, Limits, Text, Unreadable, too_long
from sluice.ingest.documents import docx_text, pdf_text
from sluice.ingest.sniff import decode, sniff

MAX_JSON_DEPTH = 64
HEADINGS = {f"h{level}": level for level in range(1, 7)}
SKIPPED = frozenset({"script", "style", "noscript", "template", "svg", "head", "nav"})
BLOCKS = frozenset(
    "address article aside blockquote body br dd details div dl dt fieldset figure footer form header hr li main ol p pre "
    "section summary table tbody thead tr ul".split()
)
CONTROLS = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")


def extract(data: bytes, filename: str, limits: Limits) -> Text:
    """Raises `Unreadable`; the process limits of its caller stop what takes too long or too much."""
    kind = sniff(data, filename)
    if kind is Kind.PDF:
        text, has_headings = pdf_text(data, limits), False
    elif kind is Kind.DOCX:
        text, has_headings = docx_text(data, limits), True
    else:
        if len(data) > 8 * limits.text_bytes:
            raise too_long(limits)
        make, has_headings = FROM_TEXT[kind]
        text = make(decode(data))
    encoded = CONTROLS.sub(" ", text).encode("utf-8", "replace")  # half of a surrogate pair is no character
    if len(encoded) > limits.text_bytes:
        raise too_long(limits)
    text = encoded.decode()
    if not text.strip():
        hint = "; if it is scanned, run text recognition on it first" if kind is Kind.PDF else ""
        raise Unreadable("invalid_file", f"There is no text in the file{hint}.")
    return Text(text, has_headings)


class _Html(HTMLParser):
    """Text with Markdown's headings; what is not shown to a reader is left out."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.parts: list[str] = []
        self._skipped = 0

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        if tag in SKIPPED:
            self._skipped += 1
        elif tag in HEADINGS:
            self.parts.append("\n\n" + "#" * HEADINGS[tag] + " ")
        elif tag == "li":
            self.parts.append("\n- ")
        elif tag in ("td", "th"):
            self.parts.append(" | ")
        elif tag in BLOCKS:
            self.parts.append("\n" if tag in ("br", "tr") else "\n\n")

    def handle_endtag(self, tag: str) -> None:
        if tag in SKIPPED:
            self._skipped = max(0, self._skipped - 1)
        elif tag in HEADINGS or tag in BLOCKS:
            self.parts.append("\n\n" if tag not in ("li", "tr") else "")

    def handle_data(self, data: str) -> None:
        if not self._skipped:
            self.parts.append(re.sub(r"\s+", " ", data))


def _html(source: str) -> str:
    parser = _Html()
    parser.feed(source)
    parser.close()
    text = re.sub(r"[ \t]*\n[ \t]*", "\n", "".join(parser.parts))
    return re.sub(r"\n{3,}", "\n\n", text).strip()


def _json(source: str) -> str:
    """A paragraph for each record, a line `path: value` for each value in it. What is no JSON is taken as text."""
    try:
        values = [json.loads(source)]
    except RecursionError as exc:
        raise Unreadable("invalid_file", "The JSON is nested too deeply.") from exc
    except ValueError:
        try:
            values = [json.loads(line) for line in source.splitlines() if line.strip()]
        except (ValueError, RecursionError):
            return source
    if len(values) == 1 and isinstance(values[0], list):
        values = values[0]
    return "\n\n".join("\n".join(_lines("", value, 1)) for value in values)


def _lines(path: str, value: Any, depth: int) -> Iterator[str]:
    if depth > MAX_JSON_DEPTH:
        raise Unreadable("invalid_file", "The JSON is nested too deeply.")
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _lines(f"{path}.{key}" if path else str(key), inner, depth + 1)
    elif isinstance(value, list):
        for inner in value:
            yield from _lines(path, inner, depth + 1)
    elif value is not None:
        yield f"{path}: {value}" if path else str(value)


def _csv(source: str) -> str:
    """A paragraph for each row, in which each value stands behind its column's name."""
    try:
        dialect: Any = csv.Sniffer().sniff(source[:8192], delimiters=",;\t|")
    except csv.Error:
        dialect = csv.excel
    try:
        rows = list(csv.reader(io.StringIO(source), dialect))
    except csv.Error as exc:
        raise Unreadable("invalid_file", f"The table cannot be read: {exc}.") from exc
    if len(rows) < 2:
        return source
    names = rows[0]
    paragraphs = []
    for row in rows[1:]:
        cells = [f"{name.strip()}: {cell.strip()}" for name, cell in zip(names, row, strict=False) if cell.strip()]
        cells += [cell.strip() for cell in row[len(names) :] if cell.strip()]
        if cells:
            paragraphs.append("\n".join(cells))
    return "\n\n".join(paragraphs)


def _as_it_is(source: str) -> str:
    return source


FROM_TEXT: Final[dict[Kind, tuple[Callable[[str], str], bool]]] = {
    Kind.TEXT: (_as_it_is, False),
    Kind.MARKDOWN: (_as_it_is, True),
    Kind.HTML: (_html, True),
    Kind.JSON: (_json, False),
    Kind.CSV: (_csv, False),
}
