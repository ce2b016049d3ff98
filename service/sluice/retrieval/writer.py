"""The writing side of the stores' files: one thread, one step at a time, the searching side told of each change."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import numpy as np

from sluice.retrieval.base import Attributes
from sluice.retrieval.embedded import Engine
from sluice.retrieval.passage_file import PassageFile, Piece
from sluice.retrieval.resident import Memory

MAX_OPEN = 16
Result = TypeVar("Result")


class Writer:
    """Puts and takes passages and vectors. Used by `with`. What an awaited method has done is on the disk."""

    def __init__(self, engine: Engine, memory: Memory) -> None:
        self._engine = engine
        self._memory = memory
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="write")
        self._open: OrderedDict[str, PassageFile] = OrderedDict()  # changed by that thread alone

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *exc: object) -> None:
        self._thread.submit(self._close_all).result()
        self._thread.shutdown()

    async def put(
        self,
        store_id: str,
        file_id: str,
        filename: str,
        attributes: Attributes,
        pieces: Sequence[Piece],
        *,
        awaits_vectors: bool,
    ) -> int:
        """Make these the file's passages, all at once. Returns how many there are."""

        def step(file: PassageFile) -> int:
            removed = file.span(file_id)
            count = file.put(file_id, filename, attributes, pieces, awaits_vectors=awaits_vectors)
            self._memory.removed(store_id, *removed)
            return count

        return await self._run(store_id, step)

    async def remove(self, store_id: str, file_id: str) -> int:
        """Take the file's passages out of store, index and memory. Returns how many there were."""

        def step(file: PassageFile) -> int:
            span = file.span(file_id)
            count = file.remove(file_id)
            self._memory.removed(store_id, *span)
            return count

        return await self._run(store_id, step) if self._exists(store_id) else 0

    async def set_attributes(self, store_id: str, file_id: str, attributes: Attributes) -> None:
        if self._exists(store_id):
            await self._run(store_id, lambda file: file.set_attributes(file_id, attributes))

    async def put_vectors(self, store_id: str, ids: Sequence[int], vectors: np.ndarray) -> None:
        """Keep the vectors, made as long as 1, of those passages that are still there and wait for one.

        Raises `ValueError` for vectors of another length than those of before, or that are not finite.
        """
        norms = np.linalg.norm(vectors, axis=1, keepdims=True)
        if not vectors.size or not np.isfinite(norms).all():
            raise ValueError("a vector is empty or not finite")
        unit = (vectors / np.maximum(norms, 1e-12)).astype(np.float32)

        def step(file: PassageFile) -> None:
            kept = set(file.put_vectors(ids, unit))
            chosen = [at for at, id in enumerate(ids) if id in kept]
            self._memory.add_vectors(store_id, np.array([ids[at] for at in chosen], np.int64), unit[chosen])

        if self._exists(store_id):
            await self._run(store_id, step)

    async def awaiting(self, store_id: str, limit: int) -> list[tuple[int, str, str]]:
        """Passages that wait for a vector: id, file id, text to embed."""
        return await self._run(store_id, lambda file: file.awaiting(limit)) if self._exists(store_id) else []

    async def num_awaiting(self, store_id: str, file_id: str) -> int:
        return await self._run(store_id, lambda file: file.num_awaiting(file_id)) if self._exists(store_id) else 0

    async def waive_vectors(self, store_id: str, file_id: str) -> None:
        if self._exists(store_id):
            await self._run(store_id, lambda file: file.waive_vectors(file_id))

    async def file_ids(self, store_id: str) -> set[str]:
        """The files that have passages here."""
        return await self._run(store_id, PassageFile.file_ids) if self._exists(store_id) else set()

    async def delete_store(self, store_id: str) -> None:
        """The store's file goes, with all that was in it."""
        await asyncio.get_running_loop().run_in_executor(self._thread, self._delete, store_id)

    def _delete(self, store_id: str) -> None:
        opened = self._open.pop(store_id, None)
        if opened is not None:
            opened.close()
        self._memory.forget(store_id)
        self._engine.readers.close(store_id)
        path = self._engine.path_of(store_id)
        for suffix in ("", "-wal", "-shm"):
            Path(f"{path}{suffix}").unlink(missing_ok=True)

    def _exists(self, store_id: str) -> bool:
        return self._engine.path_of(store_id).exists()

    async def _run(self, store_id: str, step: Callable[[PassageFile], Result]) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._step, store_id, step)

    def _step(self, store_id: str, step: Callable[[PassageFile], Result]) -> Result:
        file = self._open.pop(store_id, None) or PassageFile(self._engine.path_of(store_id))
        self._open[store_id] = file
        if len(self._open) > MAX_OPEN:
            self._open.popitem(last=False)[1].close()
        return step(file)

    def _close_all(self) -> None:
        while self._open:
            self._open.popitem()[1].close()
