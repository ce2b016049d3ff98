"""The ledger against real workers' own counters: to the token for calls that finished, within two events for those that left,
up to the last scrape for those whose worker was killed. What is computed twice is nobody's bill.

`SLUICE_LEDGER_CALLS` makes it longer: 500 for a study.
"""

import asyncio
import os
import random
import signal
import sqlite3
from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack, asynccontextmanager, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.e2e.conftest import RunningWorker, StartWorker
from tests.e2e.gateway import RunningGateway, serving

pytestmark = [pytest.mark.e2e]

NUM_CALLS = int(os.environ.get("SLUICE_LEDGER_CALLS", "60"))
NUM_LEFT = max(5, NUM_CALLS // 10)
NUM_STREAMS = 8  # beside a worker that is killed
ANSWER_TOKENS = 60
SCRAPE_TOKENS = 6  # of one stream, between the last scrape and the kill
CACHED_TOKENS = 48  # of one prompt: what all of them begin with
CHAT = "/v1/chat/completions"
WORDS = "the quick brown fox jumps over a lazy dog and writes 2 letters é 你好 to nobody".split()


@dataclass
class Counters:
    """What the worker says it has computed."""

    prompt: int
    generated: int


class Books:
    """A gateway with a ledger, in front of real workers."""

    def __init__(self, gateway: RunningGateway, workers: Sequence[RunningWorker], folder: Path) -> None:
        self.workers = workers
        self._folder = folder
        self.client = httpx.AsyncClient(
            base_url=gateway.url,
            headers={"authorization": f"Bearer {gateway.key}"},
            timeout=120,
            limits=httpx.Limits(max_connections=8),
        )

    async def counters(self, number: int = 0) -> Counters:
        """Of a worker, once it is idle."""
        async with httpx.AsyncClient() as client, asyncio.timeout(60):
            while True:
                running, seen = await self.scrape(client, number)
                if not running:
                    return seen
                await asyncio.sleep(0.05)

    async def scrape(self, client: httpx.AsyncClient, number: int = 0) -> tuple[int, Counters]:
        """How many requests a worker has, and its counters."""
        page = (await client.get(f"{self.workers[number].url}/metrics")).text
        running, prompt, generated = [
            int(sum(float(line.split()[-1]) for line in page.splitlines() if line.startswith(f"vllm:{name}{{")))
            for name in ("num_requests_running", "prompt_tokens_total", "generation_tokens_total")
        ]
        return running, Counters(prompt, generated)

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

    async def lose(self, number: int, num_streams: int) -> tuple[Counters, list[str]]:
        """Kill a worker in the middle of streams: what it counted last, and how the streams ended."""
        drawn, begun = random.Random(number), asyncio.Semaphore(0)

        async def stream() -> str:
            last, seen = "", 0
            asked = {"role": "user", "content": " ".join(drawn.choices(WORDS, k=30))}
            body = {"model": "smollm2", "messages": [asked], "stream": True, "max_tokens": ANSWER_TOKENS, "ignore_eos": True}
            async with self.client.stream("POST", CHAT, json=body | {"temperature": 0}) as response:
                async for line in response.aiter_lines():
                    if line.startswith("data: "):
                        last, seen = line[6:], seen + 1
                    if seen == 10:
                        begun.release()
            return last

        async with asyncio.timeout(120), httpx.AsyncClient() as client:
            streams = [asyncio.create_task(stream()) for _ in range(num_streams)]
            for _ in streams:
                await begun.acquire()
            _, counted = await self.scrape(client, number)
            os.kill(self.workers[number].pid, signal.SIGKILL)
            return counted, await asyncio.gather(*streams)


@asynccontextmanager
async def keeping_books(
    start_worker: StartWorker, chat_model: Path, folder: Path, num_workers: int = 1
) -> AsyncIterator[Books]:
    details = ("--enable-per-request-metrics", "--enable-prompt-tokens-details")
    with ExitStack() as stack:
        made = [
            stack.enter_context(start_worker(chat_model, "smollm2", cpus=(number % 2,), extra_args=details))
            for number in range(num_workers)
        ]
        workers = [await asyncio.to_thread(one.ready) for one in made]
        static = [worker.url for worker in workers]
        settings = {
            "auth": {"keys_file": "keys.yaml"},
            "routes": {"smollm2": {"workers": {"static": static}, "policy": "round_robin", "bounds": {"ignore_eos": True}}},
            "ledger": {"folder": "ledger", "replica": "one"},
        }
        async with serving(folder, settings) as gateway:
            books = Books(gateway, workers, folder / "ledger")
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


async def test_the_ledger_is_what_the_worker_counted(start_worker: StartWorker, chat_model: Path, tmp_path: Path):
    async with keeping_books(start_worker, chat_model, tmp_path) as books:
        await finished(books)
        await left(books)
        rows = await books.rows(NUM_CALLS + NUM_LEFT)
        inexact = sum(tokens_of(row) for row in rows if not row["exact"]) / sum(map(tokens_of, rows))
        print(f"[ledger] inexact: {inexact:.1%} of the tokens, {sum(not row['exact'] for row in rows)} of {len(rows)} calls")
        assert all(row["exact"] or row["code"] == "client_left" for row in rows)
        assert not any(row["tokens_wasted"] for row in rows)


async def test_calls_of_killed_workers_are_billed_once_and_what_is_computed_twice_is_not(
    start_worker: StartWorker, chat_model: Path, tmp_path: Path
):
    async with keeping_books(start_worker, chat_model, tmp_path, num_workers=2) as books:
        await resumed(books)
        await broken(books)


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


async def resumed(books: Books) -> None:
    """Half of the streams lose their worker, and the other one continues them."""
    heir_before, lost_before = await books.counters(1), await books.counters(0)
    lost, ends = await books.lose(0, NUM_STREAMS)
    assert ends == ["[DONE]"] * NUM_STREAMS
    heir, rows = await books.counters(1), await books.rows(NUM_STREAMS)
    moved = [row for row in rows if row["tokens_wasted"]]
    assert len(moved) == NUM_STREAMS // 2 and {row["worker"] for row in rows} == {books.workers[1].url}
    assert all(row["exact"] and row["completion_tokens"] == ANSWER_TOKENS for row in rows)  # each token once
    generated = heir.generated - heir_before.generated + lost.generated - lost_before.generated
    billed, off = NUM_STREAMS * ANSWER_TOKENS, generated - NUM_STREAMS * ANSWER_TOKENS
    assert abs(off) <= len(moved) * SCRAPE_TOKENS, (generated, billed)
    # The heir was given prompt and text of the streams that it continued: the bill has their prompts once.
    prompts = heir.prompt - heir_before.prompt + lost.prompt - lost_before.prompt
    twice, wasted = prompts - sum(row["prompt_tokens"] for row in rows), sum(row["tokens_wasted"] for row in rows)
    assert twice - len(moved) * CACHED_TOKENS <= wasted <= twice, (twice, wasted)
    share = wasted / (wasted + sum(map(tokens_of, rows)))
    print(f"\n[ledger] {len(moved)} of {NUM_STREAMS} resumed: {billed} tokens billed, {off:+} computed by the last scrape")
    print(f"[ledger] {wasted} tokens wasted ({share:.1%} of all), {twice} given a second time; none billed")


async def broken(books: Books) -> None:
    """All streams lose the only worker that is left: what had been made is billed, and marked as not exact."""
    before = await books.counters(1)
    lost, ends = await books.lose(1, NUM_STREAMS)
    assert all("error" in end for end in ends)
    rows = (await books.rows(2 * NUM_STREAMS))[NUM_STREAMS:]
    assert not any(row["exact"] or row["tokens_wasted"] for row in rows)
    off = sum(row["completion_tokens"] for row in rows) - (lost.generated - before.generated)
    assert abs(off) <= NUM_STREAMS * SCRAPE_TOKENS, (off, lost)
    off_prompt = sum(row["prompt_tokens"] for row in rows) - (lost.prompt - before.prompt)
    print(
        f"[ledger] {NUM_STREAMS} broken: off by {off} tokens of the answers up to the last scrape, {off_prompt} of the prompts"
    )


def tokens_of(row: sqlite3.Row) -> int:
    return int(row["prompt_tokens"] + row["completion_tokens"])
