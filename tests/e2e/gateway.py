"""Starts the gateway as its user does: a configuration file, a key from `sluice key new`, `sluice serve`.

Two of them serve the whole run, each started when the first selected test asks for it:

    scripted_gateway    in front of `scripted_worker`, a fake vLLM that a test may script (`worker` cleans it before each)
    real_gateway        in front of the real vLLM workers of conftest.py

Both are on a free port of 127.0.0.1 and are stopped by SIGTERM: an exit code other than 0 or a traceback in the log is an
error of the run.
"""

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import yaml

from tests.support import raw_http
from tests.support.raw_http import Response
from tests.support.scripted_worker import ScriptedWorker

START_TIMEOUT_S = 90
STOP_TIMEOUT_S = 60
SLUICE = (sys.executable, "-m", "sluice")


@dataclass(frozen=True)
class RunningGateway:
    """A gateway that is ready, and keys to it by tenant."""

    url: str
    keys: Mapping[str, str]
    config: Path
    log: Path
    pid: int

    @property
    def key(self) -> str:
        """Of the tenant acme, who may use everything."""
        return self.keys["acme"]

    @property
    def base_url(self) -> str:
        """What an OpenAI client is given."""
        return f"{self.url}/v1"

    def stop(self) -> None:
        """SIGTERM; `serving` does it otherwise."""
        os.kill(self.pid, signal.SIGTERM)

    async def request(self, method: str, target: str, *, key: str | None = "", **options: Any) -> Response:
        """One raw request with our key, another one, or (None) without any."""
        headers = tuple(options.pop("headers", ()))
        if key is not None:
            headers = (("authorization", f"Bearer {key or self.key}"), *headers)
        return await raw_http.request(self.url, method, target, headers=headers, **options)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def new_key(config: Path, tenant: str, *more: str) -> str:
    """The key that `sluice key new` prints on its last line."""
    command = [*SLUICE, "key", "new", "--config", str(config), "--tenant", tenant, *more]
    done = subprocess.run(command, capture_output=True, text=True, timeout=START_TIMEOUT_S, check=False)
    assert done.returncode == 0, f"sluice key new: {done.stdout}{done.stderr}"
    return done.stdout.splitlines()[-1].strip()


@asynccontextmanager
async def serving(
    folder: Path,
    settings: Mapping[str, Any],
    *,
    environment: Mapping[str, str] | None = None,
    tenants: Mapping[str, Sequence[str]] | None = None,
) -> AsyncIterator[RunningGateway]:
    """`sluice serve` with these settings on a free port, until the block ends.

    `tenants` are those besides acme, with the options of their key.
    """
    port = free_port()
    server = {"host": "127.0.0.1", "port": port, "metrics_port": None} | dict(settings.get("server", {}))
    config = folder / "sluice.yaml"
    config.write_text(yaml.safe_dump(dict(settings) | {"server": server}))
    keys = {
        tenant: await asyncio.to_thread(new_key, config, tenant, *options)
        for tenant, options in {"acme": (), **(tenants or {})}.items()
    }
    log = folder / "gateway.log"
    with log.open("wb") as out:
        process = await asyncio.create_subprocess_exec(
            *(*SLUICE, "serve", "--config", str(config)),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            env=os.environ | dict(environment or {}),
        )
    try:
        await _until_ready(process, f"http://127.0.0.1:{port}", log)
        yield RunningGateway(f"http://127.0.0.1:{port}", keys, config, log, process.pid)
    finally:
        code = await _stopped(process, log)
    said = log.read_text(errors="replace")
    assert code == 0, f"the gateway ended with {code}:\n{_end_of(log)}"
    assert "Traceback" not in said, f"a traceback in the gateway's log:\n{said[max(0, said.index('Traceback') - 500) :][:4000]}"


async def _stopped(process: asyncio.subprocess.Process, log: Path) -> int:
    """The exit code after SIGTERM."""
    if process.returncode is None:
        process.send_signal(signal.SIGTERM)
    try:
        async with asyncio.timeout(STOP_TIMEOUT_S):
            return await process.wait()
    except TimeoutError:
        process.kill()
        await process.wait()
        raise AssertionError(f"SIGTERM did not end the gateway in {STOP_TIMEOUT_S} s:\n{_end_of(log)}") from None


async def _until_ready(process: asyncio.subprocess.Process, url: str, log: Path) -> None:
    deadline = asyncio.get_running_loop().time() + START_TIMEOUT_S
    while True:
        assert process.returncode is None, f"the gateway ended with {process.returncode}:\n{_end_of(log)}"
        try:
            if (await raw_http.request(url, "GET", "/readyz")).status == 200:
                return
        except OSError:
            pass  # it does not listen yet
        if asyncio.get_running_loop().time() > deadline:
            raise AssertionError(f"the gateway is not ready after {START_TIMEOUT_S} s:\n{_end_of(log)}")
        await asyncio.sleep(0.05)  # another process: there is no event to wait for


def _end_of(log: Path) -> str:
    return log.read_text(errors="replace")[-4000:]


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def scripted_worker() -> AsyncIterator[ScriptedWorker]:
    """The fake vLLM behind `scripted_gateway`. Tests take `worker`."""
    async with ScriptedWorker(responses_store=True) as scripted:
        yield scripted


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def scripted_twin() -> AsyncIterator[ScriptedWorker]:
    """A second fake vLLM, for gateways of a test's own. Tests take `twin`."""
    async with ScriptedWorker() as scripted:
        yield scripted


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def scripted_gateway(
    scripted_worker: ScriptedWorker, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[RunningGateway]:
    """Routes to the scripted worker, each with a setting of its own, and one to a worker that is not there."""
    workers = {"static": [scripted_worker.url]}
    everything = ["tokenize", "detokenize", "transcriptions"]
    nobody = f"http://127.0.0.1:{free_port()}"
    routes = {
        "smollm2": {"workers": workers, "aliases": ["gpt-4o-mini"], "open": everything},
        "acme/tiny": {"workers": workers, "served_model": "smollm2", "input_modalities": ["text", "image"]},
        "thinker": {"workers": workers, "served_model": "smollm2", "reasoning_content": True},
        "keeper": {"workers": workers, "served_model": "smollm2", "responses_store": True},
        "impatient": {
            "workers": workers,
            "served_model": "smollm2",
            "timeouts": {"connect_s": 1, "first_event_s": 0.5, "silence_s": 0.5, "total_s": 1.5},
        },
        "absent": {"workers": {"static": [nobody]}, "served_model": "smollm2"},
    }
    settings = {
        "server": {"cors_origins": ["https://web.chatboxai.app", "capacitor://localhost", "http://localhost", "null"]},
        "auth": {"mode": "keys", "keys_file": "keys.yaml", "max_failures_per_minute": 10_000},
        "routes": routes,
        "client_timeouts": {"header_s": 2, "body_s": 4, "body_idle_s": 2},
        "probes": {"timeout_s": 3600},  # the worker stands still while tests without this event loop run
    }
    tenants = {"globex": (), "initech": ("--routes", "smollm2"), "umbrella": ("--scope", "admin")}
    async with serving(tmp_path_factory.mktemp("scripted_gateway"), settings, tenants=tenants) as gateway:
        yield gateway


@pytest_asyncio.fixture(name="worker", loop_scope="session")
async def clean_worker(scripted_worker: ScriptedWorker) -> AsyncIterator[ScriptedWorker]:
    """The scripted worker with no scripts and empty records; afterwards nothing may be running on it."""
    async with _cleaned(scripted_worker):
        yield scripted_worker


@pytest_asyncio.fixture(name="twin", loop_scope="session")
async def clean_twin(scripted_twin: ScriptedWorker) -> AsyncIterator[ScriptedWorker]:
    async with _cleaned(scripted_twin):
        yield scripted_twin


@asynccontextmanager
async def _cleaned(scripted: ScriptedWorker) -> AsyncIterator[None]:
    scripted.forget()
    yield
    scripted.forget_scripts()
    await scripted.wait_idle()
    assert not scripted.errors, scripted.errors


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def real_gateway(
    chat_worker: Any, embedding_worker: Any, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[RunningGateway]:
    """A chat route with an alias and an embedding route, on real vLLM."""
    settings = {
        "auth": {"mode": "keys", "keys_file": "keys.yaml"},
        "routes": {
            "smollm2": {
                "workers": {"static": [chat_worker.url]},
                "served_model": chat_worker.model,
                "aliases": ["gpt-4o-mini"],
                "open": ["tokenize", "detokenize"],
            },
            "all-minilm": {
                "workers": {"static": [embedding_worker.url], "api_key_env": "EMBEDDING_WORKER_KEY"},
                "served_model": embedding_worker.model,
            },
        },
    }
    environment = {"EMBEDDING_WORKER_KEY": embedding_worker.api_key}
    async with serving(tmp_path_factory.mktemp("real_gateway"), settings, environment=environment) as gateway:
        yield gateway
