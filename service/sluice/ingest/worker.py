"""Files are read in a process of their own, which has little memory and little time: a bad file stalls and breaks nothing else.

    parent                                          child
    Job (JSON line): path, name, sizes, limits  ->
                                                <-  some of the passages and their words, as they are made, and so on
                                                <-  what the whole has, or the error

Each answer is its length and then JSON. They come in parts so that the parent takes one in while the next is made. One file at
a time. The child's memory, and the CPU time of each file, are bounded by the kernel; what it sends is JSON, so that a child
that a file has taken over can only lie about that file. It ends with its parent, since its input ends then. A child that dies
is started again and gets the file once more; a file that two of them died of is unreadable.
"""

from __future__ import annotations

import asyncio
import fcntl
import gc
import os
import resource
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, Self

import orjson

from sluice.ingest.base import Limits, Unreadable
from sluice.ingest.cut import cut
from sluice.ingest.extract import extract
from sluice.retrieval.passage_file import Piece, indexed_words
from sluice.retrieval.tokens import Analyzer

HEAD_BYTES = 8
PART = 50  # passages
PIPE_BYTES = 1_048_576
REPLY_FACTOR = 16  # times the text that is allowed: passages overlap, and their words are sent beside them
NICENESS = 10
MAX_OPEN_FILES = 64
CHILD = "from sluice.ingest.worker import main; main()"


@dataclass(frozen=True, slots=True)
class Job:
    path: str
    filename: str
    max_tokens: int
    overlap_tokens: int


@dataclass(frozen=True, slots=True)
class Cut:
    """What a file became."""

    pieces: list[Piece]
    num_bytes: int  # of its text


class FileReader:
    """The parent's side: owns the child. Used by `async with`, which ends it. One file at a time."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._child: asyncio.subprocess.Process | None = None

    @property
    def child_pid(self) -> int | None:
        return self._child.pid if self._child is not None else None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.stop()

    async def read(self, job: Job) -> Cut:
        """Raises `Unreadable` for a file that cannot be read, or not within the limits."""
        try:
            return await self._attempt(job)
        except (OSError, asyncio.IncompleteReadError):
            await self.stop()
        try:
            return await self._attempt(job)
        except (OSError, asyncio.IncompleteReadError) as exc:
            await self.stop()
            raise Unreadable("invalid_file", "The file needs more memory or time than one file may take.") from exc

    async def _attempt(self, job: Job) -> Cut:
        child = await self._started()
        assert child.stdin is not None and child.stdout is not None
        try:
            async with asyncio.timeout(self._limits.time_s):
                child.stdin.write(orjson.dumps({**asdict(job), "limits": asdict(self._limits)}) + b"\n")
                await child.stdin.drain()
                return await self._reply(child.stdout)
        except TimeoutError as exc:
            await self.stop()
            raise Unreadable("invalid_file", f"The file could not be read within {self._limits.time_s:g} s.") from exc
        except Unreadable:
            raise
        except BaseException:
            await self.stop()
            raise

    async def _reply(self, source: asyncio.StreamReader) -> Cut:
        """All parts. Raises `Unreadable` where the last one is an error."""
        pieces: list[Piece] = []
        room = REPLY_FACTOR * self._limits.text_bytes + 1_048_576
        while True:
            size = int.from_bytes(await source.readexactly(HEAD_BYTES), "big")
            room -= size + HEAD_BYTES
            if room < 0:
                raise OSError("the reply is larger than any file's can be")
            part = orjson.loads(await source.readexactly(size))
            if "error" in part:
                raise Unreadable(*part["error"])
            if "num_bytes" in part:
                return Cut(pieces, part["num_bytes"])
            pieces += [Piece(*piece) for piece in part["pieces"]]

    async def _started(self) -> asyncio.subprocess.Process:
        if self._child is None or self._child.returncode is not None:
            self._child = await asyncio.create_subprocess_exec(
                *(sys.executable, "-c", CHILD),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.DEVNULL,
                limit=PIPE_BYTES,
            )
        return self._child

    async def stop(self) -> None:
        child, self._child = self._child, None
        if child is not None:
            if child.returncode is None:
                child.kill()
            await child.wait()


def main() -> None:
    """The child: file after file, until its input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.nice(NICENESS)
    resource.setrlimit(resource.RLIMIT_NOFILE, (MAX_OPEN_FILES, MAX_OPEN_FILES))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    gc.set_threshold(50_000)  # a file's passages are hundreds of thousands of objects and no circles
    with suppress(OSError):  # the next file need not wait until the parent has all of this one
        fcntl.fcntl(sys.stdout.fileno(), fcntl.F_SETPIPE_SZ, PIPE_BYTES)
    serve(sys.stdin.buffer, sys.stdout.buffer, _confine)


def serve(source: BinaryIO, sink: BinaryIO, confine: Callable[[Limits], None]) -> None:
    analyzer = Analyzer()
    for line in source:
        asked = orjson.loads(line)
        limits = Limits(**asked.pop("limits"))
        confine(limits)
        for part in _answered(Job(**asked), limits, analyzer):
            reply = orjson.dumps(part)
            sink.write(len(reply).to_bytes(HEAD_BYTES, "big") + reply)
            sink.flush()


def _confine(limits: Limits) -> None:
    """From here on this process may take so much memory, and until the next call so much CPU time."""
    resource.setrlimit(resource.RLIMIT_AS, (limits.memory_bytes, limits.memory_bytes))
    used = resource.getrusage(resource.RUSAGE_SELF)
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (int(used.ru_utime + used.ru_stime + limits.time_s) + 1, hard))


def _answered(job: Job, limits: Limits, analyzer: Analyzer) -> Iterator[dict[str, Any]]:
    try:
        text = extract(Path(job.path).read_bytes(), job.filename, limits)
        passages = cut(text, job.max_tokens, job.overlap_tokens)
        while part := list(islice(passages, PART)):
            yield {"pieces": [(*one, *indexed_words(analyzer, one.title, one.text)) for one in part]}
        yield {"num_bytes": len(text.text.encode())}
    except Unreadable as exc:
        yield {"error": (exc.code, exc.message)}
    except (MemoryError, RecursionError):
        yield {"error": ("invalid_file", "The file needs more memory than one file may take.")}
