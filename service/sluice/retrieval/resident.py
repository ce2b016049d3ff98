"""What of the stores is kept in memory while they are searched: vectors, and where common words stand.

Both are copies of what a store's file says, made when first needed and let go, the store that was not searched for longest
first, when all together are over the bound. The store's one process tells of vectors that come and passages that go; what else
is new the lexicon sees by itself.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from contextlib import AbstractContextManager

import numpy as np

from sluice.errors import EmbeddingMismatch
from sluice.retrieval.lexicon import Bounds, Lexicon, Word, best
from sluice.retrieval.passages import PassageReader

SLICE_ROWS = 20_000

# A reader that no search's end interrupts: what is loaded for one search serves all that follow.
OpenReader = Callable[[], AbstractContextManager[PassageReader]]


class Matrix:
    """The vectors of a store, rows of length 1. `view` may be read without the lock while rows are added or taken out."""

    def __init__(self, ids: np.ndarray, rows: np.ndarray) -> None:
        self._ids = ids
        self._rows = rows
        self._length = len(ids)

    @property
    def num_bytes(self) -> int:
        return int(self._ids.nbytes + self._rows.nbytes)

    def view(self) -> tuple[np.ndarray, np.ndarray]:
        return self._ids[: self._length], self._rows[: self._length]

    def add(self, ids: np.ndarray, rows: np.ndarray) -> None:
        is_new = ~np.isin(ids, self._ids[: self._length])
        ids, rows = ids[is_new], rows[is_new]
        end = self._length + len(ids)
        if end > len(self._ids):
            room = max(end, 2 * len(self._ids), 64)
            self._ids = np.concatenate([self._ids[: self._length], np.empty(room - self._length, np.int64)])
            grown = np.empty((room, self._rows.shape[1]), np.float32)
            grown[: self._length] = self._rows[: self._length]
            self._rows = grown
        self._ids[self._length : end] = ids
        self._rows[self._length : end] = rows
        self._length = end

    def remove(self, first: int, end: int) -> None:
        ids, rows = self.view()
        stays = (ids < first) | (ids >= end)
        self._ids, self._rows = ids[stays], rows[stays]
        self._length = len(self._ids)


class Resident:
    """The memory of one store."""

    def __init__(self, bounds: Bounds) -> None:
        self._bounds = bounds
        self.lock = threading.Lock()  # to make or change what follows
        self.lexicon = Lexicon(bounds)
        self.matrix: Matrix | None = None

    @property
    def num_bytes(self) -> int:
        return self.lexicon.num_bytes + (0 if self.matrix is None else self.matrix.num_bytes)

    def forget_words(self) -> None:
        """Made anew by the searches that follow."""
        self.lexicon = Lexicon(self._bounds)

    def matrix_of(self, open_reader: OpenReader, max_bytes: int) -> Matrix | None:
        """None where there are no vectors, or more than fit."""
        with self.lock:
            if self.matrix is None:
                with open_reader() as reader:
                    dims = reader.dims()
                    if dims and reader.num_vectors() * dims * 4 <= max_bytes:
                        self.matrix = Matrix(*reader.vectors(dims))
            return self.matrix

    def dense(
        self,
        reader: PassageReader,
        query: np.ndarray,
        files: np.ndarray | None,
        limit: int,
        open_reader: OpenReader,
        max_bytes: int,
    ) -> list[tuple[int, float]]:
        """The nearest passages by cosine: from memory where the vectors fit into `max_bytes`, else slice by slice."""
        dims = reader.dims()
        if dims == 0:
            return []
        if len(query) != dims:
            raise EmbeddingMismatch(f"The question's vector has {len(query)} numbers, those of the store have {dims}.")
        matrix = self.matrix_of(open_reader, max_bytes)
        if matrix is not None:
            with self.lock:
                ids, rows = matrix.view()
            return best(ids, rows @ query, files, limit)
        found: list[tuple[int, float]] = []
        after = -1
        while True:
            ids, rows = reader.vectors(dims, after=after, limit=SLICE_ROWS)
            if not len(ids):
                return found
            after = int(ids[-1])
            found = sorted([*found, *best(ids, rows @ query, files, limit)], key=lambda pair: (-pair[1], pair[0]))[:limit]


class Memory:
    """The residents of the stores that were searched last. `limit_bytes` bounds all of them together."""

    def __init__(self, limit_bytes: int, bounds: Bounds) -> None:
        self.limit_bytes = limit_bytes
        self._bounds = bounds
        self._lock = threading.Lock()
        self._residents: OrderedDict[str, Resident] = OrderedDict()

    def __repr__(self) -> str:
        return f"<Memory {self.num_bytes} of {self.limit_bytes} bytes, {len(self._residents)} stores>"

    @property
    def num_bytes(self) -> int:
        return sum(one.num_bytes for one in list(self._residents.values()))

    def of(self, store_id: str) -> Resident:
        """The store's resident, which is now the one that was searched last."""
        with self._lock:
            resident = self._residents.setdefault(store_id, Resident(self._bounds))
            self._residents.move_to_end(store_id)
            return resident

    def lexical(
        self, store_id: str, reader: PassageReader, words: list[Word], files: np.ndarray | None, limit: int
    ) -> list[tuple[int, float]]:
        found = self.of(store_id).lexicon.search(reader, words, files, limit)
        self._shrink()
        return found

    def dense(
        self,
        store_id: str,
        reader: PassageReader,
        query: np.ndarray,
        files: np.ndarray | None,
        limit: int,
        open_reader: OpenReader,
    ) -> list[tuple[int, float]]:
        found = self.of(store_id).dense(reader, query, files, limit, open_reader, self.limit_bytes)
        self._shrink()
        return found

    def warm(self, store_id: str, open_reader: OpenReader) -> bool:
        """Load what a first search would wait for; whether there is room for more."""
        resident = self.of(store_id)
        with open_reader() as reader:
            resident.lexicon.lengths(reader)
        resident.matrix_of(open_reader, self.limit_bytes - self.num_bytes)
        return self.num_bytes < self.limit_bytes / 2

    def removed(self, store_id: str, first: int, end: int) -> None:
        """The passages between these ids are gone."""
        resident = self._residents.get(store_id)
        if resident is not None and end:
            with resident.lock:
                resident.forget_words()
                if resident.matrix is not None:
                    resident.matrix.remove(first, end)

    def add_vectors(self, store_id: str, ids: np.ndarray, rows: np.ndarray) -> None:
        resident = self._residents.get(store_id)
        if resident is not None:
            with resident.lock:
                if resident.matrix is not None:
                    resident.matrix.add(ids, rows)

    def forget(self, store_id: str) -> None:
        with self._lock:
            self._residents.pop(store_id, None)

    def _shrink(self) -> None:
        """Let go of what was not searched for longest: first the words, which are read again within milliseconds."""
        with self._lock:
            for resident in self._residents.values():
                if self.num_bytes > self.limit_bytes:
                    resident.forget_words()
            while self._residents and self.num_bytes > self.limit_bytes:
                self._residents.popitem(last=False)
