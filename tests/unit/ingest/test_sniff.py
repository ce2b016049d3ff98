"""A file is what its bytes say, whatever its name and its sender say."""

import io
import zipfile
from collections.abc import Mapping

import pytest

from sluice.ingest.base import Kind, Unreadable
from sluice.ingest.sniff import MAX_ENTRIES, decode, sniff


def archive(entries: Mapping[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as file:
        for name, data in entries.items():
            file.writestr(name, data)
    return out.getvalue()


DOCX = archive({"word/document.xml": b"<w/>"})


@pytest.mark.parametrize(
    "data, filename, kind",
    [
        (b"%PDF-1.7", "a.txt", Kind.PDF),
        (b"\n\n%PDF-1.4", "a.html", Kind.PDF),
        (DOCX, "a.pdf", Kind.DOCX),
        (b" <!DOCTYPE HTML><p>", "a.txt", Kind.HTML),
        (b"\xef\xbb\xbf<html>", "a", Kind.HTML),
        (b"# Title", "a.MD", Kind.MARKDOWN),
        (b"{}", "a.json", Kind.JSON),
        (b"a,b", "a.csv", Kind.CSV),
        (b"anything", "a.exe", Kind.TEXT),
        (b"anything", "", Kind.TEXT),
        ("中文".encode("utf-16"), "a.txt", Kind.TEXT),
    ],
)
def test_a_kind_is_told_by_content_and_the_name_only_tells_flavours_of_text(data, filename, kind):
    assert sniff(data, filename) is kind


@pytest.mark.parametrize(
    "data, code",
    [
        (lambda: b"\x7fELF\0\0", "unsupported_file"),
        (lambda: b"\x89PNG\r\n\x1a\n\0\0", "unsupported_file"),
        (lambda: archive({"xl/workbook.xml": b""}), "unsupported_file"),
        (lambda: DOCX[:40], "invalid_file"),
        (lambda: archive({"word/document.xml": b"0" * 200_000_000}), "invalid_file"),
        (lambda: archive({"word/document.xml": b"", "bomb": b"\0" * 50_000_000}), "invalid_file"),
        (lambda: archive({"word/document.xml": b""} | {str(n): b"" for n in range(MAX_ENTRIES)}), "invalid_file"),
    ],
    ids=["elf", "png", "workbook", "half", "zeros", "bomb", "crowd"],  # archives hold the time
)
def test_what_cannot_be_read_and_archives_that_explode_are_refused(data, code):
    with pytest.raises(Unreadable) as caught:
        sniff(data(), "a.docx")

    assert caught.value.code == code


@pytest.mark.parametrize(
    "data, text",
    [
        ("网关\r\n端口\rx".encode(), "网关\n端口\nx"),
        ("\ufeff网关".encode(), "网关"),
        ("网关".encode("utf-16"), "网关"),
        ("网关监听。端口".encode("gb18030"), "网关监听。端口"),
    ],
)
def test_text_is_decoded(data, text):
    assert decode(data) == text


@pytest.mark.parametrize("data", [b"caf\xe9 au lait \xe8 \xe0", b"\xff\xfe\x00", b"\x80\x81"])
def test_what_is_no_text_is_not_guessed(data):
    with pytest.raises(Unreadable):
        decode(data)
