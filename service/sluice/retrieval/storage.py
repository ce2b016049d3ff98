"""Everything that is kept: the catalogue, the uploaded files, and the stores' passages, in one folder that one process owns.

    catalog.db    what there is (catalog.py)
    files/ID      uploads as they came
    stores/ID.db  passages (passages.py)
    lock          held while the process lives

What is deleted in several places is marked first and finished at the next start if need be; what no row knows is swept away.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import sqlite3
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Concatenate, ParamSpec, TypeVar

from sluice.retrieval.catalog import Catalog
from sluice.retrieval.embedded import Engine
from sluice.retrieval.lexicon import Bounds
from sluice.retrieval.resident import Memory
from sluice.retrieval.worklist import WorkList
from sluice.retrieval.writer import Writer

MAX_WARM = 32
Given = ParamSpec("Given")
Result = TypeVar("Result")


class Taken(Exception):
    """Another process has the folder."""


class Storage:
    """One folder. Used by `with`, which raises `Taken` where another process has it."""

    def __init__(
        self,
        folder: Path,
        *,
        wall_clock: Callable[[], float],
        memory_bytes: int,
        bounds: Bounds = Bounds(),  # noqa: B008  it is frozen
    ) -> None:
        self.folder = folder
        self.uploads = folder / "files"
        self._wall_clock = wall_clock
        self._memory = Memory(memory_bytes, bounds)
        self._stack = ExitStack()

    def __enter__(self) -> Storage:
        with self._stack:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._stack.enter_context(_locked(self.folder / "lock"))
            self.uploads.mkdir(exist_ok=True)
            self._catalog = self._stack.enter_context(Catalog(self.folder / "catalog.db", self._wall_clock))
            self._thread = self._stack.enter_context(ThreadPoolExecutor(1, thread_name_prefix="catalog"))
            self.engine = self._stack.enter_context(Engine(self.folder / "stores", memory=self._memory))
            self.writer = self._stack.enter_context(Writer(self.engine, self._memory))
            self._stack = self._stack.pop_all()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.close()

    async def ask(
        self, question: Callable[Concatenate[Catalog, Given], Result], *args: Given.args, **kwargs: Given.kwargs
    ) -> Result:
        """What the catalogue says, asked on its thread: `await storage.ask(Catalog.file, tenant, file_id)`."""
        step = partial(question, self._catalog, *args, **kwargs)
        return await asyncio.get_running_loop().run_in_executor(self._thread, step)

    async def work(
        self, question: Callable[Concatenate[WorkList, Given], Result], *args: Given.args, **kwargs: Given.kwargs
    ) -> Result:
        """The same of the work list."""
        step = partial(question, self._catalog.work, *args, **kwargs)
        return await asyncio.get_running_loop().run_in_executor(self._thread, step)

    # What touches more than the catalogue

    async def delete_file(self, tenant: str, file_id: str) -> None:
        """The upload, and its passages in every store that it is in."""
        await self.ask(Catalog.file, tenant, file_id)
        for store_id in await self.ask(Catalog.stores_with, tenant, file_id):
            await self.detach(tenant, store_id, file_id)
        (self.uploads / file_id).unlink(missing_ok=True)
        await self.ask(Catalog.forget_file, tenant, file_id)

    async def detach(self, tenant: str, store_id: str, file_id: str) -> None:
        """Take a file out of a store."""
        await self.ask(Catalog.mark_deleting, tenant, store_id, file_id)
        await self._finish_detaching(tenant, store_id, file_id)

    async def _finish_detaching(self, tenant: str, store_id: str, file_id: str) -> None:
        await self.writer.remove(store_id, file_id)
        await self.ask(Catalog.forget_store_file, tenant, store_id, file_id)

    async def delete_store(self, tenant: str, store_id: str) -> None:
        await self.ask(Catalog.forget_store, tenant, store_id)
        await self.writer.delete_store(store_id)

    async def set_attributes(self, tenant: str, store_id: str, file_id: str, attributes: dict[str, str | float | bool]) -> None:
        await self.ask(Catalog.set_attributes, tenant, store_id, file_id, attributes)
        await self.writer.set_attributes(store_id, file_id, attributes)

    async def tidy(self) -> None:
        """Finish what a process before us had begun, and take away what no row of the catalogue knows."""
        for tenant, store_id, file_id in await self.work(WorkList.unfinished_deletions):
            await self._finish_detaching(tenant, store_id, file_id)
        files, stores = await self.work(WorkList.known_ids)
        for path in self.uploads.iterdir():
            if path.name not in files:
                path.unlink()
        for path in (self.folder / "stores").glob("*.db"):
            if path.stem not in stores:
                await self.writer.delete_store(path.stem)
            else:
                await self._tidy_store(path.stem)

    async def _tidy_store(self, store_id: str) -> None:
        wanted = await self.work(WorkList.files_of, store_id)
        for file_id in await self.writer.file_ids(store_id) - wanted:
            await self.writer.remove(store_id, file_id)

    async def drop(self, store_id: str, file_id: str) -> None:
        """Take passages away that were written while their file, or its store, was deleted."""
        _, stores = await self.work(WorkList.known_ids)
        if store_id in stores:
            await self.writer.remove(store_id, file_id)
        else:
            await self.writer.delete_store(store_id)

    async def warm(self) -> None:
        """Load the stores that were used last, so that the first searches after a start need not wait for it."""
        with suppress(sqlite3.Error):  # a broken one says so when it is searched
            await self.engine.warm(await self.work(WorkList.last_used, MAX_WARM))

    async def expire(self) -> None:
        """Delete the files whose time is over, and what is in the stores whose time is over."""
        files, stores = await self.work(WorkList.expired)
        for tenant, file_id in files:
            await self.delete_file(tenant, file_id)
        for _, store_id in stores:
            if self.engine.path_of(store_id).exists():
                await self.writer.delete_store(store_id)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as exc:
            raise Taken from exc
        yield
    finally:
        os.close(descriptor)


def attributes_of(text: str) -> dict[str, str | float | bool]:
    """Attributes as a row has them."""
    found: dict[str, str | float | bool] = json.loads(text)
    return found
