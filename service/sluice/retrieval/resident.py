"""What of the stores is kept in memory while they are searched: postings of common words, and vectors.

Both are copies of what a store's file says, made when first needed and let go, the store that was not searched for longest
first, when all together are over the bound. The store's one process tells them of every change:

    vectors    follow at once
    postings   of a store with fewer than `SMALL` passages are made anew after any change; of a larger one when 2 % has changed
               or `MAX_AGE_S` have passed. Until then a new passage is found by its rare words and its vector
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np

from sluice.errors import EmbeddingMismatch
from sluice.retrieval.passages import POSITION_BITS, PassageReader

COMMON = 300  # a word in more passages than this is remembered
SMALL = 20_000
MAX_CHANGE = 0.02
MAX_AGE_S = 10.0
SLICE_ROWS = 20_000

Word = tuple[str, bool]  # as in tokens.Analyzer.query
# A reader that no search's end interrupts: what is loaded for one search serves all that follow.
OpenReader = Callable[[], AbstractContextManager[PassageReader]]


@dataclass(frozen=True, slots=True)
class Bounds:
    """Which words of a query are looked for. `make retrieval-quality` shows what is lost by that: less than .005 of nDCG@10."""

    max_words: int = 24  # the rarest
    max_share: float = 0.4  # of the passages: a word that stands in more tells nothing
    share_from: int = 1_000  # in a smaller store nothing is too common


@dataclass(frozen=True, slots=True)
class Posting:
    """Where a word stands (positions in `Lexicon.ids`), and its BM25 there."""

    positions: np.ndarray
    scores: np.ndarray

    @property
    def num_bytes(self) -> int:
        return int(self.positions.nbytes + self.scores.nbytes)


class Lexicon:
    """How common words are in a store, and where the common ones stand."""

    def __init__(self, ids: np.ndarray, made_at: float, bounds: Bounds) -> None:
        self.ids = ids  # of all passages, rising
        self.made_at = made_at
        self._bounds = bounds
        self.num_bytes = int(ids.nbytes)
        # Filled by whichever search asks first; two that work out the same do no harm.
        self._frequencies: dict[Word, int] = {}
        self._postings: dict[Word, Posting] = {}

    def search(
        self, reader: PassageReader, words: list[Word], files: np.ndarray | None, limit: int, open_reader: OpenReader
    ) -> list[tuple[int, float]]:
        """The best passages by BM25 over the rarest of these words: id and score."""
        chosen = self._chosen(reader, words)
        rare = [word for word in chosen if self._frequencies[word] <= COMMON or word[1]]
        scores = np.zeros(len(self.ids), np.float32)
        for word in chosen:
            if word not in rare:
                posting = self._posting(word, open_reader)
                scores[posting.positions] += posting.scores
        ids = self.ids
        if rare:
            rare_ids, rare_scores = reader.scores(rare)
            at, is_known = _positions(ids, rare_ids)
            scores[at[is_known]] += rare_scores[is_known]
            ids = np.concatenate([ids, rare_ids[~is_known]])
            scores = np.concatenate([scores, rare_scores[~is_known]])
        return best(ids, scores, files, limit, above=0.0)

    def _chosen(self, reader: PassageReader, words: list[Word]) -> list[Word]:
        frequencies = self._frequencies
        for word in words:
            if word not in frequencies:
                frequencies[word] = reader.frequency(*word)
        there = sorted((word for word in words if frequencies[word]), key=frequencies.__getitem__)
        bounds = self._bounds
        if len(self.ids) >= bounds.share_from:
            bound = bounds.max_share * len(self.ids)
            there = [word for word in there if frequencies[word] <= bound] or there[:1]
        return there[: bounds.max_words]

    def _posting(self, word: Word, open_reader: OpenReader) -> Posting:
        posting = self._postings.get(word)
        if posting is None:
            with open_reader() as reader:
                ids, scores = reader.scores([word])
            at, is_known = _positions(self.ids, ids)
            posting = self._postings[word] = Posting(at[is_known].astype(np.int32), scores[is_known])
            self.num_bytes += posting.num_bytes
        return posting


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
        self.lexicon: Lexicon | None = None
        self.matrix: Matrix | None = None
        self.num_changed = 0  # passages, since the lexicon was made

    @property
    def num_bytes(self) -> int:
        return sum(part.num_bytes for part in (self.lexicon, self.matrix) if part is not None)

    def lexicon_of(self, open_reader: OpenReader, now: float) -> Lexicon:
        with self.lock:
            found = self.lexicon
            if found is None or (self.num_changed and self._is_stale(found, now)):
                self.num_changed = 0
                with open_reader() as reader:
                    found = self.lexicon = Lexicon(reader.ids(), now, self._bounds)
            return found

    def _is_stale(self, lexicon: Lexicon, now: float) -> bool:
        num = len(lexicon.ids)
        return num < SMALL or self.num_changed > MAX_CHANGE * num or now - lexicon.made_at > MAX_AGE_S

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

    def __init__(self, limit_bytes: int, clock: Callable[[], float], bounds: Bounds) -> None:
        self.limit_bytes = limit_bytes
        self._bounds = bounds
        self._clock = clock
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
        self,
        store_id: str,
        reader: PassageReader,
        words: list[Word],
        files: np.ndarray | None,
        limit: int,
        open_reader: OpenReader,
    ) -> list[tuple[int, float]]:
        lexicon = self.of(store_id).lexicon_of(open_reader, self._clock())
        found = lexicon.search(reader, words, files, limit, open_reader)
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
        resident.lexicon_of(open_reader, self._clock())
        resident.matrix_of(open_reader, self.limit_bytes - self.num_bytes)
        return self.num_bytes < self.limit_bytes / 2

    def changed(self, store_id: str, num_passages: int, removed: tuple[int, int] = (0, 0)) -> None:
        """The store's file has so many passages more or fewer; those between the `removed` ids are gone."""
        resident = self._residents.get(store_id)
        if resident is not None:
            with resident.lock:
                resident.num_changed += num_passages
                if resident.matrix is not None and removed[1]:
                    resident.matrix.remove(*removed)

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
        """Let go of what was not searched for longest; of the last one left, everything if it alone is too large."""
        with self._lock:
            while self._residents and self.num_bytes > self.limit_bytes:
                self._residents.popitem(last=False)


def _positions(ids: np.ndarray, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where the wanted ids stand in the rising `ids`, and which of them do."""
    at = np.searchsorted(ids, wanted)
    is_known = at < len(ids)
    is_known[is_known] = ids[at[is_known]] == wanted[is_known]
    return at, is_known


def best(
    ids: np.ndarray, scores: np.ndarray, files: np.ndarray | None, limit: int, *, above: float = -2.0
) -> list[tuple[int, float]]:
    """The highest scores, of these files if any are named; equal ones by rising id."""
    wanted = scores > above
    if files is not None:
        wanted &= np.isin(ids >> POSITION_BITS, files)
    at = np.flatnonzero(wanted)
    if len(at) > limit:
        least = np.partition(scores[at], len(at) - limit)[len(at) - limit]
        at = at[scores[at] >= least]
    order = at[np.lexsort((ids[at], -scores[at]))][:limit]
    return [(int(ids[one]), float(scores[one])) for one in order]
