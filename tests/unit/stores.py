"""A storage in a folder of the test's own, with short ways to fill and to search it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np

from sluice.ingest.base import Text
from sluice.ingest.cut import cut
from sluice.retrieval.base import Filter, Mode, SearchResult, Weights
from sluice.retrieval.catalog import Attachment, Catalog, new_id
from sluice.retrieval.embedded import Asked
from sluice.retrieval.passage_file import Piece, indexed_words
from sluice.retrieval.storage import Storage
from sluice.retrieval.tokens import Analyzer
from sluice.retrieval.worklist import WorkList

MEMORY = 1 << 24


class Wall:
    """Unix time that stands still."""

    def __init__(self) -> None:
        self.now = 1_790_000_000.0

    def __call__(self) -> float:
        return self.now


class Filled:
    """A storage with short ways in."""

    def __init__(self, storage: Storage, wall: Wall) -> None:
        self.storage = storage
        self.wall = wall
        self._analyzer = Analyzer()

    async def new_store(self, tenant: str = "acme", model: str | None = None, **more: Any) -> str:
        settings: dict[str, Any] = {"name": "s", "description": None, "metadata": {}, "expires_days": None, **more}
        row = await self.storage.ask(Catalog.add_store, tenant, embedding_model=model, **settings)
        return str(row["id"])

    async def upload(self, content: str | bytes, tenant: str = "acme", filename: str = "a.md", **more: Any) -> str:
        file_id = new_id("file-")
        data = content.encode() if isinstance(content, str) else content
        (self.storage.uploads / file_id).write_bytes(data)
        row: dict[str, Any] = {"purpose": "assistants", "sha256": "0", "expires_s": None, **more}
        await self.storage.ask(Catalog.add_file, tenant, id=file_id, filename=filename, bytes=len(data), **row)
        return file_id

    async def put(
        self,
        store_id: str,
        content: str,
        *,
        tenant: str = "acme",
        vectors: Sequence[Sequence[float]] | None = None,
        attributes: dict[str, Any] | None = None,
        filename: str = "a.md",
        max_tokens: int = 400,
    ) -> str:
        """An upload that is in the store, as ingestion would have put it."""
        file_id = await self.upload(content, tenant, filename)
        attachment = Attachment(file_id, attributes or {}, max_tokens, 0)
        await self.storage.ask(Catalog.attach, tenant, store_id, attachment)
        writer = self.storage.writer
        pieces = self.pieces(content, max_tokens)
        await writer.put(store_id, file_id, filename, attributes or {}, pieces, awaits_vectors=vectors is not None)
        if vectors is not None:
            waiting = [row for row in await writer.awaiting(store_id, 10_000) if row[1] == file_id]
            await writer.put_vectors(store_id, [row[0] for row in waiting], np.array(vectors, np.float32))
        await self.storage.work(WorkList.set_parsed, store_id, file_id, usage_bytes=len(content), is_completed=True)
        return file_id

    def pieces(self, content: str, max_tokens: int = 400) -> list[Piece]:
        passages = cut(Text(content, True), max_tokens, 0)
        return [Piece(*one, *indexed_words(self._analyzer, one.title, one.text)) for one in passages]

    async def search(
        self,
        *stores: str,
        query: str | Sequence[str],
        vectors: Sequence[Sequence[float]] | None = None,
        mode: Mode = "hybrid",
        filters: Filter | None = None,
        limit: int = 10,
        weights: Weights = Weights(),  # noqa: B008  it is frozen
        timeout_s: float = 5,
    ) -> SearchResult:
        asked = Asked(
            stores=stores,
            queries=(query,) if isinstance(query, str) else tuple(query),
            vectors=None if vectors is None else np.array(vectors, np.float32),
            has_vectors=frozenset(stores) if vectors is not None else frozenset(),
            filters=filters,
            limit=limit,
            mode=mode,
            weights=weights,
        )
        return await self.storage.engine.search(asked, timeout_s=timeout_s)


def on_disk(folder: Path, needle: str) -> list[str]:
    """The files of the folder whose bytes hold the needle."""
    return [path.name for path in folder.rglob("*") if path.is_file() and needle.encode() in path.read_bytes()]


@asynccontextmanager
async def filled(folder: Path, *, wall: Wall | None = None, memory_bytes: int = MEMORY) -> AsyncIterator[Filled]:
    wall = wall or Wall()
    with Storage(folder, wall_clock=wall, memory_bytes=memory_bytes) as storage:
        yield Filled(storage, wall)
