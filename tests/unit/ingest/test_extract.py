"""The text of each kind of file, with its headings where it has any."""

import pytest

from sluice.ingest.base import Limits, Unreadable
from sluice.ingest.extract import MAX_JSON_DEPTH, extract
from tests.unit.ingest.documents import pdf, word

LIMITS = Limits()


def text(data: bytes | str, filename: str = "a.txt", limits: Limits = LIMITS) -> str:
    return extract(data.encode() if isinstance(data, str) else data, filename, limits).text


def test_text_and_markdown_are_taken_as_they_are():
    assert text("# Not a heading\n\nplain") == "# Not a heading\n\nplain"
    assert not extract(b"x", "a.txt", LIMITS).has_headings
    assert extract(b"# x", "a.md", LIMITS).has_headings


def test_control_characters_and_halves_of_characters_do_not_pass():
    assert text("a\x00b".replace("\x00", "\x01") + "\x1b[31m") == "a b [31m"
    assert text(r'{"a": "\ud800x"}', "a.json") == "a: ?x"


def test_html_becomes_text_with_headings_and_without_what_is_not_shown():
    page = """<html><head><title>t</title><style>p{}</style></head><body><nav>menu</nav><h1>Ports</h1>
    <p>The <b>gateway</b>   listens on&nbsp;8443.</p><script>alert(1)</script><ul><li>one<li>two</ul>
    <table><tr><td>a</td><td>b</td></tr></table><h2>More</h2>end</body></html>"""

    found = extract(page.encode(), "a.html", LIMITS)

    assert found.has_headings
    assert found.text.startswith("# Ports\n\nThe gateway listens on 8443.")
    assert "- one\n- two" in found.text and "| a | b" in found.text and "## More\n\nend" in found.text
    assert not {"alert", "menu", "p{}"} & set(found.text.split())


@pytest.mark.parametrize(
    "data, expected",
    [
        ('{"name": "gw", "ports": [1, 2], "tls": {"on": true}, "no": null}', "name: gw\nports: 1\nports: 2\ntls.on: True"),
        ('[{"a": 1}, {"a": 2}]', "a: 1\n\na: 2"),
        ('{"a": 1}\n{"a": 2}\n', "a: 1\n\na: 2"),
        ('"just text"', "just text"),
        ("{broken", "{broken"),
    ],
)
def test_json_becomes_lines_with_their_paths(data, expected):
    assert text(data, "a.json") == expected


@pytest.mark.parametrize("depth", [MAX_JSON_DEPTH + 1, 100_000])
def test_json_that_is_nested_too_deeply_is_refused(depth):
    with pytest.raises(Unreadable) as caught:
        text('{"a":' * depth + "1" + "}" * depth, "a.json")

    assert caught.value.code == "invalid_file"


def test_a_table_becomes_a_paragraph_a_row_with_the_columns_names():
    assert text("name;port\ngw;8443\nmetrics;8001\n", "a.csv") == "name: gw\nport: 8443\n\nname: metrics\nport: 8001"
    assert text("only one line", "a.csv") == "only one line"
    assert text("a,b\n1,2,3\n,\n", "a.csv") == "a: 1\nb: 2\n3"


def test_a_pdf_becomes_its_pages():
    assert text(pdf("The gateway listens (on) 8443", "second page"), "a.pdf") == "The gateway listens (on) 8443\n\nsecond page"


def test_a_docx_becomes_paragraphs_tables_and_headings_in_their_order():
    found = extract(word(), "a.docx", LIMITS)

    assert found.has_headings
    assert found.text == (
        "# Handbook\n\n# Ports\n\nThe gateway listens on port 8443.\n\nmetrics | 8001\n\n## 中文\n\n网关监听。"
    )


@pytest.mark.parametrize(
    "data, filename, said",
    [
        (pdf("x", password="secret"), "a.pdf", "password"),
        (b"%PDF-1.7 garbage", "a.pdf", "cannot be read"),
        (pdf(""), "a.pdf", "no text"),
        (word().replace(b"word/document.xml", b"word/document.xmm", 1), "a.docx", "cannot be read"),
        (b"  \n ", "a.txt", "no text"),
        (b"x" * 5000, "a.txt", "more than 2000 bytes"),
        (b"x" * 50_000, "a.txt", "more than 2000 bytes"),
        (pdf(*["many words on this page " * 40] * 4), "a.pdf", "more than 2000 bytes"),
        (pdf(*["p"] * 6), "a.pdf", "more than 5 pages"),
        (b'"\n' * 10 + b"\xff", "a.csv", "not text"),
    ],
)
def test_a_file_that_cannot_be_read_says_why(data, filename, said):
    with pytest.raises(Unreadable, match=said):
        extract(data, filename, Limits(text_bytes=2000, pages=5))


def test_a_word_file_with_too_much_text_is_refused():
    with pytest.raises(Unreadable, match="more than 20 bytes"):
        extract(word(), "a.docx", Limits(text_bytes=20))
