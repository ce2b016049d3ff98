"""BM25 as FTS5 has it, over an index that tells no places, and never behind the file."""

import random
import sqlite3
from contextlib import contextmanager

import numpy as np
import pytest

from sluice.retrieval.lexicon import Bounds, Lexicon, best
from sluice.retrieval.passage_file import PassageFile, Piece, indexed_words
from sluice.retrieval.passages import POSITION_BITS, PassageReader
from sluice.retrieval.tokens import Analyzer

EVERY_WORD = Bounds(max_words=1_000, max_share=1.0)
VOCABULARY = [f"w{number}" for number in range(40)]


@contextmanager
def store(path):
    """The writer's side and the reader's side of one store."""
    writer, reader = PassageFile(path), PassageReader(path)
    try:
        yield writer, reader
    finally:
        reader.close()
        writer.close()


def put(writer, file_id, texts):
    analyzer = Analyzer()
    pieces = [Piece(text, "", 0, len(text), *indexed_words(analyzer, "", text)) for text in texts]
    writer.put(file_id, "a.md", {}, pieces, awaits_vectors=False)


def some_texts(numbers, count):
    """Words by Zipf's law: some stand in almost every text, some stand five times in one."""
    weights = [1 / (rank + 1) for rank in range(len(VOCABULARY))]
    return [" ".join(numbers.choices(VOCABULARY, weights, k=numbers.randint(3, 60))) for _ in range(count)]


def by_fts5(texts, words):
    """The scores that `bm25()` gives for the same texts."""
    base = sqlite3.connect(":memory:")
    base.execute("CREATE VIRTUAL TABLE f USING fts5 (body)")
    base.executemany("INSERT INTO f (rowid, body) VALUES (?, ?)", enumerate(texts))
    match = " OR ".join(words)
    found = dict(base.execute("SELECT rowid, -bm25(f) FROM f WHERE f MATCH ?", [match]).fetchall())
    base.close()
    return found


@pytest.mark.parametrize("seed", range(5))
def test_scores_are_those_of_fts5(tmp_path, seed):
    numbers = random.Random(seed)
    texts = some_texts(numbers, 200)
    words = numbers.sample(VOCABULARY, 5)
    with store(tmp_path / "s.db") as (writer, reader):
        put(writer, "f", texts)
        found = dict(Lexicon(EVERY_WORD).search(reader, [(word, False) for word in words], None, 1_000))

    first = 1 << POSITION_BITS
    wanted = by_fts5(texts, words)
    assert {id - first for id in found} == set(wanted)
    # More than six times are counted in steps: it makes a hundredth of a score.
    assert all(score == pytest.approx(wanted[id - first], rel=0.02, abs=1e-4) for id, score in found.items())


def test_a_search_that_goes_on_gets_what_one_that_begins_anew_gets(tmp_path):
    numbers = random.Random(1)
    lexicon = Lexicon(EVERY_WORD)
    asked = [(word, False) for word in VOCABULARY]
    with store(tmp_path / "s.db") as (writer, reader):
        for number in range(6):
            put(writer, f"f{number}", some_texts(numbers, 30))
            found = lexicon.search(reader, asked, None, 1_000)

            assert found == Lexicon(EVERY_WORD).search(reader, asked, None, 1_000)
            assert len(found) == 30 * (number + 1)


def test_what_another_search_has_read_meanwhile_is_not_in_a_search_that_began_before(tmp_path):
    numbers = random.Random(1)
    lexicon = Lexicon(EVERY_WORD)
    with store(tmp_path / "s.db") as (writer, reader):
        put(writer, "f1", some_texts(numbers, 30))
        before = lexicon.lengths(reader)
        put(writer, "f2", some_texts(numbers, 30))
        lexicon.search(reader, [("w0", False)], None, 1_000)

        positions, times = lexicon._posting(reader, ("w0", False), before)

    assert len(positions) == len(times) > 0 and positions.max() < len(before.ids) == 30


@pytest.mark.parametrize(
    "bounds, chosen",
    [(Bounds(max_words=2, share_from=1), {3, 4}), (Bounds(max_share=0.5, share_from=1), {3, 4}), (EVERY_WORD, {0, 1, 2, 3, 4})],
)
def test_common_words_are_not_looked_for_in_a_large_store(tmp_path, bounds, chosen):
    with store(tmp_path / "s.db") as (writer, reader):
        put(writer, "f", ["the of", "the of", "the of", "the rare", "the odd"])
        asked = [(word, False) for word in ("the", "of", "rare", "odd", "nowhere")]
        found = {id & 0xFFFF for id, _ in Lexicon(bounds).search(reader, asked, None, 10)}

    assert found == chosen


def test_a_question_of_common_words_only_is_asked_by_the_rarest_of_them(tmp_path):
    with store(tmp_path / "s.db") as (writer, reader):
        put(writer, "f", ["the of", "the of", "the"])
        found = Lexicon(Bounds(max_share=0.1, share_from=1)).search(reader, [("the", False), ("of", False)], None, 10)

    assert {id & 0xFFFF for id, _ in found} == {0, 1}


def test_a_single_character_is_scored_by_how_often_it_stands(tmp_path):
    with store(tmp_path / "s.db") as (writer, reader):
        put(writer, "f", ["猫在这里睡觉呢", "小猫和大猫是猫", "没有这种动物啊"])
        found = Lexicon(EVERY_WORD).search(reader, Analyzer().query("猫"), None, 10)

    assert [id & 0xFFFF for id, _ in found] == [1, 0]


def test_what_another_version_has_indexed_is_indexed_anew(tmp_path):
    analyzer = Analyzer()
    with store(tmp_path / "s.db") as (writer, reader):
        put(writer, "f1", ["alpha beta beta", "gamma"])
        put(writer, "f2", ["alpha"])
        asked = analyzer.query("alpha beta")
        found = Lexicon(EVERY_WORD).search(reader, asked, None, 10)
        old = writer._connection
        old.execute("DROP TABLE words")
        old.execute("CREATE VIRTUAL TABLE words USING fts5 (body, content='')")
        old.execute("CREATE VIRTUAL TABLE frequencies USING fts5vocab (words, row)")
        old.execute("ALTER TABLE files DROP COLUMN lengths")
        old.execute("UPDATE meta SET value = '1' WHERE key = 'analyzer'")

    with store(tmp_path / "s.db") as (writer, reader):
        assert Lexicon(EVERY_WORD).search(reader, asked, None, 10) == found != []
        writer.remove("f1")
        assert len(Lexicon(EVERY_WORD).search(reader, asked, None, 10)) == 1


def test_what_stands_nowhere_takes_no_memory(tmp_path):
    with store(tmp_path / "s.db") as (writer, reader):
        put(writer, "f", ["alpha"])
        lexicon = Lexicon(EVERY_WORD)
        lexicon.search(reader, [(f"n{number}", False) for number in range(100)], None, 10)
        nothing = lexicon.num_bytes
        lexicon.search(reader, [("alpha", False)], None, 10)

        assert nothing == lexicon.lengths(reader).num_bytes < lexicon.num_bytes


def test_the_best_are_those_with_the_highest_scores_equal_ones_by_id():
    ids = np.array([1, 2, 3, 4, 5 << POSITION_BITS])
    scores = np.array([1, 3, 3, 0, 9], np.float32)

    assert best(ids, scores, None, 3) == [(5 << POSITION_BITS, 9.0), (2, 3.0), (3, 3.0)]
    assert best(ids, scores, np.array([0]), 2) == [(2, 3.0), (3, 3.0)]
    assert best(ids, scores, None, 10, above=0.0)[-1] == (1, 1.0)
    assert best(ids[:0], scores[:0], None, 3) == []
