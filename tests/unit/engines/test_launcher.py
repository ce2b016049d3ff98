"""The launcher as it is: a process. Every test ends with nothing left of it."""

import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sluice.engines import launcher
from tests.unit.engines.support import PATIENCE_S, Engines, engines_at, wait_until_gone


@pytest.fixture
async def engines(tmp_path: Path) -> AsyncIterator[Engines]:
    async with engines_at(tmp_path) as engines:
        yield engines


@pytest.fixture
def log_path(tmp_path: Path) -> Path:
    return tmp_path / "engine.log"


@contextmanager
def launched(log_path: Path, *command: str, options: tuple[str, ...] = ()) -> Iterator[subprocess.Popen[bytes]]:
    start = [sys.executable, "-I", "-S", launcher.__file__, "--log", str(log_path), *options, "--", *command]
    with subprocess.Popen(start, stdin=subprocess.PIPE) as process:
        assert process.stdin is not None
        with process.stdin:
            yield process


def test_the_exit_code_is_the_command_s(log_path: Path) -> None:
    with launched(log_path, "/bin/sh", "-c", "exit 7") as process:
        assert process.wait(PATIENCE_S) == 7


def test_a_command_that_was_killed_is_told_as_a_shell_tells_it(log_path: Path) -> None:
    with launched(log_path, "/bin/sh", "-c", "kill -9 $$") as process:
        assert process.wait(PATIENCE_S) == 128 + signal.SIGKILL


def test_a_command_that_does_not_exist_is_named_in_the_log(log_path: Path) -> None:
    with launched(log_path, "/no/such/engine") as process:
        assert process.wait(PATIENCE_S) == 127
    assert log_path.read_text() == "cannot start /no/such/engine: No such file or directory\n"


def test_output_is_added_to_the_log_of_before(log_path: Path) -> None:
    log_path.write_text("before\n")
    with launched(log_path, "/bin/sh", "-c", "echo out; echo err >&2; cat") as process:
        process.wait(PATIENCE_S)
    assert log_path.read_text() == "before\nout\nerr\n"


def test_the_command_is_bound_to_the_cores_that_are_named(log_path: Path) -> None:
    core = min(os.sched_getaffinity(0))
    with launched(log_path, "/bin/sh", "-c", "grep Cpus_allowed_list /proc/self/status", options=("--cpus", str(core))) as run:
        run.wait(PATIENCE_S)
    assert log_path.read_text().split() == ["Cpus_allowed_list:", str(core)]


async def test_sigterm_reaches_the_command_which_ends_in_its_own_way(log_path: Path, engines: Engines) -> None:
    with launched(log_path, *engines.command) as process:
        engine = await engines.next()
        process.terminate()
        assert process.wait(PATIENCE_S) == 42
    wait_until_gone(engine.pid)


async def test_a_command_that_ignores_sigterm_is_killed_after_the_grace(log_path: Path, engines: Engines) -> None:
    with launched(log_path, *engines.command, options=("--grace-s", "0.1")) as process:
        await (await engines.next()).ask("ignore")
        process.terminate()
        assert process.wait(PATIENCE_S) == 128 + signal.SIGKILL


async def test_a_second_sigterm_does_not_wait_for_the_grace(log_path: Path, engines: Engines) -> None:
    with launched(log_path, *engines.command, options=("--grace-s", "3600")) as process:
        engine = await engines.next()
        await engine.ask("ignore")
        process.terminate()
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE_S) == 128 + signal.SIGKILL


async def test_the_whole_tree_ends_when_whoever_started_the_launcher_is_gone(log_path: Path, engines: Engines) -> None:
    with launched(log_path, *engines.command, options=("--grace-s", "3600")) as process:
        engine = await engines.next()
        await engine.ask("ignore")
        child = int(await engine.ask("spawn new"))
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(PATIENCE_S) == 128 + signal.SIGKILL
    wait_until_gone(engine.pid)
    wait_until_gone(child)


async def test_a_command_that_is_killed_leaves_no_child(log_path: Path, engines: Engines) -> None:
    with launched(log_path, *engines.command) as process:
        engine = await engines.next()
        child = int(await engine.ask("spawn new"))
        os.kill(engine.pid, signal.SIGKILL)
        assert process.wait(PATIENCE_S) == 128 + signal.SIGKILL
    wait_until_gone(child)


async def test_a_launcher_that_is_killed_takes_the_command_with_it(log_path: Path, engines: Engines) -> None:
    with launched(log_path, *engines.command) as process:
        engine = await engines.next()
        process.kill()
        process.wait(PATIENCE_S)
        wait_until_gone(engine.pid)


async def test_the_command_is_in_a_session_that_has_the_launcher_s_pid(log_path: Path, engines: Engines) -> None:
    with launched(log_path, *engines.command) as process:
        engine = await engines.next()
        assert os.getsid(engine.pid) == process.pid
