"""All workers of all routes, over simulated vLLM: what is followed of each, and that they come and go without a lost call."""

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import trustme

from loadtest.simfleet.fleet import Fleet as SimFleet
from sluice.config import ConfigError, Settings
from sluice.discovery.base import Found
from sluice.discovery.managed import write_workers
from sluice.fleet import Fleet
from sluice.worker import EngineLoad, Worker
from tests.support import scripts
from tests.support import vllm_shapes as vllm
from tests.support.kube_api import KubeApi, pod
from tests.support.raw_server import Connection, Request
from tests.support.scripted_worker import ScriptedWorker
from tests.unit.hot_path import InOrder, until
from tests.unit.in_process import CHAT, Gateway, serving, settings
from tests.unit.loadtest.simfleet_client import fleet as sim_fleet


class Telling(InOrder):
    """A policy that notes what it is told."""

    forgotten: list[str]
    facts: list[Worker]

    def __init__(self) -> None:
        self.forgotten = []
        self.facts = []

    def forget(self, worker: Worker) -> None:
        self.forgotten.append(worker.url)

    def cache_facts(self, worker: Worker) -> None:
        self.facts.append(worker)


def following(running: SimFleet, **workers: Any) -> AbstractAsyncContextManager[tuple[Fleet, Worker, Telling]]:
    """Our fleet over the first worker of a simulated one, while it follows it closely."""
    return following_url(running.workers[0].url, **workers)


@asynccontextmanager
async def following_url(url: str, **workers: Any) -> AsyncIterator[tuple[Fleet, Worker, Telling]]:
    route = {"workers": {"static": [url]} | workers, "policy": "tests.unit.test_fleet:Telling"}
    probes = {"health_interval_s": 0.02, "load_interval_s": 0.02}
    ours = Fleet(Settings.model_validate({"routes": {"smollm2": route}, "probes": probes}), asyncio.get_running_loop().time, {})
    [membership] = ours.memberships.values()
    policy = membership.pool._policy
    assert isinstance(policy, Telling)
    task = asyncio.create_task(membership.run())
    try:
        yield ours, membership.pool.workers[0], policy
    finally:
        task.cancel()
        await asyncio.wait({task})
        ours.close()


async def post(simulated: SimFleet, path: str, **body: Any) -> None:
    async with httpx.AsyncClient(trust_env=False) as http:
        assert (await http.post(simulated.workers[0].url + path, json=body)).status_code == 200


async def test_load_cache_and_sleep_are_followed():
    async with sim_fleet() as running, following(running) as (ours, worker, policy):
        await until(lambda: worker.load is not None and policy.facts and worker.state == "healthy")
        assert (worker.cache.block_size, worker.cache.num_blocks) == (16, 256)
        [row] = ours.worker_rows()
        assert (row.running, row.waiting, row.kv_usage) == (0, 0, 0.0)
        [pool] = ours.pool_rows()
        assert (pool.route, pool.age_s, pool.num_failures) == ("smollm2", None, 0)
        await post(running, "/sim/fault", kind="lying_metrics", running=7, waiting=3)
        await until(lambda: worker.load is not None and (worker.load.num_running, worker.load.num_waiting) == (7, 3))
        await post(running, "/sim/fault", kind="lying_metrics", running=-7)
        await until(lambda: worker.load is None)
        await post(running, "/sim/fault", kind="clear")
        await post(running, "/sleep")
        await until(lambda: worker.state == "asleep")
        await post(running, "/wake_up")
        await until(lambda: worker.state == "healthy")
        assert policy.forgotten == []


async def test_a_restarted_worker_is_forgotten_by_its_counters():
    ask = {"model": "smollm2", "prompt": "Tell me", "max_tokens": 5}
    async with sim_fleet() as running, following(running) as (_, worker, policy):
        await post(running, "/v1/completions", **ask)
        now = asyncio.get_running_loop().time()
        await until(lambda: worker.load is not None and worker.load.read_at > now)
        await post(running, "/sim/fault", kind="restart")
        await until(lambda: policy.forgotten == [worker.url])


async def test_kv_events_tell_of_an_emptied_cache():
    async with sim_fleet(kv_events_port=0) as running, following(running, kv_events=True) as (_, worker, policy):
        ask = {"model": "smollm2", "prompt": "Tell me of the sea. " * 20, "max_tokens": 5}
        async with asyncio.timeout(60):
            while not policy.forgotten:  # until it has subscribed
                await post(running, "/v1/completions", **ask)
                await post(running, "/reset_prefix_cache")


def test_a_ca_file_that_is_none_is_told_before_anything_starts(tmp_path: Path):
    workers = {"dns": {"name": "d", "port": 1, "scheme": "https"}, "ca_file": tmp_path / "ca.pem"}
    with pytest.raises(ConfigError, match=r"ca\.pem is not a file of CA certificates"):
        Fleet(Settings.model_validate({"routes": {"a": {"workers": workers}}}), lambda: 0.0, {})


@pytest.mark.parametrize("asks", [True, False])
async def test_answers_that_are_no_streams_may_bring_a_load_report(tmp_path: Path, asks: bool):
    seen: list[str | None] = []
    answer = vllm.chat_reply({"role": "assistant", "content": "hi"}, model="smollm2", id="1", prompt=5, completion=1)

    async def reply(request: Request, connection: Connection) -> None:
        seen.append(request.header("endpoint-load-metrics-format"))
        report = "TEXT named_metrics.kv_cache_usage_perc=0.5, named_metrics.num_requests_waiting=3.0"
        await scripts.reply(200, answer, headers=[("endpoint-load-metrics", report)])(request, connection)

    async with ScriptedWorker() as scripted:
        scripted.on(CHAT, reply, reply, None)
        async with serving(settings(tmp_path, scripted, probes={"ask_orca": asks})) as gateway:
            [worker] = gateway.pools[0].workers
            worker.load = EngineLoad(num_running=2)
            for stream in (False, True):
                ask = {"model": "smollm2", "messages": [{"role": "user", "content": "Say hi"}], "stream": stream}
                await gateway.request("POST", CHAT, json=ask)
            assert (worker.load.num_waiting, worker.load.kv_usage) == ((3, 0.5) if asks else (0, 0))
    assert seen == (["TEXT", None] if asks else [None, None])


def test_what_workers_need_comes_from_their_route(tmp_path):
    routes: dict[str, Any] = {
        "a": {"workers": {"static": ["http://a:1"], "api_key_env": "KEY"}},
        "b": {"workers": {"static": ["https://b:1", "https://c:1"], "server_name": "vllm.internal"}},
        "c": {"workers": {"dns": {"name": "d.internal.", "port": 1, "scheme": "https"}}},
        "d": {"workers": {"managed": tmp_path / "workers.json"}},
    }
    ours = Fleet(Settings.model_validate({"routes": routes}), lambda: 0.0, {"KEY": "secret"})
    pools = {pool.route: pool.workers for pool in ours.pools}
    assert {route: len(workers) for route, workers in pools.items()} == {"a": 1, "b": 2, "c": 0, "d": 0}
    assert b"Bearer secret" in pools["a"][0].connections._common
    first, second = (worker.connections for worker in pools["b"])
    assert first._ssl is second._ssl is not None and first._server_name == "vllm.internal"
    from_dns = ours.memberships["c"]._make_worker(Found("https://10.0.0.1:1"))
    assert from_dns.connections._server_name == "d.internal"
    ours.close()


async def test_pods_are_followed_and_one_that_terminates_ends_its_streams(tmp_path: Path):
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(tls)
    (tmp_path / "token").write_text("token-1")
    gate = asyncio.Event()
    async with KubeApi(tls=tls) as api, ScriptedWorker() as old, ScriptedWorker() as new:
        old.on(CHAT, scripts.chat_stream(gates={2: gate}))

        def put(worker: ScriptedWorker, **state: bool) -> None:
            port = int(worker.url.rpartition(":")[2])
            api.put(f"slice-{port}", [pod("127.0.0.1", f"uid-{port}", **state)], port=port)

        put(old)
        kubernetes = {"service": "vllm", "namespace": "llm", "api_server": api.url, "token_file": "token", "ca_file": "ca.pem"}
        asked = settings(tmp_path, "", route={"workers": {"kubernetes": kubernetes}}, probes={"health_interval_s": 0.05})
        async with serving(asked) as gateway, gateway.connect() as client:
            await gateway.until(lambda: gateway.pools[0].is_ready)
            stream = {"model": "smollm2", "messages": [{"role": "user", "content": "Say hi"}], "stream": True}
            await client.send(gateway.bytes("POST", CHAT, json=stream))
            await client.read_until(b"Hello")
            put(new)
            await gateway.until(lambda: sum(worker.is_healthy or False for worker in gateway.pools[0].workers) == 2)
            put(old, ready=False, terminating=True)
            await gateway.until(lambda: {worker.state for worker in gateway.pools[0].workers} == {"draining", "healthy"})
            for _ in range(5):
                assert (await gateway.request("POST", CHAT, json=stream)).status == 200
            assert (len(old.calls(CHAT)), len(new.calls(CHAT))) == (1, 5)
            api.delete(f"slice-{old.url.rpartition(':')[2]}")
            await gateway.until(lambda: [worker.url for worker in gateway.pools[0].workers] == [new.url])
            await api.stop()
            assert (await gateway.request("POST", CHAT, json=stream)).status == 200
            gate.set()
            assert (await client.read_until(b"[DONE]")).endswith(b"data: [DONE]")
            assert gateway.metric('sluice_discovery_age_seconds{route="smollm2"}') > 0
            assert gateway.metric("sluice_worker_in_flight") == 0
    await old.wait_idle()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sluice.discovery.managed.LOOK_EVERY_S", 0.01)


async def test_workers_come_and_go_without_a_lost_call(tmp_path: Path, quick: None):
    file = tmp_path / "workers.json"
    stream: dict[str, Any] = {"model": "smollm2", "messages": [{"role": "user", "content": "Tell me"}], "max_tokens": 60}
    stream |= {"min_tokens": 60, "stream": True}
    ends: list[bytes] = []
    is_over = False

    async def client(gateway: Gateway) -> None:
        while not is_over:
            async with gateway.connect() as http:
                await http.send(gateway.bytes("POST", CHAT, json=stream))
                ends.append((await http.read_response(method="POST")).body[-14:])

    async with sim_fleet(4, warp=20) as running:
        urls = [worker.url for worker in running.workers]

        def there(*numbers: int, generation: int = 0) -> None:
            write_workers(file, {"smollm2": {urls[k]: f"{k}-{generation}" for k in numbers}})

        there(0)
        asked = settings(tmp_path, "", route={"workers": {"managed": file}}, probes={"health_interval_s": 0.05})
        async with serving(asked) as gateway:
            await gateway.until(lambda: gateway.pools[0].is_ready)
            async with asyncio.TaskGroup() as tasks:
                for _ in range(10):
                    tasks.create_task(client(gateway))
                for turn in range(1, 13):
                    there(turn % 4, (turn + 1) % 4, generation=turn // 3)
                    wanted = {urls[turn % 4], urls[(turn + 1) % 4]}
                    pool = gateway.pools[0]
                    await gateway.until(lambda: {worker.url for worker in pool.workers} == wanted)  # noqa: B023
                    await gateway.until(lambda: all(worker.in_flight for worker in pool.workers))  # noqa: B023
                is_over = True
            await gateway.holds_nothing()
    assert len(ends) > 30 and set(ends) == {b"data: [DONE]\n\n"}
