"""Hands out texts that wait for vectors, and takes the vectors: gateways, which have the embedding workers, come for them.

A batch that was handed out is not given to another gateway for `LEASE_S`; where it does not come back, it is handed out again.
Nothing of this needs to survive: which passages wait is in the stores' files.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from sluice.retrieval.storage import Storage
from sluice.retrieval.worklist import WorkList

LEASE_S = 120.0
BATCH = 32
LOOK_AHEAD = 512  # passages looked at to find some that nobody has


@dataclass(frozen=True, slots=True)
class Batch:
    """Texts of one store, to be embedded for this tenant."""

    store_id: str
    tenant: str
    ids: tuple[int, ...]
    texts: tuple[str, ...]


class VectorWork:
    """Only the event loop's tasks change the leases."""

    def __init__(self, storage: Storage, clock: Callable[[], float]) -> None:
        self._storage = storage
        self._clock = clock
        self._leases: dict[tuple[str, int], float] = {}  # until when
        self._files: dict[tuple[str, int], str] = {}  # of what is leased
        self._arrived = asyncio.Event()
        self._is_closed = False

    def close(self) -> None:
        """Who waits is sent away: the process ends."""
        self._is_closed = True
        self._arrived.set()

    def wake(self) -> None:
        """There are more texts."""
        self._arrived.set()

    async def take(self, model: str, *, wait_s: float) -> Batch | None:
        """The next batch for this model; None where none has come in `wait_s`."""
        try:
            async with asyncio.timeout(wait_s):
                while not self._is_closed:
                    self._arrived.clear()
                    if (batch := await self._next(model)) is not None:
                        return batch
                    await self._arrived.wait()
        except TimeoutError:
            pass
        return None

    def give_back(self, batch: Batch) -> None:
        """Whoever took it has gone before it got there."""
        self._released(batch.store_id, batch.ids)
        self._arrived.set()

    async def put(self, store_id: str, ids: Sequence[int], vectors: np.ndarray) -> None:
        """Raises `ValueError` for vectors that cannot be among those that the store has."""
        await self._storage.writer.put_vectors(store_id, ids, vectors)
        for file_id in self._released(store_id, ids):
            if not await self._storage.writer.num_awaiting(store_id, file_id):
                await self._complete(store_id, file_id)

    async def fail(self, store_id: str, ids: Sequence[int]) -> None:
        """The model refuses these texts: their files have failed, and stay findable by their words."""
        for file_id in self._released(store_id, ids):
            await self._storage.writer.waive_vectors(store_id, file_id)
            message = "The embedding model refused a part of the file; it can be found by its words only."
            await self._storage.work(WorkList.set_failed, store_id, file_id, "server_error", message)

    async def _next(self, model: str) -> Batch | None:
        now = self._clock()
        self._forget_late(now)
        for store_id, tenant in await self._storage.work(WorkList.stores_awaiting, model):
            rows = await self._storage.writer.awaiting(store_id, LOOK_AHEAD)
            free = [row for row in rows if (store_id, row[0]) not in self._leases][:BATCH]
            for id, file_id, _ in free:
                self._leases[store_id, id] = now + LEASE_S
                self._files[store_id, id] = file_id
            if free:
                return Batch(store_id, tenant, tuple(row[0] for row in free), tuple(row[2] for row in free))
            if not rows:
                await self._settle(store_id)
        return None

    async def _settle(self, store_id: str) -> None:
        """A process before us ended between the last vector and the word that the file is done."""
        for file_id in await self._storage.work(WorkList.parsed_unfinished, store_id):
            if not await self._storage.writer.num_awaiting(store_id, file_id):
                await self._complete(store_id, file_id)

    async def _complete(self, store_id: str, file_id: str) -> None:
        await self._storage.work(WorkList.set_completed, store_id, file_id)

    def _released(self, store_id: str, ids: Sequence[int]) -> set[str]:
        for id in ids:
            self._leases.pop((store_id, id), None)
        return {file_id for id in ids if (file_id := self._files.pop((store_id, id), None)) is not None}

    def _forget_late(self, now: float) -> None:
        for key in [key for key, until in self._leases.items() if until <= now]:
            del self._leases[key]
