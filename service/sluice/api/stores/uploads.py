"""An upload on its way to the disk: a form, read as it comes, its file never whole in memory.

A name is kept to be shown and is never a path: uploads lie under ids of ours. A file is on the disk, whole, before its id is
told.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from sluice.errors import BadRequest, BodyTooLarge, UnsupportedMediaType

MAX_PARTS = 16
MAX_FIELD_BYTES = 4_096
MAX_HEAD_BYTES = 8_192
MAX_NAME_CHARS = 255
_UNSAFE = re.compile(r"[\x00-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2066-\u2069\ufeff]")


@dataclass(slots=True)
class Uploaded:
    """What a form brought. The file's bytes are at the path that was given."""

    filename: str
    num_bytes: int
    sha256: str
    fields: dict[str, str]


async def receive(chunks: AsyncIterator[bytes], content_type: str, path: Path, *, limit_bytes: int) -> Uploaded:
    """The form's file at `path`, on the disk. Raises `BadRequest` for any other form, `BodyTooLarge`; nothing is left then."""
    kind, options = parse_options_header(content_type)
    if kind != b"multipart/form-data" or not options.get(b"boundary"):
        raise UnsupportedMediaType("Send the file as multipart/form-data: the parts `file` and `purpose`.")
    with _new_file(path) as out:
        form = _Form(out, limit_bytes)
        parser = MultipartParser(options[b"boundary"], form.callbacks())  # type: ignore[arg-type]
        try:
            async for chunk in chunks:
                parser.write(chunk)
            parser.finalize()
        except FormParserError as exc:
            raise BadRequest("The form is malformed.") from exc
        uploaded = form.result()
        out.flush()
        await asyncio.to_thread(os.fsync, out.fileno())
    return uploaded


@contextmanager
def _new_file(path: Path) -> Iterator[BinaryIO]:
    """A file that stays only if the block ends well."""
    with path.open("xb") as out:
        try:
            yield out
        except BaseException:
            path.unlink()
            raise


def safe_name(name: str) -> str:
    """A file's name as it may be shown: without folders, in one line, not too long."""
    plain = _UNSAFE.sub("", name.replace("\\", "/").rpartition("/")[2]).strip()
    if len(plain) > MAX_NAME_CHARS:
        stem, dot, ending = plain.rpartition(".")
        plain = stem[: MAX_NAME_CHARS - 17] + dot + ending[:16] if dot else plain[:MAX_NAME_CHARS]
    return plain if plain not in ("", ".", "..") else "file"


class _Form:
    """The parser's callbacks: they see a part's header fields, then its bytes, in pieces of any size."""

    def __init__(self, out: BinaryIO, limit_bytes: int) -> None:
        self._out = out
        self._limit_bytes = limit_bytes
        self._digest = hashlib.sha256()
        self._num_bytes = 0
        self._num_parts = 0
        self._filename: str | None = None
        self._fields: dict[str, str] = {}
        self._is_done = False
        # Of the part that is being read
        self._head_name = self._head_value = b""
        self._name, self._is_file = "", False
        self._value = b""

    def callbacks(self) -> dict[str, object]:
        return {
            "on_part_begin": self._begin,
            "on_header_field": self._header_field,
            "on_header_value": self._header_value,
            "on_header_end": self._header_end,
            "on_part_data": self._data,
            "on_part_end": self._end,
            "on_end": self._finish,
        }

    def result(self) -> Uploaded:
        if not self._is_done:
            raise BadRequest("The form is cut off: its last boundary is missing.")
        if self._filename is None:
            raise BadRequest("`file` is missing: it must be a part with a file name.", param="file")
        return Uploaded(safe_name(self._filename), self._num_bytes, self._digest.hexdigest(), self._fields)

    def _begin(self) -> None:
        self._num_parts += 1
        if self._num_parts > MAX_PARTS:
            raise BadRequest(f"The form has more than {MAX_PARTS} parts.")
        self._name, self._is_file, self._value = "", False, b""
        self._head_name = self._head_value = b""

    def _header_field(self, data: bytes, start: int, end: int) -> None:
        self._head_name = self._bounded(self._head_name + data[start:end], MAX_HEAD_BYTES)

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._head_value = self._bounded(self._head_value + data[start:end], MAX_HEAD_BYTES)

    def _header_end(self) -> None:
        if self._head_name.lower() == b"content-disposition":
            _, options = parse_options_header(self._head_value)
            self._name = options.get(b"name", b"").decode("utf-8", "replace")
            self._is_file = b"filename" in options
            if self._is_file:
                if self._name != "file" or self._filename is not None:
                    raise BadRequest("The form must have one file, as its part `file`.", param="file")
                self._filename = options[b"filename"].decode("utf-8", "replace")
        self._head_name = self._head_value = b""

    def _data(self, data: bytes, start: int, end: int) -> None:
        piece = data[start:end]
        if not self._is_file:
            self._value = self._bounded(self._value + piece, MAX_FIELD_BYTES)
            return
        self._num_bytes += len(piece)
        if self._num_bytes > self._limit_bytes:
            raise BodyTooLarge(f"The file is larger than {self._limit_bytes} bytes.", param="file")
        self._digest.update(piece)
        self._out.write(piece)

    def _end(self) -> None:
        if not self._is_file:
            self._fields[self._name] = self._value.decode("utf-8", "replace")

    def _finish(self) -> None:
        self._is_done = True

    @staticmethod
    def _bounded(value: bytes, limit: int) -> bytes:
        if len(value) > limit:
            raise BadRequest(f"A part of the form is longer than {limit} bytes where that is too much.")
        return value
