"""Keep local workers running: start each, wait for its health, start again what dies, end all at the end.

Every worker runs below the launcher (launcher.py), so that its processes end with it and with us. A worker that ends
before it was ever healthy will not start at all, and neither will one that crashes `MAX_CRASHES` times within
`CRASH_WINDOW_S`: that is `CannotStart`, with the reason out of its log, and all the others are ended too.
"""

import asyncio
import signal
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from sluice.engines.base import CannotStart, Clock, Job, Notices

LAUNCHER = Path(__file__).with_name("launcher.py")
POLL_S = 0.25
START_TIMEOUT_S = 1800.0
MAX_CRASHES = 5
CRASH_WINDOW_S = 600.0
MAX_BACK_OFF_S = 30.0
TAIL_LINES = 15
TAIL_BYTES = 65_536


class Supervisor:
    """Runs jobs. `kill_session` is given the pid of a launcher that was itself killed."""

    def __init__(
        self,
        jobs: Sequence[Job],
        *,
        is_healthy: Callable[[str], Awaitable[bool]],
        kill_session: Callable[[int], object],
        notices: Notices,
        clock: Clock,
        grace_s: float = 8.0,
    ) -> None:
        self._jobs = tuple(jobs)
        self._is_healthy = is_healthy
        self._kill_session = kill_session
        self._notices = notices
        self._clock = clock
        self._grace_s = grace_s
        self._were_healthy = {job.name: asyncio.Event() for job in jobs}

    async def all_were_healthy(self) -> None:
        """Waits until every worker has been healthy once."""
        for event in self._were_healthy.values():
            await event.wait()

    async def run(self) -> None:
        """Until cancelled, or until a worker is given up; no process is left then."""
        try:
            async with asyncio.TaskGroup() as group:
                for job in self._jobs:
                    group.create_task(self._keep(job))
        except BaseExceptionGroup as failures:
            given_up, others = failures.split(CannotStart)
            if given_up is None or others is not None:
                raise
            first = given_up.exceptions[0]
            raise first from first.__cause__

    async def _keep(self, job: Job) -> None:
        was_healthy = self._were_healthy[job.name]
        crashed_at: deque[float] = deque(maxlen=MAX_CRASHES)
        while True:
            log = Log(job.log_path)
            exit_code = await self._run_once(job, log)
            reason = f"{ended_how(exit_code)}: {job.reader.reason(log.text())}"
            now = self._clock.now()
            crashed_at.append(now)
            if not was_healthy.is_set():
                raise CannotStart(f"{job.name} ended while it was loading, {reason}\n{log.tail()}")
            if len(crashed_at) == MAX_CRASHES and now - crashed_at[0] <= CRASH_WINDOW_S:
                said = (
                    f"{job.name} crashed {MAX_CRASHES} times within {CRASH_WINDOW_S / 60:.0f} minutes, the last time {reason}"
                )
                raise CannotStart(f"{said}\n{log.tail()}")
            recent = sum(now - at <= CRASH_WINDOW_S for at in crashed_at)
            wait_s = min(MAX_BACK_OFF_S, 2.0 ** (recent - 1))
            self._notices.crashed(job, f"{job.name} {reason}; starting it again in {wait_s:.0f} s ({job.log_path})")
            await self._clock.sleep(wait_s)

    async def _run_once(self, job: Job, log: "Log") -> int:
        """Start the worker and wait until it ends."""
        async with self._launched(job) as process:
            ended = asyncio.create_task(process.wait())
            try:
                await self._follow_start(job, log, ended)
                return await ended
            finally:
                ended.cancel()

    async def _follow_start(self, job: Job, log: "Log", ended: "asyncio.Task[int]") -> None:
        """Until the worker is healthy or has ended."""
        started_at = self._clock.now()
        while not ended.done():
            after_s = self._clock.now() - started_at
            if await self._is_healthy(job.health_url):
                self._were_healthy[job.name].set()
                self._notices.healthy(job, after_s)
                return
            if after_s > START_TIMEOUT_S:
                raise CannotStart(f"{job.name} was not healthy after {after_s / 60:.0f} minutes\n{log.tail()}")
            self._notices.stage(job, job.reader.stage(log.text()))
            pause = asyncio.create_task(self._clock.sleep(POLL_S))
            await asyncio.wait({ended, pause}, return_when=asyncio.FIRST_COMPLETED)
            pause.cancel()

    @asynccontextmanager
    async def _launched(self, job: Job) -> AsyncIterator[Process]:
        options = ["--log", str(job.log_path), "--grace-s", str(self._grace_s)]
        options += ["--cpus", ",".join(map(str, job.cpus))] if job.cpus else []
        command = [sys.executable, "-I", "-S", str(LAUNCHER), *options, "--", *job.command]
        process = await asyncio.create_subprocess_exec(*command, env=job.environment, stdin=PIPE, stdout=DEVNULL)
        try:
            self._notices.launched(job, process.pid)
            yield process
        finally:
            await asyncio.shield(self._end(process))

    async def _end(self, process: Process) -> None:
        """Ask the worker to end; the launcher kills it after the grace, and we the launcher if even that fails."""
        if process.returncode is None:
            with suppress(ProcessLookupError):
                process.send_signal(signal.SIGTERM)
            try:
                await asyncio.wait_for(process.wait(), 1.5 * self._grace_s)
            except TimeoutError:
                process.kill()
                await process.wait()
        if process.returncode == -signal.SIGKILL:
            await asyncio.to_thread(self._kill_session, process.pid)


class Log:
    """What one run of a worker writes into the log file that all its runs share."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._start = path.stat().st_size if path.exists() else 0

    def text(self) -> str:
        """All of it, or its end when it is long."""
        try:
            with self._path.open("rb") as file:
                size = file.seek(0, 2)
                file.seek(max(self._start, size - TAIL_BYTES))
                return file.read().decode(errors="replace")
        except FileNotFoundError:
            return ""

    def tail(self) -> str:
        lines = [line for line in self.text().splitlines() if line.strip()][-TAIL_LINES:]
        return "\n".join([f"The end of {self._path}:", *(f"  {line}" for line in lines)])


def ended_how(exit_code: int) -> str:
    """A launcher's exit code: the worker's own, 128 + n for a signal, negative when the launcher itself was killed."""
    number = exit_code - 128 if exit_code > 128 else -exit_code
    if number not in set(signal.Signals):
        return f"exit code {exit_code}"
    name = signal.Signals(number).name
    return f"killed by {name}" + (" (out of memory?)" if number == signal.SIGKILL else "")
