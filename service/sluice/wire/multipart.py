"""A multipart form (RFC 7578): its parts found by offset, and editable without a copy of the file in it.

Strict on purpose. The worker parses the same bytes once more, and must find the same parts: so wherever parsers could differ
(a boundary that is followed by something else, repeated or extended parameters, backslashes, other character sets) the form
is refused. No client library writes such forms. It also bounds the work: one search over the bytes, and at most
`MAX_PARTS` boundaries.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from sluice.errors import BadRequest, UnsupportedMediaType
from sluice.wire.cuts import Cut, cut

MAX_PARTS = 64
MAX_HEAD_BYTES = 4096
MAX_TEXT_BYTES = 1_048_576  # of a part that is not a file: as much as the worker takes

_TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_PARAMETER = re.compile(rf'[ \t]*;[ \t]*({_TOKEN})=(?:"([^"\\]*)"|({_TOKEN}))[ \t]*', re.ASCII)
_HEADER = re.compile(rf"({_TOKEN}):[ \t]*([^\r\n\0]*)", re.ASCII)
_BOUNDARY = re.compile(r"[0-9A-Za-z'()+_,./:=?-]{1,70}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Part:
    """One part: its block begins with the boundary before it, at `start`, and its value goes from `value` to `end`."""

    name: str
    is_file: bool
    start: int
    value: int
    end: int


class Multipart:
    """A parsed form. `fields` has the text parts (of repeated ones the last), `content_type` says how to read `data`."""

    __slots__ = ("_boundary", "content_type", "data", "fields", "parts")

    def __init__(self, boundary: str, data: bytes, parts: tuple[Part, ...]) -> None:
        self._boundary = boundary.encode()
        self.content_type = f'multipart/form-data; boundary="{boundary}"'
        self.data = data
        self.parts = parts
        self.fields = {part.name: _decoded(data, part) for part in parts if not part.is_file}

    def edited(self, changes: Mapping[str, bytes | None]) -> bytes:
        """The form with each named part given that value, added with it, or taken out where it is None."""
        return cut(self.data, self.cuts(changes))

    def cuts(self, changes: Mapping[str, bytes | None]) -> list[Cut]:
        """What `edited` does, as cuts of `data`. A value must be a line: what holds no line break cannot hold the boundary."""
        cuts: list[Cut] = []
        for name in changes.keys() - {part.name for part in self.parts}:
            if (value := changes[name]) is not None:
                disposition = f'Content-Disposition: form-data; name="{name}"'.encode()
                cuts.append((0, 0, b"\r\n".join((b"--" + self._boundary, disposition, b"", value, b""))))
        for part in self.parts:
            value = changes.get(part.name, b"")
            if value is None:
                cuts.append((part.start, part.end + 2, b""))  # the line break before the next boundary belongs to it
            elif part.name in changes:
                cuts.append((part.value, part.end, value))
        return cuts


def parse_multipart(content_type: str, data: bytes, guarded: frozenset[str] = frozenset()) -> Multipart:
    """The form in `data`; raises `BadRequest` for anything else, and when a `guarded` part occurs twice."""
    boundary = _boundary_of(content_type)
    opening = f"--{boundary}\r\n".encode()
    if not data.startswith(opening):
        raise BadRequest("The form does not begin with the boundary that the Content-Type header names.")
    delimiter = b"\r\n" + opening[:-2]
    parts: list[Part] = []
    at = 0
    while True:
        head = at + len(opening)
        end = data.find(delimiter, head)
        if end < 0:
            raise BadRequest("The form is cut off: its last boundary is missing.")
        if len(parts) == MAX_PARTS:
            raise BadRequest(f"The form has more than {MAX_PARTS} parts.")
        parts.append(_part(data, at, head, end))
        after = end + len(delimiter)
        following = data[after : after + 2]
        if following == b"--":
            break
        if following != b"\r\n":
            raise BadRequest("The form's boundary occurs inside a part.")
        at = end + 2
    _refuse_repeated(parts, guarded)
    return Multipart(boundary, data, tuple(parts))


def _boundary_of(content_type: str) -> str:
    kind, semicolon, rest = content_type.partition(";")
    if kind.strip().lower() != "multipart/form-data":
        raise UnsupportedMediaType("Send this request as multipart/form-data, with the audio as the part `file`.")
    parameters = _parameters(semicolon + rest)
    if parameters is None or not _BOUNDARY.fullmatch(boundary := parameters.get("boundary", "")):
        raise BadRequest("The Content-Type header must name the form's boundary, of 1 to 70 plain characters.")
    if parameters.get("charset", "utf-8").lower() != "utf-8":
        raise BadRequest("The form must be in UTF-8.")
    return boundary


def _parameters(rest: str) -> dict[str, str] | None:
    """The parameters behind a header's value by lower-case name, or None where parsers could disagree about them."""
    found: dict[str, str] = {}
    at = 0
    while at < len(rest):
        match = _PARAMETER.match(rest, at)
        if match is None or match[1].lower() in found:
            return None
        found[match[1].lower()] = match[3] if match[2] is None else match[2]
        at = match.end()
    return found


def _part(data: bytes, start: int, head: int, end: int) -> Part:
    head_end = data.find(b"\r\n\r\n", head, min(end, head + MAX_HEAD_BYTES))
    if head_end < 0:
        raise BadRequest(f"A part of the form has no headers, or more than {MAX_HEAD_BYTES} bytes of them.")
    dispositions = []
    for line in data[head:head_end].decode("latin-1").split("\r\n"):
        match = _HEADER.fullmatch(line)
        if match is None:
            raise BadRequest("A part of the form has a malformed header.")
        if match[1].lower() == "content-disposition":
            dispositions.append(match[2])
    kind, semicolon, rest = (dispositions[0] if len(dispositions) == 1 else "").partition(";")
    parameters = _parameters(semicolon + rest)
    if kind.strip().lower() != "form-data" or parameters is None or "name" not in parameters:
        raise BadRequest('A part of the form lacks a plain `Content-Disposition: form-data; name="..."` header.')
    if not {"filename", "filename*"}.isdisjoint(parameters) and "filename" not in parameters:
        raise BadRequest("A part of the form gives its file name as `filename*` only: give it as `filename`.")
    return Part(parameters["name"], "filename" in parameters, start, head_end + 4, end)


def _refuse_repeated(parts: list[Part], guarded: frozenset[str]) -> None:
    seen = set()
    for part in parts:
        if part.name in seen and part.name in guarded:
            raise BadRequest(f"`{part.name}` occurs twice in the form: send it once.", param=part.name)
        seen.add(part.name)


def _decoded(data: bytes, part: Part) -> str:
    if part.end - part.value > MAX_TEXT_BYTES:
        raise BadRequest(f"`{part.name}` is longer than {MAX_TEXT_BYTES} bytes.", param=part.name)
    try:
        return data[part.value : part.end].decode()
    except UnicodeDecodeError as exc:
        raise BadRequest(f"`{part.name}` is not UTF-8.", param=part.name) from exc
