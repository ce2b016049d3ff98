"""`sluice up` as a person runs it: real vLLM, real kills, and nothing that stays behind."""

import asyncio
import json
import os
import re
import shlex
import signal
import sys
from asyncio.subprocess import PIPE, STDOUT, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

from sluice.engines.processes import kill_session, session_members

from .conftest import free_port

START_S = 240.0
SOON_S = 120.0


class Up:
    """A running `sluice up`, read line by line."""

    def __init__(self, process: Process, state: Path) -> None:
        self.process = process
        self._state = state
        self._lines: list[str] = []

    async def line(self, pattern: str, within_s: float) -> re.Match[str]:
        """The next line that matches; fails with all that was said when none comes."""
        assert self.process.stdout is not None
        try:
            async with asyncio.timeout(within_s):
                while text := (await self.process.stdout.readline()).decode():
                    self._lines.append(text)
                    if found := re.search(pattern, text):
                        return found
        except TimeoutError:
            pass
        pytest.fail(f"no line matches {pattern!r} in:\n{''.join(self._lines)}")

    def sessions(self) -> list[int]:
        """The sessions of its workers."""
        return [entry["pid"] for entry in json.loads((self._state / "up.pid").read_text())["sessions"]]

    async def worker_process(self, sign: str) -> int:
        """The process of the worker started last whose command line has `sign` in it, once there is one."""
        async with asyncio.timeout(SOON_S):
            while True:
                for pid in session_members(self.sessions()[-1]):
                    line = command_line(pid)
                    if sign in line and "launcher.py" not in line:
                        return pid
                await asyncio.sleep(0.1)

    async def left(self, sessions: list[int]) -> list[int]:
        """The processes of those sessions that still live after five seconds."""
        members: list[int] = []
        for _ in range(50):
            members = [pid for session in sessions for pid in session_members(session)]
            if not members:
                break
            await asyncio.sleep(0.1)
        return members


def command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode()
    except OSError:  # it has ended meanwhile
        return ""


@asynccontextmanager
async def up(state: Path, *arguments: str) -> AsyncIterator[Up]:
    command = [str(Path(sys.executable).with_name("sluice")), "up", "--port", str(free_port()), "--state-dir", str(state)]
    process = await asyncio.create_subprocess_exec(*command, *arguments, stdout=PIPE, stderr=STDOUT)
    running = Up(process, state)
    try:
        yield running
    finally:
        with suppress(OSError, ValueError):
            for session in running.sessions():
                kill_session(session)
        with suppress(TimeoutError):
            async with asyncio.timeout(0.2):
                await process.wait()
        if process.returncode is None:
            process.kill()
        await process.communicate()


@pytest.fixture
def state(tmp_path: Path, chat_model: Path) -> Path:
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "models").symlink_to(chat_model.parent)
    return tmp_path / "state"


@pytest.fixture
def engine(engine_python: Path) -> tuple[str, ...]:
    return ("--engine-python", str(engine_python), "--max-model-len", "2048")


async def answer_of(curl: str) -> str:
    """What the banner's line gets; asked again while the gateway has yet to see that a worker is back."""
    async with asyncio.timeout(SOON_S):
        while True:
            process = await asyncio.create_subprocess_exec(*shlex.split(curl), "-sS", stdout=PIPE)
            answer = json.loads((await process.communicate())[0])
            if "choices" in answer:
                return str(answer["choices"][0]["message"]["content"])
            assert answer["error"]["code"] == "no_worker_available", answer
            await asyncio.sleep(0.2)


async def test_up_answers_survives_the_death_of_its_worker_and_leaves_nothing(state: Path, engine: tuple[str, ...]) -> None:
    async with up(state, *engine) as running:
        curl = (await running.line("^curl .*", START_S))[0]
        assert "Paris" in await answer_of(curl)

        os.kill(await running.worker_process("EngineCore"), signal.SIGKILL)
        await running.line(r"worker 1 \(smollm2\) .*; starting it again in 1 s", SOON_S)

        await running.line("importing vLLM", SOON_S)
        os.kill(await running.worker_process("api_server"), signal.SIGKILL)
        await running.line(r"killed by SIGKILL .*; starting it again in 2 s", SOON_S)

        await running.line("healthy after", START_S)
        assert "Paris" in await answer_of(curl)

        sessions = running.sessions()
        running.process.send_signal(signal.SIGINT)
        async with asyncio.timeout(SOON_S):
            assert await running.process.wait() == 0
        assert await running.left(sessions) == []


async def test_up_that_is_killed_takes_its_workers_with_it(state: Path, engine: tuple[str, ...]) -> None:
    async with up(state, *engine) as running:
        await running.line("starting the engine", START_S)
        await running.worker_process("EngineCore")
        sessions = running.sessions()
        running.process.kill()
        await running.process.wait()
        assert await running.left(sessions) == []


async def test_an_engine_that_cannot_load_is_said_with_its_reason(state: Path, engine: tuple[str, ...]) -> None:
    async with up(state, *engine, "--engine-args", "--max-model-len", "99999") as running:
        await running.line(r"ended while it was loading, exit code 1: ValidationError: .*max_model_len \(99999\)", START_S)
        await running.line(rf"The end of {state}/logs/worker-1.log:", SOON_S)
        await running.process.stdout.read()  # type: ignore[union-attr]
        assert await running.process.wait() == 3
