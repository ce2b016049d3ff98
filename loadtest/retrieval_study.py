"""`make retrieval-study`: what files and vector stores cost at 100,000 passages of one tenant, beside their bars.

    ingestion   passages a second, words only, beside plain FTS5 inserts of the same rows
    kill -9     of the retrieval process in the middle of it: what was reported done is found, the rest comes to its end
    searches    one at a time and 20 at once, by words and hybrid with 384 numbers a vector, the question's vector given
    streams     the gaps of paced streams through the gateway, with 20 searches at once beside them and without

Exit code 1 where a bar is missed. The gateway, its child and a simulated worker run as their users run them.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import itertools
import json
import multiprocessing
import os
import random
import signal
import sqlite3
import statistics
import sys
import tempfile
import time
from array import array
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from loadtest.stack import MODEL, Gateway, fleet, gateway, routes

DIMS = 384
POOL = 1_000_000  # numbers that vectors are cut from
WORDS_PER_PASSAGE = 250  # about 400 tokens
PASSAGES_PER_FILE = 1_000
NUM_QUERIES = 300
CONCURRENT = 20
NUM_STREAMS = 16
WINDOW_S = 6.0
TENANT = {"x-sluice-tenant": "people"}


class Text:
    """English-looking text: words by Zipf's law, the common ones those that are common in English."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        common = (
            "the of and to in a is that for it as was with be by on not he his but at are this have from or had an they".split()
        )
        syllables = [c + v for c in "bcdfghklmnprstvz" for v in "aeiou"]
        made = ("".join(parts) for number in (2, 3) for parts in itertools.product(syllables, repeat=number))
        rare = list(itertools.islice(made, 60_000))
        self._random.shuffle(rare)
        self._words = common + rare
        self._weights = list(itertools.accumulate(1 / rank for rank in range(1, len(self._words) + 1)))

    def words(self, number: int) -> list[str]:
        return self._random.choices(self._words, cum_weights=self._weights, k=number)

    def file(self, number: int, num_passages: int) -> str:
        """A Markdown file whose every section is one passage, and whose name is a word of each."""
        sections = []
        for at in range(num_passages):
            words = self.words(WORDS_PER_PASSAGE)
            lines = [" ".join(words[start : start + 12]) + "." for start in range(0, len(words), 12)]
            sections.append(f"# file{number} section{at}\n\n" + " ".join(lines))
        return "\n\n".join(sections)

    def question(self) -> str:
        """Twelve words, as a person asks: half of them common."""
        return " ".join([*self.words(9), *self._random.choices(self._words[200:20_000], k=3)])


class Client:
    """The gateway for what clients ask, and the process's socket for what a gateway asks."""

    def __init__(self, ours: Gateway, folder: Path) -> None:
        self.gateway = httpx.Client(base_url=ours.url, headers={"authorization": f"Bearer {ours.keys['people']}"}, timeout=120)
        self._socket = folder / "data" / "retrieval.sock"
        self.process = self._connect()

    def _connect(self) -> httpx.Client:
        return httpx.Client(
            transport=httpx.HTTPTransport(uds=str(self._socket)), base_url="http://p", headers=TENANT, timeout=120
        )

    def upload(self, name: str, text: str) -> str:
        answer = self.gateway.post("/v1/files", files={"file": (name, text.encode())}, data={"purpose": "assistants"})
        answer.raise_for_status()
        return str(answer.json()["id"])

    def counts(self, store: str) -> dict[str, int]:
        while True:
            answer = self.gateway.get(f"/v1/vector_stores/{store}")
            if answer.status_code == 200:
                return dict(answer.json()["file_counts"])
            time.sleep(0.2)  # the process is being started again

    def wait(self, store: str, is_so: Callable[[dict[str, int]], bool]) -> None:
        while not is_so(self.counts(store)):
            time.sleep(0.05)

    def search(self, store: str, query: str, mode: str, vector: list[float] | None) -> dict[str, Any]:
        asked = {"stores": [store], "queries": [query], "limit": 10, "mode": mode, "timeout_s": 10}
        asked |= {"text_weight": 1, "embedding_weight": 1}
        if vector is not None:
            asked |= {"embedding_model": "study", "vectors": [vector]}
        answer = self.process.post("/internal/search", json=asked)
        answer.raise_for_status()
        return dict(answer.json())


def child_of(pid: int) -> int:
    """The retrieval process: the gateway's child."""
    for child in map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()):
        if b"retrieval_app" in Path(f"/proc/{child}/cmdline").read_bytes():
            return child
    raise SystemExit("the gateway has no retrieval process")


def cpu_s(pid: int) -> float:
    """CPU time that a process has used: what a figure would be on a machine that does nothing else."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def ingest(client: Client, ours: Gateway, files: list[str]) -> tuple[str, float, bool]:
    """The store, passages a second, and whether nothing was lost by a kill -9 in the middle."""
    ids = [client.upload(f"file{number}.md", text) for number, text in enumerate(files)]
    answer = client.process.post("/v1/vector_stores", json={"name": "study"}, headers={"x-sluice-embedding-model": "study"})
    store = str(answer.json()["id"])
    # A store of its own for the rate and the kill: words only.
    plain = str(client.gateway.post("/v1/vector_stores", json={"name": "plain"}).json()["id"])
    half = len(ids) // 2
    began = time.perf_counter()
    client.gateway.post(f"/v1/vector_stores/{plain}/file_batches", json={"file_ids": ids[:half]}).raise_for_status()
    client.wait(plain, lambda counts: counts["completed"] == half)
    rate = half * PASSAGES_PER_FILE / (time.perf_counter() - began)
    client.gateway.post(f"/v1/vector_stores/{plain}/file_batches", json={"file_ids": ids[half:]}).raise_for_status()
    client.wait(plain, lambda counts: counts["completed"] >= half + (len(ids) - half) // 2)
    done = {
        one["id"] for one in client.gateway.get(f"/v1/vector_stores/{plain}/files?limit=100&filter=completed").json()["data"]
    }
    os.kill(child_of(ours.pid), signal.SIGKILL)
    time.sleep(2.5)
    client.process = client._connect()
    nothing_lost = True
    for number, id in enumerate(ids):
        if id in done:
            client.counts(plain)
            found = client.search(plain, f"file{number}", "lexical", None)["passages"]
            nothing_lost &= bool(found) and all(one["file_id"] == id for one in found)
    client.wait(plain, lambda counts: counts["completed"] == len(ids))
    for number, id in enumerate(ids):
        nothing_lost &= {one["file_id"] for one in client.search(plain, f"file{number}", "lexical", None)["passages"]} == {id}
    client.process.post(f"/v1/vector_stores/{store}/file_batches", json={"file_ids": ids}).raise_for_status()
    client.gateway.delete(f"/v1/vector_stores/{plain}").raise_for_status()
    return store, rate, nothing_lost


def embed(client: Client, store: str, num_files: int, numbers: random.Random) -> float:
    """Random vectors for all passages, as a gateway brings them; the rate."""
    pool = array("f", (numbers.gauss(0, 1) for _ in range(POOL)))
    began, count = time.perf_counter(), 0
    while client.counts(store)["completed"] < num_files:
        taken = client.process.post("/internal/embeddings/take", json={"model": "study", "wait_s": 5}).json()
        if taken is None:
            continue
        at = numbers.randrange(POOL - DIMS * len(taken["ids"]))
        rows = pool[at : at + DIMS * len(taken["ids"])]
        put = {"store_id": store, "ids": taken["ids"], "vectors": base64.b64encode(rows.tobytes()).decode()}
        client.process.post("/internal/embeddings/put", json=put).raise_for_status()
        count += len(taken["ids"])
    return count / (time.perf_counter() - began)


def raw_rate(folder: Path, rows: list[str]) -> float:
    """Rows a second of plain FTS5 inserts, a transaction for each thousand as ingestion has one for each file."""
    base = sqlite3.connect(folder / "raw.db", isolation_level=None)
    base.execute("PRAGMA journal_mode = WAL")
    base.execute("CREATE VIRTUAL TABLE f USING fts5 (body, tokenize = 'porter unicode61')")
    began = time.perf_counter()
    for start in range(0, len(rows), PASSAGES_PER_FILE):
        base.execute("BEGIN")
        base.executemany("INSERT INTO f VALUES (?)", ((row,) for row in rows[start : start + PASSAGES_PER_FILE]))
        base.execute("COMMIT")
    rate = len(rows) / (time.perf_counter() - began)
    base.close()
    return rate


def latencies(client: Client, store: str, mode: str, questions: list[str], vectors: list[list[float]]) -> list[float]:
    """Seconds of each search, one at a time."""
    taken = []
    for number, question in enumerate(questions):
        began = time.perf_counter()
        client.search(store, question, mode, vectors[number % len(vectors)] if mode == "hybrid" else None)
        taken.append(time.perf_counter() - began)
    return taken


async def throughput(
    socket: str, store: str, mode: str, questions: list[str], vectors: list[list[float]], concurrent: int
) -> float:
    """Searches a second, so many at once."""
    transport = httpx.AsyncHTTPTransport(uds=socket)
    limit = asyncio.Semaphore(concurrent)
    async with httpx.AsyncClient(transport=transport, base_url="http://p", headers=TENANT, timeout=60) as client:

        async def one(number: int) -> None:
            asked: dict[str, Any] = {"stores": [store], "queries": [questions[number]], "limit": 10, "mode": mode}
            asked |= {"timeout_s": 30, "text_weight": 1, "embedding_weight": 1}
            if mode == "hybrid":
                asked |= {"embedding_model": "study", "vectors": [vectors[number % len(vectors)]]}
            async with limit:
                (await client.post("/internal/search", json=asked)).raise_for_status()

        began = time.perf_counter()
        await asyncio.gather(*(one(number) for number in range(len(questions))))
        return len(questions) / (time.perf_counter() - began)


@contextmanager
def search_load(socket: str, store: str, questions: list[str], vectors: list[list[float]]) -> Iterator[None]:
    """20 hybrid searches at once, without an end, from a process of its own."""

    def run() -> None:
        os.nice(5)  # this load is no part of what is measured
        while True:
            asyncio.run(throughput(socket, store, "hybrid", questions, vectors, CONCURRENT))

    process = multiprocessing.get_context("fork").Process(target=run, daemon=True)
    process.start()
    try:
        yield
    finally:
        process.kill()
        process.join()


async def gaps(ours: Gateway, for_s: float) -> list[float]:
    """Seconds between the events of paced streams."""
    body = json.dumps({"model": MODEL, "stream": True, "max_tokens": 4_000, "ignore_eos": False} | CHAT).encode()
    port = int(ours.url.rpartition(":")[2])
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {ours.keys['people']}\r\n"
    head += f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    found: list[float] = []

    async def one() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(head.encode() + body)
        ends_at, last = time.perf_counter() + for_s, 0.0
        try:
            while time.perf_counter() < ends_at:
                line = await asyncio.wait_for(reader.readline(), 10)
                if not line:
                    return
                if line.startswith(b"data:"):
                    now = time.perf_counter()
                    if last:
                        found.append(now - last)
                    last = now
        finally:
            writer.close()

    await asyncio.gather(*(one() for _ in range(NUM_STREAMS)))
    return found


CHAT = {"messages": [{"role": "user", "content": "Tell me a long story."}]}


def percentile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


class Report:
    def __init__(self) -> None:
        self.missed = 0

    def line(self, what: str, value: str, bar: str = "", *, is_good: bool = True) -> None:
        self.missed += not is_good
        print(f"{what:44} {value:32} {bar:28} {'' if not bar else 'good' if is_good else 'MISSED'}", flush=True)


def study(folder: Path, num_passages: int, report: Report) -> None:
    text = Text(1)
    numbers = random.Random(2)
    num_files = num_passages // PASSAGES_PER_FILE
    print(f"writing {num_files} files of {PASSAGES_PER_FILE} passages", file=sys.stderr)
    files = [text.file(number, PASSAGES_PER_FILE) for number in range(num_files)]
    rows = [section for one in files[: max(1, num_files // 5)] for section in one.split("\n\n# ")]
    raw = raw_rate(folder, rows)
    settings = {"retrieval": {"path": str(folder / "data"), "limits": {"text_bytes": 8_388_608}}}
    with fleet(folder, "-n", "1", "--mean-answer-tokens", "4000") as workers:
        with gateway(folder, {**routes(workers), **settings}) as ours:
            client = Client(ours, folder)
            client.gateway.get("/v1/files").raise_for_status()
            store, rate, nothing_lost = ingest(client, ours, files)
            report.line("plain FTS5 inserts", f"{raw:.0f} rows/s")
            report.line("ingestion, words only", f"{rate:.0f} passages/s", f">= {raw / 2:.0f}", is_good=rate >= raw / 2)
            report.line(
                "kill -9 in the middle of it", "nothing lost" if nothing_lost else "LOST", "nothing", is_good=nothing_lost
            )
            report.line("taking vectors", f"{embed(client, store, num_files, numbers):.0f} passages/s")
            measure_searches(client, child_of(ours.pid), store, text, numbers, report)
            measure_streams(client, ours, store, text, numbers, report)


def measure_searches(client: Client, child: int, store: str, text: Text, numbers: random.Random, report: Report) -> None:
    questions = [text.question() for _ in range(NUM_QUERIES)]
    vectors = [[numbers.gauss(0, 1) for _ in range(DIMS)] for _ in range(20)]
    socket = str(client._socket)
    for mode in ("lexical", "hybrid"):
        cold = latencies(client, store, mode, questions[:1], vectors)[0]
        before_s = cpu_s(child)
        taken = latencies(client, store, mode, questions, vectors)
        cpu_ms = (cpu_s(child) - before_s) / len(taken) * 1000
        p95 = percentile(taken, 0.95) * 1000
        report.line(
            f"search, {mode}, one at a time",
            f"p50 {statistics.median(taken) * 1000:.1f}, p95 {p95:.1f}, CPU {cpu_ms:.1f} ms",
            "p95 <= 50 ms",
            is_good=p95 <= 50,
        )
        report.line(f"the first search, {mode}", f"{cold * 1000:.0f} ms")
        serial = asyncio.run(throughput(socket, store, mode, questions, vectors, 1))
        together = asyncio.run(throughput(socket, store, mode, questions, vectors, CONCURRENT))
        report.line(
            f"search, {mode}, {CONCURRENT} at once",
            f"{together:.1f}/s, one at a time {serial:.1f}/s",
            f">= {0.8 * serial:.1f}/s",
            is_good=together >= 0.8 * serial,
        )


def measure_streams(client: Client, ours: Gateway, store: str, text: Text, numbers: random.Random, report: Report) -> None:
    questions = [text.question() for _ in range(100)]
    vectors = [[numbers.gauss(0, 1) for _ in range(DIMS)] for _ in range(20)]
    without: list[float] = []
    beside: list[float] = []
    for _ in range(4):  # by turns, so that whatever else the machine does meets both
        without += asyncio.run(gaps(ours, WINDOW_S))
        with search_load(str(client._socket), store, questions, vectors):
            beside += asyncio.run(gaps(ours, WINDOW_S))
    quiet, busy = percentile(without, 0.99) * 1000, percentile(beside, 0.99) * 1000
    report.line(
        f"gap p99 of {NUM_STREAMS} streams beside searches",
        f"{busy:.1f} ms, without {quiet:.1f} ms",
        f"<= {1.5 * quiet:.1f} ms",
        is_good=busy <= 1.5 * quiet,
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--passages", type=int, default=100_000)
    args = parser.parse_args()
    report = Report()
    with tempfile.TemporaryDirectory(prefix="rs-") as folder:
        study(Path(folder), args.passages, report)
    return 1 if report.missed else 0


if __name__ == "__main__":
    sys.exit(main())
