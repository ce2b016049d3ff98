"""What every retriever that can be written must do, whoever implements it: the tests run it on each.

The corpus has two tenants with stores of the same ids, so that a forgotten predicate shows at once.
"""

from dataclasses import replace

from sluice.errors import EmbeddingMismatch
from sluice.retrieval.base import (
    Comparison,
    Compound,
    Filter,
    Passage,
    QueryVectors,
    Search,
    SearchResult,
    StoreRef,
    WritableRetriever,
)
from sluice.types import Tenant

ACME, GLOBEX = Tenant("acme", "k1"), Tenant("globex", "k2")
STORE, OTHER = StoreRef("vs_a"), StoreRef("vs_b")
MODEL = "tiny"
CORPUS = [
    ("c1", "f1", "The gateway listens on port 8443.", {"lang": "en", "year": 2024.0, "draft": False}, (1.0, 0.0, 0.1)),
    ("c2", "f1", "A queue is fair when nobody starves.", {"lang": "en", "year": 2025.0, "draft": True}, (0.0, 1.0, 0.1)),
    ("c3", "f2", "网关监听八四四三端口。", {"lang": "zh", "year": 2025.0}, (0.9, 0.1, 0.2)),
    ("c4", "f3", "Nothing about anything.", {"lang": "it's \" odd\\", "year": 2023.0}, (0.1, 0.1, 1.0)),
]


def passages(note: str = "") -> list[Passage]:
    return [
        Passage(chunk, file, f"{file}.md", text + note, 0.0, "", attributes, title="Title")
        for chunk, file, text, attributes, _ in CORPUS
    ]


def vectors() -> QueryVectors:
    return QueryVectors(MODEL, [list(row) for *_, row in CORPUS])


async def filled(retriever: WritableRetriever) -> None:
    for tenant in (ACME, GLOBEX):
        for store in (STORE, OTHER):
            note = f" {tenant.name} {store.id}"
            rows = [replace(one, text=one.text + note) for one in passages()]
            assert await retriever.upsert(tenant=tenant, store=store, passages=rows, vectors=vectors()) == len(CORPUS)


async def found(
    retriever: WritableRetriever,
    query: str = "gateway port",
    *,
    vector: tuple[float, ...] | None = None,
    filters: Filter | None = None,
    tenant: Tenant = ACME,
    stores: tuple[StoreRef, ...] = (STORE,),
    limit: int = 10,
    mode: str = "hybrid",
    deadline: float,
) -> SearchResult:
    return await retriever.search(
        Search(
            tenant=tenant,
            stores=stores,
            queries=[query],
            vectors=None if vector is None else QueryVectors(MODEL, [list(vector)]),
            filters=filters,
            limit=limit,
            mode=mode,  # type: ignore[arg-type]
            deadline=deadline,
        )
    )


def ids(result: SearchResult) -> list[str]:
    return [one.chunk_id for one in result.passages]


async def check_search(retriever: WritableRetriever, deadline: float) -> None:
    lexical = await found(retriever, deadline=deadline)
    assert ids(lexical) == ["c1"] and lexical.mode == "lexical" and lexical.passages[0].similarity is None
    assert lexical.passages[0].text == "The gateway listens on port 8443. acme vs_a"
    assert (lexical.passages[0].filename, lexical.passages[0].title) == ("f1.md", "Title")
    assert lexical.passages[0].attributes["year"] == 2024
    assert ids(await found(retriever, "端口", deadline=deadline)) == ["c3"]
    assert ids(await found(retriever, "starving queues", deadline=deadline)) == ["c2"]  # by their stems
    dense = await found(retriever, vector=(0.0, 1.0, 0.0), mode="dense", limit=2, deadline=deadline)
    assert ids(dense) == ["c2", "c3"] and dense.mode == "dense"
    assert 0.9 < (dense.passages[0].similarity or 0) <= 1.0
    both = await found(retriever, vector=(0.8, 0.2, 0.2), deadline=deadline)
    assert ids(both)[0] in ("c1", "c3") and len(both.passages) == 4 and both.mode == "hybrid"
    assert [one.score for one in both.passages] == sorted((one.score for one in both.passages), reverse=True)


async def check_isolation(retriever: WritableRetriever, deadline: float) -> None:
    """Nobody finds anything of another tenant or store, by words or vectors, with whatever filter."""
    escape = Compound("or", (Comparison("eq", "tenant", "globex"), Comparison("ne", "lang", "xx")))
    for filters in (None, escape, Comparison("nin", "lang", ("xx",))):
        for vector in (None, (1.0, 0.0, 0.0)):
            result = await found(retriever, vector=vector, filters=filters, deadline=deadline)
            assert result.passages and all(one.text.endswith(" acme vs_a") for one in result.passages)
            assert {one.vector_store_id for one in result.passages} == {"vs_a"}
    nobody = await found(retriever, vector=(1.0, 0.0, 0.0), tenant=Tenant("' OR '1'='1", "k"), deadline=deadline)
    assert nobody.passages == ()


async def check_filters(retriever: WritableRetriever, deadline: float) -> None:
    async def matching(filters: Filter) -> set[str]:
        return set(ids(await found(retriever, vector=(1.0, 1.0, 1.0), filters=filters, deadline=deadline)))

    assert await matching(Comparison("eq", "lang", "en")) == {"c1", "c2"}
    assert await matching(Comparison("ne", "lang", "en")) == {"c3", "c4"}
    assert await matching(Comparison("eq", "draft", False)) == {"c1"}
    assert await matching(Comparison("ne", "draft", True)) == {"c1", "c3", "c4"}
    assert await matching(Comparison("eq", "year", 2025.0)) == {"c2", "c3"}
    assert await matching(Comparison("gt", "year", 2024.0)) == {"c2", "c3"}
    assert await matching(Comparison("lte", "year", 2024.0)) == {"c1", "c4"}
    assert await matching(Comparison("gt", "lang", 1.0)) == set()  # types never mix
    assert await matching(Comparison("in", "lang", ("zh", "de"))) == {"c3"}
    assert await matching(Comparison("nin", "lang", ("zh", "en"))) == {"c4"}
    assert await matching(Comparison("eq", "absent", "x")) == set()
    assert await matching(Comparison("eq", "lang", "it's \" odd\\")) == {"c4"}
    nested = Compound("and", (Comparison("eq", "year", 2025.0), Compound("or", (Comparison("eq", "lang", "zh"),))))
    assert await matching(nested) == {"c3"}


async def check_hostile_words(retriever: WritableRetriever, deadline: float) -> None:
    """A query means nothing but its words."""
    for query in ("'", '"', "port' | 'x", "port & !port", "port:*", "\\", "') OR 1=1 --", "\x00 port", "🙈", "", "(" * 500):
        result = await found(retriever, query, deadline=deadline)
        assert all(one.text.endswith(" acme vs_a") for one in result.passages)


async def check_writing(retriever: WritableRetriever, deadline: float) -> None:
    changed = [replace(passages()[0], text="Now it listens on port 9000.")]
    one = QueryVectors(MODEL, [[1.0, 0.0, 0.0]])
    assert await retriever.upsert(tenant=ACME, store=STORE, passages=changed, vectors=one) == 1
    assert [p.text for p in (await found(retriever, "port 9000", deadline=deadline)).passages] == [changed[0].text]
    assert (await found(retriever, "gateway", tenant=GLOBEX, deadline=deadline)).passages  # theirs of the same id stays
    assert await retriever.delete(tenant=ACME, store=STORE, file_id="f2") == 1
    assert ids(await found(retriever, "端口", deadline=deadline)) == []
    assert ids(await found(retriever, "端口", stores=(OTHER,), deadline=deadline)) == ["c3"]
    assert await retriever.delete(tenant=ACME, store=STORE, file_id=None) == 3
    assert await retriever.delete(tenant=ACME, store=STORE, file_id=None) == 0
    assert len((await found(retriever, vector=(1.0, 0.0, 0.0), tenant=GLOBEX, deadline=deadline)).passages) == 4


async def check_mismatch(retriever: WritableRetriever, deadline: float) -> None:
    """Vectors of another model are refused, and never compared."""
    try:
        await retriever.search(
            Search(
                tenant=ACME,
                stores=[STORE],
                queries=["x"],
                vectors=QueryVectors("another", [[1.0, 0.0, 0.0]]),
                filters=None,
                limit=1,
                mode="dense",
                deadline=deadline,
            )
        )
    except EmbeddingMismatch:
        return
    raise AssertionError("vectors of another model were compared")
