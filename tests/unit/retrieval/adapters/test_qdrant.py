"""The adapter of Qdrant, against a server with its recorded shapes: not a live one."""

import time
from collections.abc import AsyncIterator

import pytest

from sluice.errors import BadRequest, RetrievalTimeout, RetrievalUnavailable
from sluice.http_json import HttpJson
from sluice.retrieval.adapters.qdrant import QdrantRetriever, condition
from sluice.retrieval.base import Comparison
from tests.support import retriever_contract as contract
from tests.support import scripts
from tests.support.qdrant_server import QdrantServer


@pytest.fixture
async def server() -> AsyncIterator[QdrantServer]:
    async with QdrantServer(api_key="qk") as server:
        yield server


@pytest.fixture
async def retriever(server: QdrantServer) -> AsyncIterator[QdrantRetriever]:
    async with HttpJson() as http:
        made = retriever_at(server.url, http)
        await contract.filled(made)
        yield made


def retriever_at(url: str, http: HttpJson, *, text_vector: str | None = "words") -> QdrantRetriever:
    return QdrantRetriever(
        "kb",
        url + "/",
        http,
        collection="passages",
        vector="text",
        text_vector=text_vector,
        embedding_model=contract.MODEL,
        api_key="qk",
        ca_file=None,
        clock=time.monotonic,
    )


@pytest.mark.parametrize(
    "check",
    [
        *(contract.check_search, contract.check_isolation, contract.check_filters, contract.check_hostile_words),
        *(contract.check_writing, contract.check_mismatch),
    ],
)
async def test_it_keeps_the_contract(retriever: QdrantRetriever, check):
    await check(retriever, time.monotonic() + 60)


async def test_the_tenant_is_a_condition_of_every_request(server: QdrantServer, retriever: QdrantRetriever):
    server.requests.clear()
    await contract.found(retriever, vector=(1.0, 0.0, 0.0), deadline=time.monotonic() + 60)
    await retriever.delete(tenant=contract.ACME, store=contract.STORE, file_id=None)

    for request in server.requests:
        assert {"key": "tenant_id", "match": {"value": "acme"}} in request.json()["filter"]["must"]


async def test_a_point_of_another_tenant_is_left_out_even_where_the_server_sends_it(
    server: QdrantServer, retriever: QdrantRetriever
):
    theirs = [one for one in server.points.values() if one["payload"]["tenant_id"] == "globex"]
    points = [{"id": one["id"], "score": 0.9, "payload": one["payload"]} for one in theirs] + ["x", {"payload": None}]
    server.script = scripts.reply(200, {"result": {"points": points}})

    result = await contract.found(retriever, vector=(1.0, 0.0, 0.0), deadline=time.monotonic() + 60)

    assert result.passages == ()


async def test_without_vectors_and_words_there_is_nothing_to_search_by(server: QdrantServer):
    async with HttpJson() as http:
        result = await contract.found(retriever_at(server.url, http, text_vector=None), deadline=time.monotonic() + 60)

    assert [(one.vector_store_id, one.code) for one in result.failures] == [("vs_a", "no_embeddings")]


@pytest.mark.parametrize("key", ["a.b", "a[]", 'a"', "", "a b"])
def test_a_key_that_would_be_a_path_is_refused(key: str):
    with pytest.raises(BadRequest, match="letters, digits"):
        condition(Comparison("eq", key, "x"))


def test_texts_are_not_compared_by_size():
    with pytest.raises(BadRequest, match="numbers alone"):
        condition(Comparison("gt", "a", "x"))


BROKEN = [scripts.reply(200, {"result": []}), scripts.reply(500, {"status": "secret"}), scripts.garbage()]


@pytest.mark.parametrize("script", BROKEN)
async def test_garbage_is_an_error_without_its_words(server: QdrantServer, retriever: QdrantRetriever, script):
    server.script = script

    with pytest.raises(RetrievalUnavailable) as caught:
        await contract.found(retriever, deadline=time.monotonic() + 60)

    assert "secret" not in caught.value.message


async def test_a_server_that_is_silent_is_left_at_the_deadline(server: QdrantServer, retriever: QdrantRetriever):
    assert (await retriever.health()).is_up
    server.script = scripts.never_answers()

    with pytest.raises(RetrievalTimeout):
        await contract.found(retriever, deadline=time.monotonic() + 0.02)
