"""Calls whose retrieval uses other routes of the gateway (embeddings, reranking, rewriting), and the defaults of keys."""

from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
import yaml

from sluice.keys import Keys
from tests.support import scripts
from tests.support import vllm_shapes as vllm
from tests.support.knowledge_server import KnowledgeServer, record
from tests.support.qdrant_server import QdrantServer
from tests.support.scripted_worker import ScriptedWorker
from tests.unit.in_process import CHAT, Gateway, serving, settings

pytestmark = pytest.mark.asyncio(loop_scope="module")

ASK: dict[str, Any] = {"model": "smollm2", "messages": [{"role": "user", "content": "Which port?"}]}
RECORDS = [record(f"Passage {i}.", f"{i}.md", 0.5) for i in range(3)]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[tuple[Gateway, ScriptedWorker, KnowledgeServer]]:
    async with ScriptedWorker() as worker, KnowledgeServer({"kb": RECORDS}) as knowledge, QdrantServer() as qdrant:
        retrieval = {
            "embedding_route": "smollm2",
            "on_call": {"rerank_route": "smollm2", "rewrite_route": "smollm2", "rewrite_timeout_s": 10, "rerank_timeout_s": 10}
            | {"search_timeout_s": 60, "embed_timeout_s": 60},
            "retrievers": {
                "kb": {"type": "http", "url": knowledge.url + "/retrieval"},
                "points": {"type": "qdrant", "url": qdrant.url, "embedding_model": "smollm2"},
                "other": {"type": "qdrant", "url": qdrant.url, "embedding_model": "another", "collection": "x"},
            },
        }
        folder = tmp_path_factory.mktemp("gateway")
        async with serving(settings(folder, worker, retrieval=retrieval)) as gateway:
            keys = yaml.safe_load((folder / "keys.yaml").read_text())
            (folder / "keys.yaml").write_text(yaml.safe_dump([one | {"vector_store_ids": ["kb"]} for one in keys]))
            door = gateway.app.door
            assert isinstance(door, Keys)
            await door.reload()
            yield gateway, worker, knowledge


@pytest_asyncio.fixture(loop_scope="module")
async def gateway(shared: tuple[Gateway, ScriptedWorker, KnowledgeServer]) -> AsyncIterator[Gateway]:
    shared[1].forget()
    shared[2].requests.clear()
    yield shared[0]
    await shared[0].holds_nothing()


@pytest.fixture
def worker(shared: tuple[Gateway, ScriptedWorker, KnowledgeServer]) -> ScriptedWorker:
    return shared[1]


@pytest.fixture
def knowledge(shared: tuple[Gateway, ScriptedWorker, KnowledgeServer]) -> KnowledgeServer:
    return shared[2]


def wish(**more: Any) -> dict[str, Any]:
    return ASK | {"retrieval": {"vector_store_ids": ["kb"]} | more}


async def test_a_question_is_rewritten_by_a_route_and_the_results_are_fused(
    gateway: Gateway, worker: ScriptedWorker, knowledge: KnowledgeServer
):
    said = vllm.chat_reply(
        {"content": "1. port of the gateway\n2. listen address"}, model="smollm2", id="x", prompt=5, completion=9
    )
    worker.on(CHAT, scripts.reply(200, said), None)

    answer = await gateway.request("POST", CHAT, json=wish(rewrite="fusion", num_queries=3))

    queries = ["Which port?", "port of the gateway", "listen address"]
    assert answer.json()["retrieval"]["queries"] == queries
    assert sorted(one["query"] for one in knowledge.asked()) == sorted(queries)
    rewriting, asking = worker.calls(CHAT)
    assert "different search queries" in rewriting.json()["messages"][0]["content"]
    assert "Passage 0." in asking.json()["messages"][0]["content"]


async def test_a_search_of_a_store_is_rewritten_where_it_asks_for_it(
    gateway: Gateway, worker: ScriptedWorker, knowledge: KnowledgeServer
):
    said = vllm.chat_reply({"content": "listen address\nport number"}, model="smollm2", id="x", prompt=5, completion=9)
    worker.on(CHAT, scripts.reply(200, said), scripts.reply(500, {}))
    asked = {"query": "Which port?", "rewrite_query": True}

    page = (await gateway.request("POST", "/v1/vector_stores/kb/search", json=asked)).json()

    queries = ["Which port?", "listen address", "port number"]
    assert page["search_query"] == queries and page["data"] and "rewrite_skipped" not in page["notes"]
    assert sorted(one["query"] for one in knowledge.asked()) == sorted(queries)

    page = (await gateway.request("POST", "/v1/vector_stores/kb/search", json=asked)).json()
    assert page["search_query"] == queries[:1] and page["data"] and "rewrite_skipped" in page["notes"]

    plain = {"query": ["Which port?", "And why?"], "rewrite_query": False}
    worker.forget()
    page = (await gateway.request("POST", "/v1/vector_stores/kb/search", json=plain)).json()
    assert page["search_query"] == plain["query"] and not worker.calls(CHAT)


async def test_passages_are_reranked_by_a_route_and_a_threshold_is_held_against_that(gateway: Gateway, worker: ScriptedWorker):
    results = [{"index": 2, "relevance_score": 0.9}, {"index": 0, "relevance_score": 0.6}, {"index": 1, "relevance_score": 0.1}]
    worker.on("/v1/rerank", scripts.reply(200, {"results": results}))

    answer = await gateway.request("POST", CHAT, json=wish(ranking_options={"score_threshold": 0.5}))

    given = answer.json()["choices"][0]["message"]["context"]["citations"]
    assert [one["content"] for one in given] == ["Passage 2.", "Passage 0."] and given[0]["score"] == 0.9


async def test_a_reranker_that_fails_leaves_the_order_and_a_note(gateway: Gateway, worker: ScriptedWorker):
    worker.on("/v1/rerank", scripts.vllm_error(500))

    answer = await gateway.request("POST", CHAT, json=wish())

    assert answer.json()["retrieval"]["notes"] == ["rerank_skipped"]
    assert answer.header("x-retrieval-status") == "degraded"


async def test_a_question_is_embedded_by_a_route_for_those_who_take_vectors(gateway: Gateway, worker: ScriptedWorker):
    answer = await gateway.request("POST", CHAT, json=wish(vector_store_ids=["points"]))

    assert answer.status == 200, answer
    [embedding] = worker.calls("/v1/embeddings")
    assert embedding.json()["input"] == ["Which port?"]


async def test_vectors_of_another_model_are_a_409(gateway: Gateway):
    answer = await gateway.request("POST", CHAT, json=wish(vector_store_ids=["other"]))

    assert (answer.status, answer.json()["error"]["code"]) == (409, "embedding_mismatch")


async def test_what_children_cost_is_counted(gateway: Gateway):
    before = gateway.metric('sluice_calls_total{endpoint="/v1/rerank"')
    await gateway.request("POST", CHAT, json=wish())
    assert gateway.metric('sluice_calls_total{endpoint="/v1/rerank"') == before + 1
    assert gateway.metric("sluice_retrieval_requests_total") > 0 and gateway.metric("sluice_retrieval_passages_total") > 0


async def test_a_key_has_stores_that_its_calls_retrieve_from_without_asking(gateway: Gateway, worker: ScriptedWorker):
    answer = await gateway.request("POST", CHAT, json=ASK)

    assert answer.header("x-retrieval-status") == "hit" and answer.json()["retrieval"]["used"] == 3
    assert "Passage 0." in worker.calls(CHAT)[-1].json()["messages"][0]["content"]
