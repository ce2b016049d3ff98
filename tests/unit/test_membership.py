"""Who is in the pool: discovery's word, and when the probes' word counts for more."""

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from sluice.discovery.base import Discovery, Found
from sluice.membership import DOUBT_S, LOOK_S, Membership
from sluice.pool import Pool
from sluice.upstream.connections import Connections
from sluice.worker import Worker
from tests.unit.hot_path import InOrder, until


class Told(Discovery):
    """A discovery that says what the test says."""

    def __init__(self, *initial: str) -> None:
        super().__init__("routes.a.workers")
        self.initial = tuple(map(found, initial))
        self.sets: asyncio.Queue[frozenset[Found]] = asyncio.Queue()

    async def watch(self) -> AsyncGenerator[frozenset[Found], None]:
        while True:
            yield await self.sets.get()


class Remembering(InOrder):
    def __init__(self) -> None:
        self.forgotten: list[str] = []

    def forget(self, worker: Worker) -> None:
        self.forgotten.append(worker.url[-1])


class Member:
    """A membership that runs, and which companions run in it."""

    def __init__(self, *initial: str) -> None:
        self.told = Told(*initial)
        self.policy = Remembering()
        self.watched: Counter[str] = Counter()
        pool = Pool("a", (), self.policy)
        self.now = 1000.0
        self.membership = Membership(pool, self.told, self._make, self._companions, lambda: self.now)
        self.pool = pool

    def _make(self, one: Found) -> Worker:
        return Worker(one.url, Connections(one.url), identity=one.identity)

    def _companions(self, worker: Worker) -> Iterator[Coroutine[Any, Any, None]]:
        yield self._watch(worker)

    async def _watch(self, worker: Worker) -> None:
        self.watched[worker.url[-1]] += 1
        try:
            await asyncio.Event().wait()
        finally:
            self.watched[worker.url[-1]] -= 1

    async def tell(self, *names: str) -> None:
        """`a`; `a2` for another process at a; `a-` for a that drains."""
        self.told.sets.put_nowait(frozenset(map(found, names)))
        await until(self.told.sets.empty)
        for _ in range(5):
            await asyncio.sleep(0)

    @property
    def names(self) -> str:
        return " ".join(f"{worker.url[-1]}{worker.identity}" for worker in self.pool.workers)

    def probe(self, **healths: bool) -> None:
        for worker in self.pool.workers:
            if (is_healthy := healths.get(worker.url[-1])) is not None:
                worker.judge(is_healthy=is_healthy)


def found(name: str) -> Found:
    return Found(f"http://{name[0]}", name[1:].strip("-"), name.endswith("-"))


@asynccontextmanager
async def member(*initial: str) -> AsyncIterator[Member]:
    made = Member(*initial)
    task = asyncio.create_task(made.membership.run())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    try:
        yield made
        assert not task.done()
    finally:
        task.cancel()
        await asyncio.wait({task})
        assert not +made.watched


async def test_who_is_known_before_is_there_at_once_in_the_files_order():
    made = Member("b", "a")
    assert made.names == "b a"


async def test_workers_come_and_go_and_each_is_watched_as_long_as_it_is_there():
    async with member() as here:
        await here.tell("b", "a")
        assert here.names == "a b" and +here.watched == {"a": 1, "b": 1}
        await here.tell("a", "b", "c")
        await here.tell("b", "c")
        assert here.names == "b c" and +here.watched == {"b": 1, "c": 1}
        assert here.policy.forgotten == ["a"]


async def test_the_same_set_again_changes_nothing():
    async with member("a", "b") as here:
        before = here.pool.workers
        await here.tell("b", "a")
        assert here.pool.workers is before and here.policy.forgotten == []


async def test_another_process_at_the_same_url_begins_anew():
    async with member() as here:
        await here.tell("a1", "b1")
        here.probe(a=True, b=True)
        old = here.pool.workers[0]
        await here.tell("a2", "b1")
        new = here.pool.workers[0]
        assert here.names == "a2 b1" and new is not old
        assert here.policy.forgotten == ["a"] and +here.watched == {"a": 1, "b": 1}
        assert (new.state, here.pool.workers[1].state) == ("unhealthy", "healthy")


async def test_who_is_new_gets_calls_after_its_first_probe_unless_nobody_else_is_there():
    async with member() as here:
        await here.tell("a")
        assert here.pool.workers[0].state == "unknown"
        here.probe(a=True)
        await here.tell("a", "b")
        assert here.pool.workers[1].state == "unhealthy"
        assert here.pool.workers[1].trouble == "it is new, and not probed yet"
        await here.tell("c", "d")
        assert [worker.state for worker in here.pool.workers if worker.url[-1] in "cd"] == ["unknown", "unknown"]


async def test_who_drains_stays_until_it_is_gone():
    async with member("a", "b") as here:
        here.probe(a=True, b=True)
        await here.tell("a-", "b")
        assert [worker.state for worker in here.pool.workers] == ["draining", "healthy"]
        await here.tell("a", "b")
        assert [worker.state for worker in here.pool.workers] == ["healthy", "healthy"]
        await here.tell("a-", "b")
        await here.tell("b")
        assert here.names == "b"


@pytest.mark.parametrize("left", [(), ("a",), ("a", "b")])
async def test_half_of_the_workers_gone_at_once_are_gone_when_their_probes_say_so(left, caplog):
    async with member("a", "b", "c", "d") as here:
        here.probe(a=True, b=True, c=True, d=True)
        await here.tell(*left)
        assert here.names == "a b c d"
        here.probe(d=False)
        assert here.names == "a b c"
        here.probe(c=False)
        assert here.names == "a b"
        assert "discovery has lost" in caplog.text
        await here.tell("a", "b", "c", "d")
        assert here.names == "a b c d" and not here.membership.doubted


async def test_who_is_doubted_stays_so_however_few_are_left_of_them():
    async with member("a", "b", "c", "d", "e") as here:
        here.probe(a=True, b=True, c=True, d=True, e=True)
        await here.tell("a", "b")
        here.probe(c=False, d=False)
        await here.tell("a", "b")
        assert here.names == "a b e"
        await here.tell("a", "b", "x")
        assert here.names == "a b x e"
        here.probe(e=False)
        assert here.names == "a b x"


async def test_who_is_doubted_for_too_long_is_gone_however_well(caplog):
    async with member("a", "b", "c", "d") as here:
        here.probe(a=True, b=True, c=True, d=True)
        await here.tell("a", "b")
        here.now += DOUBT_S / 2
        await here.tell("a")  # b has a time of its own
        here.now += DOUBT_S / 2
        here.membership.pass_time()
        assert here.names == "a b c d"
        here.now += 1
        here.told.failed("cannot be asked")
        here.membership.pass_time()
        assert here.names == "a b c d"
        here.told.confirmed()
        here.membership.pass_time()
        assert here.names == "a b"
        assert "2 workers are well, and not found for 900 s" in caplog.text


async def test_the_time_is_looked_at_again_and_again():
    made, slept = Member("a", "b"), []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)
        made.now += DOUBT_S
        await asyncio.sleep(0)

    made.probe(a=True, b=True)
    made.told.sets.put_nowait(frozenset())
    task = asyncio.create_task(made.membership.run(sleep))
    await until(lambda: not made.pool.workers)
    task.cancel()
    await asyncio.wait({task})
    assert set(slept) == {LOOK_S}


async def test_those_who_are_found_again_are_doubted_no_more():
    async with member("a", "b") as here:
        here.probe(a=True, b=True)
        await here.tell()
        assert len(here.membership.doubted) == 2
        await here.tell("a", "b")
        here.probe(a=False)
        assert here.names == "a b"


async def test_those_who_drained_are_believed_to_be_gone_however_many():
    async with member("a", "b", "c") as here:
        here.probe(a=True, b=True, c=True)
        await here.tell("a-", "b-", "c")
        await here.tell("c")
        assert here.names == "c"


async def test_a_source_that_is_certain_is_believed_at_once():
    async with member("a", "b") as here:
        here.probe(a=True, b=True)
        here.told.is_certain = True
        await here.tell("c")
        assert here.names == "c" and not here.membership.doubted


async def test_the_ill_are_believed_to_be_gone():
    async with member("a", "b") as here:
        here.probe(a=True, b=False)
        await here.tell("a")
        assert here.names == "a"


async def test_a_call_on_a_worker_that_is_gone_goes_on():
    async with member("a", "b", "c") as here:
        worker = here.pool.workers[0]
        with worker.lease():
            await here.tell("b", "c")
            assert here.names == "b c" and worker.in_flight == 1
