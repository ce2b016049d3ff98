"""What is held in memory follows the file, and stays within its bound."""

from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from sluice.retrieval.passages import POSITION_BITS
from sluice.retrieval.resident import Matrix
from tests.unit.stores import filled

STEPS = st.lists(st.tuples(st.booleans(), st.integers(0, 5)), max_size=12)


@given(STEPS)
def test_a_matrix_has_what_was_added_and_not_removed(steps):
    matrix = Matrix(np.empty(0, np.int64), np.empty((0, 2), np.float32))
    wanted: dict[int, float] = {}
    for is_removal, number in steps:
        first = number << POSITION_BITS
        if is_removal:
            matrix.remove(first, first + (1 << POSITION_BITS))
            wanted = {id: value for id, value in wanted.items() if id >> POSITION_BITS != number}
        else:
            ids = np.arange(first, first + 3)
            matrix.add(ids, np.full((3, 2), number, np.float32))
            wanted |= {int(id): float(number) for id in ids}

    ids, rows = matrix.view()
    assert {int(id): float(row[0]) for id, row in zip(ids, rows, strict=True)} == wanted
    assert len(ids) == len(set(ids.tolist()))


def test_a_view_stays_as_it_was_while_rows_come_and_go():
    matrix = Matrix(np.array([1]), np.ones((1, 2), np.float32))
    ids, rows = matrix.view()

    matrix.add(np.arange(2, 200), np.zeros((198, 2), np.float32))
    matrix.remove(1, 2)

    assert ids.tolist() == [1] and rows.tolist() == [[1.0, 1.0]]


async def test_memory_lets_go_of_the_store_that_was_not_searched_for_longest(tmp_path: Path):
    async with filled(tmp_path, memory_bytes=4_000) as here:
        memory = here.storage._memory
        stores = []
        for _ in range(3):
            store = await here.new_store(model="m")
            await here.put(store, "\n\n".join(f"# {n}\n\nword {n}" for n in range(4)), vectors=[[1.0] * 64], max_tokens=100)
            stores.append(store)
        for store in stores:
            await here.search(store, query="word", vectors=[[1.0] * 64])

        assert memory.num_bytes <= memory.limit_bytes
        assert stores[-1] in memory._residents and repr(memory).startswith("<Memory ")


async def test_vectors_that_do_not_fit_into_memory_are_scanned_in_the_file(tmp_path: Path):
    text = "\n\n".join(f"# Part {number}\n\n" + f"word{number} " * 90 for number in range(8))
    vectors = [[float(at == number) for at in range(8)] for number in range(8)]
    results = []
    for folder, memory_bytes in ((tmp_path / "large", 1 << 24), (tmp_path / "small", 64)):
        async with filled(folder, memory_bytes=memory_bytes) as here:
            store = await here.new_store(model="m")
            await here.put(store, text, vectors=vectors, max_tokens=200)
            found = await here.search(store, query="x", vectors=[vectors[3]], mode="dense")
            results.append([(one.text, one.similarity) for one in found.passages])

    assert results[0] == results[1]
    assert results[0][0][0].startswith("# Part 3") and results[0][0][1] == 1.0


async def test_what_first_searches_would_wait_for_is_loaded_at_the_start_while_there_is_room(tmp_path: Path):
    async with filled(tmp_path) as here:
        stores = [await here.new_store(model="m") for _ in range(3)]
        for store in stores[:2]:
            await here.put(store, "alpha", vectors=[[1.0] * 64])
            here.wall.now += 100
        broken = await here.new_store()
        here.storage.engine.path_of(broken).write_bytes(b"broken" * 200)

    async with filled(tmp_path) as here:
        await here.storage.warm()  # the broken one was made last: nothing is said, and it ends there
        here.storage.engine.path_of(broken).unlink()
        await here.storage.warm()
        memory = here.storage._memory
        assert set(memory._residents) - {broken} == set(stores[:2])
        assert all(memory.of(store).matrix is not None for store in stores[:2])
    async with filled(tmp_path, memory_bytes=500) as here:
        await here.storage.warm()
        assert len(here.storage._memory._residents) == 1


async def test_what_is_loaded_for_a_search_that_ends_early_serves_the_next_one(tmp_path: Path):
    async with filled(tmp_path) as here:
        store = await here.new_store(model="m")
        await here.put(store, "alpha", vectors=[[1.0, 0.0]])
        engine = here.storage.engine
        with engine.readers.take(store) as reader:
            reader.interrupt()  # as at the end of a deadline
        assert here.storage._memory.of(store).matrix_of(lambda: engine.readers.take(store), 1_000) is not None
