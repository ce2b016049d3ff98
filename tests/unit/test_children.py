"""Calls on behalf of a call: embeddings, reranking, rewriting, counting, at a worker that may answer anything."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import orjson
import pytest

from sluice.children import Children, RouteCounter, RouteEmbedder, RouteReranker, RouteRewriter
from sluice.config import Embedding
from sluice.errors import GatewayError, RetrievalUnavailable
from sluice.types import Call, Endpoint, Outcome, Tenant
from sluice.wire.sources import Ask
from tests.support import scripts
from tests.support.scripted_worker import ScriptedWorker
from tests.unit.hot_path import Line, now

ACME = Tenant("acme", "k")
ROUTE = "smollm2"


class Told:
    def __init__(self) -> None:
        self.calls: list[tuple[Call, Outcome]] = []

    def __call__(self, call: Call, outcome: Outcome) -> None:
        self.calls.append((call, outcome))


@pytest.fixture
async def worker() -> AsyncIterator[ScriptedWorker]:
    async with ScriptedWorker() as worker:
        yield worker


@pytest.fixture
def told() -> Told:
    return Told()


@pytest.fixture
async def children(worker: ScriptedWorker, told: Told) -> AsyncIterator[Children]:
    async with Line(worker.url) as line:
        yield Children(line.gateway, line.routes, now, told)
        assert line.pool.in_flight == 0


async def test_texts_are_embedded_in_batches_as_the_tenant(children: Children, worker: ScriptedWorker, told: Told):
    embedder = RouteEmbedder(children, ROUTE, Embedding(query_prefix="query: ", text_weight=3))

    rows = await embedder.embed([f"t{i}" for i in range(70)], tenant=ACME, kind="query", deadline=now() + 10)

    assert len(rows) == 70 and rows[69] == [0.5, -0.25, 5.0]
    assert [len(request.json()["input"]) for request in worker.calls()] == [64, 6]
    assert worker.calls()[0].json()["input"][0] == "query: t0" and worker.calls()[0].json()["model"] == ROUTE
    assert embedder.weights.text == 3
    assert [(call.tenant.name, outcome.status, outcome.usage.exact) for call, outcome in told.calls] == [
        ("acme", 200, True)
    ] * 2
    assert len({call.id for call, _ in told.calls}) == 2 and told.calls[0][0].prompt_tokens > 0


@pytest.mark.parametrize(
    "reply",
    [{"data": []}, {"data": [{"index": 0}]}, {"data": "x"}, {}, [1], {"data": [{"index": 0, "embedding": ["a"]}]}],
)
async def test_embeddings_of_another_shape_are_unavailable(children: Children, worker: ScriptedWorker, reply: Any):
    worker.on("/v1/embeddings", scripts.reply(200, orjson.dumps(reply)))

    with pytest.raises(GatewayError):
        await RouteEmbedder(children, ROUTE, Embedding()).embed(["x"], tenant=ACME, kind="query", deadline=now() + 10)


async def test_vectors_of_different_lengths_are_unavailable(children: Children, worker: ScriptedWorker):
    data = [{"index": 0, "embedding": [1.0]}, {"index": 1, "embedding": [1.0, 2.0]}]
    worker.on("/v1/embeddings", scripts.reply(200, {"data": data}))

    with pytest.raises(RetrievalUnavailable):
        await RouteEmbedder(children, ROUTE, Embedding()).embed(["x", "y"], tenant=ACME, kind="query", deadline=now() + 10)


async def test_texts_are_reranked(children: Children, worker: ScriptedWorker):
    results = [{"index": 2, "relevance_score": 0.1}, {"index": 0, "relevance_score": 0.9}, {"index": 9, "relevance_score": 1.0}]
    worker.on("/v1/rerank", scripts.reply(200, {"results": results}))
    reranker = RouteReranker(children, ROUTE)

    assert await reranker.rerank("q", ["a", "b", "c"], tenant=ACME, top_n=3, deadline=now() + 10) == [(0, 0.9), (2, 0.1)]
    assert worker.calls()[0].json() == {"model": ROUTE, "query": "q", "documents": ["a", "b", "c"], "top_n": 3}
    worker.on("/v1/rerank", scripts.reply(200, {"results": [{"index": "x"}]}))
    with pytest.raises(RetrievalUnavailable):
        await reranker.rerank("q", ["a"], tenant=ACME, top_n=1, deadline=now() + 10)


async def test_a_model_is_asked_for_queries(children: Children, worker: ScriptedWorker):
    rewriter = RouteRewriter(children, ROUTE)

    said = await rewriter.complete("Rewrite.", tenant=ACME, max_tokens=20, deadline=now() + 10)

    assert said == "Hello from the scripted worker."
    assert worker.calls()[0].json()["max_tokens"] == 20
    worker.on("/v1/chat/completions", scripts.reply(200, {"choices": []}))
    with pytest.raises(RetrievalUnavailable):
        await rewriter.complete("Rewrite.", tenant=ACME, max_tokens=20, deadline=now() + 10)


async def test_a_worker_that_is_silent_is_left_at_the_deadline_and_told_of(
    children: Children, worker: ScriptedWorker, told: Told
):
    worker.on("/v1/embeddings", scripts.never_answers())

    with pytest.raises(GatewayError):
        await RouteEmbedder(children, ROUTE, Embedding()).embed(["x"], tenant=ACME, kind="query", deadline=now() + 0.05)

    [(_, outcome)] = told.calls
    assert outcome.status >= 500


async def test_a_child_that_is_cancelled_lets_its_worker_go(children: Children, worker: ScriptedWorker):
    worker.on("/v1/embeddings", scripts.never_answers())
    embedder = RouteEmbedder(children, ROUTE, Embedding())
    task = asyncio.create_task(embedder.embed(["x"], tenant=ACME, kind="query", deadline=now() + 10))
    await worker.wait_calls(1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


def call(body: Any, endpoint: Endpoint = Endpoint.CHAT) -> Call:
    data = body if isinstance(body, tuple) else orjson.dumps(body)
    return Call("req-1", ACME, ROUTE, endpoint, endpoint, body=data, deadline=now() + 10)


ASK = Ask({}, None, slot=b"SLOT")


async def test_the_workers_tokenizer_counts_prompts_and_texts(children: Children, worker: ScriptedWorker):
    counter = RouteCounter(children, now)
    chat = {"model": ROUTE, "messages": [{"role": "user", "content": "SLOTone two"}], "temperature": 0}
    parts = [{"role": "user", "content": [{"type": "input_text", "text": "one two"}]}]

    assert await counter.of_prompt(call(chat), ASK) == 2
    assert worker.calls()[-1].json() == {"model": ROUTE, "messages": [{"role": "user", "content": "one two"}]}
    assert await counter.of_text(call(chat), "a b c") == 3
    assert worker.calls()[-1].json() == {"model": ROUTE, "prompt": "a b c", "add_special_tokens": False}
    for asked in ("one two", parts):
        body = {"model": ROUTE, "input": asked, "instructions": "Be brief."}
        assert await counter.of_prompt(call(body, Endpoint.RESPONSES), ASK) == 4
        assert worker.calls()[-1].json()["messages"][-1] == {"role": "user", "content": "one two"}


async def test_what_cannot_be_counted_in_time_is_not_guessed(children: Children, worker: ScriptedWorker):
    counter = RouteCounter(children, now)
    chat = call({"model": ROUTE, "messages": [{"role": "user", "content": "x"}]})
    image = {"model": ROUTE, "input": [{"role": "user", "content": [{"type": "input_image", "image_url": "data:x"}]}]}

    assert await counter.of_prompt(call((b"{", b"}")), ASK) is None
    assert await counter.of_prompt(call(image, Endpoint.RESPONSES), ASK) is None
    for script in (
        scripts.never_answers(),
        scripts.reply(200, {"count": "7"}),
        scripts.vllm_error(500),
        scripts.detail_error(404),
    ):
        worker.on("/tokenize", script)
        assert await counter.of_prompt(chat, ASK) is None
