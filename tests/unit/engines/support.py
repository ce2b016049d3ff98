"""For tests that run real child processes and wait for what happens, never for time to pass."""

import asyncio
import heapq
import os
import select
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

FAKE_ENGINE = Path(__file__).with_name("fake_engine.py")
# For what does happen; a test that reaches it has failed.
PATIENCE_S = 60.0


class Engine:
    """A fake engine that has started and does what it is told."""

    def __init__(self, pid: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.pid = pid
        self._reader = reader
        self._writer = writer

    def tell(self, line: str) -> None:
        self._writer.write(f"{line}\n".encode())

    async def ask(self, line: str) -> str:
        self.tell(line)
        async with asyncio.timeout(PATIENCE_S):
            return (await self._reader.readline()).decode().strip()

    def close(self) -> None:
        self._writer.close()


class Engines:
    """Where fake engines report."""

    def __init__(self, socket_path: Path) -> None:
        self.command = (sys.executable, "-I", "-S", str(FAKE_ENGINE), str(socket_path))
        self._started: asyncio.Queue[Engine] = asyncio.Queue()
        self._all: list[Engine] = []

    async def next(self) -> Engine:
        """The next one that starts."""
        async with asyncio.timeout(PATIENCE_S):
            return await self._started.get()

    async def _on_connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        engine = Engine(int(await reader.readline()), reader, writer)
        self._all.append(engine)
        self._started.put_nowait(engine)

    def close(self) -> None:
        for engine in self._all:
            engine.close()


@asynccontextmanager
async def engines_at(folder: Path) -> AsyncIterator[Engines]:
    path = folder / "s"
    engines = Engines(path)
    server = await asyncio.start_unix_server(engines._on_connect, path)
    try:
        yield engines
    finally:
        engines.close()
        server.close()


class VirtualClock:
    """Time that moves when the test moves it."""

    def __init__(self) -> None:
        self._now = 1000.0
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []
        self._slept = asyncio.Event()
        self.slept: list[float] = []

    def now(self) -> float:
        return self._now

    async def sleep(self, seconds: float) -> None:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (self._now + seconds, len(self.slept), future))
        self.slept.append(seconds)
        self._slept.set()
        await future

    async def someone_sleeps(self) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while not self._sleeping():
                self._slept.clear()
                await self._slept.wait()

    async def pass_by(self) -> None:
        """Once somebody sleeps, let the time pass for which the shortest sleeper wanted to sleep."""
        await self.someone_sleeps()
        at, _, future = heapq.heappop(self._sleepers)
        self._now = max(self._now, at)
        future.set_result(None)

    def jump(self, seconds: float) -> None:
        """Time passes and nobody is woken."""
        self._now += seconds

    def _sleeping(self) -> bool:
        while self._sleepers and self._sleepers[0][2].done():  # cancelled
            heapq.heappop(self._sleepers)
        return bool(self._sleepers)


def wait_until_gone(pid: int) -> None:
    """Returns when the process has ended, whoever's child it is; fails when it does not end."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        ended, _, _ = select.select([descriptor], [], [], PATIENCE_S)
        assert ended, f"process {pid} still runs"
    finally:
        os.close(descriptor)
