from loadtest.simfleet.kv_cache import Cleared, KvCache, Removed, Stored, Table


def fill(cache: KvCache, hashes: list[int]) -> Table:
    """A sequence with these full blocks."""
    table = Table()
    assert cache.grow(table, len(hashes) * cache.block_size)
    cache.commit(table, hashes, "source")
    return table


def test_blocks_are_found_again_after_their_sequence_is_gone() -> None:
    cache = KvCache(8, 4)
    cache.release(fill(cache, [1, 2, 3]))
    assert cache.match([1, 2, 9]) == 2
    assert (cache.num_free, cache.usage) == (8, 0.0)


def test_only_a_prefix_without_a_gap_is_found() -> None:
    cache = KvCache(8, 4)
    fill(cache, [2, 3])
    assert cache.match([1, 2, 3]) == 0


def test_the_longest_unused_goes_first_and_of_one_sequence_its_tail() -> None:
    cache = KvCache(4, 4)
    cache.release(fill(cache, [1, 2]))
    cache.release(fill(cache, [8, 9]))
    fill(cache, [5])
    assert (cache.match([1, 2]), cache.match([8, 9])) == (1, 2)
    fill(cache, [6, 7])
    assert (cache.match([1]), cache.match([8, 9])) == (0, 1)


def test_use_renews_a_block() -> None:
    cache = KvCache(4, 4)
    cache.release(fill(cache, [1, 2]))
    cache.release(fill(cache, [8, 9]))
    again = Table()
    cache.adopt(again, [1, 2])
    cache.release(again)
    fill(cache, [5, 6])
    assert (cache.match([1, 2]), cache.match([8])) == (2, 0)


def test_blocks_in_use_are_never_evicted() -> None:
    cache = KvCache(4, 4)
    held = fill(cache, [1, 2, 3])
    assert not cache.grow(Table(), 8)
    assert cache.grow(Table(), 4)
    assert not cache.grow(held, 16)
    assert cache.match([1, 2, 3]) == 3


def test_a_block_shared_by_two_is_free_only_after_both() -> None:
    cache = KvCache(4, 4)
    first, second = fill(cache, [1, 2]), Table()
    cache.adopt(second, [1, 2])
    cache.release(first)
    assert cache.num_free == 2
    cache.release(second)
    assert cache.num_free == 4


def test_a_block_computed_twice_takes_two_blocks_and_is_found_once() -> None:
    cache = KvCache(4, 4)
    first, second = fill(cache, [1]), fill(cache, [1])
    assert cache.num_free == 2
    cache.release(first)
    cache.release(second)
    assert (cache.num_free, cache.num_blank) == (4, 3)


def test_events_say_what_was_stored_after_what_and_what_was_removed() -> None:
    cache = KvCache(2, 4, record_events=True)
    cache.release(fill(cache, [1, 2]))
    fill(cache, [1, 3])
    assert cache.take_events() == [
        Stored("source", 0, [1, 2], None),
        Removed(2),
        Removed(1),
        Stored("source", 0, [1, 3], None),
    ]
    assert cache.take_events() == []


def test_blocks_stored_later_name_the_block_before_them() -> None:
    cache = KvCache(4, 4, record_events=True)
    table = fill(cache, [1])
    cache.grow(table, 12)
    cache.commit(table, [1, 2, 3], "source")
    assert cache.take_events()[-1] == Stored("source", 1, [2, 3], 1)


def test_what_was_there_already_is_not_stored_again() -> None:
    cache = KvCache(8, 4, record_events=True)
    fill(cache, [2])
    cache.take_events()
    fill(cache, [1, 2, 3])
    assert cache.take_events() == [Stored("source", 0, [1], None), Stored("source", 2, [3], 2)]


def test_it_can_be_cleared_only_while_nobody_uses_it() -> None:
    cache = KvCache(4, 4, record_events=True)
    held = fill(cache, [1])
    assert not cache.clear()
    cache.release(held)
    assert cache.clear()
    assert cache.match([1]) == 0
    assert cache.take_events()[-1] == Cleared()
