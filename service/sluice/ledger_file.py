"""The ledger's files: one SQLite file a month and replica, written by one process, read by anybody at the same time.

A file that another program has broken is an `sqlite3.Error` for whoever opens it, and is left as it is.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterable, Sequence
from contextlib import closing
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any, NamedTuple

NAME = re.compile(r"usage-(\d{4}-\d{2})-(.+)\.sqlite")
BUSY_S = 5.0

GROUPS = ("tenant", "key", "user", "route", "worker", "day")
COLUMNS = (
    *("ended_at", "day", "id", "tenant", "key", "user", "route", "endpoint", "worker"),
    *("prompt_tokens", "cached_tokens", "completion_tokens", "exact", "tokens_wasted", "gpu_ms", "gpu_exact"),
    *("queue_ms", "first_event_ms", "duration_ms", "status", "code"),
)
SCHEMA = f"CREATE TABLE IF NOT EXISTS calls ({', '.join(COLUMNS)})"
INSERT = f"INSERT INTO calls VALUES ({', '.join('?' * len(COLUMNS))})"
SUMS = (
    ("calls", "count(*)"),
    ("prompt_tokens", "sum(prompt_tokens)"),
    ("cached_tokens", "sum(cached_tokens)"),
    ("completion_tokens", "sum(completion_tokens)"),
    ("tokens", "sum(prompt_tokens + completion_tokens)"),
    ("inexact_tokens", "sum(CASE WHEN exact THEN 0 ELSE prompt_tokens + completion_tokens END)"),
    ("tokens_wasted", "sum(tokens_wasted)"),
    ("gpu_seconds", "round(sum(gpu_ms) / 1000.0, 3)"),
    ("estimated_gpu_seconds", "round(sum(CASE WHEN gpu_exact THEN 0 ELSE gpu_ms END) / 1000.0, 3)"),
    ("errors", "sum(status >= 400)"),
)


class Report(NamedTuple):
    """Sums by group, and the replicas whose files they are taken from."""

    replicas: list[str]
    rows: list[dict[str, Any]]


def path_of(folder: Path, month: str, replica: str) -> Path:
    return folder / f"usage-{month}-{replica}.sqlite"


def connect(path: Path) -> sqlite3.Connection:
    """The file at `path`, for its one writer."""
    connection = sqlite3.connect(path, timeout=BUSY_S, isolation_level=None)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=NORMAL")
    connection.execute(SCHEMA)
    return connection


def write(connection: sqlite3.Connection, rows: Sequence[tuple[Any, ...]]) -> None:
    connection.execute("BEGIN")
    try:
        connection.executemany(INSERT, rows)
        connection.execute("COMMIT")
    except BaseException:
        connection.execute("ROLLBACK")
        raise


def forget_before(folder: Path, month: str, replica: str) -> None:
    """Delete this replica's files of months before that one."""
    for path in folder.glob("usage-*.sqlite"):
        found = NAME.fullmatch(path.name)
        if found and found[2] == replica and found[1] < month:
            for suffix in ("", "-wal", "-shm"):
                path.with_name(path.name + suffix).unlink(missing_ok=True)


def report(folder: Path, *, by: Sequence[str], since: date, until: date, tenant: str | None = None) -> Report:
    """What was used from the day `since` to the day `until`, both included, by these of `GROUPS`; of one tenant or of all.

    Blocks: not for the event loop. Raises `sqlite3.Error`.
    """
    assert set(by) <= set(GROUPS)
    merged: dict[tuple[Any, ...], dict[str, Any]] = {}
    replicas: set[str] = set()
    for path in sorted(folder.glob("usage-*.sqlite")):
        found = NAME.fullmatch(path.name)
        if found is None or not f"{since:%Y-%m}" <= found[1] <= f"{until:%Y-%m}":
            continue
        replicas.add(found[2])
        for row in _sums(path, by, since, until, tenant):
            _add(merged.setdefault(tuple(row[name] for name in by), {}), row, by)
    return Report(sorted(replicas), [merged[key] for key in sorted(merged, key=str)])


def _sums(path: Path, by: Sequence[str], since: date, until: date, tenant: str | None) -> Iterable[dict[str, Any]]:
    sums = ", ".join(f"{how} AS {name}" for name, how in SUMS)
    groups = ", ".join(f'"{name}"' for name in by)
    of_tenant = "" if tenant is None else " AND tenant = ?"
    query = f"SELECT {groups + ', ' if groups else ''}{sums} FROM calls WHERE day BETWEEN ? AND ?{of_tenant}"
    query += f" GROUP BY {groups}" if groups else ""
    asked = [since.isoformat(), until.isoformat(), *([] if tenant is None else [tenant])]
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=BUSY_S)) as connection:
        connection.row_factory = sqlite3.Row
        return [dict(row) for row in connection.execute(query, asked) if row["calls"]]


def _add(total: dict[str, Any], row: dict[str, Any], by: Sequence[str]) -> None:
    for name, value in row.items():
        total[name] = value if name in by else round(total.get(name, 0) + (value or 0), 3)


def day_of(now: float) -> str:
    return datetime.fromtimestamp(now, UTC).date().isoformat()
