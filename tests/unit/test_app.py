"""The whole process: what it is built of, how it starts, drains, and ends."""

import asyncio
import gc
import os
import resource
import signal
import socket
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import orjson
import pytest
import yaml

from sluice.app import background, build, run_server
from sluice.config import ConfigError, Settings
from sluice.metrics import Metrics
from tests.support import raw_http, scripts
from tests.support.raw_http import PATIENCE_S, RawClient, request_bytes
from tests.support.scripted_worker import ScriptedWorker
from tests.unit.in_process import ASK, CHAT, STREAM, Keys, serving, settings, write_keys

NOBODY = "http://127.0.0.1:9"


def free_ports(number: int) -> list[int]:
    listeners = [socket.create_server(("127.0.0.1", 0)) for _ in range(number)]
    ports = [listener.getsockname()[1] for listener in listeners]
    for listener in listeners:
        listener.close()
    return ports


@pytest.fixture
def this_process() -> Iterator[None]:
    """What `run_server` sets for a process of its own is put back."""
    before, (soft, hard) = gc.get_threshold(), resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 1024), hard))
    yield
    gc.unfreeze()
    gc.set_threshold(*before)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.fixture
async def worker() -> AsyncIterator[ScriptedWorker]:
    async with ScriptedWorker() as scripted:
        yield scripted


# What is built


def built(asked: Settings) -> None:
    write_keys(asked.auth.keys_file.parent)
    build(asked, clock=lambda: 0.0, log=None, metrics=Metrics.of_process())


def test_a_policy_that_does_not_exist_is_a_mistake_in_the_configuration(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"routes\.smollm2\.policy"):
        built(settings(tmp_path, NOBODY, route={"policy": "nowhere:Nobody"}))


def test_no_keys_file_is_a_mistake_in_the_configuration(tmp_path: Path):
    with pytest.raises(ConfigError, match="sluice key new"):
        build(settings(tmp_path, NOBODY), clock=lambda: 0.0, log=None, metrics=Metrics.of_process())


async def test_a_workers_key_comes_from_the_environment_and_the_clients_stays_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("WORKER_KEY", "worker-secret")
    async with ScriptedWorker(api_key="worker-secret") as worker:
        route = {"workers": {"static": [worker.url], "api_key_env": "WORKER_KEY"}}
        async with serving(settings(tmp_path, worker, route=route)) as gateway:
            assert (await gateway.request("POST", CHAT, json=ASK)).status == 200
            await gateway.until(lambda: bool(gateway.pools[0].is_ready))
        assert {call.header("authorization") for call in worker.requests} == {"Bearer worker-secret"}


async def test_stored_responses_are_found_by_a_replica_with_the_same_secret_and_by_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("SECRET", "one")
    secret = {"secret_env": "SECRET"}
    statuses = {}
    async with ScriptedWorker(responses_store=True) as worker:
        made = ""
        replicas = {"first": (worker, secret), "replica": (worker, secret), "stranger": (worker, {})}
        for name, (its_worker, server) in (replicas | {"without that worker": (NOBODY, secret)}).items():
            folder = tmp_path / name
            folder.mkdir()
            async with serving(settings(folder, its_worker, route={"responses_store": True}, server=server)) as gateway:
                if not made:
                    body = {"model": "smollm2", "input": "hi"}
                    made = (await gateway.request("POST", "/v1/responses", json=body)).json()["id"]
                statuses[name] = (await gateway.request("GET", f"/v1/responses/{made}")).status
    assert statuses == {"first": 200, "replica": 200, "stranger": 404, "without that worker": 404}


async def test_the_worker_gauges_show_each_worker_of_each_route(tmp_path: Path, worker: ScriptedWorker):
    gate = asyncio.Event()
    worker.on(CHAT, scripts.chat_stream(gates={1: gate}))
    routes = {"absent": {"workers": {"static": [NOBODY]}}}
    async with serving(settings(tmp_path, worker, routes=routes)) as gateway, gateway.connect() as client:
        await gateway.until(lambda: bool(gateway.pools[0].is_ready))
        await client.send(gateway.bytes("POST", CHAT, json=STREAM))
        await client.read_until(b"assistant")
        assert gateway.metric(f'sluice_worker_up{{route="smollm2",worker="{worker.url}"}}') == 1
        assert gateway.metric(f'sluice_worker_up{{route="absent",worker="{NOBODY}"}}') == 0
        assert gateway.metric('sluice_worker_in_flight{route="smollm2"') == 1
        gate.set()
        await client.read_until(b"[DONE]")
        await gateway.holds_nothing()
        assert gateway.metric("sluice_worker_in_flight") == 0


async def test_adapters_that_the_workers_report_may_be_asked_for(tmp_path: Path, worker: ScriptedWorker):
    listed = {"id": "smollm2"}, {"id": "pirate", "parent": "smollm2"}
    worker.on("/v1/models", scripts.reply(200, {"data": listed}))
    async with serving(settings(tmp_path, worker, route={"adapters": "discover"})) as gateway:
        await gateway.until(lambda: bool(gateway.pools[0].is_ready))
        names = [entry["id"] for entry in (await gateway.request("GET", "/v1/models")).json()["data"]]
        assert names == ["smollm2", "pirate"]
        for name in ("pirate", "poet"):
            await gateway.request("POST", CHAT, json=ASK | {"model": name})
    asked = [call.json()["model"] for call in worker.requests if call.path == CHAT]
    assert asked == ["pirate"]


async def test_a_key_that_is_added_is_known_without_a_restart(tmp_path: Path, worker: ScriptedWorker):
    async with serving(settings(tmp_path, worker)) as gateway:
        old = gateway.keys
        assert (await gateway.request("GET", "/v1/models", key=old.acme)).status == 200
        new = write_keys(tmp_path)
        async with asyncio.timeout(PATIENCE_S):
            while (await gateway.request("GET", "/v1/models", key=new.acme)).status != 200:
                pass  # at most for KEYS_WATCH_S
        assert (await gateway.request("GET", "/v1/models", key=old.acme)).status == 401


async def test_what_runs_beside_the_requests_ends_with_them_and_leaves_no_connection(tmp_path: Path, worker: ScriptedWorker):
    write_keys(tmp_path)
    asked = settings(tmp_path, worker)
    app = build(asked, clock=lambda: 0.0, log=None, metrics=Metrics.of_process())
    async with background(app, asked):
        await worker.wait_requests(2)
        assert len(asyncio.all_tasks()) > 1
    assert asyncio.all_tasks() == {asyncio.current_task()}
    await worker.until(lambda: not worker.connections)


# The process, in this one


@asynccontextmanager
async def run(
    folder: Path, worker: ScriptedWorker | str, **sections: Any
) -> AsyncIterator[tuple[int, int, asyncio.Task[None]]]:
    """`run_server` on two free ports; it is cancelled at the end if the test has not stopped it."""
    port, metrics_port = free_ports(2)
    server = {"port": port, "metrics_port": metrics_port, "access_log": False} | sections.pop("server", {})
    ready = asyncio.Event()
    task = asyncio.create_task(run_server(settings(folder, worker, server=server, **sections), on_ready=ready.set))
    waiting = asyncio.create_task(ready.wait())
    await asyncio.wait({task, waiting}, return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
    try:
        yield port, metrics_port, task
    finally:
        task.cancel()
        await asyncio.wait({task})


async def test_it_serves_until_a_signal_and_the_metrics_port_until_the_last_call_has_ended(
    tmp_path: Path, worker: ScriptedWorker, this_process: None
):
    keys = write_keys(tmp_path)
    gate = asyncio.Event()
    worker.on(CHAT, scripts.chat_stream(gates={2: gate}))
    async with run(tmp_path, worker) as (port, metrics_port, task):
        url, metrics_url = f"http://127.0.0.1:{port}", f"http://127.0.0.1:{metrics_port}"
        async with RawClient(url) as client:
            await client.send(request_bytes("POST", CHAT, json=STREAM, headers=[("authorization", f"Bearer {keys.acme}")]))
            await client.read_until(b"Hello")
            os.kill(os.getpid(), signal.SIGTERM)
            async with asyncio.timeout(PATIENCE_S):
                while (readiness := await raw_http.request(metrics_url, "GET", "/readyz")).status == 200:
                    pass
            assert readiness.body == b"draining\n"
            metrics = await raw_http.request(metrics_url, "GET", "/metrics")
            assert b"process_open_fds" in metrics.body and b'sluice_worker_in_flight{route="smollm2"' in metrics.body
            gate.set()
            await client.read_until(b"[DONE]")
        await asyncio.wait_for(task, PATIENCE_S)
    assert gc.get_freeze_count() > 0
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert soft == hard, "each stream holds two connections"


async def test_without_a_metrics_port_there_is_one_port_only(tmp_path: Path, this_process: None):
    write_keys(tmp_path)
    async with run(tmp_path, NOBODY, server={"metrics_port": None}) as (port, _, task):
        assert (await raw_http.request(f"http://127.0.0.1:{port}", "GET", "/livez")).status == 200
        os.kill(os.getpid(), signal.SIGINT)
        await asyncio.wait_for(task, PATIENCE_S)


@pytest.mark.parametrize("which", ["port", "metrics_port"])
async def test_a_port_that_is_taken_is_a_mistake_that_names_it(tmp_path: Path, this_process: None, which: str):
    write_keys(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        number = taken.getsockname()[1]
        async with run(tmp_path, NOBODY, server={which: number}) as (_, _, task):
            with pytest.raises(ConfigError, match=f"127.0.0.1:{number}: Address already in use"):
                await task


# The process, in one of its own


class Process:
    def __init__(self, process: asyncio.subprocess.Process, url: str, keys: Keys) -> None:
        self.process = process
        self.url = url
        self.keys = keys

    async def ended(self) -> tuple[int, list[dict[str, Any]], str]:
        """Exit code, access lines, what it said on stderr."""
        out, err = await asyncio.wait_for(self.process.communicate(), PATIENCE_S)
        assert self.process.returncode is not None
        return self.process.returncode, [orjson.loads(line) for line in out.splitlines()], err.decode()


@asynccontextmanager
async def sluice_serve(folder: Path, worker_url: str, port: int = 0, **server: Any) -> AsyncIterator[Process]:
    """`python -m sluice serve`, which has said that it is ready or has ended."""
    keys = write_keys(folder)
    port = port or free_ports(1)[0]
    file = folder / "sluice.yaml"
    route = {"workers": {"static": [worker_url]}}
    sections = {"server": {"port": port, "metrics_port": None} | server, "routes": {"smollm2": route}}
    file.write_text(yaml.safe_dump(sections))
    command = (sys.executable, "-m", "sluice", "serve", "--config", str(file))
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*command, stdout=pipe, stderr=pipe)
    try:
        assert process.stderr is not None
        said = await asyncio.wait_for(process.stderr.readuntil(b"\n"), PATIENCE_S)
        assert said.startswith((b"sluice: ready on", b"sluice: cannot listen")), said
        yield Process(process, f"http://127.0.0.1:{port}", keys)
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()


async def refused(url: str) -> None:
    """Until new connections are."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            try:
                await raw_http.request(url, "GET", "/livez")
            except (OSError, asyncio.IncompleteReadError):
                return


async def test_sigterm_lets_a_stream_end_writes_its_line_and_exits_with_0(tmp_path: Path, worker: ScriptedWorker):
    gate = asyncio.Event()
    worker.on(CHAT, scripts.chat_stream(gates={2: gate}))
    async with sluice_serve(tmp_path, worker.url) as sluice, RawClient(sluice.url) as client:
        key = ("authorization", f"Bearer {sluice.keys.acme}")
        await client.send(request_bytes("POST", CHAT, json=STREAM, headers=[key]))
        await client.read_until(b"Hello")
        sluice.process.send_signal(signal.SIGTERM)
        await refused(sluice.url)
        gate.set()
        rest = await client.read_rest()
        code, lines, said = await sluice.ended()

    assert rest.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")
    assert code == 0
    assert [line["status"] for line in lines if line["path"] == CHAT] == [200]
    assert "Traceback" not in said


async def test_a_second_signal_cuts_the_stream_and_leaves_at_once_with_its_line(tmp_path: Path, worker: ScriptedWorker):
    worker.on(CHAT, scripts.chat_stream(gates={2: asyncio.Event()}))
    async with sluice_serve(tmp_path, worker.url) as sluice, RawClient(sluice.url) as client:
        key = ("authorization", f"Bearer {sluice.keys.acme}")
        await client.send(request_bytes("POST", CHAT, json=STREAM, headers=[key]))
        await client.read_until(b"Hello")
        sluice.process.send_signal(signal.SIGTERM)
        await refused(sluice.url)
        sluice.process.send_signal(signal.SIGTERM)
        rest = await client.read_rest()
        code, lines, said = await sluice.ended()

    assert b"[DONE]" not in rest
    assert code == 0
    assert [line["status"] for line in lines if line["path"] == CHAT] == [499]
    assert "Traceback" not in said
    await worker.wait_aborted(1)


async def test_a_port_that_is_taken_is_one_line_and_exit_code_3(tmp_path: Path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        async with sluice_serve(tmp_path, NOBODY, port) as sluice:
            assert await sluice.ended() == (3, [], "")  # the one line has been read
