"""What ingestion reads, and why it may not be able to."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Literal


class Kind(StrEnum):
    """What a file is by its content; its name only says which flavour of text it is."""

    TEXT = "text"
    MARKDOWN = "markdown"
    HTML = "html"
    JSON = "json"
    CSV = "csv"
    PDF = "pdf"
    DOCX = "docx"


class Unreadable(Exception):
    """The file cannot be taken, and will not be when it is tried again. The text is for the file's owner."""

    def __init__(self, code: Literal["unsupported_file", "invalid_file"], message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message

    def __reduce__(self) -> tuple[object, ...]:  # it travels between processes
        return (Unreadable, (self.code, self.message))


@dataclass(frozen=True, slots=True)
class Limits:
    """What one file may cost."""

    text_bytes: int = 2_097_152
    time_s: float = 60.0
    memory_bytes: int = 1_073_741_824
    pages: int = 5_000


@dataclass(frozen=True, slots=True)
class Text:
    """A file's text. Where `has_headings`, lines that begin with `#` are Markdown's headings."""

    text: str
    has_headings: bool


def too_long(limits: Limits) -> Unreadable:
    return Unreadable("invalid_file", f"The file has more than {limits.text_bytes} bytes of text; split it.")
