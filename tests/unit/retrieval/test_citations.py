"""Which markers of an answer cite a source, and where they stand."""

import time

import pytest

from sluice.retrieval.base import Passage
from sluice.retrieval.citations import citations, cited, url_citation
from sluice.retrieval.prompt_block import Source


def source(number: int, **more: object) -> Source:
    passage = Passage(f"c_{number}", f"file-{number}", f"{number}.md", "text", 0.5, "vs_1", **more)  # type: ignore[arg-type]
    return Source(number, passage, f"{number}.md", "text", 3)


SOURCES = [source(number) for number in range(1, 4)]


@pytest.mark.parametrize(
    "text, found",
    [
        ("It is so [1].", ["[1]"]),
        ("是的［2］，对【3】。", ["［2］", "【3】"]),
        ("😀 Both [1][2]", ["[1]", "[2]"]),
        ("full width digits ［２］", ["［２］"]),
        ("None: [0] [4] [12] [123] [x] [1", []),
        ("`a[1]` but [2] and ``b`[1]``", ["[2]"]),
        ("```py\na[1]\n```\n[2]", ["[2]"]),
        ("~~~\na[1]\n~~~\n[3]\n```\nnever closed [1]", ["[3]"]),
        ("````\n```\n[1]\n````\n[2]", ["[2]"]),
        ("an open ` tick [1]", ["[1]"]),
        ("", []),
    ],
)
def test_markers_of_given_sources_outside_code_are_citations(text: str, found: list[str]):
    assert [text[one.start : one.end] for one in cited(text, SOURCES)] == found


def test_offsets_are_code_points():
    [one] = cited("👩‍🚀 看 [1]", SOURCES)

    assert (one.start, one.end) == (6, 9)


@pytest.mark.parametrize("text", ["`" * 50_000, "```\n" * 20_000, "``a`" * 20_000, "`" + "a" * 100_000, "[1" * 50_000])
def test_no_text_takes_long_to_look_through(text: str):
    began_at = time.process_time()

    cited(text, SOURCES)

    assert time.process_time() - began_at < 2  # of the CPU: a busy machine does not matter


def test_a_text_full_of_markers_is_bounded():
    assert len(cited("[1]" * 1000, SOURCES)) == 200


def test_an_annotation_leads_to_the_passages_own_address_or_to_the_file():
    of_file = cited("[1]", SOURCES)[0]
    of_web = cited("[1]", [source(1, attributes={"url": "https://a.example/b"})])[0]
    of_script = cited("[1]", [source(1, attributes={"url": "javascript:alert(1)"})])[0]

    assert url_citation(of_file, "https://gw")["url_citation"] == {
        **{"url": "https://gw/v1/files/file-1/content", "title": "1.md"},
        **{"start_index": 0, "end_index": 3},
    }
    assert url_citation(of_web, "")["url_citation"]["url"] == "https://a.example/b"
    assert url_citation(of_script, "")["url_citation"]["url"] == "/v1/files/file-1/content"


def test_a_citation_has_the_places_where_it_is_cited_and_its_text_only_if_wanted():
    found = cited("[2] and [2]", SOURCES)

    first, second, _ = citations(SOURCES, found)

    assert first["spans"] == [] and [span["start_index"] for span in second["spans"]] == [0, 8]
    assert first["content"] == "text"
    assert "content" not in citations(SOURCES, content=False)[0]
