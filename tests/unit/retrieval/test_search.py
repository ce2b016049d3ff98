"""One call's search over several retrievers: fused, deduplicated, reranked, and honest about what failed."""

import asyncio
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import pytest

from sluice.config import OnCall
from sluice.errors import BadRequest, EmbeddingMismatch, RetrievalTimeout, RetrievalUnavailable, StoreExpired, StoreNotFound
from sluice.retrieval.base import Health, Passage, QueryVectors, Search, SearchResult, StoreRef, Weights
from sluice.retrieval.search import External, Searcher
from sluice.retrieval.wish import Wish
from sluice.types import Tenant

ACME, GLOBEX = Tenant("acme", "k1"), Tenant("globex", "k2")


def passage(id: str, text: str = "", **more: Any) -> Passage:
    return Passage(id, f"file-{id}", f"{id}.md", text or f"text {id}", 0.5, "vs", **more)


class Fake:
    """A retriever that gives what it is given, or raises it; it notes what it was asked."""

    def __init__(self, *given: Passage, raises: Exception | None = None, capabilities: str = "lexical dense") -> None:
        self.name = "fake"
        self.capabilities = frozenset(capabilities.split())
        self.given = given
        self.raises = raises
        self.asked: list[dict[str, Any]] = []

    async def search(self, search: Search) -> SearchResult:
        asked = {one.name: getattr(search, one.name) for one in fields(search)}
        self.asked.append(asked)
        if self.raises is not None:
            raise self.raises
        if not self.given:
            await asyncio.Event().wait()
        vectors = asked["vectors"]
        return SearchResult(self.given, mode="lexical" if vectors is None else asked["mode"])

    async def health(self) -> Health:
        return Health(is_up=True)


class Embeds:
    model_id = "minilm"
    weights = Weights()

    def __init__(self, raises: Exception | None = None) -> None:
        self.raises = raises
        self.asked: list[Sequence[str]] = []

    async def embed(self, texts: Sequence[str], **_: Any) -> list[list[float]]:
        self.asked.append(texts)
        if self.raises is not None:
            raise self.raises
        return [[1.0, 0.0] for _ in texts]


class Reranks:
    def __init__(self, *ranked: tuple[int, float], raises: Exception | None = None) -> None:
        self.ranked = list(ranked)
        self.raises = raises

    async def rerank(self, query: str, texts: Sequence[str], **_: Any) -> list[tuple[int, float]]:
        if self.raises is not None:
            raise self.raises
        return self.ranked


def searcher(embedded: Fake | None = None, *, external: dict[str, Fake] | None = None, **more: Any) -> Searcher:
    others = external or {}
    retrievers: dict[str, Any] = {**others} | ({} if embedded is None else {"embedded": embedded})
    return Searcher(
        ready=more.pop("ready", None),
        retrievers=retrievers,
        external={name: External(StoreRef(name, name), frozenset({"acme"})) for name in others},
        embedder=more.pop("embedder", None),
        reranker=more.pop("reranker", None),
        settings=OnCall(search_timeout_s=0.05, embed_timeout_s=0.05, rerank_timeout_s=0.05, **more),
        clock=asyncio.get_running_loop().time,
    )


def ids(result: SearchResult) -> list[str]:
    return [one.chunk_id for one in result.passages]


async def test_a_start_is_no_part_of_a_searchs_time_and_one_that_fails_leaves_it_to_the_search():
    async def starts() -> None:
        await asyncio.sleep(0.1)  # twice what a search may take

    async def fails() -> None:
        raise RetrievalUnavailable("it has just ended")

    for ready in (starts, fails):
        found = await searcher(Fake(passage("a")), ready=ready).search(ACME, Wish(("vs_1",)), ["q"])
        assert ids(found) == ["a"]


async def test_stores_of_one_retriever_are_asked_together_and_keep_their_order():
    fake = Fake(passage("b"), passage("a"))

    found = await searcher(fake).search(ACME, Wish(("vs_1", "vs_2"), max_num_results=5), ["q"])

    [asked] = fake.asked
    assert [ref.id for ref in asked["stores"]] == ["vs_1", "vs_2"]
    assert (asked["tenant"], asked["limit"], asked["queries"]) == (ACME, 5, ["q"])
    assert ids(found) == ["b", "a"] and found.notes == ("no_embeddings",)


async def test_several_retrievers_are_fused_and_one_text_is_one_source():
    one, two = Fake(passage("a"), passage("b", "the  same\ntext")), Fake(passage("c", "the same text"), passage("d"))

    found = await searcher(one, external={"kb": two}).search(ACME, Wish(("vs_1", "kb"), mode="lexical"), ["q"])

    assert ids(found) == ["a", "c", "d"]


async def test_a_store_of_another_tenants_and_an_unknown_one_are_not_there():
    for which, tenant in ((searcher(Fake(passage("a")), external={"kb": Fake(passage("b"))}), GLOBEX), (searcher(), ACME)):
        with pytest.raises(StoreNotFound) as caught:
            await which.search(tenant, Wish(("kb",)), ["q"])
        assert caught.value.message == "No vector store found with id `kb`."


@pytest.mark.parametrize("mistake", [StoreNotFound("vs_1"), StoreExpired("x"), EmbeddingMismatch("x"), BadRequest("x")])
async def test_a_mistake_of_the_call_ends_it_even_where_it_fails_open(mistake: Exception):
    with pytest.raises(type(mistake)):
        await searcher(Fake(raises=mistake)).search(ACME, Wish(("vs_1",), fails_open=True), ["q"])


@pytest.mark.parametrize(
    "failing, code, error",
    [
        (Fake(raises=RetrievalUnavailable("inner words")), "unavailable", RetrievalUnavailable),
        (Fake(raises=RetrievalTimeout("inner words")), "timeout", RetrievalTimeout),
        (Fake(raises=ValueError("inner words")), "failed", RetrievalUnavailable),
        (Fake(), "timeout", RetrievalTimeout),
    ],
)
async def test_a_retriever_that_fails_is_told_or_ends_the_call(failing: Fake, code: str, error: type[Exception]):
    both = searcher(Fake(passage("a")), external={"kb": failing})

    opened = await both.search(ACME, Wish(("vs_1", "kb"), mode="lexical", fails_open=True), ["q"])
    with pytest.raises(error) as caught:
        await both.search(ACME, Wish(("vs_1", "kb"), mode="lexical"), ["q"])

    assert ids(opened) == ["a"] and [(f.vector_store_id, f.code) for f in opened.failures] == [("kb", code)]
    assert opened.is_degraded and "inner" not in str(caught.value)


async def test_what_failed_often_is_left_alone():
    failing = Fake(raises=RetrievalUnavailable("x"))
    one = searcher(failing)

    for _ in range(8):
        await one.search(ACME, Wish(("vs_1",), mode="lexical", fails_open=True), ["q"])

    assert len(failing.asked) == 5


async def test_queries_are_embedded_once_for_all_stores():
    embedder, one, two = Embeds(), Fake(passage("a")), Fake(passage("b"))

    found = await searcher(one, external={"kb": two}, embedder=embedder).search(ACME, Wish(("vs_1", "kb")), ["q", "r"])

    assert embedder.asked == [["q", "r"]] and found.mode == "hybrid"
    assert one.asked[0]["vectors"] == two.asked[0]["vectors"] == QueryVectors("minilm", [[1.0, 0.0]] * 2)


async def test_without_the_embedder_a_hybrid_search_is_lexical_and_says_so():
    fake = Fake(passage("a"))
    one = searcher(fake, embedder=Embeds(raises=RetrievalUnavailable("x")))

    found = await one.search(ACME, Wish(("vs_1",)), ["q"])

    assert found.notes == ("embedder_unavailable",) and found.is_degraded and fake.asked[0]["mode"] == "lexical"
    with pytest.raises(RetrievalUnavailable):
        await one.search(ACME, Wish(("vs_1",), mode="dense"), ["q"])
    with pytest.raises(BadRequest, match="none is configured"):
        await searcher(fake).search(ACME, Wish(("vs_1",), mode="dense"), ["q"])


async def test_nobody_embeds_for_a_lexical_search_or_for_those_who_take_no_vectors():
    embedder = Embeds()

    await searcher(Fake(passage("a")), embedder=embedder).search(ACME, Wish(("vs_1",), mode="lexical"), ["q"])
    await searcher(external={"kb": Fake(passage("a"), capabilities="filters")}, embedder=embedder).search(
        ACME, Wish(("kb",)), ["q"]
    )

    assert embedder.asked == []


async def test_a_reranker_orders_the_passages_and_its_failure_leaves_them():
    fake = Fake(passage("a"), passage("b"), passage("c"))

    ranked = await searcher(fake, reranker=Reranks((2, 0.9), (0, 0.4), (7, 0.1))).search(ACME, Wish(("vs_1",)), ["q"])
    skipped = await searcher(fake, reranker=Reranks(raises=RetrievalUnavailable("x"))).search(ACME, Wish(("vs_1",)), ["q"])
    unwanted = await searcher(fake, reranker=Reranks((2, 0.9))).search(ACME, Wish(("vs_1",), reranks=False), ["q"])

    assert ids(ranked) == ["c", "a"] and ranked.reranked and ranked.passages[0].similarity == 0.9
    assert ids(skipped) == ["a", "b", "c"] and "rerank_skipped" in skipped.notes and skipped.is_degraded
    assert ids(unwanted) == ["a", "b", "c"] and fake.asked[-1]["limit"] == 8 and fake.asked[0]["limit"] == 50


async def test_a_threshold_is_held_against_what_can_be_compared():
    known = searcher(Fake(passage("a", similarity=0.8), passage("b", similarity=0.3), passage("c")))

    found = await known.search(ACME, Wish(("vs_1",), score_threshold=0.5), ["q"])

    assert ids(found) == ["a"]
    with pytest.raises(BadRequest, match="score_threshold"):
        await searcher(Fake(passage("a"))).search(ACME, Wish(("vs_1",), score_threshold=0.5), ["q"])


async def test_a_search_that_is_cancelled_leaves_nothing_running():
    task = asyncio.create_task(searcher(Fake(), external={"kb": Fake()}).search(ACME, Wish(("vs_1", "kb")), ["q"]))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    task.cancel()

    with pytest.raises(asyncio.CancelledError):
        await task
    assert asyncio.all_tasks() == {asyncio.current_task()}
