"""Which words of a text can be found, and that no text can say anything to FTS5 but words."""

import sqlite3

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sluice.retrieval.tokens import LEVELS, MAX_CACHED, MAX_WORD_CHARS, Analyzer, at_level, indexed, quoted


@pytest.fixture
def analyzer():
    return Analyzer()


@pytest.mark.parametrize(
    "text, words",
    [
        ("The gateway's ports", ["the", "gatewai", "s", "port"]),
        ("Ｇａｔｅｗａｙ ﬁle", ["gatewai", "file"]),
        ("Straße CAFÉ café", ["strass", "cafe", "cafe"]),
        ("max_tokens=5", ["max", "token", "5"]),
        ("网关监听", ["网关", "关监", "监听", "听"]),
        ("端口8443", ["端口", "口", "8443"]),
        ("がくせい", ["がく", "くせ", "せい", "い"]),
        ("서울", ["서울", "울"]),
        ("Ελλάδα", ["ελλαδα"]),
        ("!?.—", []),
    ],
)
def test_words_are_folded_stemmed_and_paired(analyzer, text, words):
    assert analyzer.words(text) == words


@pytest.mark.parametrize(
    "text, asked",
    [
        ("gateways gateway", [("gatewai", False)]),
        ("网关端口", [("网关", False), ("关端", False), ("端口", False)]),
        ("网", [("网", True)]),
        ("Port 端", [("port", False), ("端", True)]),
        ("", []),
    ],
)
def test_a_query_asks_for_each_word_once_and_for_a_single_character_as_a_beginning(analyzer, text, asked):
    assert analyzer.query(text) == asked


@pytest.mark.parametrize("character", list("网关监听端口"))
def test_every_character_of_a_run_is_found_by_itself(analyzer, character):
    [(word, is_prefix)] = analyzer.query(character)

    assert is_prefix and any(one.startswith(word) for one in analyzer.words("网关监听端口"))


@given(st.text())
def test_words_hold_nothing_that_fts5_could_read_as_more_than_a_word(text):
    analyzer = Analyzer()
    for word in (*analyzer.words(text), *(word for word, _ in analyzer.query(text))):
        assert word and not set(word) & set("\"'()*:^+-{}., \t\n\0_")
        assert len(word) <= MAX_WORD_CHARS


@given(st.lists(st.tuples(st.text(min_size=1), st.booleans()), min_size=1, max_size=4))
def test_whatever_is_quoted_is_a_query_that_fts5_takes(asked):
    with sqlite3.connect(":memory:") as base:
        base.execute("CREATE VIRTUAL TABLE f USING fts5 (body, tokenize='ascii')")
        match = " OR ".join(quoted(word.replace("\0", ""), is_prefix) for word, is_prefix in asked)
        try:
            base.execute("SELECT rowid FROM f WHERE f MATCH ?", [match.encode("utf-8", "replace").decode()]).fetchall()
        finally:
            pass
    base.close()


@pytest.mark.parametrize(
    "words, body",
    [
        ([], ""),
        (["port", "the"], "port the"),
        (["port", "the", "port"], "port the port·2"),
        (["a"] * 7, "a a·2 a·3 a·4 a·5 a·6"),
        (["a"] * 1000, "a " + " ".join(f"a·{level}" for level in LEVELS)),
        (["猫在", "在猫", "猫"], "猫在 在猫 猫 猫·2"),
        (["网关", "关", "网关", "关"], "网关 关 网关·2 网·2 关·2"),
    ],
)
def test_the_index_is_given_each_word_once_and_how_often_it_stands(words, body):
    assert indexed(words) == body


@given(st.text())
def test_what_is_indexed_holds_no_word_twice_and_each_level_below_its_highest(text):
    body = indexed(Analyzer().words(text)).split()

    assert len(body) == len(set(body))
    marked = [one.rpartition("·") for one in body if "·" in one]
    for word, _, level in marked:
        assert all(at_level(word, lower) in body for lower in LEVELS if lower < int(level))


def test_a_very_long_word_is_cut_and_stems_are_forgotten_in_time(analyzer):
    assert analyzer.words("a" * 1000) == ["a" * MAX_WORD_CHARS]
    analyzer.stems.update({str(number): "" for number in range(MAX_CACHED)})

    assert analyzer.words("ports") == ["port"]
    assert len(analyzer.stems) == 1
