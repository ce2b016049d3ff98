"""The passages of one vector store: a SQLite file of its own, with their text, their words in FTS5, and their vectors.

A file for each store: no query can meet another tenant's rows, a store's statistics are its own, and deleting a store deletes
its file. A passage's id is `n << 20 | position`, n being the number of the file that it comes from, which is never used again:
so what belongs to a file is a range, and new passages always come last.

One thread writes, any number read; a file's passages are put in one transaction, so they are all there or not at all.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from sluice.retrieval import tokens
from sluice.retrieval.base import Attributes, Filter
from sluice.retrieval.filters import compile_filter

POSITION_BITS = 20
MAX_POSITIONS = 1 << POSITION_BITS  # passages of one file
OPTIMIZE_BELOW = 200_000  # rows whose index is rewritten at once after a deletion
SCHEMA = """
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS files (
    n INTEGER PRIMARY KEY AUTOINCREMENT, file_id TEXT NOT NULL UNIQUE, filename TEXT NOT NULL, attributes TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS passages (
    id INTEGER PRIMARY KEY, text TEXT NOT NULL, title TEXT NOT NULL, char_start INTEGER NOT NULL, char_end INTEGER NOT NULL,
    awaits INTEGER NOT NULL
);
CREATE INDEX IF NOT EXISTS awaiting ON passages (id) WHERE awaits;
CREATE TABLE IF NOT EXISTS vectors (id INTEGER PRIMARY KEY, vector BLOB NOT NULL);
CREATE VIRTUAL TABLE IF NOT EXISTS words USING fts5 (body, content='', tokenize='ascii');
CREATE VIRTUAL TABLE IF NOT EXISTS frequencies USING fts5vocab (words, row);
"""


class Piece(NamedTuple):
    """A passage as ingestion cuts it, with the words to index."""

    text: str
    title: str
    char_start: int
    char_end: int
    words: str


@dataclass(frozen=True, slots=True)
class Found:
    """A passage as a search gets it back."""

    id: int
    file_id: str
    filename: str
    attributes: Attributes
    text: str
    title: str
    char_start: int
    char_end: int


def connect(path: Path, *, is_writer: bool) -> sqlite3.Connection:
    """A connection that any one thread at a time may use."""
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=10)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA trusted_schema = OFF")
    if is_writer:
        connection.execute("PRAGMA secure_delete = ON")
    else:
        connection.execute("PRAGMA query_only = ON")
    return connection


@contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        connection.rollback()
        raise
    connection.commit()


class PassageFile:
    """The writer's side of a store's file, for one thread."""

    def __init__(self, path: Path) -> None:
        self._connection = connect(path, is_writer=True)
        with transaction(self._connection):
            for statement in SCHEMA.split(";\n"):
                self._connection.execute(statement)
            self._connection.execute("INSERT OR IGNORE INTO meta VALUES ('analyzer', ?), ('dims', '0')", [str(tokens.VERSION)])
        self._analyzer = tokens.Analyzer()

    def close(self) -> None:
        self._connection.close()

    def span(self, file_id: str) -> tuple[int, int]:
        return span_of(self._connection, file_id)

    def file_ids(self) -> set[str]:
        return {file_id for (file_id,) in self._connection.execute("SELECT file_id FROM files")}

    def put(self, file_id: str, filename: str, attributes: Attributes, pieces: Sequence[Piece], *, awaits_vectors: bool) -> int:
        """Make these the passages of the file, instead of any that it had. Returns how many there are."""
        connection = self._connection
        with transaction(connection):
            self._remove(file_id)
            row = [file_id, filename, json.dumps(dict(attributes))]
            n = connection.execute("INSERT INTO files (file_id, filename, attributes) VALUES (?, ?, ?)", row).lastrowid
            assert n is not None
            first = n << POSITION_BITS
            pieces = pieces[:MAX_POSITIONS]
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
            ((id, indexed_words(self._analyzer, title, text)) for id, title, text in rows),
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


def span_of(connection: sqlite3.Connection, file_id: str) -> tuple[int, int]:
    """Between which ids the passages of a file lie; (0, 0) where there is no such file."""
    row = connection.execute("SELECT n FROM files WHERE file_id = ?", [file_id]).fetchone()
    return (0, 0) if row is None else (row[0] << POSITION_BITS, (row[0] + 1) << POSITION_BITS)


def indexed_words(analyzer: tokens.Analyzer, title: str, text: str) -> str:
    """The words of a passage, those of the headings above it first."""
    return " ".join(analyzer.words(f"{title}\n{text}" if title else text))


class PassageReader:
    """The reader's side: one connection, used by one search at a time; `interrupt` may be called from any thread."""

    def __init__(self, path: Path) -> None:
        self._connection = connect(path, is_writer=False)
        self.interrupt = self._connection.interrupt
        self.close = self._connection.close

    def ids(self) -> np.ndarray:
        return np.fromiter((id for (id,) in self._connection.execute("SELECT id FROM passages ORDER BY id")), np.int64)

    def frequency(self, word: str, is_prefix: bool) -> int:
        """In how many passages a word stands; for a beginning of words that number may be too high."""
        if is_prefix:
            sql, parameters = "SELECT sum(doc) FROM frequencies WHERE term >= ? AND term < ?", [word, word + "\U0010ffff"]
        else:
            sql, parameters = "SELECT doc FROM frequencies WHERE term = ?", [word]
        row = self._connection.execute(sql, parameters).fetchone()
        return int(row[0]) if row and row[0] else 0

    def scores(self, words: Iterable[tuple[str, bool]]) -> tuple[np.ndarray, np.ndarray]:
        """The passages that hold any of the words, and the sum of those words' BM25."""
        match = " OR ".join(tokens.quoted(*word) for word in words)
        rows = self._connection.execute("SELECT rowid, -bm25(words) FROM words WHERE words MATCH ?", [match]).fetchall()
        if not rows:
            return np.empty(0, np.int64), np.empty(0, np.float32)
        table = np.array(rows, dtype=np.float64)  # ids stay exact below 2 ** 53
        return table[:, 0].astype(np.int64), table[:, 1].astype(np.float32)

    def dims(self) -> int:
        [(dims,)] = self._connection.execute("SELECT value FROM meta WHERE key = 'dims'")
        return int(dims)

    def num_vectors(self) -> int:
        [(count,)] = self._connection.execute("SELECT count(*) FROM vectors")
        return int(count)

    def vectors(self, dims: int, *, after: int = -1, limit: int = -1) -> tuple[np.ndarray, np.ndarray]:
        """Ids and vectors of passages whose id is above `after`, by rising id."""
        rows = self._connection.execute("SELECT id, vector FROM vectors WHERE id > ? ORDER BY id LIMIT ?", [after, limit])
        ids: list[int] = []
        blobs = bytearray()
        for id, blob in rows:
            ids.append(id)
            blobs += blob
        return np.array(ids, np.int64), np.frombuffer(blobs, "<f4").reshape(-1, dims)

    def matching_files(self, filters: Filter) -> np.ndarray:
        """The numbers of the files whose attributes pass."""
        sql, parameters = compile_filter(filters, "attributes")
        return np.fromiter((n for (n,) in self._connection.execute(f"SELECT n FROM files WHERE {sql}", parameters)), np.int64)

    def fetch(self, ids: Iterable[int]) -> dict[int, Found]:
        """The passages of these ids; those that are gone are left out."""
        found = {}
        for id in ids:
            row = self._connection.execute(
                "SELECT file_id, filename, attributes, text, title, char_start, char_end "
                "FROM passages JOIN files ON n = id >> ? WHERE id = ?",
                [POSITION_BITS, id],
            ).fetchone()
            if row is not None:
                found[id] = Found(id, row[0], row[1], json.loads(row[2]), *row[3:])
        return found

    def texts(self, file_id: str) -> list[tuple[str, int, int]]:
        """The passages of a file in their order, with where they stand in it."""
        span = span_of(self._connection, file_id)
        sql = "SELECT text, char_start, char_end FROM passages WHERE id >= ? AND id < ? ORDER BY id"
        return self._connection.execute(sql, span).fetchall()
