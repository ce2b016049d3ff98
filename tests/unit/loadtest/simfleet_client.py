"""What the tests of the simulated fleet share: small engines, a fleet on free ports, a client for events."""

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from typing import Any

import httpx

from loadtest.simfleet.config import WorkerConfig
from loadtest.simfleet.engine import Engine
from loadtest.simfleet.fleet import Fleet, FleetConfig
from loadtest.simfleet.job import Job
from loadtest.simfleet.profile import Profile
from loadtest.simfleet.text import Author, Style
from loadtest.simfleet.tokenizer import Tokenizer

# One token a millisecond in prefill, ten milliseconds a step, so that times can be reckoned in the head.
PLAIN = Profile(
    name="plain",
    source="made up",
    block_size=16,
    num_kv_blocks=256,
    max_num_seqs=8,
    max_num_batched_tokens=128,
    max_model_len=2048,
    request_overhead_ms=0.0,
    prefill_tokens_per_s=1000.0,
    step_ms=((0, 10.0), (8, 10.0)),
)
AUTHOR = Author(Tokenizer(), Style())
ASK = {"messages": [{"role": "user", "content": "Tell me of the sea."}], "max_tokens": 40, "ignore_eos": True}
FOREVER = {**ASK, "max_tokens": 1900}


class Text:
    """Content of given lengths; prompts with the same `name` share their blocks."""

    def __init__(self, name: int, num_output_tokens: int, own_from: int = 10**9) -> None:
        self._name = name
        self._num_output_tokens = num_output_tokens
        self._own_from = own_from

    def reach(self, num_output_tokens: int) -> int:
        return min(num_output_tokens, self._num_output_tokens)

    def block_hashes(self, num_blocks: int) -> Sequence[int]:
        return [self._name * 10_000 + at if at < self._own_from else id(self) + at for at in range(num_blocks)]


def job(name: int, num_prompt_tokens: int, num_output_tokens: int, lora: str | None = None) -> Job:
    return Job(Text(name, num_output_tokens), num_prompt_tokens, lora=lora)


def run(engine: Engine, *jobs: Job, now_s: float = 0.0) -> None:
    """Let an engine answer these, all of which come at once."""
    for each in jobs:
        engine.add(each, now_s)
    engine.advance(float("inf"))


@asynccontextmanager
async def fleet(
    num_workers: int = 1, *, warp: float = 100.0, worker: dict[str, Any] | None = None, **members: Any
) -> AsyncIterator[Fleet]:
    """A fleet that is fast for a test."""
    config = replace(WorkerConfig(PLAIN, served_model_name=("smollm2",)), **(worker or {}))
    async with Fleet(FleetConfig(config, num_workers, warp=warp, **members), AUTHOR) as running:
        yield running


@asynccontextmanager
async def client(running: Fleet, worker: int = 0) -> AsyncIterator[httpx.AsyncClient]:
    async with unverified(base_url=running.workers[worker].url, timeout=60) as http:
        yield http


def unverified(**members: Any) -> httpx.AsyncClient:
    """A client that does not read the machine's certificates first, which takes longer than most of these tests."""
    return httpx.AsyncClient(verify=False, **members)


async def events(http: httpx.AsyncClient, body: dict[str, Any], path: str = "/v1/chat/completions") -> AsyncIterator[Any]:
    """The data of each event of a stream, "[DONE]" as it is."""
    async with http.stream("POST", path, json={**body, "stream": True}) as response:
        assert response.status_code == 200, await response.aread()
        async for line in response.aiter_lines():
            if line:
                data = line.removeprefix("data: ")
                yield data if data == "[DONE]" else json.loads(data)


async def text_of(http: httpx.AsyncClient, body: dict[str, Any], path: str = "/v1/chat/completions") -> str:
    """The text of a reply that is no stream."""
    response = await http.post(path, json=body)
    assert response.status_code == 200, response.text
    choice = response.json()["choices"][0]
    return str(choice["text"] if "text" in choice else choice["message"]["content"])


async def order(http: httpx.AsyncClient, **members: Any) -> None:
    response = await http.post("/sim/fault", json=members)
    assert response.status_code == 200, response.text


async def until(running: Fleet, worker: int = 0, /, **wanted: object) -> None:
    """Ask again and again until a worker has these figures."""
    async with asyncio.timeout(60), unverified() as http:
        while True:
            state = (await http.get(running.control_url + "/sim/state")).json()["workers"][worker]
            if all(state[name] == value for name, value in wanted.items()):
                return


@asynccontextmanager
async def connection(running: Fleet) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A bare connection to worker 0."""
    reader, writer = await asyncio.open_connection("127.0.0.1", running.workers[0].port)
    try:
        yield reader, writer
    finally:
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()
