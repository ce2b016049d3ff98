"""The local workers that a supervisor keeps running, which writes into a file who they are: `sluice up`.

The file is JSON, `{"ROUTE": {"URL": "identity of the process"}}`, replaced whole at every start of a process, so that a worker
that was started anew is known as a new one. A file that is missing or damaged keeps the last set.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import orjson

from sluice.config.base import WORKER_URL
from sluice.discovery.base import Discovery, Found

LOOK_EVERY_S = 0.5


def write_workers(path: Path, routes: Mapping[str, Mapping[str, str]]) -> None:
    """For the supervisor: the file as it should be from now on, at no moment half written."""
    fresh = path.with_name(f".{path.name}.new")
    fresh.write_bytes(orjson.dumps(routes, option=orjson.OPT_INDENT_2))
    fresh.replace(path)


class Roster:
    """The supervisor's side of the file: written now, and again at each start of a process."""

    def __init__(self, path: Path, routes: Mapping[str, Iterable[str]]) -> None:
        self._path = path
        self._routes = {route: dict.fromkeys(urls, "") for route, urls in routes.items()}
        write_workers(path, self._routes)

    def started(self, url: str, identity: str) -> None:
        for workers in self._routes.values():
            if url in workers:
                workers[url] = identity
        write_workers(self._path, self._routes)


class ManagedDiscovery(Discovery):
    is_certain = True  # its supervisor knows

    def __init__(
        self,
        name: str,
        route: str,
        path: Path,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[Any]] = asyncio.sleep,
    ) -> None:
        super().__init__(name, clock)
        self._route = route
        self._path = path
        self._sleep = sleep

    async def watch(self) -> AsyncGenerator[frozenset[Found], None]:
        seen: tuple[int, int] | None = None
        while True:
            try:
                status = os.stat(self._path)
                stamp = status.st_mtime_ns, status.st_ino
                if stamp != seen:
                    found = _read(self._path.read_bytes(), self._route)
                    seen = stamp
                    yield found
                self.confirmed()
            except (OSError, ValueError) as exc:
                self.failed(f"{self._path}: {exc.strerror if isinstance(exc, OSError) else exc}")
            await self._sleep(LOOK_EVERY_S)


def _read(text: bytes, route: str) -> frozenset[Found]:
    routes = orjson.loads(text)
    workers = routes.get(route, {}) if isinstance(routes, dict) else None
    if not isinstance(workers, dict) or not all(isinstance(identity, str) for identity in workers.values()):
        raise ValueError("is not the file of a supervisor")
    if bad := [url for url in workers if not (url.startswith("http://") and WORKER_URL.fullmatch(url))]:
        raise ValueError(f"{bad[0]!r} is not the URL of a local worker")
    return frozenset(Found(url, identity) for url, identity in workers.items())
