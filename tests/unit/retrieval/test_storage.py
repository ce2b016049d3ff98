"""The embedded engine and its storage: what is found, who finds it, and what is left when it was deleted."""

import asyncio
from pathlib import Path

import numpy as np
import pytest

from sluice.errors import EmbeddingMismatch, RetrievalTimeout, RetrievalUnavailable, StoreExpired, StoreNotFound
from sluice.retrieval.base import Weights
from sluice.retrieval.catalog import Attachment, Catalog
from sluice.retrieval.embedded import MAX_WAITING
from sluice.retrieval.filters import parse_filter
from sluice.retrieval.storage import Storage, Taken
from sluice.retrieval.worklist import WorkList
from tests.unit.stores import MEMORY, Wall, filled, on_disk

GUIDE = "# Gateway\n\nThe gateway listens on port 8443.\n\n## 中文\n\n网关在端口 8443 监听。"
EAST, NORTH, BETWEEN = [1.0, 0.0], [0.0, 1.0], [0.8, 0.6]


def texts(result) -> list[str]:
    return [passage.text for passage in result.passages]


@pytest.mark.parametrize("query", ["Which PORT?", "listening gateways", "端口", "监", "网关 8443"])
async def test_a_passage_is_found_by_its_words_in_any_script(tmp_path: Path, query):
    async with filled(tmp_path) as here:
        store = await here.new_store()
        file_id = await here.put(store, GUIDE, filename="guide.md", attributes={"lang": "zh"})
        await here.put(store, "Nothing of that kind stands here.")

        [passage] = (await here.search(store, query=query)).passages

    assert (passage.file_id, passage.filename, passage.vector_store_id) == (file_id, "guide.md", store)
    assert GUIDE[passage.char_start : passage.char_end] == passage.text
    assert passage.title == "Gateway" and passage.attributes == {"lang": "zh"} and passage.lex_rank == 1
    assert passage.chunk_id == f"{file_id}-0" and passage.score == 1.0 and passage.similarity is None


@pytest.mark.parametrize(
    "query",
    [
        '"',
        "port OR *",
        'port" OR "',
        "NEAR(port 8443)",
        "body:port",
        "-port",
        "^port",
        "port*",
        "'; DROP TABLE words; --",
        "(",
        "*",
    ],
)
async def test_nothing_that_a_query_says_is_more_than_words(tmp_path: Path, query):
    async with filled(tmp_path) as here:
        store = await here.new_store()
        await here.put(store, GUIDE)
        await here.put(store, "airport")

        found = texts(await here.search(store, query=query))

    assert found == ([GUIDE] if "port" in query else [])


async def test_hybrid_search_takes_what_either_finds_and_says_how_near_it_is(tmp_path: Path):
    async with filled(tmp_path) as here:
        store = await here.new_store(model="m")
        await here.put(store, "alpha words", vectors=[NORTH])
        await here.put(store, "other text", vectors=[EAST])

        both = await here.search(store, query="alpha", vectors=[BETWEEN])
        text = await here.search(store, query="alpha", vectors=[BETWEEN], weights=Weights(text=1, embedding=0))
        dense = await here.search(store, query="alpha", vectors=[BETWEEN], mode="dense")
        lexical = await here.search(store, query="alpha", mode="hybrid")

    assert texts(both) == ["alpha words", "other text"] and both.mode == "hybrid"
    assert [one.similarity for one in both.passages] == pytest.approx([0.6, 0.8])
    assert [(one.lex_rank, one.dense_rank) for one in both.passages] == [(1, 2), (None, 1)]
    assert texts(text) == ["alpha words"]
    assert texts(dense) == ["other text", "alpha words"] and dense.mode == "dense"
    assert texts(lexical) == ["alpha words"] and lexical.mode == "lexical"


async def test_several_stores_and_queries_become_one_ranking_without_doubles(tmp_path: Path):
    async with filled(tmp_path) as here:
        one, two, empty = [await here.new_store() for _ in range(3)]
        await here.put(one, "red apples")
        await here.put(two, "red apples")
        await here.put(two, "green pears")

        found = await here.search(one, two, empty, query=["red apples", "green pears"])
        few = await here.search(one, two, empty, query=["red apples", "green pears"], limit=1)

    assert sorted(texts(found)) == ["green pears", "red apples"] and not found.failures
    assert len(few.passages) == 1


async def test_filters_hold_for_words_and_vectors(tmp_path: Path):
    async with filled(tmp_path) as here:
        store = await here.new_store(model="m")
        for lang, year in (("en", 2024), ("zh", 2025), ("zh", 2026)):
            await here.put(store, f"alpha {lang} {year}", vectors=[EAST], attributes={"lang": lang, "year": year})

        async def found(asked):
            result = await here.search(store, query="alpha", vectors=[EAST], filters=parse_filter(asked))
            return sorted(texts(result))

        zh, late = {"type": "eq", "key": "lang", "value": "zh"}, {"type": "gte", "key": "year", "value": 2026}
        assert await found(zh) == ["alpha zh 2025", "alpha zh 2026"]
        assert await found({"type": "and", "filters": [zh, late]}) == ["alpha zh 2026"]
        assert await found({"type": "eq", "key": "lang' OR 1=1 --", "value": "zh"}) == []
        assert await found({"type": "or", "filters": [late, {"type": "ne", "key": "lang", "value": "zh"}]}) == [
            "alpha en 2024",
            "alpha zh 2026",
        ]


async def test_changed_attributes_hold_at_once(tmp_path: Path):
    async with filled(tmp_path) as here:
        store = await here.new_store()
        file_id = await here.put(store, "alpha", attributes={"state": "draft"})

        await here.storage.set_attributes("acme", store, file_id, {"state": "final"})

        final = parse_filter({"type": "eq", "key": "state", "value": "final"})
        [passage] = (await here.search(store, query="alpha", filters=final)).passages
    assert passage.attributes == {"state": "final"}


async def test_common_words_of_a_large_store_are_remembered_and_change_nothing(tmp_path: Path):
    async with filled(tmp_path, memory_bytes=1 << 26) as here:
        store = await here.new_store()
        words = ["red", "green", "blue", "gray"]
        text = "\n\n".join(f"# P{n}\n\n{words[n % 4]} thing{n} " + "the filler " * 50 for n in range(1500))
        await here.put(store, text, max_tokens=100)

        first = await here.search(store, query="the green thing7", limit=20)
        again = await here.search(store, query="the green thing7", limit=20)
        resident = here.storage._memory.of(store)
        remembered = set(resident.lexicon._postings)
        await here.put(store, "a new green thing7")
        later = await here.search(store, query="the green thing7", limit=20)

    assert first == again and first.passages[0].title == "P7"
    assert ("green", False) in remembered and ("the", False) not in remembered
    assert "a new green thing7" in texts(later)


# Tenants


async def test_every_question_about_another_tenants_things_is_answered_as_about_nothing(tmp_path: Path):
    async with filled(tmp_path) as here:
        store = await here.new_store("acme")
        file_id = await here.put(store, "secret")
        ask = here.storage.ask
        batch = (await ask(Catalog.add_batch, "acme", store, [Attachment(file_id, {}, 400, 60)]))["id"]
        own = await here.upload("own", "globex")
        attachment, foreign = Attachment(own, {}, 400, 60), Attachment(file_id, {}, 400, 60)
        theirs = await here.new_store("globex")

        questions = [
            lambda t, s, f, b: ask(Catalog.file, t, f),
            lambda t, s, f, b: ask(Catalog.store, t, s),
            lambda t, s, f, b: ask(Catalog.change_store, t, s, {"name": "mine"}),
            lambda t, s, f, b: ask(Catalog.to_search, t, [s]),
            lambda t, s, f, b: ask(Catalog.forget_store, t, s),
            lambda t, s, f, b: ask(Catalog.attach, t, s, attachment),
            lambda t, s, f, b: ask(Catalog.store_file, t, s, f),
            lambda t, s, f, b: ask(Catalog.set_attributes, t, s, f, {}),
            lambda t, s, f, b: ask(Catalog.mark_deleting, t, s, f),
            lambda t, s, f, b: ask(Catalog.add_batch, t, s, [attachment]),
            lambda t, s, f, b: ask(Catalog.batch, t, s, b),
            lambda t, s, f, b: ask(Catalog.cancel_batch, t, s, b),
            lambda t, s, f, b: here.storage.delete_file(t, f),
            lambda t, s, f, b: here.storage.detach(t, s, f),
            lambda t, s, f, b: here.storage.delete_store(t, s),
        ]
        for question in questions:
            with pytest.raises(StoreNotFound) as of_foreign:
                await question("globex", store, file_id, batch)
            with pytest.raises(StoreNotFound) as of_nothing:
                await question("globex", "vs_0", "file-0", "vsfb_0")
            said = str(of_nothing.value)
            for unknown, real in (("vs_0", store), ("file-0", file_id), ("vsfb_0", batch)):
                said = said.replace(unknown, real)
            assert str(of_foreign.value) == said
        for step in (Catalog.attach, Catalog.add_batch):
            with pytest.raises(StoreNotFound):
                await ask(step, "globex", theirs, foreign if step is Catalog.attach else [foreign])

        assert (await ask(Catalog.store, "acme", store))["counts"]["total"] == 1
        assert (await ask(Catalog.store, "globex", theirs))["counts"]["total"] == 0
        assert texts(await here.search(store, query="secret")) == ["secret"]


# Deletion


async def test_a_deleted_file_leaves_no_byte_anywhere(tmp_path: Path):
    async with filled(tmp_path) as here:
        store, other = await here.new_store(model="m"), await here.new_store()
        kept = await here.put(store, "kept words stay", vectors=[EAST])
        file_id = await here.put(store, "zanzibarological evidence", vectors=[NORTH])
        await here.storage.ask(Catalog.attach, "acme", other, Attachment(file_id, {}, 400, 60))
        await here.search(store, query="evidence", vectors=[NORTH])

        await here.storage.delete_file("acme", file_id)

        assert texts(await here.search(store, query="evidence", vectors=[NORTH])) == ["kept words stay"]
        assert (await here.storage.ask(Catalog.store, "acme", store))["counts"]["total"] == 1
        assert (await here.storage.ask(Catalog.store, "acme", other))["counts"]["total"] == 0
        assert await here.storage.engine.texts(store, kept) == ["kept words stay"]
        assert on_disk(tmp_path, "zanzibarolog") == []
    assert on_disk(tmp_path, "zanzibarolog") == [] and on_disk(tmp_path, "kept words stay")


async def test_a_deleted_store_takes_its_file_with_it_and_leaves_the_uploads(tmp_path: Path):
    async with filled(tmp_path) as here:
        store = await here.new_store()
        file_id = await here.put(store, "alpha")
        await here.search(store, query="alpha")

        await here.storage.delete_store("acme", store)

        assert list((tmp_path / "stores").iterdir()) == []
        assert (tmp_path / "files" / file_id).exists()
        assert texts(await here.search(store, query="alpha")) == []
        assert await here.storage.engine.texts(store, file_id) == []


async def test_what_a_killed_process_left_half_done_is_finished_at_the_next_start(tmp_path: Path):
    async with filled(tmp_path) as here:
        store, gone = await here.new_store(), await here.new_store()
        half = await here.put(store, "half deleted")
        lost = await here.put(store, "written but unknown")
        kept = await here.put(store, "kept")
        await here.put(gone, "of a store that is gone")
        await here.storage.ask(Catalog.mark_deleting, "acme", store, half)
        await here.storage.ask(Catalog.mark_deleting, "acme", store, lost)
        await here.storage.ask(Catalog.forget_store_file, "acme", store, lost)
        await here.storage.ask(Catalog.forget_store, "acme", gone)
        (here.storage.uploads / "file-of-nobody").write_text("x")

    async with filled(tmp_path) as here:
        await here.storage.tidy()

        assert not (here.storage.uploads / "file-of-nobody").exists()
        assert not here.storage.engine.path_of(gone).exists()
        assert await here.storage.writer.file_ids(store) == {kept}
        with pytest.raises(StoreNotFound):
            await here.storage.ask(Catalog.store_file, "acme", store, half)
        assert (await here.storage.work(WorkList.known_ids))[0] >= {kept, half}


async def test_what_has_expired_is_deleted(tmp_path: Path):
    wall = Wall()
    async with filled(tmp_path, wall=wall) as here:
        store, kept = await here.new_store(expires_days=1), await here.new_store()
        await here.put(store, "old")
        await here.put(kept, "kept")
        file_id = await here.upload("short", expires_s=3600)
        wall.now += 86_400

        await here.storage.expire()

        assert not here.storage.engine.path_of(store).exists() and here.storage.engine.path_of(kept).exists()
        assert not (here.storage.uploads / file_id).exists()
        with pytest.raises(StoreNotFound):
            await here.storage.ask(Catalog.file, "acme", file_id)


async def test_a_store_that_is_used_lives_longer_and_one_that_has_expired_is_gone(tmp_path: Path):
    wall = Wall()
    async with filled(tmp_path, wall=wall) as here:
        store = await here.new_store(expires_days=1, model="m")
        wall.now += 80_000
        assert await here.storage.ask(Catalog.to_search, "acme", [store]) == {store: "m"}
        wall.now += 80_000
        assert (await here.storage.work(WorkList.expired))[1] == []
        wall.now += 10_000
        with pytest.raises(StoreExpired):
            await here.storage.ask(Catalog.to_search, "acme", [store])


# Failing


async def test_a_second_process_is_refused_the_folder(tmp_path: Path):
    async with filled(tmp_path):
        with pytest.raises(Taken), Storage(tmp_path, wall_clock=Wall(), memory_bytes=MEMORY):
            pass


async def test_a_broken_store_fails_alone_and_the_search_only_where_all_are_broken(tmp_path: Path):
    async with filled(tmp_path) as here:
        good, bad = await here.new_store(), await here.new_store()
        await here.put(good, "alpha")
        here.storage.engine.path_of(bad).write_bytes(b"this is no database at all" * 100)

        result = await here.search(good, bad, query="alpha")

        assert texts(result) == ["alpha"] and result.is_degraded
        assert [(one.vector_store_id, one.code) for one in result.failures] == [(bad, "store_failed")]
        with pytest.raises(RetrievalUnavailable):
            await here.search(bad, query="alpha")


async def test_a_search_ends_at_its_deadline_and_leaves_the_engine_working(tmp_path: Path):
    async with filled(tmp_path, memory_bytes=1 << 26) as here:
        store = await here.new_store()
        await here.put(store, "\n\n".join(f"# P{n}\n\n" + f"alpha beta{n} " * 60 for n in range(1000)), max_tokens=200)

        with pytest.raises(RetrievalTimeout):
            await here.search(store, query="alpha", timeout_s=0.0)

        assert len((await here.search(store, query="beta7")).passages) == 1
        assert here.storage.engine._num_waiting == 0


async def test_a_cancelled_search_leaves_nothing_behind(tmp_path: Path):
    async with filled(tmp_path) as here:
        store = await here.new_store()
        await here.put(store, "alpha")
        search = asyncio.ensure_future(here.search(store, query="alpha"))
        await asyncio.sleep(0)
        search.cancel()

        with pytest.raises(asyncio.CancelledError):
            await search
        assert here.storage.engine._num_waiting == 0
        assert texts(await here.search(store, query="alpha")) == ["alpha"]


async def test_too_many_searches_are_refused(tmp_path: Path):
    async with filled(tmp_path) as here:
        store = await here.new_store()
        await here.put(store, "alpha")
        searches = [here.search(store, query="alpha") for _ in range(MAX_WAITING + 1)]

        results = await asyncio.gather(*searches, return_exceptions=True)

    assert sum(isinstance(one, RetrievalUnavailable) for one in results) == 1


async def test_vectors_of_another_length_or_that_are_no_numbers_are_refused(tmp_path: Path):
    async with filled(tmp_path) as here:
        store = await here.new_store(model="m")
        await here.put(store, "alpha", vectors=[EAST])
        for bad in ([[1.0, 2.0, 3.0]], [[float("nan"), 1.0]]):
            with pytest.raises(ValueError):
                await here.storage.writer.put_vectors(store, [1], np.array(bad))
        with pytest.raises(EmbeddingMismatch):
            await here.search(store, query="alpha", vectors=[[1.0, 2.0, 3.0]])
