"""The embedded engine: searches the stores' files, in threads, each search within its deadline.

It knows no tenants: whoever calls it has looked up in the catalogue that the stores are the caller's. A search that is over its
time, or that nobody waits for any more, is interrupted inside SQLite.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from sluice.errors import RetrievalTimeout, RetrievalUnavailable
from sluice.retrieval.base import Failure, Filter, Mode, Passage, SearchResult, Weights
from sluice.retrieval.fusion import DEPTH, fuse
from sluice.retrieval.passages import POSITION_BITS, PassageReader
from sluice.retrieval.resident import Memory
from sluice.retrieval.tokens import Analyzer

MAX_OPEN = 64
MAX_WAITING = 64  # searches that wait for a thread

Key = tuple[str, int]  # of a passage: store and id
Ranked = list[tuple[Key, float]]


@dataclass(frozen=True, slots=True)
class Asked:
    """One search, as a thread gets it. `has_vectors` are the stores that were embedded by the vectors' model."""

    stores: tuple[str, ...]
    queries: tuple[str, ...]
    vectors: np.ndarray | None
    has_vectors: frozenset[str]
    filters: Filter | None
    limit: int
    mode: Mode
    weights: Weights


class Readers:
    """Open readers by store, taken by `with`, at most `MAX_OPEN` kept."""

    def __init__(self, path_of: Callable[[str], Path]) -> None:
        self._path_of = path_of
        self._lock = threading.Lock()
        self._idle: OrderedDict[int, tuple[str, PassageReader]] = OrderedDict()
        self._next = 0

    @contextmanager
    def take(self, store_id: str) -> Iterator[PassageReader]:
        reader = self._pop(store_id) or PassageReader(self._path_of(store_id))
        try:
            yield reader
        except BaseException:
            reader.close()
            raise
        self._put(store_id, reader)

    def close(self, store_id: str | None = None) -> None:
        """Close the idle ones, of one store or all."""
        with self._lock:
            gone = [at for at, (owner, _) in self._idle.items() if store_id in (None, owner)]
            readers = [self._idle.pop(at)[1] for at in gone]
        for reader in readers:
            reader.close()

    def _pop(self, store_id: str) -> PassageReader | None:
        with self._lock:
            for at, (owner, reader) in reversed(self._idle.items()):
                if owner == store_id:
                    del self._idle[at]
                    return reader
        return None

    def _put(self, store_id: str, reader: PassageReader) -> None:
        with self._lock:
            self._next += 1
            self._idle[self._next] = (store_id, reader)
            oldest = self._idle.popitem(last=False)[1][1] if len(self._idle) > MAX_OPEN else None
        if oldest is not None:
            oldest.close()


class Interrupt:
    """Ends a search that is running in a thread. `fire` may come at any time, from another thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._reader: PassageReader | None = None
        self.is_fired = False

    @contextmanager
    def watching(self, reader: PassageReader) -> Iterator[None]:
        with self._lock:
            self._reader = reader
        try:
            yield
        finally:
            with self._lock:
                self._reader = None

    def fire(self) -> None:
        with self._lock:
            self.is_fired = True
            if self._reader is not None:
                self._reader.interrupt()


class Engine:
    """All stores of a folder. Used by `with`; one for a folder, in one process."""

    def __init__(self, folder: Path, *, memory: Memory, num_threads: int | None = None) -> None:
        self._folder = folder
        self._memory = memory
        self.readers = Readers(self.path_of)
        # Half of the cores: the others are for the gateway's streams.
        num_threads = num_threads or max(1, len(os.sched_getaffinity(0)) // 2)
        self._threads = ThreadPoolExecutor(num_threads, thread_name_prefix="search")
        self._num_waiting = 0
        self._analyzers = threading.local()

    def __enter__(self) -> Engine:
        self._folder.mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(self, *exc: object) -> None:
        self._threads.shutdown()
        self.readers.close()

    def path_of(self, store_id: str) -> Path:
        return self._folder / f"{store_id}.db"

    # Searching

    async def search(self, asked: Asked, *, timeout_s: float) -> SearchResult:
        """Raises `RetrievalTimeout`, and `RetrievalUnavailable` where too many wait already."""
        if self._num_waiting >= MAX_WAITING:
            raise RetrievalUnavailable("Too many searches are waiting; try again in a moment.")
        self._num_waiting += 1
        interrupt = Interrupt()
        try:
            async with asyncio.timeout(timeout_s):
                future = asyncio.get_running_loop().run_in_executor(self._threads, self._search, asked, interrupt)
                return await future
        except TimeoutError as exc:
            raise RetrievalTimeout(f"The search did not end within {timeout_s:g} s.") from exc
        finally:
            self._num_waiting -= 1
            interrupt.fire()

    async def warm(self, store_ids: Sequence[str]) -> None:
        """Load what first searches of these stores would wait for, while there is room."""
        for store_id in store_ids:
            if self.path_of(store_id).exists() and not await asyncio.get_running_loop().run_in_executor(
                self._threads, self._memory.warm, store_id, partial(self.readers.take, store_id)
            ):
                return

    async def texts(self, store_id: str, file_id: str) -> list[str]:
        """The text of a file, passage by passage, without what a passage repeats of the one before it."""
        if not self.path_of(store_id).exists():
            return []
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._texts, store_id, file_id)

    def _texts(self, store_id: str, file_id: str) -> list[str]:
        texts, at = [], 0
        with self.readers.take(store_id) as reader:
            for text, start, end in reader.texts(file_id):
                texts.append(text[max(0, at - start) :])
                at = max(at, end)
        return texts

    def _search(self, asked: Asked, interrupt: Interrupt) -> SearchResult:
        lexical: list[Ranked] = [[] for _ in asked.queries]
        dense: list[Ranked] = [[] for _ in asked.queries]
        failures = []
        words = [self._analyzer().query(query) for query in asked.queries] if asked.mode != "dense" else []
        for store_id in asked.stores:
            if interrupt.is_fired:
                break
            if not self.path_of(store_id).exists():  # nothing was put into it yet
                continue
            try:
                with self.readers.take(store_id) as reader, interrupt.watching(reader):
                    self._search_store(asked, store_id, reader, words, lexical, dense)
            except sqlite3.Error:
                failures.append(Failure(store_id, "store_failed"))
        if failures and len(failures) == len(asked.stores):
            raise RetrievalUnavailable("The vector stores could not be searched.")
        return self._fused(asked, lexical, dense, tuple(failures))

    def _search_store(
        self,
        asked: Asked,
        store_id: str,
        reader: PassageReader,
        words: list[list[tuple[str, bool]]],
        lexical: list[Ranked],
        dense: list[Ranked],
    ) -> None:
        files = None if asked.filters is None else reader.matching_files(asked.filters)
        if files is not None and not len(files):
            return
        for at, one in enumerate(words):
            found = self._memory.lexical(store_id, reader, one, files, DEPTH)
            lexical[at] += [((store_id, id), score) for id, score in found]
        if asked.vectors is not None and store_id in asked.has_vectors:
            open_reader = partial(self.readers.take, store_id)
            for at, vector in enumerate(asked.vectors):
                found = self._memory.dense(store_id, reader, vector, files, DEPTH, open_reader)
                dense[at] += [((store_id, id), score) for id, score in found]

    def _fused(self, asked: Asked, lexical: list[Ranked], dense: list[Ranked], failures: tuple[Failure, ...]) -> SearchResult:
        """One ranking of all: of lists of one kind the stores' scores are compared, between kinds only the ranks."""
        similarity: dict[Key, float] = {}
        for ranked in (*lexical, *dense):
            ranked.sort(key=lambda pair: -pair[1])
            del ranked[DEPTH:]
        for key, cosine in (pair for ranked in dense for pair in ranked):
            similarity[key] = max(similarity.get(key, -1.0), cosine)
        lists = [([key for key, _ in ranked], asked.weights.text) for ranked in lexical if any(lexical)]
        lists += [([key for key, _ in ranked], asked.weights.embedding) for ranked in dense if any(dense)]
        order = fuse(lists)
        ranks = ({key: n for n, key in enumerate(keys, 1)} for keys in (_first(lexical), _first(dense)))
        passages = self._passages(order, asked.limit, similarity, *ranks)
        has_dense = asked.vectors is not None and bool(asked.has_vectors)
        mode: Mode = asked.mode if has_dense else "lexical"
        return SearchResult(tuple(passages), failures, mode)

    def _passages(
        self,
        order: Sequence[tuple[Key, float]],
        limit: int,
        similarity: dict[Key, float],
        lex_ranks: dict[Key, int],
        dense_ranks: dict[Key, int],
    ) -> list[Passage]:
        """The texts, without what is the same as one above it."""
        passages: list[Passage] = []
        seen: set[str] = set()
        for (store_id, id), score in order:
            if len(passages) == limit:
                break
            with suppress(sqlite3.Error), self.readers.take(store_id) as reader:
                found = reader.fetch([id]).get(id)
                if found is None or found.text in seen:
                    continue
                seen.add(found.text)
                key = (store_id, id)
                passages.append(
                    Passage(
                        chunk_id=f"{found.file_id}-{id & ((1 << POSITION_BITS) - 1)}",
                        file_id=found.file_id,
                        filename=found.filename,
                        text=found.text,
                        score=score,
                        vector_store_id=store_id,
                        attributes=found.attributes,
                        similarity=similarity.get(key),
                        lex_rank=lex_ranks.get(key),
                        dense_rank=dense_ranks.get(key),
                        char_start=found.char_start,
                        char_end=found.char_end,
                        title=found.title,
                    )
                )
        return passages

    def _analyzer(self) -> Analyzer:
        if not hasattr(self._analyzers, "one"):
            self._analyzers.one = Analyzer()
        analyzer: Analyzer = self._analyzers.one
        return analyzer


def _first(rankings: list[Ranked]) -> list[Key]:
    return [key for key, _ in rankings[0]] if rankings else []
