"""The ledger: what is kept of each call, that nothing of it is lost, and how it adds up."""

import sqlite3
import threading
from dataclasses import replace
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pytest

from sluice import ledger_file, usage
from sluice.ledger_file import report
from sluice.types import Call, Endpoint, Outcome, Tenant, Usage
from sluice.usage import Ledger

NOON = datetime(2026, 11, 25, 12, tzinfo=UTC).timestamp()
DAY = 86_400
NOVEMBER = {"since": date(2026, 11, 1), "until": date(2026, 11, 30)}


class Clock:
    def __init__(self) -> None:
        self.time = NOON

    def __call__(self) -> float:
        return self.time


@pytest.fixture
def clock() -> Clock:
    return Clock()


def keeping(folder: Path, clock: Clock, replica: str = "one", **more: Any) -> Ledger:
    return Ledger(folder, replica, **({"keep_months": 13, "wall_clock": clock} | more))


def call(tenant: str = "acme", key: str = "k1", route: str = "llama", user: str = "") -> Call:
    return Call("req-1", Tenant(tenant, key), route, Endpoint.CHAT, "/v1/chat/completions", user=user, body=b"secret")


def outcome(prompt: int = 10, completion: int = 5, *, exact: bool = True, **more: Any) -> Outcome:
    told = {"worker": "http://w", "attempts": 1, "gpu_ms": 1500.0, "gpu_exact": exact, "duration_s": 0.25} | more
    return Outcome(200, usage=Usage(prompt, completion, 2, exact), **told)


def rows(folder: Path) -> list[sqlite3.Row]:
    found = []
    for path in sorted(folder.glob("*.sqlite")):
        connection = sqlite3.connect(path)
        connection.row_factory = sqlite3.Row
        found += connection.execute("SELECT * FROM calls").fetchall()
        connection.close()
    return found


def test_a_row_says_who_where_what_and_how_long_and_nothing_of_what_was_said(tmp_path: Path, clock: Clock):
    with keeping(tmp_path, clock) as ledger:
        ended = outcome(tokens_wasted=7, queued_s=0.1, first_event_s=0.2, code="client_left")
        ledger.call_ended(call(user="ada"), replace(ended, status=499))

    [row] = rows(tmp_path)
    assert dict(row) == {
        "ended_at": NOON,
        "day": "2026-11-25",
        "id": "req-1",
        "tenant": "acme",
        "key": "k1",
        "user": "ada",
        "route": "llama",
        "endpoint": "/v1/chat/completions",
        "worker": "http://w",
        "prompt_tokens": 10,
        "cached_tokens": 2,
        "completion_tokens": 5,
        "exact": 1,
        "tokens_wasted": 7,
        "gpu_ms": 1500.0,
        "gpu_exact": 1,
        "queue_ms": 100.0,
        "first_event_ms": 200.0,
        "duration_ms": 250.0,
        "status": 499,
        "code": "client_left",
    }
    assert b"secret" not in b"".join(path.read_bytes() for path in tmp_path.iterdir())


def test_everything_is_written_before_the_end(tmp_path: Path, clock: Clock):
    with keeping(tmp_path, clock) as ledger:
        for _ in range(12_345):
            ledger.call_ended(call(), outcome())

    assert len(rows(tmp_path)) == 12_345 and ledger.num_lost == 0


def test_what_no_worker_was_sent_is_no_row(tmp_path: Path, clock: Clock):
    with keeping(tmp_path, clock) as ledger:
        ledger.call_ended(call(), outcome(attempts=0))

    assert rows(tmp_path) == []


def test_a_month_has_a_file_of_its_own_and_old_ones_of_this_replica_go(tmp_path: Path, clock: Clock):
    for replica in ("one", "two"):
        with keeping(tmp_path, clock, replica) as ledger:
            ledger.call_ended(call(), outcome())
    clock.time += 10 * DAY
    with keeping(tmp_path, clock, keep_months=1) as ledger:
        ledger.call_ended(call(), outcome())
        clock.time += 31 * DAY
        ledger.call_ended(call(), outcome())

    names = sorted(path.name for path in tmp_path.glob("*.sqlite"))
    assert names == ["usage-2026-11-two.sqlite", "usage-2027-01-one.sqlite"]


def test_a_disk_that_is_full_for_a_while_loses_nothing(tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch):
    """The disk is played by a writer that fails twice, as SQLite's does."""
    monkeypatch.setattr(usage, "RETRY_S", 0.001)
    write, failures = ledger_file.write, iter([1, 2])
    tried = threading.Event()

    def failing(connection: sqlite3.Connection, batch: Any) -> None:
        if next(failures, None):
            raise sqlite3.OperationalError("database or disk is full")
        write(connection, batch)
        tried.set()

    monkeypatch.setattr(ledger_file, "write", failing)
    with keeping(tmp_path, clock) as ledger:
        ledger.call_ended(call(), outcome())
        assert tried.wait(10)

    assert len(rows(tmp_path)) == 1 and ledger.num_lost == 0


def test_what_cannot_be_written_is_bounded_and_counted(tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(usage, "MAX_WAITING", 10)
    ledger = keeping(tmp_path, clock)
    ledger_file.path_of(tmp_path, "2026-11", "one").write_bytes(b"this is no database, whatever its name says" * 100)
    with ledger:
        for _ in range(25):
            ledger.call_ended(call(), outcome())

    assert ledger.num_lost == 25


def test_a_folder_that_cannot_be_made_is_noticed_at_the_start(tmp_path: Path, clock: Clock):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError):
        keeping(tmp_path / "file", clock)


def test_sums_are_told_by_group_over_all_replicas(tmp_path: Path, clock: Clock):
    with keeping(tmp_path, clock) as one, keeping(tmp_path, clock, "two") as two:
        one.call_ended(call(), outcome(10, 5))
        one.call_ended(call("globex", "k2"), outcome(1, 1, exact=False))
        two.call_ended(call(route="phi"), replace(outcome(20, 6, exact=False, tokens_wasted=3), status=502))

    by_tenant = report(tmp_path, by=["tenant"], **NOVEMBER)
    assert by_tenant.replicas == ["one", "two"]
    assert by_tenant.rows == [
        {
            "tenant": "acme",
            "calls": 2,
            "prompt_tokens": 30,
            "cached_tokens": 4,
            "completion_tokens": 11,
            "tokens": 41,
            "inexact_tokens": 26,
            "tokens_wasted": 3,
            "gpu_seconds": 3.0,
            "estimated_gpu_seconds": 1.5,
            "errors": 1,
        },
        {
            **dict.fromkeys(("calls", "prompt_tokens", "completion_tokens"), 1),
            **{"tenant": "globex", "cached_tokens": 2, "tokens": 2, "inexact_tokens": 2, "tokens_wasted": 0},
            **{"gpu_seconds": 1.5, "estimated_gpu_seconds": 1.5, "errors": 0},
        },
    ]
    assert [row["route"] for row in report(tmp_path, by=["route", "day"], tenant="acme", **NOVEMBER).rows] == ["llama", "phi"]
    assert report(tmp_path, by=[], **NOVEMBER).rows[0]["calls"] == 3


def test_only_the_days_that_were_asked_for_are_summed(tmp_path: Path, clock: Clock):
    with keeping(tmp_path, clock) as ledger:
        for _ in range(3):
            ledger.call_ended(call(), outcome())
            clock.time += DAY

    assert report(tmp_path, by=["day"], since=date(2026, 11, 26), until=date(2026, 11, 26)).rows[0]["day"] == "2026-11-26"
    assert report(tmp_path, by=["day"], since=date(2027, 1, 1), until=date(2027, 2, 1)) == ([], [])


def test_other_files_in_the_folder_are_left_alone(tmp_path: Path, clock: Clock):
    (tmp_path / "usage-notes.sqlite").write_text("mine")
    with keeping(tmp_path, clock) as ledger:
        ledger.call_ended(call(), outcome())

    assert report(tmp_path, by=[], **NOVEMBER).rows[0]["calls"] == 1
