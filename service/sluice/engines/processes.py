"""Which processes are ours: told by pid and start time, killed by session, remembered in a file.

A pid alone says nothing: the kernel gives it away again. A process is known by its pid and the moment it started, within
one boot. A session's id is the pid of its first process, and the kernel gives that pid to nobody else while any process
of the session lives: so when that first process is gone and its pid is not taken, whatever has the session's id is ours.
"""

import fcntl
import json
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from sluice.engines.base import CannotStart

PROC = Path("/proc")


@dataclass(frozen=True, slots=True)
class ProcessId:
    """One process, for ever: `started` is in clock ticks since `boot`."""

    pid: int
    started: int
    boot: str


@dataclass(frozen=True, slots=True)
class Status:
    state: str
    session: int
    started: int

    @property
    def is_alive(self) -> bool:
        return self.state not in "ZX"  # of a zombie only the exit code is left


def status(pid: int) -> Status | None:
    """What the kernel says of a process; None when there is none."""
    try:
        text = (PROC / str(pid) / "stat").read_text()
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()  # the name before it may hold anything
    return Status(state=fields[0], session=int(fields[3]), started=int(fields[19]))


def identify(pid: int) -> ProcessId | None:
    found = status(pid)
    return None if found is None else ProcessId(pid, found.started, boot_id())


def boot_id() -> str:
    return (PROC / "sys/kernel/random/boot_id").read_text().strip()


def session_members(session: int) -> list[int]:
    """The living processes of a session."""
    pids = [int(entry.name) for entry in PROC.iterdir() if entry.name.isdecimal()]
    return [pid for pid in pids if (found := status(pid)) and found.session == session and found.is_alive]


def kill_session(session: int, timeout_s: float = 5.0) -> int:
    """Kill every process of the session and wait until they are gone. Returns how many there were.

    The caller knows that the session is its own. A process that the kernel cannot end (waiting for a broken disk) is
    given up after the time-out.
    """
    killed: set[int] = set()
    deadline = time.monotonic() + timeout_s
    while (members := session_members(session)) and time.monotonic() < deadline:
        for pid in members:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        killed.update(members)
        time.sleep(0.01)
    return len(killed)


class RunFile:
    """The file that says which `sluice up` runs here and which sessions it started.

    It is locked while its owner lives, so there is one owner; the lock goes with the process, however it ends. What the
    file says after that is what may still be running.
    """

    def __init__(self, path: Path, descriptor: int) -> None:
        self._path = path
        self._descriptor = descriptor
        self._sessions: list[ProcessId] = []

    def add(self, pid: int) -> None:
        """Remember a session by its first process, and forget those that are over."""
        process = identify(pid)
        if process is not None:
            self._sessions = [*filter(_may_be_left, self._sessions), process]
            self._write()

    def _write(self) -> None:
        document = {"pid": os.getpid(), "sessions": [asdict(process) for process in self._sessions]}
        content = json.dumps(document).encode()
        os.pwrite(self._descriptor, content, 0)
        os.ftruncate(self._descriptor, len(content))


@contextmanager
def run_file(path: Path) -> Iterator[tuple[RunFile, int]]:
    """Become the one owner of `path`. Yields it and the number of processes that an owner before us had left behind.

    Raises `CannotStart` when another owner lives, or the file cannot be written. A file that is no record of ours is
    overwritten: nothing is killed for it.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as exc:
        raise CannotStart(f"{path} cannot be written: {exc.strerror}; take another --state-dir") from exc
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner, _ = _read(descriptor)
            raise CannotStart(f"`sluice up` runs here already (pid {owner}); stop it, or take another --state-dir") from None
        _, left = _read(descriptor)
        reaped = sum(kill_session(process.pid) for process in left if _may_be_left(process))
        file = RunFile(path, descriptor)
        file._write()
        yield file, reaped
        # Not after an exception: then the next owner looks for what may be left.
        os.ftruncate(descriptor, 0)
    finally:
        os.close(descriptor)


def _may_be_left(process: ProcessId) -> bool:
    """Whether a session may have members: its first process is there, or is gone while nobody else has its pid."""
    return identify(process.pid) in (process, None) and process.boot == boot_id()


def _read(descriptor: int) -> tuple[int | None, list[ProcessId]]:
    try:
        document = json.loads(os.pread(descriptor, 1_000_000, 0))
        return int(document["pid"]), [ProcessId(**entry) for entry in document["sessions"]]
    except (ValueError, TypeError, KeyError):
        return None, []
