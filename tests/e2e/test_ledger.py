"""The ledger against a real worker's own counters: to the token for calls that finished, within two events for those that left.

`SLUICE_LEDGER_CALLS` makes it longer: 500 for a study.
"""

import asyncio
import os
import random
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.e2e.gateway import RunningGateway, serving

pytestmark = [pytest.mark.e2e]

NUM_CALLS = int(os.environ.get("SLUICE_LEDGER_CALLS", "60"))
NUM_LEFT = max(5, NUM_CALLS // 10)
CHAT = "/v1/chat/completions"
WORDS = "the quick brown fox jumps over a lazy dog and writes 2 letters é 你好 to nobody".split()


@dataclass
class Counters:
    """What the worker says it has computed."""

    prompt: int
    generated: int


class Books:
    """A gateway with a ledger, in front of a real worker."""

    def __init__(self, gateway: RunningGateway, worker_url: str, folder: Path) -> None:
        self._worker_url = worker_url
        self._folder = folder
        self.client = httpx.AsyncClient(
            base_url=gateway.url,
            headers={"authorization": f"Bearer {gateway.key}"},
            timeout=120,
            limits=httpx.Limits(max_connections=8),
        )

    async def counters(self) -> Counters:
        """Once the worker is idle."""
        async with httpx.AsyncClient() as client, asyncio.timeout(60):
            while True:
                page = (await client.get(f"{self._worker_url}/metrics")).text
                numbers = {
                    name: sum(float(line.split()[-1]) for line in page.splitlines() if line.startswith(f"vllm:{name}{{"))
                    for name in ("num_requests_running", "prompt_tokens_total", "generation_tokens_total")
                }
                if not numbers["num_requests_running"]:
                    return Counters(int(numbers["prompt_tokens_total"]), int(numbers["generation_tokens_total"]))
                await asyncio.sleep(0.05)

    async def rows(self, number: int) -> list[sqlite3.Row]:
        """All rows, when there are so many."""
        async with asyncio.timeout(30):
            while True:
                found = []
                for path in self._folder.glob("usage-*.sqlite"):
                    with closing(sqlite3.connect(path)) as connection:
                        connection.row_factory = sqlite3.Row
                        found += connection.execute("SELECT * FROM calls ORDER BY ended_at").fetchall()
                if len(found) >= number:
                    return found
                await asyncio.sleep(0.1)


@asynccontextmanager
async def keeping_books(start_worker: Any, chat_model: Path, folder: Path) -> AsyncIterator[Books]:
    with start_worker(chat_model, "smollm2", extra_args=("--enable-per-request-metrics",)) as started:
        worker = await asyncio.to_thread(started.ready)
        settings = {
            "auth": {"keys_file": "keys.yaml"},
            "routes": {"smollm2": {"workers": {"static": [worker.url]}}},
            "ledger": {"folder": "ledger", "replica": "one"},
        }
        async with serving(folder, settings) as gateway:
            books = Books(gateway, worker.url, folder / "ledger")
            async with books.client:
                yield books


def mixed(drawn: random.Random) -> tuple[str, dict[str, Any]]:
    text = " ".join(drawn.choices(WORDS, k=drawn.randrange(3, 60)))
    asked: dict[str, Any] = {"model": "smollm2", "max_tokens": drawn.randrange(1, 12), "stream": drawn.random() < 0.5}
    if drawn.random() < 0.25:
        return "/v1/completions", asked | {"prompt": [text, text[:20]] if drawn.random() < 0.3 else text}
    if drawn.random() < 0.15:
        asked |= {"n": 2, "stream": False}
    return CHAT, asked | {"messages": [{"role": "user", "content": text}]}


async def test_the_ledger_is_what_the_worker_counted(start_worker: Any, chat_model: Path, tmp_path: Path):
    async with keeping_books(start_worker, chat_model, tmp_path) as books:
        await finished(books)
        await left(books)


async def finished(books: Books) -> None:
    drawn, before = random.Random(4), await books.counters()
    calls = [mixed(drawn) for _ in range(NUM_CALLS)]
    turns = asyncio.Semaphore(8)
    repeated = 0  # vLLM's counter counts a prompt once for each of its answers; its usage, and the bill, once

    async def ask(path: str, body: dict[str, Any]) -> None:
        nonlocal repeated
        async with turns:
            response = await books.client.post(path, json=body)
            assert response.status_code == 200
            if body.get("n") == 2:
                repeated += response.json()["usage"]["prompt_tokens"]

    await asyncio.gather(*(ask(*call) for call in calls))
    after, rows = await books.counters(), await books.rows(NUM_CALLS)
    assert len(rows) == NUM_CALLS and all(row["exact"] for row in rows)
    assert sum(row["completion_tokens"] for row in rows) == after.generated - before.generated
    assert sum(row["prompt_tokens"] for row in rows) + repeated == after.prompt - before.prompt
    single = [row for row in rows if row["gpu_exact"]]
    assert len(single) > NUM_CALLS / 3 and all(0 < row["gpu_ms"] <= row["duration_ms"] for row in single)
    print(f"\n[ledger] {NUM_CALLS} finished: {after.generated - before.generated} tokens, equal; {len(single)} with GPU times")


async def left(books: Books) -> None:
    """Clients that leave a stream after a few events: one after the other, so that each can be compared."""
    drawn, worst, worst_prompt = random.Random(5), 0, 0
    for number in range(1, NUM_LEFT + 1):
        before = await books.counters()
        body = {"model": "smollm2", "messages": [{"role": "user", "content": " ".join(drawn.choices(WORDS, k=20))}]}
        wanted = drawn.randrange(2, 25)
        async with books.client.stream("POST", CHAT, json=body | {"stream": True, "max_tokens": 400}) as response:
            seen = 0
            async for line in response.aiter_lines():
                seen += line.startswith("data: ")
                if seen == wanted:
                    break
        row = (await books.rows(NUM_CALLS + number))[-1]
        after = await books.counters()
        if row["exact"]:  # it was over before it was left
            continue
        off = abs(row["completion_tokens"] - (after.generated - before.generated))
        worst, worst_prompt = max(worst, off), max(worst_prompt, abs(row["prompt_tokens"] - (after.prompt - before.prompt)))
        assert row["code"] == "client_left" and off <= 2 * 1 + 2, (number, off, wanted)
    print(f"[ledger] {NUM_LEFT} left: off by at most {worst} tokens of the answer, {worst_prompt} of the prompt")
