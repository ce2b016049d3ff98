"""The passages of one vector store: a SQLite file of its own, with their text, their words in FTS5, and their vectors.

A file for each store: no query can meet another tenant's rows, a store's statistics are its own, and deleting a store deletes
its file. A passage's id is `n << 20 | position`, n being the number of the file that it comes from, which is never used again:
so what belongs to a file is a range, and new passages always come last.

One thread writes (passage_file.py), any number read, here.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sluice.retrieval.base import Attributes, Filter
from sluice.retrieval.filters import compile_filter

POSITION_BITS = 20
MATCHING = "FROM words WHERE words MATCH ? AND rowid > ? AND rowid <= ?"


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


def span_of(connection: sqlite3.Connection, file_id: str) -> tuple[int, int]:
    """Between which ids the passages of a file lie; (0, 0) where there is no such file."""
    row = connection.execute("SELECT n FROM files WHERE file_id = ?", [file_id]).fetchone()
    return (0, 0) if row is None else (row[0] << POSITION_BITS, (row[0] + 1) << POSITION_BITS)


class PassageReader:
    """The reader's side: one connection, used by one search at a time; `interrupt` may be called from any thread."""

    def __init__(self, path: Path) -> None:
        self._connection = connect(path, is_writer=False)
        self.interrupt = self._connection.interrupt
        self.close = self._connection.close

    def lengths(self, after: int) -> list[tuple[int, np.ndarray]]:
        """Of each file whose number is above `after`: its number, and how many words each of its passages has."""
        rows = self._connection.execute("SELECT n, lengths FROM files WHERE n > ? ORDER BY n", [after])
        return [(n, np.frombuffer(lengths, "<u4")) for n, lengths in rows]

    def count(self, match: str, after: int, upto: int) -> int:
        """How many passages match, of those whose ids are above `after` and at most `upto`."""
        [(count,)] = self._connection.execute(f"SELECT count(*) {MATCHING}", [match, after, upto])
        return int(count)

    def matching(self, match: str, after: int, upto: int) -> np.ndarray:
        """Which passages they are, by rising id."""
        # One JSON text instead of a row each: a third of the time.
        [(ids,)] = self._connection.execute(f"SELECT json_group_array(rowid) {MATCHING}", [match, after, upto])
        return np.fromstring(ids[1:-1], np.int64, sep=",")

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
