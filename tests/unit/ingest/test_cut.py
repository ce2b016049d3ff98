"""Passages are slices of their text, none is too long, none of the text is lost, and they end where a reader would stop."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sluice.ingest.base import Text
from sluice.ingest.cut import MAX_TITLE_CHARS, cut, estimated_tokens

PARTS = st.sampled_from(
    [
        *("# Title\n", "## Below\n", "A sentence ends here. ", "Short. ", "网关在这里监听端口。", "没有句号的很长的文字" * 9),
        *("\n\n", "\n", "```\n# code\n```\n", "x" * 700, "- item\n", "word " * 120, "；", "🙂", "\t"),
    ]
)


def passages(text: str, size: int = 100, overlap: int = 15, *, has_headings: bool = True):
    return list(cut(Text(text, has_headings), size, overlap))


@settings(max_examples=300, deadline=None)
@given(st.lists(PARTS, max_size=40).map("".join), st.integers(100, 300), st.booleans(), st.data())
def test_whatever_the_text(text, size, has_headings, data):
    overlap = data.draw(st.integers(0, size // 2))
    found = passages(text, size, overlap, has_headings=has_headings)

    covered = set()
    for one in found:
        assert one.text == text[one.char_start : one.char_end] and one.text == one.text.strip() and one.text
        assert estimated_tokens(one.text) <= size + 1
        covered |= set(range(one.char_start, one.char_end))
    assert all(at in covered for at, character in enumerate(text) if not character.isspace())
    assert [one.char_end for one in found] == sorted({one.char_end for one in found})  # each brings something new
    assert [one.char_start for one in found] == sorted(one.char_start for one in found)


def test_headings_begin_passages_and_are_their_titles():
    long = "Words fill this section. " * 10
    found = passages(f"Before. {long}\n# One\n{long}\n## Two\n{long}\n### Three\n{long}\n# Four\n{long}")

    assert [one.title for one in found] == ["", "One", "One > Two", "One > Two > Three", "Four"]
    assert found[2].text.startswith("## Two\n")


def test_short_sections_share_a_passage():
    [one] = passages("# A\nshort\n# B\nshort\n# C\nshort")

    assert one.title == "A" and "# C" in one.text


def test_what_looks_like_a_heading_in_code_or_in_plain_text_is_none():
    long = "x = 1  # set x\n" * 20
    assert {one.title for one in passages(f"# Real\n```\n# comment\n{long}```\n~~~\n# another\n{long}~~~")} == {"Real"}
    assert {one.title for one in passages(f"# Not one\n{long}", has_headings=False)} == {""}


@pytest.mark.parametrize("sentence", ["这是一个关于网关的句子。", "一个问题？", "分号；", "An English sentence. "])
def test_sentences_stay_whole(sentence):
    found = passages(sentence * 100)

    assert len(found) > 1
    assert all(one.text.endswith(sentence.strip()) for one in found)


def test_a_passage_begins_with_the_end_of_the_one_before_it():
    sentences = [f"Sentence number {number} stands here. " for number in range(60)]
    found = passages("".join(sentences), 100, 30)

    for one, following in zip(found, found[1:], strict=False):
        shared = one.char_end - following.char_start
        assert 0 < shared and estimated_tokens(following.text[:shared]) <= 30


def test_a_paragraph_is_a_better_end_than_a_sentence():
    paragraph = "One sentence of several words. " * 7 + "\n\n"
    found = passages(paragraph * 6, overlap=0)

    assert all(one.text.count("\n\n") == 0 and len(one.text) == len(paragraph.strip()) for one in found)


def test_titles_are_bounded_and_an_empty_text_has_no_passages():
    [one] = passages("# " + "long title " * 60 + "\ntext", 400)
    assert len(one.title) == MAX_TITLE_CHARS
    assert passages("") == [] and passages(" \n\n ") == []


def test_tokens_are_estimated_by_script():
    assert estimated_tokens("abcd" * 10) == 10
    assert estimated_tokens("网关监听端口") == pytest.approx(4)
    assert estimated_tokens("приветик") == pytest.approx(4)
