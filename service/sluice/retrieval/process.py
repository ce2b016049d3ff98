"""The retrieval process as a gateway reaches it: a child of its own on a unix socket, or one that is shared, by URL.

The child is started when first needed: a gateway whose clients use neither files nor stores has none, and starts no slower. All
who need it wait for the one start, which goes on where they give up. It ends with its parent, since its input ends then; one
that dies is started again by the next request. Where another gateway on this machine has the folder already (the old one of a
restart, while it drains), its child is used as long as it lives.

Only this user can open the socket, which lies in the data folder: it is reached through the folder's descriptor, since the path
of a unix socket may have no more than 107 bytes.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol, Self

from sluice.config import Stores
from sluice.errors import RetrievalUnavailable
from sluice.http_json import HttpJson, HttpJsonError
from sluice.retrieval.wire import HEALTH_PATH

SOCKET = "retrieval.sock"
START_S = 20.0
POLL_S = 0.05
HEALTH_S = 2.0
RESTART_AFTER_S = 2.0  # a child that died at once is not started again at once
END_S = 10.0
CHILD = "from sluice.retrieval_app import main_child; main_child()"
HOST = "http://retrieval"
# Searches have threads of their own; those of the matrix library would fight them, and the streams, for the cores.
ONE_THREAD = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Reach:
    """How to speak to the process."""

    http: HttpJson
    url: str
    headers: dict[str, str]


class Process(Protocol):
    """Used by `async with`."""

    async def __aenter__(self) -> Self: ...
    async def __aexit__(self, *exc: object) -> None: ...

    async def reach(self) -> Reach:
        """Raises `RetrievalUnavailable` where it cannot be had."""

    def has_data(self) -> bool:
        """Whether there is anything that a process would have to go on with; a shared one always says so."""


def process_of(settings: Stores, token: str | None, clock: Callable[[], float]) -> Process:
    return SharedProcess(settings.url, token or "") if settings.url else ChildProcess(settings, clock)


class SharedProcess:
    """A `sluice retrieval` that somebody else runs."""

    def __init__(self, url: str, token: str) -> None:
        self._reach = Reach(HttpJson(), url, {"authorization": f"Bearer {token}"})

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._reach.http.__aexit__(None, None, None)

    async def reach(self) -> Reach:
        return self._reach

    def has_data(self) -> bool:
        return True


class ChildProcess:
    """One of our own."""

    def __init__(self, settings: Stores, clock: Callable[[], float]) -> None:
        self._settings = settings
        self._clock = clock
        self._starting: asyncio.Task[None] | None = None
        self._child: asyncio.subprocess.Process | None = None
        self._started_at = float("-inf")
        self._folder: int | None = None
        self._link: Reach | None = None  # how to speak to whoever listens there

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        if (starting := self._starting) is not None:
            starting.cancel()
            await asyncio.wait({starting})
        if self._link is not None:
            await self._link.http.__aexit__(None, None, None)
        if self._child is not None:
            await self._end(self._child)
        if self._folder is not None:
            os.close(self._folder)

    @property
    def pid(self) -> int | None:
        return self._child.pid if self._child is not None and self._child.returncode is None else None

    def has_data(self) -> bool:
        return (self._settings.path / "catalog.db").exists()

    async def reach(self) -> Reach:
        if self._starting is not None or self.pid is None:
            if self._starting is None:
                self._starting = asyncio.create_task(self._start())
                self._starting.add_done_callback(self._started)
            await asyncio.shield(self._starting)
        assert self._link is not None
        return self._link

    def _started(self, starting: asyncio.Task[None]) -> None:
        self._starting = None
        if not starting.cancelled():
            starting.exception()  # told to whoever still waits

    async def _start(self) -> None:
        if self._link is None:
            self._link = self._connected()
        if await _is_up(self._link):  # another gateway's
            return
        wait_s = self._started_at + RESTART_AFTER_S - self._clock()
        if wait_s > 0:
            raise RetrievalUnavailable("The retrieval process has just ended; try again.", retry_after_s=wait_s)
        self._started_at = self._clock()
        await self._launch(self._link)

    def _connected(self) -> Reach:
        try:
            self._settings.path.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._folder = os.open(self._settings.path, os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as exc:
            logger.error("retrieval: the folder %s cannot be used: %s", self._settings.path, exc.strerror)
            raise RetrievalUnavailable("Files and vector stores cannot be kept here now.") from exc
        return Reach(HttpJson(unix_socket=socket_path(self._folder)), HOST, {})

    async def _launch(self, reach: Reach) -> None:
        child = self._child = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", CHILD),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.DEVNULL,
            env=os.environ | ONE_THREAD,
        )
        assert child.stdin is not None
        named = self._settings.model_dump_json(include=set(Stores.model_fields))
        child.stdin.write(named.encode() + b"\n")
        with suppress(OSError):
            await child.stdin.drain()
        ends_at = self._clock() + START_S
        while child.returncode is None and self._clock() < ends_at:
            if await _is_up(reach):
                return
            await asyncio.sleep(POLL_S)
        logger.error("retrieval: the process did not start (%s)", child.returncode)
        await self._end(child)
        raise RetrievalUnavailable("The retrieval process did not start; the gateway's log says why.")

    async def _end(self, child: asyncio.subprocess.Process) -> None:
        """Its input ends, so it does; in time or by force."""
        assert child.stdin is not None
        child.stdin.close()
        try:
            await asyncio.wait_for(child.wait(), END_S)
        except TimeoutError:
            child.kill()
            await child.wait()


def socket_path(folder: int) -> str:
    return f"/proc/self/fd/{folder}/{SOCKET}"


async def _is_up(reach: Reach) -> bool:
    try:
        await reach.http.get_json(f"{reach.url}{HEALTH_PATH}", headers=reach.headers, timeout_s=HEALTH_S)
    except HttpJsonError:
        return False
    return True
