"""What is followed of a real vLLM worker: its load by few lines of its metrics, its cache by size and events, its pauses."""

import asyncio
from typing import Any

import httpx
import pytest

from sluice import scraper
from sluice.config import Probes
from sluice.scraper import Scraper
from sluice.upstream.connections import Connections
from sluice.worker import Worker
from tests.e2e.conftest import StartWorker, free_port
from tests.unit.test_fleet import following_url, until

pytestmark = pytest.mark.e2e


async def test_load_cache_events_and_pauses(
    start_worker: StartWorker, chat_model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_SERVER_DEV_MODE", "1")  # for /pause and /reset_prefix_cache
    events = f'{{"enable_kv_cache_events":true,"publisher":"zmq","endpoint":"tcp://*:{free_port()}"}}'
    with start_worker(chat_model, "smollm2", extra_args=("--kv-events-config", events)) as started:
        url = await asyncio.to_thread(lambda: started.ready().url)
        async with (
            httpx.AsyncClient(base_url=url, timeout=60) as http,
            following_url(url, kv_events=True) as (_, worker, policy),
        ):
            await until(lambda: worker.load is not None and policy.facts and worker.state == "healthy")
            assert worker.cache.block_size == 128 and worker.cache.num_blocks > 10

            ask = {"model": "smollm2", "prompt": "The sea is wide and deep. " * 60, "max_tokens": 200, "ignore_eos": True}
            running = asyncio.create_task(http.post("/v1/completions", json=ask))
            await until(lambda: worker.load is not None and worker.load.num_running == 1 and worker.load.kv_usage > 0)
            (await running).raise_for_status()

            assert policy.forgotten == []
            (await http.post("/reset_prefix_cache")).raise_for_status()
            # Events are published with a step of the engine: of an idle one with the next request.
            (await http.post("/v1/completions", json=ask | {"max_tokens": 1})).raise_for_status()
            await until(lambda: policy.forgotten == [url])

            (await http.post("/pause")).raise_for_status()
            await until(lambda: worker.state == "asleep")
            (await http.post("/resume")).raise_for_status()
            await until(lambda: worker.state == "healthy")


async def test_a_real_worker_gives_the_few_metrics_that_are_read(chat_worker: Any) -> None:
    worker = Worker(chat_worker.url, Connections(chat_worker.url))
    loop = asyncio.get_running_loop()
    one = Scraper(worker, Probes(timeout_s=10), loop.time, on_restart=lambda: None, on_cache=lambda *size: None)
    await one.scrape()
    worker.connections.close()
    assert worker.load is not None and one._path is scraper.FEW
