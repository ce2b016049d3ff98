"""What a file is, told from its bytes. Neither its name nor the type that its sender claims can make it something else."""

from __future__ import annotations

import zipfile
from io import BytesIO

from sluice.ingest.base import Kind, Unreadable

HEAD_BYTES = 1024
MAX_ENTRIES = 10_000
MAX_UNPACKED_BYTES = 134_217_728
MAX_RATIO = 200  # of the whole archive; text packs to a fifth, XML to a fiftieth
FLAVOURS = {
    **dict.fromkeys(("md", "markdown", "mdx"), Kind.MARKDOWN),
    **dict.fromkeys(("html", "htm", "xhtml"), Kind.HTML),
    **dict.fromkeys(("json", "jsonl", "ndjson"), Kind.JSON),
    **dict.fromkeys(("csv", "tsv"), Kind.CSV),
}
SUPPORTED = "text, Markdown, HTML, JSON, CSV, PDF and DOCX are"


def sniff(data: bytes, filename: str) -> Kind:
    """Raises `Unreadable` for what we cannot read, and for archives that would unpack to too much."""
    head = data[:HEAD_BYTES]
    if b"%PDF-" in head:
        return Kind.PDF
    if head.startswith(b"PK\x03\x04"):
        return _archive(data)
    if b"\0" in data and not head.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise Unreadable("unsupported_file", f"The file is binary, and of no kind that can be read: {SUPPORTED}.")
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if start.startswith((b"<!doctype html", b"<html")):
        return Kind.HTML
    return FLAVOURS.get(filename.rpartition(".")[2].lower(), Kind.TEXT)


def _archive(data: bytes) -> Kind:
    """A DOCX, by what the archive lists; nothing of it is unpacked here."""
    try:
        with zipfile.ZipFile(BytesIO(data)) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, OverflowError) as exc:
        raise Unreadable("invalid_file", "The file begins like a DOCX, but its archive is damaged.") from exc
    if "word/document.xml" not in {entry.filename for entry in entries}:
        raise Unreadable("unsupported_file", f"The file is an archive, and no DOCX: {SUPPORTED} read.")
    unpacked = sum(entry.file_size for entry in entries)
    if len(entries) > MAX_ENTRIES or unpacked > MAX_UNPACKED_BYTES or unpacked > MAX_RATIO * len(data) + 1_048_576:
        raise Unreadable("invalid_file", "The file's archive would unpack to far more than a document needs.")
    return Kind.DOCX


def decode(data: bytes) -> str:
    """Text in UTF-8, in UTF-16 with its mark, or in GB 18030; line ends become `\\n`. Raises `Unreadable`."""
    encodings = ("utf-16",) if data.startswith((b"\xff\xfe", b"\xfe\xff")) else ("utf-8-sig", "gb18030")
    for encoding in encodings:
        try:
            text = data.decode(encoding)
        except UnicodeDecodeError:
            continue
        if encoding == "gb18030" and not _is_chinese(text):
            break
        return text.replace("\r\n", "\n").replace("\r", "\n")
    raise Unreadable("unsupported_file", "The file is not text in UTF-8 (or UTF-16, or GB 18030).")


def _is_chinese(text: str) -> bool:
    """Almost any bytes are GB 18030: believe it only where most of what is not ASCII is common Chinese."""
    foreign = [one for one in text if one > "\x7f"]
    common = sum("\u4e00" <= one <= "\u9fff" or "\u3000" <= one <= "\u303f" or "\uff00" <= one <= "\uffef" for one in foreign)
    return common >= 0.9 * len(foreign)
