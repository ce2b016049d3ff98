"""What the modules of this folder share: a worker process to run, who reads its log, who is told of it, and failure."""

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


class CannotStart(Exception):
    """It will never run, and the message says why and what to do: `sluice up` prints it and exits with 3.

    The message is one line; the last lines of a log may follow it.
    """


class LogReader(Protocol):
    """Reads what one kind of engine writes. `text` may begin anywhere and end anywhere."""

    def stage(self, text: str) -> str:
        """How far a start has come, in a few words."""

    def reason(self, text: str) -> str:
        """Why the process ended, in one line."""


@dataclass(frozen=True, slots=True)
class Job:
    """One worker process to keep running."""

    name: str
    command: tuple[str, ...]
    environment: Mapping[str, str]
    health_url: str
    log_path: Path
    reader: LogReader
    cpus: tuple[int, ...] = ()


class Notices(Protocol):
    """Is told what happens to the workers. Called on the loop: does not wait."""

    def launched(self, job: Job, pid: int) -> None:
        """The launcher of the job runs as `pid`, which is also the id of the session of all its processes."""

    def stage(self, job: Job, stage: str) -> None:
        """The worker is loading and has come to `stage`; told again and again."""

    def healthy(self, job: Job, after_s: float) -> None: ...

    def crashed(self, job: Job, line: str) -> None:
        """The worker has ended by itself. `line` says how, why, and when it is started again."""


class Clock(Protocol):
    def now(self) -> float:
        """Seconds since some moment; never goes back."""

    async def sleep(self, seconds: float) -> None: ...


class MonotonicClock:
    """The real one."""

    def now(self) -> float:
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
