"""The ledger: one row for each call that was settled, written by a thread, so that no call ever waits for a disk.

Rows are gathered for `FLUSH_S` and written in one transaction. While the disk is full, slow or gone they wait in memory, up to
a bound; beyond it the oldest are lost, counted and said in the log. At its end everything that waits is written first.
"""

from __future__ import annotations

import logging
import queue
import sqlite3
import threading
from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

from sluice import ledger_file
from sluice.types import Call, Outcome

FLUSH_S = 0.25
RETRY_S = 1.0
MAX_WAITING = 500_000
MAX_ROWS = 5000  # in one transaction
EXIT_S = 10.0

logger = logging.getLogger("sluice.usage")


class Ledger:
    """Used by `with`. Rows go through a queue that is never full; only the thread touches the file."""

    def __init__(self, folder: Path, replica: str, *, keep_months: int, wall_clock: Callable[[], float]) -> None:
        """Raises `OSError` where the folder cannot be made, `sqlite3.Error` where the file cannot be written."""
        self.folder = folder
        self.replica = replica
        self.num_lost = 0
        self._keep_months = keep_months
        self._wall_clock = wall_clock
        self._rows: queue.SimpleQueue[tuple[float, tuple[str, ...], Outcome] | None] = queue.SimpleQueue()
        self._waiting: deque[tuple[Any, ...]] = deque()  # the thread's own
        self._is_ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name="ledger", daemon=True)
        folder.mkdir(parents=True, exist_ok=True)
        ledger_file.connect(ledger_file.path_of(folder, self._month(wall_clock()), replica)).close()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._is_ending.set()
        self._rows.put(None)
        self._thread.join(timeout=EXIT_S)

    def call_ended(self, call: Call, outcome: Outcome) -> None:
        """Costs a microsecond or two; everything else is the thread's. What no worker was sent is no row."""
        if not outcome.attempts:
            return
        tenant = call.tenant
        names = call.id, tenant.name, tenant.key_id, call.user, call.route, call.endpoint
        self._rows.put((self._wall_clock(), names, outcome))

    def _run(self) -> None:
        is_over = False
        while not is_over or self._waiting:
            is_over = self._gather() or is_over
            try:
                self._write()
            except (sqlite3.Error, OSError) as exc:
                self._bound(exc)
                if is_over:
                    self.num_lost += len(self._waiting)
                    return
                self._is_ending.wait(RETRY_S)

    def _gather(self) -> bool:
        """Take what has come; True where the end has."""
        if not self._waiting:
            first = self._rows.get()
            if first is None:
                return True
            self._waiting.append(_row(*first))
            self._is_ending.wait(FLUSH_S)
        while not self._rows.empty():
            row = self._rows.get()
            if row is None:
                return True
            self._waiting.append(_row(*row))
        return False

    def _write(self) -> None:
        while self._waiting:
            month = self._month(self._waiting[0][0])
            batch: list[tuple[Any, ...]] = []
            for row in self._waiting:
                if len(batch) == MAX_ROWS or self._month(row[0]) != month:
                    break
                batch.append(row)
            path = ledger_file.path_of(self.folder, month, self.replica)
            if not path.exists():
                ledger_file.forget_before(self.folder, _months_before(month, self._keep_months - 1), self.replica)
            connection = ledger_file.connect(path)
            try:
                ledger_file.write(connection, batch)
            finally:
                connection.close()
            for _ in batch:
                self._waiting.popleft()

    def _bound(self, exc: Exception) -> None:
        num_too_many = max(0, len(self._waiting) - MAX_WAITING)
        for _ in range(num_too_many):
            self._waiting.popleft()
        self.num_lost += num_too_many
        logger.error("ledger: %d rows wait and %d are lost: %s", len(self._waiting), self.num_lost, exc)

    @staticmethod
    def _month(now: float) -> str:
        return f"{datetime.fromtimestamp(now, UTC):%Y-%m}"


def _row(now: float, names: tuple[str, ...], outcome: Outcome) -> tuple[Any, ...]:
    usage = outcome.usage
    return (
        round(now, 3),
        ledger_file.day_of(now),
        *map(str, names),
        outcome.worker or "",
        usage.prompt_tokens,
        usage.cached_tokens,
        usage.completion_tokens,
        int(usage.exact),
        outcome.tokens_wasted,
        outcome.gpu_ms,
        int(outcome.gpu_exact),
        _ms(outcome.queued_s),
        _ms(outcome.first_event_s),
        _ms(outcome.duration_s),
        outcome.status,
        outcome.code or "",
    )


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1000, 3)


def _months_before(month: str, number: int) -> str:
    year, one = int(month[:4]), int(month[5:])
    months = year * 12 + one - 1 - number
    return f"{months // 12:04}-{months % 12 + 1:02}"
