"""The access log: one JSON line a request, written by a thread, so that a slow reader of it never stalls a stream."""

from __future__ import annotations

import asyncio
import os
import queue
import select
import threading
from collections.abc import Callable
from typing import Any, Self

import orjson

FLUSH_S = 0.2
MAX_WAITING_BATCHES = 64
MAX_EXIT_S = 1.0  # twice: for a place in the queue, and for the last write


class AccessLog:
    """Lines are gathered for `FLUSH_S` and handed to the thread in one batch. When the file descriptor blocks for long, or
    nobody reads it any more, batches are dropped and counted by `on_dropped`; nothing waits. Used by `with`, which writes
    what is left at its end.
    """

    def __init__(self, fd: int, on_dropped: Callable[[int], None]) -> None:
        self._fd = fd
        self._on_dropped = on_dropped
        # What waits for the next flush. Not a list of lines: what orjson makes is a large block cut short, dear to keep.
        self._lines = bytearray()
        self._num_lines = 0
        self._timer: asyncio.TimerHandle | None = None
        self._batches: queue.Queue[bytes | None] = queue.Queue(MAX_WAITING_BATCHES)
        self._num_unwritten = 0  # lines; only the thread changes it
        self._num_told = 0  # of those
        self._thread = threading.Thread(target=self._run, name="access-log", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._flush()
        try:
            self._batches.put(None, timeout=MAX_EXIT_S)
        except queue.Full:
            return
        self._thread.join(timeout=MAX_EXIT_S)
        self._tell()

    def write(self, line: dict[str, Any]) -> None:
        self._lines += orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE)
        self._num_lines += 1
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(FLUSH_S, self._flush)

    def _flush(self) -> None:
        self._timer = None
        self._tell()
        if not self._lines:
            return
        try:
            self._batches.put_nowait(bytes(self._lines))
        except queue.Full:
            self._on_dropped(self._num_lines)
        self._lines.clear()
        self._num_lines = 0

    def _tell(self) -> None:
        num_unwritten = self._num_unwritten
        if num_unwritten > self._num_told:
            self._on_dropped(num_unwritten - self._num_told)
            self._num_told = num_unwritten

    def _run(self) -> None:
        while (batch := self._batches.get()) is not None:
            while batch:
                try:
                    batch = batch[os.write(self._fd, batch) :]
                except BlockingIOError:  # who shares the descriptor with us has made it so
                    select.select([], [self._fd], [])
                except OSError:
                    self._num_unwritten += batch.count(b"\n")
                    break
