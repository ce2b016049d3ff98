"""`make retrieval-quality`: how well the embedded engine ranks, on public judged collections, and whether it is good enough.

    SLUICE_RETRIEVAL_DATA=DIR make retrieval-quality

DIR holds cranfield.json, xquad_en.json and xquad_zh.json, each `{"docs", "queries", "qrels"}`; they are no part of this
repository. Every document goes the way of an upload: read in the child, cut, indexed. Vectors are made by a real vLLM worker
(all-MiniLM), and kept in the system's folder for temporary files for the next time. Exit code 1 where a figure is below its
bar.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import math
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from sluice.engines import launcher
from sluice.engines.vllm import VllmWorker
from sluice.ingest.base import Limits
from sluice.ingest.pipeline import Ingestion
from sluice.ingest.worker import FileReader
from sluice.retrieval.base import Mode, Weights
from sluice.retrieval.catalog import Attachment, Catalog, new_id
from sluice.retrieval.embedded import Asked
from sluice.retrieval.lexicon import Bounds
from sluice.retrieval.storage import Storage

ROOT = Path(__file__).parents[2]
ENGINE_PYTHON = Path(os.environ.get("SLUICE_ENGINE_PYTHON", ROOT / ".venv-engine/bin/python"))
MODEL = Path(os.environ.get("SLUICE_MODELS", ROOT / ".sluice/models")) / "all-minilm"
CACHE = Path(tempfile.gettempdir()) / "sluice-embeddings"
NAMES = ("cranfield", "xquad_en", "xquad_zh")
LEXICAL_BARS = {"cranfield": 0.36, "xquad_en": 0.96, "xquad_zh": 0.96}
HYBRID_BARS = {"cranfield": 0.41}
MAX_LOSS = 0.005
DEPTH = 30
WEIGHTS = Weights()


class Embedder:
    """all-MiniLM on a vLLM worker that is started when a text is met that no earlier run has embedded."""

    def __init__(self) -> None:
        self._worker: Iterator[str] | None = None
        self._url: str | None = None

    def embed(self, texts: list[str]) -> np.ndarray:
        digest = hashlib.sha256("\0".join(texts).encode()).hexdigest()[:32]
        path = CACHE / f"minilm-{digest}.npy"
        if path.exists():
            return np.load(path)
        if self._url is None:
            self._worker = _worker()
            self._url = next(self._worker)
        rows: list[list[float]] = []
        for at in range(0, len(texts), 32):
            asked = {"model": "all-minilm", "input": texts[at : at + 32], "truncate_prompt_tokens": -1}
            answer = httpx.post(f"{self._url}/v1/embeddings", json=asked, timeout=300)
            answer.raise_for_status()
            rows += [one["embedding"] for one in sorted(answer.json()["data"], key=lambda one: one["index"])]
            print(f"\r  embedded {len(rows)} of {len(texts)}", end="", file=sys.stderr, flush=True)
        print(file=sys.stderr)
        found = np.array(rows, np.float32)
        CACHE.mkdir(exist_ok=True)
        np.save(path, found)
        return found

    def close(self) -> None:
        if self._worker is not None:
            self._worker.close()  # type: ignore[attr-defined]


def _worker() -> Iterator[str]:
    """The URL of a vLLM worker that lives until the generator is closed."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    cpus = tuple(sorted(os.sched_getaffinity(0)))
    worker = VllmWorker(ENGINE_PYTHON, str(MODEL), "all-minilm", port, 256, on_cpu=True, is_pooling=True, cpus=cpus)
    log = Path(tempfile.mkdtemp()) / "vllm.log"
    command = [sys.executable, "-I", "-S", launcher.__file__, "--log", str(log), "--", *worker.command()]
    print(f"  vLLM is loading ({log})", file=sys.stderr)
    with subprocess.Popen(command, stdin=subprocess.PIPE, env=worker.environment(os.environ)) as process:
        assert process.stdin is not None
        with process.stdin:  # its end ends the worker
            while process.poll() is None and not _is_up(worker.url):
                time.sleep(0.5)
            if process.poll() is not None:
                raise SystemExit(f"vLLM did not start: {log}")
            yield worker.url


def _is_up(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health", timeout=2).status_code == 200
    except httpx.TransportError:
        return False


@contextmanager
def storage(bounds: Bounds) -> Iterator[Storage]:
    with tempfile.TemporaryDirectory() as folder:
        kept = Storage(Path(folder), wall_clock=time.time, memory_bytes=1 << 28, bounds=bounds)
        with kept:
            yield kept


async def fill(kept: Storage, docs: dict[str, str], embedder: Embedder | None) -> tuple[str, dict[str, str]]:
    """A store with these documents; the document of each file."""
    names, attachments = {}, []
    for name, text in docs.items():
        file_id = new_id("file-")
        names[file_id] = name
        (kept.uploads / file_id).write_text(text)
        about = {"filename": f"{name}.txt", "bytes": len(text), "purpose": "assistants", "sha256": "", "expires_s": None}
        await kept.ask(Catalog.add_file, "t", id=file_id, **about)
        attachments.append(Attachment(file_id, {}, 400, 60))
    row = await kept.ask(
        Catalog.add_store,
        "t",
        name="q",
        description=None,
        metadata={},
        expires_days=None,
        embedding_model="minilm" if embedder else None,
        attachments=attachments,
    )
    async with FileReader(Limits()) as reader:
        await Ingestion(kept, reader).drain()
    if embedder is not None:
        waiting = await kept.writer.awaiting(row["id"], 1_000_000)
        vectors = await asyncio.to_thread(embedder.embed, [text for _, _, text in waiting])
        await kept.writer.put_vectors(row["id"], [id for id, _, _ in waiting], vectors)
    return str(row["id"]), names


async def ndcg(
    kept: Storage, store: str, names: dict[str, str], data: Any, mode: Mode, vectors: np.ndarray | None = None
) -> float:
    """nDCG@10 with linear gains, over all queries."""
    total = 0.0
    for number, (query_id, text) in enumerate(data["queries"].items()):
        vector = None if vectors is None else vectors[number : number + 1]
        has_vectors = frozenset() if vector is None else frozenset({store})
        asked = Asked((store,), (text[:2_000],), vector, has_vectors, None, DEPTH, mode, WEIGHTS)
        found = await kept.engine.search(asked, timeout_s=30)
        ranked = list(dict.fromkeys(names[passage.file_id] for passage in found.passages))[:10]
        gains = data["qrels"][query_id]
        best = sorted(gains.values(), reverse=True)[:10]
        total += _dcg([gains.get(name, 0) for name in ranked]) / _dcg(best)
    return total / len(data["queries"])


def _dcg(gains: list[int]) -> float:
    return sum(gain / math.log2(rank + 1) for rank, gain in enumerate(gains, 1))


async def measure(name: str, data: Any, embedder: Embedder) -> list[str]:
    """Prints the collection's figures; returns what is below its bar."""
    wrong = []
    with storage(Bounds()) as kept:
        is_hybrid = name in HYBRID_BARS
        store, names = await fill(kept, data["docs"], embedder if is_hybrid else None)
        lexical = await ndcg(kept, store, names, data, "lexical")
        line = f"{name:9}  lexical {lexical:.4f} (bar {LEXICAL_BARS[name]})"
        if lexical < LEXICAL_BARS[name]:
            wrong.append(f"{name}: lexical {lexical:.4f} < {LEXICAL_BARS[name]}")
        if is_hybrid:
            queries = await asyncio.to_thread(embedder.embed, list(data["queries"].values()))
            queries = queries / np.linalg.norm(queries, axis=1, keepdims=True)
            dense = await ndcg(kept, store, names, data, "dense", queries)
            hybrid = await ndcg(kept, store, names, data, "hybrid", queries)
            line += f"  dense {dense:.4f}  hybrid {hybrid:.4f} (bar {HYBRID_BARS[name]}, and above both)"
            if hybrid < HYBRID_BARS[name] or hybrid <= max(dense, lexical):
                wrong.append(f"{name}: hybrid {hybrid:.4f} is below {HYBRID_BARS[name]} or one of its parts")
    with storage(Bounds(max_words=1_000, max_share=1.0)) as kept:
        store, names = await fill(kept, data["docs"], None)
        every = await ndcg(kept, store, names, data, "lexical")
    print(f"{line}  with every word of a query {every:.4f}: the bounds lose {every - lexical:+.4f}", flush=True)
    if every - lexical > MAX_LOSS:
        wrong.append(f"{name}: the bounds on a query's words lose {every - lexical:.4f}")
    return wrong


async def run(folder: Path) -> int:
    embedder = Embedder()
    wrong = []
    try:
        for name in NAMES:
            wrong += await measure(name, json.loads((folder / f"{name}.json").read_text()), embedder)
    finally:
        embedder.close()
    for line in wrong:
        print(f"NOT GOOD ENOUGH: {line}")
    return 1 if wrong else 0


def main() -> int:
    given = os.environ.get("SLUICE_RETRIEVAL_DATA")
    if not given:
        print("SKIPPED: set SLUICE_RETRIEVAL_DATA to the folder of cranfield.json, xquad_en.json and xquad_zh.json.")
        return 0
    return asyncio.run(run(Path(given)))


if __name__ == "__main__":
    sys.exit(main())
