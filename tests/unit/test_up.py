"""`sluice up` with real launchers and a fake engine: a Python whose vLLM answers /health and loads nothing."""

import argparse
import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from sluice import up
from sluice.config import ConfigError, Settings
from sluice.engines.base import CannotStart
from sluice.engines.processes import identify, session_members
from sluice.engines.progress import WorkerDisplay
from sluice.keys_file import read_keys, revoke_in_file
from tests.unit.engines.support import PATIENCE_S, wait_until_gone

FAKE_ENGINE = """\
#!{python} -IS
import os, socket, sys
if "-c" in sys.argv:
    print("cpu")
    sys.exit()
print("pid", os.getpid(), flush=True)
if "--fail" in sys.argv:
    sys.exit("ValueError: this model is no good")
listener = socket.create_server(("127.0.0.1", int(sys.argv[sys.argv.index("--port") + 1])))
while True:
    connection, _ = listener.accept()
    connection.recv(65536)
    status = "503 Loading" if "--never" in sys.argv else "200 OK"
    connection.sendall(f"HTTP/1.1 {{status}}\\r\\ncontent-length: 0\\r\\nconnection: close\\r\\n\\r\\n".encode())
    connection.close()
"""


@dataclass
class FakeGateway:
    """Is run in the place of the real one: is ready at once and returns, or does what the test says."""

    then: Callable[[], object] = lambda: None
    settings: list[Settings] = field(default_factory=list)

    async def __call__(self, settings: Settings, *, on_ready: Callable[[], None]) -> None:
        self.settings.append(settings)
        on_ready()
        self.then()


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """A state folder in which the demo models are already."""
    for model in ("SmolLM2-135M-Instruct", "all-minilm"):
        folder = tmp_path / "state" / "models" / model
        folder.mkdir(parents=True)
        (folder / "config.json").write_text('{"max_position_embeddings": 8192}')
    return tmp_path / "state"


@pytest.fixture
def engine(tmp_path: Path) -> Path:
    python = tmp_path / "engine-python"
    python.write_text(FAKE_ENGINE.format(python=sys.executable))
    python.chmod(0o755)
    return python


@pytest.fixture
def parse(state: Path, engine: Path) -> Callable[..., argparse.Namespace]:
    def parse(*arguments: str, run_server: object = None) -> argparse.Namespace:
        parser = argparse.ArgumentParser()
        up.add_arguments(parser)
        parser.set_defaults(run_server=run_server or FakeGateway())
        here = ["--state-dir", str(state), "--engine-python", str(engine), "--port", str(up.free_port())]
        return parser.parse_args([*here, *arguments])

    return parse


Parse = Callable[..., argparse.Namespace]


def engine_pid(state: Path, number: int = 1) -> int:
    return int((state / "logs" / f"worker-{number}.log").read_text().split()[1])


def test_up_ends_at_the_banner_and_leaves_no_process(state: Path, parse: Parse, capsys: pytest.CaptureFixture[str]) -> None:
    gateway = FakeGateway()
    args = parse(run_server=gateway)
    assert up.run(args) == 0
    out, err = capsys.readouterr()
    key = (state / "key").read_text().strip()
    assert f"http://127.0.0.1:{args.port}/v1" in out
    assert f'curl http://127.0.0.1:{args.port}/v1/chat/completions -H "authorization: Bearer {key}"' in out
    assert "Chatbox    Settings > Model Provider > Add > OpenAI API Compatible" in out
    assert "worker 1 (smollm2): healthy after" in err
    assert list(gateway.settings[0].routes) == ["smollm2"]
    wait_until_gone(engine_pid(state))


def test_the_curl_line_is_one_line_that_a_shell_takes(state: Path, parse: Parse) -> None:
    out = StringIO()
    up.show_banner(up.prepare(parse()), Console(file=out, width=40))
    [line] = [line for line in out.getvalue().splitlines() if line.startswith("curl")]
    body = line.rpartition(" -d '")[2].removesuffix("'")
    assert json.loads(body)["model"] == "smollm2"


def test_on_a_terminal_the_banner_is_a_panel(parse: Parse) -> None:
    out = StringIO()
    plan = up.prepare(parse())
    up.show_banner(plan, Console(file=out, width=100, force_terminal=True, color_system=None))
    assert "Sluice is ready" in out.getvalue().splitlines()[0]
    assert plan.key in out.getvalue()


def test_a_repeated_start_shows_the_same_key(parse: Parse) -> None:
    assert up.prepare(parse()).key == up.prepare(parse()).key


def test_only_its_owner_may_read_the_key(state: Path, parse: Parse) -> None:
    up.prepare(parse())
    assert (state / "key").stat().st_mode & 0o777 == 0o600


def test_the_keys_file_holds_the_key_s_hash_alone(state: Path, parse: Parse) -> None:
    key = up.prepare(parse()).key
    [entry] = read_keys(state / "keys.yaml")
    assert entry.hash == f"sha256:{sha256(key.encode()).hexdigest()}"
    assert key not in (state / "keys.yaml").read_text()


def test_a_key_that_was_revoked_is_replaced(state: Path, parse: Parse) -> None:
    key = up.prepare(parse()).key
    [entry] = read_keys(state / "keys.yaml")
    revoke_in_file(state / "keys.yaml", entry.id)
    assert up.prepare(parse()).key != key


def test_replicas_share_a_route_and_each_has_its_own_port(parse: Parse) -> None:
    plan = up.prepare(parse("--replicas", "3"))
    file = plan.settings.routes["smollm2"].workers.managed
    assert file is not None
    workers = json.loads(file.read_text())["smollm2"]
    assert len(workers) == len(plan.jobs) == 3
    assert [job.health_url for job in plan.jobs] == [f"{url}/health" for url in workers]


def test_a_worker_that_is_started_anew_is_another_one(parse: Parse) -> None:
    plan = up.prepare(parse("--replicas", "2", "--with-embeddings"))
    file = plan.settings.routes["smollm2"].workers.managed
    assert file is not None and plan.settings.routes["all-minilm"].workers.managed == file
    for pid, job in enumerate((*plan.jobs, plan.jobs[0]), start=1):
        plan.started(job, pid)
    workers = json.loads(file.read_text())
    assert list(workers["smollm2"].values()) == ["launcher 4", "launcher 2"]
    assert list(workers["all-minilm"].values()) == ["launcher 3"]


def test_embeddings_are_a_route_of_their_own(parse: Parse) -> None:
    plan = up.prepare(parse("--with-embeddings"))
    assert list(plan.settings.routes) == ["smollm2", "all-minilm"]
    assert plan.settings.retrieval.embedding_route == "all-minilm"
    assert "--runner pooling" in " ".join(plan.jobs[1].command)


def test_what_follows_engine_args_goes_to_vllm_as_it_is(parse: Parse) -> None:
    plan = up.prepare(parse("--engine-args", "--max-num-seqs", "4", "--port", "x y"))
    assert plan.jobs[0].command[-4:] == ("--max-num-seqs", "4", "--port", "x y")


@pytest.mark.parametrize(
    ("arguments", "model", "name"),
    [
        (["--model", "org/Some-Model"], "org/Some-Model", "Some-Model"),
        (["--model", "gpt2"], "gpt2", "gpt2"),
        (["--model", "org/Some-Model", "--served-name", "mine"], "org/Some-Model", "mine"),
    ],
)
def test_a_hub_id_is_left_to_vllm(parse: Parse, arguments: list[str], model: str, name: str) -> None:
    command = " ".join(up.prepare(parse(*arguments)).jobs[0].command)
    assert f"--model {model} --served-model-name {name}" in command


def test_a_folder_is_served_under_its_name_and_with_its_context(tmp_path: Path, parse: Parse) -> None:
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny" / "config.json").write_text('{"max_position_embeddings": 512}')
    command = " ".join(up.prepare(parse("--model", str(tmp_path / "tiny"))).jobs[0].command)
    assert f"--model {tmp_path}/tiny --served-model-name tiny --max-model-len 512" in command


def test_the_context_can_be_set(parse: Parse) -> None:
    assert "--max-model-len 100 " in " ".join(up.prepare(parse("--max-model-len", "100")).jobs[0].command)


def test_the_log_of_the_start_before_is_kept_once(state: Path, parse: Parse) -> None:
    (state / "logs").mkdir()
    (state / "logs" / "worker-1.log").write_text("before")
    up.prepare(parse())
    assert (state / "logs" / "worker-1.log.1").read_text() == "before"
    assert not (state / "logs" / "worker-1.log").exists()


def test_the_metrics_port_is_left_out_where_another_has_it(parse: Parse) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        args = parse()
        args.port = other.getsockname()[1] - 1
        if up.port_is_free(args.port):
            assert up.prepare(args).settings.server.metrics_port is None


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--replicas", "0"], "--replicas is 1 to 64, not 0"),
        (["--port", "70000"], "--port is 1 to 65535, not 70000"),
        (["--model", "/no/such"], "there is no folder /no/such"),
        (["--model", "a/b/c"], "there is no folder a/b/c"),
        (["--engine-python", "/no/such"], "there is no engine at /no/such: run `make engine`"),
        (["--served-name", "all-minilm", "--with-embeddings"], "the name all-minilm is the embedding model's"),
        (["--served-name", "two\nlines"], "--served-name is 1 to 256 printable characters"),
        (["--state-dir", "/dev/null/x"], "the state folder /dev/null/x cannot be made: Not a directory"),
    ],
)
def test_what_cannot_work_is_said_in_one_line_before_anything_starts(
    parse: Parse, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    assert up.run(parse(*arguments)) == 3
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("sluice up: ")
    assert said in line


@pytest.mark.parametrize("name", ["up.pid", "config.yaml", "key"])
def test_a_state_folder_that_cannot_be_written_is_said_in_one_line(
    state: Path, parse: Parse, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    (state / name).mkdir()
    assert up.run(parse()) == 3
    [line] = capsys.readouterr().err.splitlines()
    assert str(state) in line
    assert "Is a directory" in line


def test_a_folder_without_a_model_is_refused(tmp_path: Path, parse: Parse) -> None:
    with pytest.raises(CannotStart, match="holds no config.json: --model takes a Hugging Face folder"):
        up.prepare(parse("--model", str(tmp_path)))


def test_a_port_that_is_taken_is_named_with_one_that_may_be_free(parse: Parse, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        assert up.run(parse("--port", str(port))) == 3
    assert f"port {port} is taken; stop what listens there, or take another: --port " in capsys.readouterr().err


def test_an_engine_that_dies_while_loading_is_said_with_the_end_of_its_log(
    state: Path, parse: Parse, capsys: pytest.CaptureFixture[str]
) -> None:
    assert up.run(parse("--engine-args", "--fail")) == 3
    err = capsys.readouterr().err
    assert "sluice up: worker 1 (smollm2) ended while it was loading, exit code 1: ValueError: this model is no" in err
    assert f"The end of {state}/logs/worker-1.log:\n  pid " in err


def test_a_gateway_that_cannot_start_ends_the_workers(state: Path, parse: Parse, capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        raise ConfigError("cannot listen on 127.0.0.1:1")

    assert up.run(parse(run_server=FakeGateway(then=fail))) == 3
    assert "sluice up: cannot listen on 127.0.0.1:1" in capsys.readouterr().err
    wait_until_gone(engine_pid(state))


def test_a_second_up_in_the_same_state_folder_is_refused(parse: Parse, capsys: pytest.CaptureFixture[str]) -> None:
    codes: list[int] = []
    gateway = FakeGateway(then=lambda: codes.append(up.run(parse())))
    assert up.run(parse(run_server=gateway)) == 0
    assert codes == [3]
    assert f"`sluice up` runs here already (pid {os.getpid()})" in capsys.readouterr().err


def test_what_an_up_that_was_killed_had_left_is_ended_and_said(
    state: Path, parse: Parse, capsys: pytest.CaptureFixture[str]
) -> None:
    with subprocess.Popen(["sleep", "1000"], start_new_session=True) as left:
        process = identify(left.pid)
        assert process is not None
        (state / "up.pid").write_text(json.dumps({"pid": 1, "sessions": [asdict(process)]}))
        assert up.run(parse()) == 0
        assert left.wait(PATIENCE_S) == -signal.SIGKILL
    assert "sluice up: ended what an earlier one had left running, processes: 1" in capsys.readouterr().err


def test_the_engine_is_looked_for_beside_the_gateway_s_environment() -> None:
    assert up.default_engine_python() == Path(sys.prefix).parent / ".venv-engine" / "bin" / "python"


async def test_a_signal_while_the_workers_load_ends_them(state: Path, parse: Parse) -> None:
    gateway = FakeGateway()
    plan = up.prepare(parse("--engine-args", "--never"))
    launched: asyncio.Queue[int] = asyncio.Queue()
    display = WorkerDisplay(Console(file=StringIO()), lambda job, pid: launched.put_nowait(pid))
    serving = asyncio.create_task(up.serve(plan, gateway, display, lambda: None))
    async with asyncio.timeout(PATIENCE_S):
        session = await launched.get()
        os.kill(os.getpid(), signal.SIGTERM)
        await serving
    assert gateway.settings == []
    assert session_members(session) == []


async def test_what_supervision_fails_with_ends_the_gateway() -> None:
    cancelled = asyncio.Event()

    async def gateway() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    async def supervision() -> None:
        raise CannotStart("five crashes")

    with pytest.raises(CannotStart, match="five crashes"):
        await up.first_of(asyncio.create_task(supervision()), gateway())
    assert cancelled.is_set()
