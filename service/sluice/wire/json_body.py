"""A client's JSON object: validated whole, its top level known to the byte, and editable without re-serialising.

Two C parsers see every body. orjson validates all of it (UTF-8, surrogates, depth, NaN, numbers out of range) and gives
the values; msgspec gives the raw bytes of every top-level member, of repeated ones too.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Set
from typing import Any

import msgspec
import orjson

from sluice.errors import BadRequest
from sluice.types import Body
from sluice.wire.cuts import Cut, cut

MAX_MEMBERS = 1024  # of the top level; the largest of vLLM's requests knows about 60
# Beyond this size we look for bodies that are made of tiny objects, which take a hundred times as long to parse as text.
LARGE_BYTES = 262_144
MIN_BYTES_PER_CONTAINER = 12
MAX_CONTAINERS = 524_288
MAX_WALKED_BYTES = 4096  # of white space between members; beyond it we do not walk over it byte by byte
WHITE_SPACE = b" \t\n\r"
TOO_MANY_MEMBERS = f"The request body has more than {MAX_MEMBERS} members at its top level."


class _Name(str):
    """A member's name as it occurs once: names that read the same do not meet in a dict."""

    __slots__ = ()
    __hash__ = object.__hash__


Raws = dict[_Name, msgspec.Raw]
Span = tuple[int, int, int]  # where a member stands: its name begins, its value begins, it ends
_raw_members = msgspec.json.Decoder(Raws, dec_hook=operator.call).decode  # calls `_Name(name)`, without a Python frame


class JsonBody:
    """A client's JSON object: `data` is what the client wrote, `members` what it says. Neither may be changed."""

    __slots__ = ("_raws", "data", "members")

    def __init__(self, data: bytes, members: dict[str, Any], raws: Raws) -> None:
        self.data = data
        self.members = members
        self._raws = raws

    @classmethod
    def parse(cls, data: bytes, guarded: frozenset[str]) -> JsonBody:
        """The object in `data`; raises `BadRequest` for anything else, and when a `guarded` member occurs twice.

        Readers of JSON differ in which of two members they take: what we check must be what the worker reads.
        """
        try:
            raws = None if len(data) <= LARGE_BYTES else _raw_members_of_large(data)
            members = orjson.loads(data)
            if type(members) is not dict:
                raise BadRequest("The request body must be a JSON object.")
            raws = _raw_members(data) if raws is None else raws
        except (ValueError, RecursionError) as exc:
            raise BadRequest(_explain(data, exc)) from exc
        if len(raws) > MAX_MEMBERS:
            raise BadRequest(TOO_MANY_MEMBERS)
        if len(raws) != len(members):
            _refuse_repeated(raws, guarded)
        return cls(data, members, raws)

    def edited(self, changes: Mapping[str, bytes | None]) -> bytes:
        """The body with each named member given that raw JSON value, or taken out where the value is None."""
        cuts = self.cuts(changes)  # first: it may write `data` anew
        return cut(self.data, cuts)

    def cuts(self, changes: Mapping[str, bytes | None]) -> list[Cut]:
        """What `edited` does, as cuts of `data`; all other bytes stay as the client wrote them.

        Only a body that escapes members' names or has kilobytes of white space between them is written anew, value by
        value: then `data` is not what the client wrote any more.
        """
        members = self.members
        added = [_written(name, value) for name, value in changes.items() if value is not None and name not in members]
        if members.keys().isdisjoint(changes):
            return self._appended([], added, is_empty=not members)
        spans = self._walked()
        wanted = [changes.get(name, b"") for name in map(str, self._raws)]
        return self._appended(_cuts(spans, wanted), added, is_empty=wanted.count(None) == len(wanted))

    def span(self, name: str) -> tuple[int, int]:
        """From where to where in `data` the value of a member stands; `data` may be written anew by this, as by `cuts`."""
        _, start, end = self._walked()[[str(raw) for raw in self._raws].index(name)]
        return start, end

    def _walked(self) -> list[Span]:
        spans = _spans(self.data, self._raws)
        if spans is None:
            self.data = b"{" + b",".join([_written(name, bytes(raw)) for name, raw in self._raws.items()]) + b"}"
            spans = _spans(self.data, self._raws)
            assert spans is not None, "what we wrote has no gaps"
        return spans

    def _appended(self, cuts: list[Cut], added: list[bytes], *, is_empty: bool) -> list[Cut]:
        """The cuts, and new members before the last brace."""
        if added:
            brace = self.data.rindex(b"}")
            cuts.append((brace, brace, (b"" if is_empty else b",") + b",".join(added)))
        return cuts


def object_of(body: Body, known: Set[str] | None = None) -> dict[str, Any]:
    """A small request's JSON object; raises `BadRequest` for anything else, and for members that are not `known`."""
    try:
        found = orjson.loads(body if isinstance(body, bytes) else b"".join(body))
    except orjson.JSONDecodeError as exc:
        raise BadRequest(f"The request body is not JSON: {exc}.") from exc
    if not isinstance(found, dict):
        raise BadRequest("The request body must be a JSON object.")
    if known is not None:
        for name in found.keys() - known:
            raise BadRequest(f"`{name[:80]}` is not known here; known are {', '.join(sorted(known))}.", param=name[:80])
    return found


def _raw_members_of_large(data: bytes) -> Raws:
    """The raw members, given up as soon as there are too many; raises `BadRequest` for a body of tiny pieces."""
    num_members = 0

    def name(_type: type, text: str) -> _Name:
        nonlocal num_members
        num_members += 1
        if num_members > MAX_MEMBERS:
            raise BadRequest(TOO_MANY_MEMBERS)
        return _Name(text)

    if _num_containers(data) > min(MAX_CONTAINERS, len(data) // MIN_BYTES_PER_CONTAINER):
        raise BadRequest("The request body is made of too many small objects and arrays.")
    return msgspec.json.decode(data, type=Raws, dec_hook=name)


def _num_containers(data: bytes) -> int:
    """How many objects and arrays there are at most. In images there are next to none, and then this is fast."""
    num_found = 0
    for bracket in (b"{", b"["):
        at = 0
        for _ in range(256):
            at = data.find(bracket, at) + 1
            if not at:
                break
            num_found += 1
        else:
            num_found += data.count(bracket, at)
    return num_found


def _refuse_repeated(raws: Raws, guarded: frozenset[str]) -> None:
    seen = set()
    for name in map(str, raws):
        if name in seen and name in guarded:
            raise BadRequest(f"`{name}` occurs twice in the request body: write it once.", param=name)
        seen.add(name)


def _spans(data: bytes, raws: Raws) -> list[Span] | None:
    """Where each member stands, by walking over what is between the values. None: escaped names or vast gaps."""
    if len(data) > MAX_WALKED_BYTES + sum([len(name) + len(raw) + 4 for name, raw in raws.items()]):
        return None
    spans = []
    at = 0
    while data[at] in WHITE_SPACE:
        at += 1
    for name, raw in raws.items():
        at += 1  # over the brace or comma
        while data[at] in WHITE_SPACE:
            at += 1
        start = at
        literal = orjson.dumps(name)
        if not data.startswith(literal, start):
            return None
        at += len(literal)
        while data[at] in WHITE_SPACE:
            at += 1
        at += 1  # over the colon
        while data[at] in WHITE_SPACE:
            at += 1
        value = at
        at += len(raw)
        spans.append((start, value, at))
        while data[at] in WHITE_SPACE:
            at += 1
    return spans


def _written(name: str, value: bytes) -> bytes:
    return orjson.dumps(name) + b":" + value


def _cuts(spans: list[Span], wanted: list[bytes | None]) -> list[Cut]:
    """What to cut, in order: a member's value where another is wanted, the member and one comma where None is."""
    cuts: list[Cut] = []
    is_first = True  # of the members that stay
    for i, ((start, value, end), new) in enumerate(zip(spans, wanted, strict=True)):
        if new is not None:
            is_first = False
            if new:
                cuts.append((value, end, new))
        elif not is_first:
            cuts.append((spans[i - 1][2], end, b""))
        else:
            cuts.append((start, spans[i + 1][0] if i + 1 < len(spans) else end, b""))
    return cuts


def _explain(data: bytes, exc: Exception) -> str:
    """Why `data` is not JSON, and where, in one line."""
    if not data:
        return "The request body is empty: send a JSON object."
    if isinstance(exc, RecursionError):
        return "The request body is nested too deeply."
    try:
        data.decode()
    except UnicodeDecodeError as not_utf8:
        return f"The request body is not UTF-8 from byte {not_utf8.start} on: send JSON in UTF-8."
    return f"The request body is not valid JSON: {exc}."
