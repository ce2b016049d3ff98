"""Real vLLM workers for the end-to-end tests, started once for the whole run.

Take them as fixtures; each is started only when a selected test asks for it, and all that are asked for start together:

    def test_something(chat_worker):         # SmolLM2-135M-Instruct, 2,048 tokens of context
        httpx.post(f"{chat_worker.url}/v1/chat/completions", json={"model": chat_worker.model, ...})

    def test_something_else(embedding_worker):    # all-MiniLM-L6-v2, 384 dimensions, `--runner pooling`

    .url        "http://127.0.0.1:PORT", healthy
    .model      the served model name ("smollm2", "all-minilm")
    .pid        of vLLM's API server
    .log_path   what it writes
    .api_key    what its --api-key wants (the embedding worker's alone)

`make engine model` installs what they need. They share two cores: a test that wants speed is no test for here. They end
with pytest, even when that is killed with -9 (sluice/engines/launcher.py). A test that kills or reconfigures a worker
starts one of its own (`start_worker`).
"""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import httpx
import pytest

from sluice.engines import launcher
from sluice.engines.vllm import VllmWorker
from tests.e2e.gateway import (  # noqa: F401 - fixtures
    clean_twin,
    clean_worker,
    real_gateway,
    scripted_gateway,
    scripted_twin,
    scripted_worker,
)

ROOT = Path(__file__).parents[2]
ENGINE_PYTHON = Path(os.environ.get("SLUICE_ENGINE_PYTHON", ROOT / ".venv-engine/bin/python"))
MODELS = Path(os.environ.get("SLUICE_MODELS", ROOT / ".sluice/models"))
START_TIMEOUT_S = 300
WORKER_KEY = "sk-of-the-worker"


@dataclass(frozen=True, slots=True)
class RunningWorker:
    url: str
    model: str
    pid: int
    log_path: Path
    api_key: str | None = None


@pytest.fixture(scope="session")
def engine_python() -> Path:
    if not ENGINE_PYTHON.exists():
        pytest.fail(f"{ENGINE_PYTHON} does not exist: run `make engine model`")
    return ENGINE_PYTHON


@pytest.fixture(scope="session")
def chat_model() -> Path:
    return model_folder("SmolLM2-135M-Instruct")


@pytest.fixture(scope="session")
def embedding_model() -> Path:
    return model_folder("all-minilm")


def model_folder(name: str) -> Path:
    if not (MODELS / name / "config.json").exists():
        pytest.fail(f"{MODELS / name} does not exist: run `make model`")
    return MODELS / name


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


class StartedWorker:
    """A worker that has been launched and may still be loading."""

    def __init__(self, worker: VllmWorker, process: subprocess.Popen[bytes], log_path: Path) -> None:
        self._worker = worker
        self._process = process
        self._log_path = log_path
        self._started_at = time.monotonic()

    def ready(self) -> RunningWorker:
        """Wait until it is healthy; the test fails with the end of its log when it ends instead."""
        say(f"{self._worker.served_name}: vLLM is loading, about half a minute")
        while not self._is_healthy():
            elapsed_s = time.monotonic() - self._started_at
            if self._process.poll() is not None or elapsed_s > START_TIMEOUT_S:
                pytest.fail(f"vLLM did not start ({elapsed_s:.0f} s):\n{self._log_path.read_text()[-3000:]}")
            time.sleep(0.2)
        say(f"{self._worker.served_name}: healthy after {time.monotonic() - self._started_at:.0f} s")
        [pid] = (int(pid) for pid in Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split())
        return RunningWorker(self._worker.url, self._worker.served_name, pid, self._log_path)

    def _is_healthy(self) -> bool:
        try:
            return httpx.get(f"{self._worker.url}/health", timeout=2).status_code == 200
        except httpx.TransportError:
            return False


def say(line: str) -> None:
    sys.__stderr__.write(f"\n[e2e] {line}\n")
    sys.__stderr__.flush()


@contextmanager
def launched(worker: VllmWorker, log_path: Path) -> Iterator[StartedWorker]:
    command = [sys.executable, "-I", "-S", launcher.__file__, "--log", str(log_path), "--", *worker.command()]
    with subprocess.Popen(command, stdin=subprocess.PIPE, env=worker.environment(os.environ)) as process:
        assert process.stdin is not None
        with process.stdin:  # its end ends the worker
            yield StartedWorker(worker, process, log_path)


StartWorker = Callable[..., AbstractContextManager[StartedWorker]]


@pytest.fixture(scope="session")
def start_worker(engine_python: Path, tmp_path_factory: pytest.TempPathFactory) -> StartWorker:
    """Starts a worker of the test's own: `with start_worker(model=DIR, served_name=NAME) as started: started.ready()`."""

    def start(
        model: Path, served_name: str, max_model_len: int = 2048, **options: object
    ) -> AbstractContextManager[StartedWorker]:
        settings = {"on_cpu": True, "cpus": (0,), **options}
        worker = VllmWorker(engine_python, str(model), served_name, free_port(), max_model_len, **settings)
        return launched(worker, tmp_path_factory.mktemp(served_name) / "vllm.log")

    return start


@pytest.fixture(scope="session")
def shared_workers(
    request: pytest.FixtureRequest, start_worker: StartWorker, chat_model: Path, embedding_model: Path
) -> Iterator[dict[str, StartedWorker]]:
    """Launches at once whichever of the shared workers the selected tests will ask for."""
    asked_for = {name for item in request.session.items for name in getattr(item, "fixturenames", ())}
    with ExitStack() as stack:
        workers = {}
        if "chat_worker" in asked_for:
            workers["chat"] = stack.enter_context(start_worker(chat_model, "smollm2"))
        if "embedding_worker" in asked_for:
            key = ("--api-key", WORKER_KEY)
            start = start_worker(embedding_model, "all-minilm", max_model_len=256, is_pooling=True, extra_args=key)
            workers["embedding"] = stack.enter_context(start)
        yield workers


@pytest.fixture(scope="session")
def chat_worker(shared_workers: dict[str, StartedWorker]) -> RunningWorker:
    return shared_workers["chat"].ready()


@pytest.fixture(scope="session")
def embedding_worker(shared_workers: dict[str, StartedWorker]) -> RunningWorker:
    return replace(shared_workers["embedding"].ready(), api_key=WORKER_KEY)
