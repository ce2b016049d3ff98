"""Takes file after file from the work list: read in the child, written to its store, and reported done only then.

A restart in the middle of a file does it again from the start: its passages are replaced, never doubled. Vectors come from
outside (`Vectors`): the gateways, which have the embedding workers, fetch texts and bring vectors.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from sluice.ingest.base import Unreadable
from sluice.ingest.worker import Cut, FileReader, Job
from sluice.retrieval.storage import Storage, attributes_of
from sluice.retrieval.worklist import WorkList

RETRY_S = 5.0
MAX_ATTEMPTS = 5
EXPIRE_EVERY_S = 600.0

logger = logging.getLogger(__name__)


class Ingestion:
    """The loop over files. `wake` it when there is one more."""

    def __init__(
        self,
        storage: Storage,
        reader: FileReader,
        *,
        on_parsed: Callable[[], None] = lambda: None,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        self._storage = storage
        self._reader = reader
        self._on_parsed = on_parsed
        self._sleep = sleep
        self._woken = asyncio.Event()
        self._attempts: dict[tuple[str, str], int] = {}
        self._last_tenant = ""

    def wake(self) -> None:
        self._woken.set()

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            self._woken.clear()
            await self.drain()
            await self._woken.wait()

    async def run_expiry(self) -> None:
        """Until cancelled: what has expired goes."""
        while True:
            await self._storage.expire()
            await self._sleep(EXPIRE_EVERY_S)

    async def drain(self) -> None:
        """All files that wait now, the tenants taking turns. While one is written, the next is read."""
        current = await self._begin()
        try:
            while current is not None:
                row, reading = current
                await asyncio.wait({reading})
                current = await self._begin(but=row)
                await self._finish(row, reading)
                current = current or await self._begin()
        finally:
            if current is not None:
                current[1].cancel()
                await asyncio.wait({current[1]})

    async def _begin(self, but: dict[str, Any] | None = None) -> tuple[dict[str, Any], asyncio.Task[Cut]] | None:
        """Start to read the next file, which is not `but`; None where there is none."""
        key = ("", "") if but is None else (but["store_id"], but["id"])
        row = await self._storage.work(WorkList.next_to_parse, self._last_tenant, key)
        if row is None:
            return None
        self._last_tenant = row["tenant"]
        job = Job(str(self._storage.uploads / row["id"]), row["filename"], row["max_tokens"], row["overlap_tokens"])
        return row, asyncio.create_task(self._reader.read(job))

    async def _finish(self, row: dict[str, Any], reading: asyncio.Task[Cut]) -> None:
        key = (row["store_id"], row["id"])
        try:
            await self._write(row, reading.result())
        except Unreadable as exc:
            await self._failed(key, exc.code, exc.message)
        except Exception:  # noqa: BLE001  a full disk, or a bug of ours: the other files must not wait for it
            await self._try_later(key)
        else:
            self._attempts.pop(key, None)

    async def _write(self, row: dict[str, Any], cut: Cut) -> None:
        store_id, file_id = row["store_id"], row["id"]
        awaits_vectors = row["embedding_model"] is not None and bool(cut.pieces)
        attributes = attributes_of(row["attributes"])
        await self._storage.writer.put(
            store_id, file_id, row["filename"], attributes, cut.pieces, awaits_vectors=awaits_vectors
        )
        current = await self._storage.work(
            WorkList.set_parsed, store_id, file_id, usage_bytes=cut.num_bytes, is_completed=not awaits_vectors
        )
        if current is None:
            await self._storage.drop(store_id, file_id)
            return
        if current != row["attributes"]:
            await self._storage.writer.set_attributes(store_id, file_id, attributes_of(current))
        if awaits_vectors:
            self._on_parsed()

    async def _failed(self, key: tuple[str, str], code: str, message: str) -> None:
        self._attempts.pop(key, None)
        await self._storage.work(WorkList.set_failed, *key, code, message)

    async def _try_later(self, key: tuple[str, str]) -> None:
        """Our own fault, a full disk say: tried again, and given up in the end."""
        attempts = self._attempts[key] = self._attempts.get(key, 0) + 1
        logger.exception("ingestion: file %s of %s failed, attempt %d", key[1], key[0], attempts)
        if attempts >= MAX_ATTEMPTS:
            await self._failed(key, "server_error", "The file could not be stored; try it again later.")
        else:
            await self._sleep(RETRY_S)
