"""One gateway and three workers for all tests of a module; each test finds the workers without scripts and records.

smollm2     one worker, the alias gpt-4o-mini; nothing is open that a route must open
acme/tiny   the same worker under another name; everything is open, images are understood
keeper      two workers that keep responses
"""

from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest
import pytest_asyncio

from tests.support.scripted_worker import ScriptedWorker
from tests.unit.in_process import Gateway, serving, settings


@dataclass(frozen=True)
class Shared:
    gateway: Gateway
    worker: ScriptedWorker
    keepers: tuple[ScriptedWorker, ScriptedWorker]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Shared]:
    async with (
        ScriptedWorker() as worker,
        ScriptedWorker(responses_store=True) as one,
        ScriptedWorker(responses_store=True) as two,
    ):
        routes = {
            "acme/tiny": {
                "workers": {"static": [worker.url]},
                "served_model": "smollm2",
                "open": ["tokenize", "detokenize", "transcriptions"],
                "input_modalities": ["text", "image"],
            },
            "keeper": {
                "workers": {"static": [one.url, two.url]},
                "served_model": "smollm2",
                "responses_store": True,
                "policy": "round_robin",
            },
        }
        folder = tmp_path_factory.mktemp("gateway")
        async with serving(settings(folder, worker, route={"aliases": ["gpt-4o-mini"]}, routes=routes)) as gateway:
            await gateway.until(lambda: all(worker.is_healthy for pool in gateway.pools for worker in pool.workers))
            yield Shared(gateway, worker, (one, two))


@pytest_asyncio.fixture(loop_scope="module")
async def worker(shared: Shared) -> ScriptedWorker:
    shared.worker.forget()
    return shared.worker


@pytest_asyncio.fixture(loop_scope="module")
async def keepers(shared: Shared) -> tuple[ScriptedWorker, ScriptedWorker]:
    for keeper in shared.keepers:
        keeper.forget()
    return shared.keepers


@pytest_asyncio.fixture(loop_scope="module")
async def gateway(shared: Shared, worker: ScriptedWorker, keepers: object) -> AsyncIterator[Gateway]:
    yield shared.gateway
    await shared.gateway.holds_nothing()
