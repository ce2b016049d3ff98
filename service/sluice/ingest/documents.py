"""The text of PDF and DOCX files. What their libraries make of a hostile file is `Unreadable`, or ends with the process."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator

import docx
import pypdf
from docx.table import Table
from docx.text.paragraph import Paragraph

from sluice.ingest.base import Limits, Unreadable, too_long

logging.getLogger("pypdf").setLevel(logging.CRITICAL)  # it comments on each oddity of a file


def pdf_text(data: bytes, limits: Limits) -> str:
    """The pages' text, with a blank line between two pages."""
    try:
        reader = pypdf.PdfReader(io.BytesIO(data))
        if reader.is_encrypted and not reader.decrypt(""):
            raise Unreadable("invalid_file", "The PDF is protected by a password.")
        if len(reader.pages) > limits.pages:
            raise Unreadable("invalid_file", f"The PDF has more than {limits.pages} pages; split it.")
        return "\n\n".join(_pages(reader, limits))
    except (Unreadable, MemoryError):
        raise
    except Exception as exc:
        raise Unreadable("invalid_file", f"The PDF cannot be read: {_said(exc)}.") from exc


def _pages(reader: pypdf.PdfReader, limits: Limits) -> Iterator[str]:
    size = 0
    for page in reader.pages:
        text = page.extract_text().strip()
        size += len(text)
        if size > limits.text_bytes:
            raise too_long(limits)
        yield text


def docx_text(data: bytes, limits: Limits) -> str:
    """Paragraphs with Markdown's headings, tables row by row, in the document's order."""
    try:
        document = docx.Document(io.BytesIO(data))
        return "\n\n".join(_blocks(document.iter_inner_content(), limits))
    except (Unreadable, MemoryError):
        raise
    except Exception as exc:
        raise Unreadable("invalid_file", f"The DOCX cannot be read: {_said(exc)}.") from exc


def _blocks(content: Iterator[Paragraph | Table], limits: Limits) -> Iterator[str]:
    size = 0
    for block in content:
        if isinstance(block, Table):
            text = "\n".join(" | ".join(cell.text.strip() for cell in row.cells) for row in block.rows)
        else:
            text = _heading(block) + block.text.strip()
        size += len(text)
        if size > limits.text_bytes:
            raise too_long(limits)
        if text.strip():
            yield text


def _heading(paragraph: Paragraph) -> str:
    """Markdown's mark of a heading, where the paragraph's style is one."""
    style = paragraph.style.name if paragraph.style is not None else None
    if style == "Title":
        return "# "
    kind, _, level = (style or "").rpartition(" ")
    return "#" * min(int(level), 6) + " " if kind == "Heading" and level.isdigit() and int(level) else ""


def _said(exc: Exception) -> str:
    """The library's reason in one short line."""
    return " ".join(str(exc).split())[:120] or type(exc).__name__
