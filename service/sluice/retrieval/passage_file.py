"""The writer's side of a vector store's file: its tables, and how passages, their words and their vectors come and go.

A file's passages are put in one transaction, so they are all there or not at all.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from sluice.retrieval import tokens
from sluice.retrieval.base import Attributes
from sluice.retrieval.passages import POSITION_BITS, connect, span_of, transaction

MAX_POSITIONS = 1 << POSITION_BITS  # passages of one file
OPTIMIZE_BELOW = 200_000  # rows whose index is rewritten at once after a deletion
SCHEMA = """
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS files (
    n INTEGER PRIMARY KEY AUTOINCREMENT, file_id TEXT NOT NULL UNIQUE, filename TEXT NOT NULL, attributes TEXT NOT NULL,
    lengths BLOB NOT NULL DEFAULT x''
);
CREATE TABLE IF NOT EXISTS passages (
    id INTEGER PRIMARY KEY, text TEXT NOT NULL, title TEXT NOT NULL, char_start INTEGER NOT NULL, char_end INTEGER NOT NULL,
    awaits INTEGER NOT NULL
);
CREATE INDEX IF NOT EXISTS awaiting ON passages (id) WHERE awaits;
CREATE TABLE IF NOT EXISTS vectors (id INTEGER PRIMARY KEY, vector BLOB NOT NULL);
"""
WORDS = "CREATE VIRTUAL TABLE IF NOT EXISTS words USING fts5 (body, content='', tokenize='ascii', detail='none', columnsize=0)"
# A file's words are sorted in memory and written once; with the default of 1 MiB a fifth more time goes into merging them.
WORDS_IN_MEMORY = "INSERT INTO words (words, rank) VALUES ('hashsize', 16777216)"


class Piece(NamedTuple):
    """A passage as ingestion cuts it, with what FTS5 is given of it, and of how many words that was made."""

    text: str
    title: str
    char_start: int
    char_end: int
    words: str
    num_words: int


class PassageFile:
    """The writer's side of a store's file, for one thread."""

    def __init__(self, path: Path) -> None:
        self._connection = connection = connect(path, is_writer=True)
        self._analyzer = tokens.Analyzer()
        with transaction(connection):
            for statement in (*SCHEMA.split(";\n"), WORDS, WORDS_IN_MEMORY):
                connection.execute(statement)
            connection.execute("INSERT OR IGNORE INTO meta VALUES ('analyzer', ?), ('dims', '0')", [str(tokens.VERSION)])
            if connection.execute("SELECT value FROM meta WHERE key = 'analyzer'").fetchone() != (str(tokens.VERSION),):
                self._index_anew()

    def close(self) -> None:
        self._connection.close()

    def _index_anew(self) -> None:
        """What a version before us has indexed it has indexed otherwise."""
        connection = self._connection
        if "lengths" not in [row[1] for row in connection.execute("PRAGMA table_info(files)")]:
            connection.execute("ALTER TABLE files ADD COLUMN lengths BLOB NOT NULL DEFAULT x''")
        connection.execute("DROP TABLE IF EXISTS frequencies")
        connection.execute("DROP TABLE words")
        connection.execute(WORDS)
        for (n,) in connection.execute("SELECT n FROM files").fetchall():
            span = [n << POSITION_BITS, (n + 1) << POSITION_BITS]
            rows = connection.execute(
                "SELECT id, title, text FROM passages WHERE id >= ? AND id < ? ORDER BY id", span
            ).fetchall()
            made = [indexed_words(self._analyzer, title, text) for _, title, text in rows]
            numbered = [(id, words) for (id, _, _), (words, _) in zip(rows, made, strict=True)]
            connection.executemany("INSERT INTO words (rowid, body) VALUES (?, ?)", numbered)
            connection.execute("UPDATE files SET lengths = ? WHERE n = ?", [_packed(num for _, num in made), n])
        connection.execute("UPDATE meta SET value = ? WHERE key = 'analyzer'", [str(tokens.VERSION)])

    def span(self, file_id: str) -> tuple[int, int]:
        return span_of(self._connection, file_id)

    def file_ids(self) -> set[str]:
        return {file_id for (file_id,) in self._connection.execute("SELECT file_id FROM files")}

    def put(self, file_id: str, filename: str, attributes: Attributes, pieces: Sequence[Piece], *, awaits_vectors: bool) -> int:
        """Make these the passages of the file, instead of any that it had. Returns how many there are."""
        connection = self._connection
        with transaction(connection):
            self._remove(file_id)
            pieces = pieces[:MAX_POSITIONS]
            row = [file_id, filename, json.dumps(dict(attributes)), _packed(piece.num_words for piece in pieces)]
            n = connection.execute(
                "INSERT INTO files (file_id, filename, attributes, lengths) VALUES (?, ?, ?, ?)", row
            ).lastrowid
            assert n is not None
            first = n << POSITION_BITS
            connection.executemany(
                "INSERT INTO passages VALUES (?, ?, ?, ?, ?, ?)",
                ((first + at, *piece[:4], awaits_vectors) for at, piece in enumerate(pieces)),
            )
            connection.executemany(
                "INSERT INTO words (rowid, body) VALUES (?, ?)",
                ((first + at, piece.words) for at, piece in enumerate(pieces)),
            )
        return len(pieces)

    def remove(self, file_id: str) -> int:
        """Take a file's passages out, and what the index remembers of them."""
        with transaction(self._connection):
            removed = self._remove(file_id)
        if removed:
            self.purge()
        return removed

    def purge(self) -> None:
        """Rewrite the index without what was taken out of it, and the log of changes: nothing of it stays on the disk."""
        [(count,)] = self._connection.execute("SELECT count(*) FROM (SELECT 1 FROM passages LIMIT ?)", [OPTIMIZE_BELOW])
        if count < OPTIMIZE_BELOW:
            self._connection.execute("INSERT INTO words (words) VALUES ('optimize')")
        else:
            self._connection.execute("INSERT INTO words (words, rank) VALUES ('merge', -500)")
        self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

    def _remove(self, file_id: str) -> int:
        connection = self._connection
        span = span_of(connection, file_id)
        rows = connection.execute("SELECT id, title, text FROM passages WHERE id >= ? AND id < ?", span).fetchall()
        connection.executemany(
            "INSERT INTO words (words, rowid, body) VALUES ('delete', ?, ?)",
            ((id, indexed_words(self._analyzer, title, text)[0]) for id, title, text in rows),
        )
        connection.execute("DELETE FROM passages WHERE id >= ? AND id < ?", span)
        connection.execute("DELETE FROM vectors WHERE id >= ? AND id < ?", span)
        connection.execute("DELETE FROM files WHERE file_id = ?", [file_id])
        return len(rows)

    def set_attributes(self, file_id: str, attributes: Attributes) -> None:
        self._connection.execute("UPDATE files SET attributes = ? WHERE file_id = ?", [json.dumps(dict(attributes)), file_id])

    def put_vectors(self, ids: Sequence[int], vectors: np.ndarray) -> list[int]:
        """Keep these vectors, of length 1, for those of the passages that are still there; returns which those are."""
        connection = self._connection
        with transaction(connection):
            [(dims,)] = connection.execute("SELECT value FROM meta WHERE key = 'dims'")
            if int(dims) not in (0, vectors.shape[1]):
                raise ValueError(f"vectors of {vectors.shape[1]} numbers where those of before have {dims}")
            connection.execute("UPDATE meta SET value = ? WHERE key = 'dims'", [str(vectors.shape[1])])
            kept = []
            for id, vector in zip(ids, vectors, strict=True):
                done = connection.execute("UPDATE passages SET awaits = 0 WHERE id = ? AND awaits", [id])
                if done.rowcount:
                    connection.execute("INSERT OR REPLACE INTO vectors VALUES (?, ?)", [id, vector.astype("<f4").tobytes()])
                    kept.append(id)
        return kept

    def waive_vectors(self, file_id: str) -> None:
        """The passages of this file wait for vectors no longer."""
        span = span_of(self._connection, file_id)
        self._connection.execute("UPDATE passages SET awaits = 0 WHERE awaits AND id >= ? AND id < ?", span)

    def awaiting(self, limit: int) -> list[tuple[int, str, str]]:
        """Passages that have no vector yet: id, file id, and the text to embed, headings first."""
        rows = self._connection.execute(
            "SELECT id, file_id, title, text FROM passages JOIN files ON n = id >> ? WHERE awaits ORDER BY id LIMIT ?",
            [POSITION_BITS, limit],
        )
        return [(id, file_id, f"{title}\n{text}" if title else text) for id, file_id, title, text in rows]

    def num_awaiting(self, file_id: str) -> int:
        span = span_of(self._connection, file_id)
        sql = "SELECT count(*) FROM passages WHERE awaits AND id >= ? AND id < ?"
        [(count,)] = self._connection.execute(sql, span)
        return int(count)


def indexed_words(analyzer: tokens.Analyzer, title: str, text: str) -> tuple[str, int]:
    """What FTS5 is given of a passage and the headings above it, and how many words they have."""
    words = analyzer.words(f"{title}\n{text}" if title else text)
    return tokens.indexed(words), len(words)


def _packed(lengths: Iterable[int]) -> bytes:
    return np.fromiter(lengths, "<u4").tobytes()
