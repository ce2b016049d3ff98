"""The adapters of Dify's contract and of SearXNG's JSON, against services that may be anything."""

import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from sluice.errors import BadRequest, StoreNotFound
from sluice.http_json import HttpJson
from sluice.retrieval.adapters.http import MAX_TEXT_CHARS, HttpRetriever, metadata_condition, passage_of
from sluice.retrieval.adapters.web import WebRetriever
from sluice.retrieval.base import Comparison, Compound, Filter, Search, SearchResult, StoreRef
from sluice.types import Tenant
from tests.support import scripts
from tests.support.knowledge_server import KnowledgeServer, record
from tests.support.raw_server import RawServer, Request, Script

ACME = Tenant("ac me/é", "k")


class Searx(RawServer):
    """Answers with these results."""

    def __init__(self, results: Any) -> None:
        super().__init__()
        self.results = results

    def script_for(self, request: Request) -> Script:
        return scripts.reply(200, {"query": "x", "results": self.results})


@pytest.fixture
async def http() -> AsyncIterator[HttpJson]:
    async with HttpJson() as http:
        yield http


async def search(
    retriever: HttpRetriever | WebRetriever,
    *queries: str,
    stores: tuple[str, ...] = ("kb",),
    filters: Filter | None = None,
    limit: int = 5,
    within_s: float = 10,
) -> SearchResult:
    return await retriever.search(
        Search(
            tenant=ACME,
            stores=[StoreRef(one, "kb") for one in stores],
            queries=queries or ("port",),
            vectors=None,
            filters=filters,
            limit=limit,
            mode="hybrid",
            deadline=time.monotonic() + within_s,
        )
    )


def dify(server: RawServer, http: HttpJson) -> HttpRetriever:
    return HttpRetriever("kb", server.url + "/retrieval", http, api_key="dk", ca_file=None, clock=time.monotonic)


def web(server: RawServer, http: HttpJson) -> WebRetriever:
    return WebRetriever("web", server.url + "/search?language=all", http, api_key=None, ca_file=None, clock=time.monotonic)


async def test_difys_contract_is_kept_and_the_tenant_is_told(http: HttpJson):
    async with KnowledgeServer({"kb": [record("text", "t.md", 0.7, document_id="d1", page=3)]}) as server:
        found = await search(dify(server, http), filters=Comparison("eq", "lang", "zh"), limit=3)

        [request] = server.requests
        assert request.json() == {
            "knowledge_id": "kb",
            "query": "port",
            "retrieval_setting": {"top_k": 3, "score_threshold": 0.0},
            "metadata_condition": {
                "logical_operator": "and",
                "conditions": [{"name": ["lang"], "comparison_operator": "is", "value": "zh"}],
            },
        }
        assert request.header("authorization") == "Bearer dk"
        assert request.header("x-sluice-tenant") == "ac%20me/%C3%A9"
        [passage] = found.passages
        assert (passage.text, passage.title, passage.file_id, passage.similarity) == ("text", "t.md", "d1", 0.7)
        assert passage.attributes == {"document_id": "d1", "page": 3}


async def test_several_stores_and_queries_are_asked_at_once_and_fused(http: HttpJson):
    records = {"a": [record("one", "1"), record("two", "2")], "b": [record("three", "3")]}
    async with KnowledgeServer(records) as server:
        found = await search(dify(server, http), "x", "y", stores=("a", "b"))

        assert len(server.requests) == 4
        assert {one.text for one in found.passages} == {"one", "two", "three"}


async def test_an_unknown_knowledge_is_an_unknown_store(http: HttpJson):
    async with KnowledgeServer({}) as server:
        with pytest.raises(StoreNotFound):
            await search(dify(server, http))
        server.script = scripts.reply(400, {"error_code": 2001, "error_msg": "no"})
        with pytest.raises(StoreNotFound):
            await search(dify(server, http))


@pytest.mark.parametrize(
    "script, code",
    [
        (scripts.reply(500, {"error_code": 1001}), "unavailable"),
        (scripts.reply(200, [1]), "unavailable"),
        (scripts.reply(200, {"records": None}), "unavailable"),
        (scripts.reply(200, b"x" * 5_000_000), "unavailable"),
        (scripts.reply(302, b"", headers=[("location", "http://169.254.169.254/latest")]), "unavailable"),
        (scripts.garbage(), "unavailable"),
        (scripts.never_answers(), "timeout"),
    ],
)
async def test_a_service_that_fails_is_a_failure_of_its_store(http: HttpJson, script: Script, code: str):
    async with KnowledgeServer({"kb": []}) as server:
        server.script = script
        found = await search(dify(server, http), within_s=0.2 if code == "timeout" else 10)

        assert [(one.vector_store_id, one.code) for one in found.failures] == [("kb", code)]
        assert len(server.requests) == 1  # no redirect is followed, nothing is tried twice


@pytest.mark.parametrize("given", [None, 7, "x", [], {}, {"content": ""}, {"content": 7}, {"content": "  "}])
def test_a_record_that_is_none_is_left_out(given: Any):
    assert passage_of(given, "kb") is None


def test_a_record_is_bounded_whatever_it_holds():
    metadata = {str(i): "y" * 10_000 for i in range(50)} | {"deep": {"a": 1}, "none": None}
    passage = passage_of({"content": "x" * 100_000, "title": 7, "score": "high", "metadata": metadata}, "kb")

    assert passage is not None and len(passage.text) == MAX_TEXT_CHARS and passage.similarity is None
    assert len(passage.attributes) == 16 and all(len(str(value)) == 512 for value in passage.attributes.values())
    odd = passage_of({"content": "x", "score": 7.5, "metadata": []}, "kb")
    assert odd is not None and odd.score == 1.0


def test_a_filter_is_said_in_difys_words_where_it_can_be():
    both = Compound("or", (Comparison("gte", "year", 2024.0), Comparison("nin", "lang", ("en", "de"))))

    assert metadata_condition(both) == {
        "logical_operator": "or",
        "conditions": [
            {"name": ["year"], "comparison_operator": "≥", "value": 2024.0},
            {"name": ["lang"], "comparison_operator": "not in", "value": ["en", "de"]},
        ],
    }
    with pytest.raises(BadRequest, match="nested"):
        metadata_condition(Compound("and", (both,)))


async def test_the_web_is_asked_as_searxng_is_and_nothing_it_names_is_fetched(http: HttpJson):
    results = [
        {"url": "https://a.example/1", "title": "One", "content": "It is 8443."},
        {"url": "http://169.254.169.254/", "title": "Two", "content": "Inside."},
        {"url": "javascript:alert(1)", "title": "Three", "content": "No page."},
        {"url": "https://a.example/4", "content": None},
        "x",
    ]
    async with Searx(results) as server:
        found = await search(web(server, http), "port & 端口", "port?")

        assert [one.text for one in found.passages] == ["It is 8443.", "Inside."]
        assert found.passages[0].attributes == {"url": "https://a.example/1"}
        assert [request.target for request in server.requests] == [
            "/search?language=all&q=port+%26+%E7%AB%AF%E5%8F%A3&format=json",
            "/search?language=all&q=port%3F&format=json",
        ]
        with pytest.raises(BadRequest, match="no attributes"):
            await search(web(server, http), filters=Comparison("eq", "a", "b"))


async def test_a_web_that_fails_is_a_failure(http: HttpJson):
    async with KnowledgeServer({}) as server:
        server.script = scripts.html_error(503)
        found = await search(web(server, http))

        assert [one.code for one in found.failures] == ["unavailable"]
        assert (await web(server, http).health()).is_up and (await dify(server, http).health()).is_up
