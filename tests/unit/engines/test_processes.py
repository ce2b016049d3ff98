import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import pytest

from sluice.engines.base import CannotStart
from sluice.engines.processes import ProcessId, identify, kill_session, run_file, session_members
from tests.unit.engines.support import PATIENCE_S, wait_until_gone

# A session whose first process may end before its child; says both pids, then waits for the end of its input.
FAMILY = """
import os, signal, sys
child = os.fork()
if child == 0:
    signal.pause()
print(os.getpid(), child, flush=True)
sys.stdin.read()
"""


@contextmanager
def family() -> Iterator[tuple[subprocess.Popen[str], int]]:
    command = [sys.executable, "-I", "-S", "-c", FAMILY]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True) as parent:
        assert parent.stdout is not None
        _, child = map(int, parent.stdout.readline().split())
        try:
            yield parent, child
        finally:
            kill_session(parent.pid)


def record(path: Path, *processes: ProcessId | None) -> None:
    path.write_text(json.dumps({"pid": 1, "sessions": [asdict(process) for process in processes if process]}))


def test_a_process_is_told_from_a_later_one_with_the_same_pid() -> None:
    me = identify(os.getpid())
    assert me is not None
    assert me == identify(os.getpid())
    assert me != ProcessId(me.pid, me.started - 1, me.boot)
    assert me != ProcessId(me.pid, me.started, "another boot")


def test_there_is_no_identity_where_there_is_no_process() -> None:
    with subprocess.Popen(["/bin/true"]) as process:
        process.wait(PATIENCE_S)
        assert identify(process.pid) is None


def test_a_session_is_killed_whole_and_its_size_is_told() -> None:
    with family() as (parent, child):
        assert sorted(session_members(parent.pid)) == sorted([parent.pid, child])
        assert kill_session(parent.pid) == 2
        wait_until_gone(child)
        assert session_members(parent.pid) == []


def test_nothing_is_left_behind_where_nothing_was_started(tmp_path: Path) -> None:
    with run_file(tmp_path / "up.pid") as (_, num_reaped):
        assert num_reaped == 0


def test_a_second_owner_is_refused_and_told_who_the_first_is(tmp_path: Path) -> None:
    with run_file(tmp_path / "up.pid"), pytest.raises(CannotStart, match=rf"runs here already \(pid {os.getpid()}\)"):
        with run_file(tmp_path / "up.pid"):
            raise AssertionError("two owners")


def test_the_file_is_free_again_when_its_owner_has_ended(tmp_path: Path) -> None:
    with run_file(tmp_path / "up.pid"):
        pass
    with run_file(tmp_path / "up.pid") as (_, num_reaped):
        assert num_reaped == 0


def test_sessions_are_remembered_until_they_are_over(tmp_path: Path) -> None:
    with family() as (first, _), family() as (second, _), run_file(tmp_path / "up.pid") as (file, _):
        file.add(first.pid)
        kill_session(first.pid)
        first.wait(PATIENCE_S)
        file.add(second.pid)
        sessions = json.loads((tmp_path / "up.pid").read_text())["sessions"]
        assert second.pid in [session["pid"] for session in sessions]


def test_what_an_owner_that_was_killed_left_behind_is_ended(tmp_path: Path) -> None:
    with family() as (parent, child):
        record(tmp_path / "up.pid", identify(parent.pid))
        with run_file(tmp_path / "up.pid") as (_, num_reaped):
            assert num_reaped == 2
        wait_until_gone(child)


def test_a_child_whose_launcher_was_killed_too_is_ended(tmp_path: Path) -> None:
    with family() as (parent, child):
        record(tmp_path / "up.pid", identify(parent.pid))
        parent.kill()
        parent.wait(PATIENCE_S)
        with run_file(tmp_path / "up.pid") as (_, num_reaped):
            assert num_reaped == 1
        wait_until_gone(child)


@pytest.mark.parametrize("change", [{"started": 1}, {"boot": "another"}])
def test_a_process_that_only_has_the_pid_is_left_alone(tmp_path: Path, change: dict[str, object]) -> None:
    with family() as (parent, _):
        process = identify(parent.pid)
        assert process is not None
        record(tmp_path / "up.pid", ProcessId(**{**asdict(process), **change}))
        with run_file(tmp_path / "up.pid") as (_, num_reaped):
            assert num_reaped == 0
        assert parent.poll() is None


@pytest.mark.parametrize("content", ["", "12", "{}", '{"pid": 1, "sessions": [{"pid": 1}]}', "\x00\xff"])
def test_a_file_that_is_no_record_kills_nothing(tmp_path: Path, content: str) -> None:
    (tmp_path / "up.pid").write_text(content)
    with run_file(tmp_path / "up.pid") as (_, num_reaped):
        assert num_reaped == 0


def test_after_a_failure_the_record_stays_for_the_next_owner(tmp_path: Path) -> None:
    with family() as (parent, _):
        with pytest.raises(CannotStart), run_file(tmp_path / "up.pid") as (file, _):
            file.add(parent.pid)
            raise CannotStart("it would not")
        assert json.loads((tmp_path / "up.pid").read_text())["sessions"][0]["pid"] == parent.pid
