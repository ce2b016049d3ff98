"""Starts and stops what is measured, the reference and the gateway, each pinned, with its log kept; and mock workers.

The gateway is started as a user starts it, `sluice serve --config FILE`, with keys, metrics and access log on. What
does not come up, or ends by itself, is a `SubjectFailed` with the last lines of its log.
"""

import asyncio
import os
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import yaml

from loadtest.bench.answers import WrongAnswer, make_ask
from loadtest.bench.client import connected
from loadtest.bench.engine import Turns, Worker, serve

REPOSITORY = Path(__file__).parents[2]
MODEL = "smollm2"
ALIAS = "gpt-4o-mini"
_START_TIMEOUT_S = 60.0
_MOCK_SLOTS = 2048  # of a mock worker, which is never full; for a real one the gateway begins with 256
_STOP_TIMEOUT_S = 10.0
_LOG_LINES = 8
_LOG_LINE_CHARS = 240
_ANSWERS_WITHIN_S = 5.0


class SubjectFailed(Exception):
    """Something to be measured did not start or did not live; the message says which and why."""


@dataclass(frozen=True)
class Cores:
    """One core for what is measured, another for the load and the mock workers."""

    subject: int
    load: int

    @classmethod
    def of_this_machine(cls) -> "Cores":
        cores = sorted(os.sched_getaffinity(0))
        return cls(cores[0], cores[-1])

    @property
    def are_shared(self) -> bool:
        return self.subject == self.load


@dataclass(frozen=True)
class Subject:
    """A proxy that runs and answers."""

    name: str
    running: subprocess.Popen[bytes]
    port: int
    key: str
    log: Path

    @property
    def pid(self) -> int:
        return self.running.pid

    def end_of_story(self) -> str:
        """For an error message: whether it still runs, and the last lines of its log."""
        code = self.running.poll()
        state = "still runs" if code is None else f"has ended with exit code {code}"
        return f"the {self.name} {state}; the end of its log:\n{last_lines(self.log)}"


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def last_lines(log: Path, num_lines: int = _LOG_LINES) -> str:
    lines = log.read_text(errors="replace").splitlines()[-num_lines:] if log.exists() else []
    return "\n".join(f"    {line[:_LOG_LINE_CHARS]}" for line in lines) or "    (it wrote nothing)"


@contextmanager
def process(name: str, command: Sequence[str], core: int, directory: Path) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    """Runs the command on that core until the block ends, output into a log in `directory`."""
    log = directory / f"{name}.log"
    launcher = [sys.executable, "-m", "loadtest.bench.launch", str(core), *command]
    with log.open("ab") as output:
        running = subprocess.Popen(launcher, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, cwd=REPOSITORY)
    try:
        yield running, log
    finally:
        running.terminate()
        try:
            running.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            running.kill()
            running.wait()


@dataclass(frozen=True)
class Workers:
    """Mock workers that listen."""

    ports: Sequence[int]
    turns: Turns


@asynccontextmanager
async def workers(pace_s: float = 0.0, num_workers: int = 2) -> AsyncIterator[Workers]:
    """Mock workers in this process and loop, so that they know what the client has seen."""
    turns = Turns(is_told=True)
    async with AsyncExitStack() as stack:
        ports = []
        for _ in range(num_workers):
            worker = Worker(MODEL, turns, pace_s)
            server = await stack.enter_async_context(await serve(0, worker))
            stack.callback(worker.close)
            ports.append(server.sockets[0].getsockname()[1])
        yield Workers(ports, turns)


@asynccontextmanager
async def reference(worker_ports: Sequence[int], core: int, directory: Path) -> AsyncIterator[Subject]:
    port = free_port()
    command = [sys.executable, "-m", "loadtest.bench.reference"]
    command += [f"--port={port}", f"--upstream=127.0.0.1:{worker_ports[0]}"]
    with process("reference", command, core, directory) as (running, log):
        started = Subject("reference", running, port, "sk-none", log)
        await _wait_until_it_answers(started)
        yield started


@asynccontextmanager
async def subject(command: str, worker_ports: Sequence[int], core: int, directory: Path) -> AsyncIterator[Subject]:
    """The gateway, or what `command` starts: {config}, {port} and {upstream} stand for themselves.

    A command with {config} is taken for the gateway's `sluice serve`: it gets a configuration and a key of its own.
    """
    port = free_port()
    config = directory / "sluice.yaml"
    key = "sk-none"
    places = {"config": shlex.quote(str(config)), "port": port, "upstream": f"127.0.0.1:{worker_ports[0]}"}
    try:
        words = shlex.split(command.format(**places))
    except (KeyError, IndexError, ValueError) as exc:
        raise SubjectFailed(f"--subject {command!r}: {exc}; it may contain {{config}}, {{port}} and {{upstream}}") from exc
    if "{config}" in command:
        config.write_text(yaml.safe_dump(gateway_config(port, free_port(), worker_ports, directory), sort_keys=False))
        key = await asyncio.to_thread(_new_key, words[0], config)
    with process("subject", words, core, directory) as (running, log):
        started = Subject("subject", running, port, key, log)
        await _wait_until_it_answers(started)
        yield started


def gateway_config(port: int, metrics_port: int, worker_ports: Sequence[int], directory: Path) -> dict[str, object]:
    """What a user would write, and nothing that would make it faster."""
    static = [f"http://127.0.0.1:{worker_port}" for worker_port in worker_ports]
    return {
        "server": {"host": "127.0.0.1", "port": port, "metrics_port": metrics_port},
        "auth": {"mode": "keys", "keys_file": str(directory / "keys.yaml")},
        "routes": {MODEL: {"workers": {"static": static}, "aliases": [ALIAS], "queue": {"start_in_flight": _MOCK_SLOTS}}},
    }


def _new_key(executable: str, config: Path) -> str:
    command = [executable, "key", "new", "--config", str(config), "--tenant", "bench"]
    try:
        made = subprocess.run(command, capture_output=True, text=True, timeout=_START_TIMEOUT_S, check=False)
    except OSError as exc:
        raise SubjectFailed(f"cannot run {executable}: {exc.strerror}; `make install` makes it") from exc
    except subprocess.TimeoutExpired as exc:
        raise SubjectFailed(f"{shlex.join(command)} did not end within {_START_TIMEOUT_S:.0f} s") from exc
    lines = made.stdout.split()
    if made.returncode or not lines:
        raise SubjectFailed(f"{shlex.join(command)} made no key (exit code {made.returncode}):\n{made.stderr.strip()}")
    return lines[-1]


async def _wait_until_it_answers(subject: Subject) -> None:
    """A chat with the right answer is the sign; raises `SubjectFailed` where it ends or takes too long."""
    ask = make_ask(f"127.0.0.1:{subject.port}", subject.key, MODEL, 1)
    deadline = time.monotonic() + _START_TIMEOUT_S
    error = ""
    while time.monotonic() < deadline and subject.running.poll() is None:
        try:
            async with connected(subject.port, 1) as crew:
                await crew.ask(ask, 1, within_s=_ANSWERS_WITHIN_S)
            return
        except (OSError, WrongAnswer) as exc:
            error = str(exc)
        await asyncio.sleep(0.1)
    raise SubjectFailed(f"no answer on port {subject.port} ({error})\n  {subject.end_of_story()}")
