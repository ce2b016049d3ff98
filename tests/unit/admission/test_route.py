"""Slots on the workers of a route: at once, in turn, or not at all; and calls that are cancelled while they wait."""

import asyncio
import random
from collections.abc import Sequence
from typing import Any

import pytest

from sluice.admission.fair_queue import KEPT_ROUNDS
from sluice.admission.route import PRUNE_TICKS, QUEUE_TIME_S, TICK_S, Admission
from sluice.admission.shedding import REASONS
from sluice.errors import GatewayError, Overloaded, WorkerUnavailable
from sluice.policies.least_inflight import LeastInflight
from sluice.types import Call, Endpoint, Usage
from sluice.worker import Lease, Worker
from tests.unit.admission.calls import Clock, a_call, a_pool, a_worker, load, queue
from tests.unit.hot_path import until


class Door:
    """An admission in virtual time, over workers with so many slots each, and the calls of a test."""

    def __init__(self, *slots: float, policy: Any = None, **settings: object) -> None:
        self.clock = Clock()
        self.workers = [a_worker(number, window) for number, window in enumerate(slots or (1,))]
        self.admission = Admission(a_pool(*self.workers, policy=policy), queue(**settings), self.clock)
        self.order: list[str] = []
        self._calls: list[Caller] = []

    def call(self, call: Call | None = None, tried: Sequence[Worker] = (), *, ahead: bool = False, **about: Any) -> "Caller":
        caller = Caller(self, call or a_call(**about), tried, ahead)
        self._calls.append(caller)
        return caller

    async def calls(self, *callers: "Caller") -> None:
        """Let the loop turn until all of them wait, have a slot or were refused."""
        await until(lambda: all(caller.is_settled for caller in callers or self._calls))

    async def passes(self, seconds: float) -> None:
        self.clock.now += seconds
        self.admission.tick()
        await asyncio.sleep(0)

    async def end(self) -> None:
        """Every call ends, and nothing is left."""
        for caller in self._calls:
            caller.leave()
        await asyncio.gather(*(caller.task for caller in self._calls), return_exceptions=True)
        assert repr(self.admission) == "<Admission m [0 waiting | 0 started]>"
        assert all(worker.in_flight == 0 and worker.prefill_tokens == 0 for worker in self.workers)


class Caller:
    """A call that goes in and stays until it is told to leave."""

    def __init__(self, door: Door, call: Call, tried: Sequence[Worker], ahead: bool) -> None:
        self.call = call
        self.entry = door.admission.enter(call, tried, ahead=ahead)
        self.lease: Lease | None = None
        self.error: GatewayError | None = None
        self._door = door
        self._may_leave = asyncio.Event()
        self.task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        try:
            async with self.entry as self.lease:
                self.lease.meter = Used(Usage(self.call.prompt_tokens, 0, 0, exact=True))
                self._door.order.append(self.call.tenant.name)
                await self._may_leave.wait()
        except GatewayError as exc:
            self.error = exc

    def leave(self) -> None:
        self._may_leave.set()

    @property
    def is_settled(self) -> bool:
        return self.lease is not None or self.error is not None or self.entry.is_queued or self.task.done()


async def test_where_a_worker_has_room_a_call_goes_in_without_a_task_switch():
    door = Door(1)
    entry = door.admission.enter(a_call())
    with pytest.raises(StopIteration) as done:
        entry.__aenter__().send(None)
    assert done.value.value is entry.lease
    assert door.workers[0].in_flight == 1
    await entry.__aexit__()
    await door.end()


async def test_a_call_waits_for_a_slot_and_gets_it_when_one_is_free():
    door = Door(1)
    first, second = door.call(), door.call()
    await door.calls()
    assert first.lease is not None and second.entry.is_queued
    door.clock.now += 3
    first.leave()
    await until(lambda: second.lease is not None)
    assert second.lease.queued_s == 3
    await door.end()


async def test_slots_go_by_turns_to_tenants():
    door = Door(1)
    for tenant in ["heavy"] * 6 + ["light"] * 2:
        door.call(tenant=tenant)
    await door.calls()
    for caller in list(door._calls):
        caller.leave()
    await asyncio.gather(*(caller.task for caller in door._calls))
    assert door.order[:4].count("light") == 2
    await door.end()


async def test_a_slot_of_each_worker_is_spared_for_a_tenant_that_has_come_lately_and_has_fewer_than_its_part():
    door = Door(10, 10)
    light = door.call(tenant="light")
    await door.passes(0.1)
    heavy = [door.call(tenant="heavy") for _ in range(30)]
    await door.calls()
    assert [worker.in_flight for worker in door.workers] == [9, 9]
    late = [door.call(tenant="light") for _ in range(2)]
    await door.calls()
    assert all(caller.lease is not None for caller in late) and [worker.in_flight for worker in door.workers] == [10, 10]
    light.leave()
    await until(lambda: light.task.done())
    await door.passes(0.1)
    assert sum(caller.lease is not None for caller in heavy) == 17  # the slot is spared again
    await door.end()


async def test_a_tenant_that_is_alone_has_all_slots_and_again_when_others_have_long_been_away():
    door = Door(20)
    light = door.call(tenant="light")
    await door.passes(0.1)
    light.leave()
    heavy = [door.call(tenant="heavy") for _ in range(30)]
    await door.calls(*heavy)
    assert sum(caller.lease is not None for caller in heavy) == 19
    for _ in range((KEPT_ROUNDS + 2) * PRUNE_TICKS):
        door.admission.tick()
    await asyncio.sleep(0)
    assert sum(caller.lease is not None for caller in heavy) == 20
    await door.end()


async def test_of_few_slots_none_is_spared_nor_where_the_operator_wants_none():
    for door in (Door(5, 5), Door(20, spared_slots=0)):
        door.call(tenant="light")
        await door.passes(0.1)
        for _ in range(30):
            door.call(tenant="heavy")
        await door.calls()
        assert sum(worker.in_flight for worker in door.workers) == sum(worker.window for worker in door.workers)
        await door.end()


async def test_a_call_may_be_cancelled_while_it_waits():
    door = Door(1)
    first, second, third = door.call(), door.call(), door.call()
    await door.calls()
    second.task.cancel()
    await asyncio.gather(second.task, return_exceptions=True)
    first.leave()
    await until(lambda: third.lease is not None)
    await door.end()


async def test_a_call_that_is_cancelled_just_as_its_turn_comes_gives_the_slot_back():
    door = Door(1)
    first = door.admission.enter(a_call())
    await first.__aenter__()
    second, third = door.call(), door.call()
    await door.calls()
    await first.__aexit__()
    assert second.entry.lease is not None
    second.task.cancel()  # it has been given the slot, and has not run since
    await until(lambda: third.lease is not None)
    assert second.lease is None
    await door.end()


async def test_a_call_that_was_cancelled_and_has_not_left_yet_is_not_given_a_slot():
    door = Door(1)
    first = door.admission.enter(a_call())
    await first.__aenter__()
    second, third = door.call(), door.call()
    await door.calls()
    second.task.cancel()
    await first.__aexit__()  # before the second call can say that it leaves
    assert third.entry.lease is not None and second.entry.lease is None
    await door.end()


async def test_a_call_that_is_refused_just_as_it_is_cancelled_leaves_no_complaint_behind(caplog):
    door = Door(1, timeout_s=5)
    door.call()
    second = door.call()
    await door.calls()
    door.clock.now += 6
    door.admission.tick()
    second.task.cancel()
    await asyncio.gather(second.task, return_exceptions=True)
    await door.end()
    assert caplog.records == []


async def test_more_than_may_wait_are_shed():
    door = Door(1, max_waiting=2)
    callers = [door.call() for _ in range(4)]
    await door.calls()
    assert isinstance(callers[3].error, Overloaded)
    assert str(callers[3].error) == "The model is busy, and as many requests wait for it as may. Try again in 1 s."
    assert door.admission.state().num_shed["number"] == 1
    await door.end()


async def test_nothing_may_wait_where_the_bound_is_0():
    door = Door(1, max_waiting=0)
    first, second = door.call(), door.call()
    await door.calls()
    assert first.lease is not None and isinstance(second.error, Overloaded)
    await door.end()


async def test_tokens_that_wait_are_bounded_but_one_call_may_always_wait():
    door = Door(1, max_waiting_tokens=1000)
    callers = [door.call(), door.call(tokens=5000), door.call(tokens=1)]
    await door.calls()
    assert callers[1].entry.is_queued and isinstance(callers[2].error, Overloaded)
    assert door.admission.state().num_shed["tokens"] == 1
    await door.end()


async def test_where_the_queue_is_full_whoever_has_most_in_it_loses():
    door = Door(1, max_waiting=3)
    door.call(tenant="heavy")
    heavy = [door.call(tenant="heavy") for _ in range(3)]
    await door.calls()
    light = door.call(tenant="light")
    await door.calls()
    await until(lambda: heavy[-1].error is not None)
    assert light.entry.is_queued and isinstance(heavy[-1].error, Overloaded)
    assert door.admission.state().num_shed["displaced"] == 1
    greedy = door.call(tenant="heavy")
    await door.calls()
    assert isinstance(greedy.error, Overloaded)
    await door.end()


async def drained(door: Door, *, calls: int = 20, each_s: float = 1.0, **about: Any) -> None:
    """The door sees one call after another start, one every `each_s`."""
    callers = [door.call(**about) for _ in range(calls)]
    await door.calls()
    for caller in callers:
        door.clock.now += each_s
        caller.leave()
        await caller.task
        await asyncio.sleep(0)


async def test_who_would_wait_too_long_is_shed_at_once_and_told_when_to_come_back():
    door = Door(1, timeout_s=10)
    await drained(door, tokens=100, calls=10)  # 100 tokens a second
    for _ in range(12):
        door.call(tokens=100)
    await door.calls()
    late = door.call(tokens=100)
    light = door.call(tenant="light", tokens=100)
    await door.calls()
    assert isinstance(late.error, Overloaded) and light.entry.is_queued
    assert 10 <= (late.error.retry_after_s or 0) <= 12
    assert door.admission.state().num_shed["wait"] == 1
    would = door.admission.would_shed(a_call(tokens=100))
    assert isinstance(would, Overloaded) and door.admission.would_shed(a_call("other", tokens=100)) is None
    await door.end()
    assert door.admission.would_shed(a_call()) is None


async def test_who_has_waited_too_long_is_shed():
    door = Door(1, timeout_s=5)
    door.call()
    second = door.call()
    await door.calls()
    await door.passes(4.9)
    assert second.entry.is_queued
    await door.passes(0.2)
    await second.task
    assert isinstance(second.error, Overloaded) and door.admission.state().num_shed["timeout"] == 1
    await door.end()


async def test_who_cannot_be_answered_in_time_is_shed_when_it_comes_when_its_turn_comes_or_when_its_time_is_up():
    door = Door(1)
    now = door.clock.now
    first = door.call()
    await door.calls()
    assert first.lease is not None
    first.lease.meter = Used(Usage(10, 100, 0, exact=True))
    door.clock.now += 10  # a tenth of a second a token
    first.leave()
    await first.task
    door.call()
    await door.calls()
    long = door.call(output_tokens=100, deadline=now + 15)
    turned = door.call(output_tokens=40, deadline=now + 15)
    expiring = door.call(output_tokens=1, deadline=now + 12)
    await door.calls()
    assert isinstance(long.error, Overloaded) and str(long.error).startswith("This request cannot be answered within")
    assert turned.entry.is_queued and expiring.entry.is_queued
    await door.passes(2)
    await expiring.task
    assert isinstance(expiring.error, Overloaded)
    door._calls[1].leave()
    await turned.task
    assert isinstance(turned.error, Overloaded)
    assert door.admission.state().num_shed["deadline"] == 3
    await door.end()


class Used:
    """What a call says that it has used."""

    def __init__(self, usage: Usage) -> None:
        self.usage = usage


async def test_a_call_that_makes_more_than_it_said_pays_for_it_while_it_runs():
    door = Door(2)
    long, other = door.call(tenant="a", output_tokens=1), door.call(tenant="b", output_tokens=1)
    door.call(tenant="a")
    waiting = door.call(tenant="b")
    await door.calls()
    assert long.lease is not None
    long.lease.meter = Used(Usage(0, 5000))
    await door.passes(0.1)
    other.leave()
    await until(lambda: waiting.lease is not None)
    assert long.entry.charged == 100 + 2 * 5000
    await door.end()
    assert long.entry.charged == 100 + 2 * 5000  # its client left: what it had made by then


async def test_cached_tokens_cost_nothing_and_neither_does_what_was_never_sent():
    door = Door(2)
    cached, unsent = door.call(tokens=1000), door.call(tokens=1000)
    await door.calls()
    assert cached.lease is not None and unsent.lease is not None
    cached.lease.meter = Used(Usage(1000, 10, 900, exact=True))
    unsent.lease.meter = None
    await door.end()
    assert (cached.entry.charged, unsent.entry.charged) == (120, 0)


async def test_a_call_that_was_refused_by_a_worker_waits_ahead_for_another():
    door = Door(1, 1)
    one, two = door.workers
    first, second = door.call(), door.call()
    await door.calls()
    waiting = door.call(tenant="new", priority=5)
    again = door.call(tried=[one])
    await door.calls()
    (first if first.lease.worker is two else second).leave()  # type: ignore[union-attr]
    await until(lambda: again.lease is not None)
    assert again.lease.worker is two and waiting.entry.is_queued
    await door.end()


async def test_a_worker_that_says_it_is_full_gets_fewer_calls():
    door = Door(1)
    [worker] = door.workers
    door.admission.refused(a_worker(9))  # one that has left the pool
    worker.load = load(0, 0, at=door.clock.now)
    await door.passes(TICK_S)
    assert worker.window == 256
    await door.passes(2)
    door.admission.refused(worker)
    assert worker.window == 128
    await door.end()


async def test_who_waits_for_one_worker_does_not_hold_up_the_others():
    door = Door(1, 1)
    one, two = door.workers
    both = [door.call(), door.call()]
    await door.calls()
    pinned = door.call(pinned_worker=one.url)
    other = door.call()
    await door.calls()
    next(caller for caller in both if caller.lease.worker is two).leave()  # type: ignore[union-attr]
    await until(lambda: other.lease is not None)
    assert pinned.entry.is_queued
    await door.end()


async def test_a_resumed_call_waits_ahead_and_is_not_shed_for_want_of_room():
    door = Door(1, max_waiting=1)
    door.call()
    door.call()
    await door.calls()
    resumed = door.call(ahead=True)
    await door.calls()
    assert resumed.entry.is_queued
    assert resumed.entry.standing is not None and resumed.entry.standing.position == 1
    await door.end()


async def test_where_no_worker_can_take_a_call_nobody_waits():
    door = Door(1)
    door.call()
    waiting = door.call()
    await door.calls()
    door.workers[0].judge(is_healthy=False)
    late = door.call()
    await door.calls()
    assert late.entry.is_queued  # others wait, so it is not its turn
    door.workers[0].window = 2
    await door.passes(TICK_S)
    await asyncio.gather(waiting.task, late.task)
    assert isinstance(waiting.error, WorkerUnavailable) and isinstance(late.error, WorkerUnavailable)
    alone = door.call()
    await door.calls()
    assert isinstance(alone.error, WorkerUnavailable)
    await door.end()


async def test_a_worker_that_comes_later_takes_who_waits():
    door = Door(1)
    door.call()
    waiting = door.call()
    await door.calls()
    door.workers.append(a_worker(7, 1))
    door.admission.pool.adopt(door.workers)
    await door.passes(TICK_S)
    await until(lambda: waiting.lease is not None)
    await door.end()


async def test_a_window_that_grows_lets_more_in():
    door = Door(1, start_in_flight=1)
    door.call()
    waiting = door.call()
    await door.calls()
    door.workers[0].load = load(1, 0, at=door.clock.now)
    await door.passes(TICK_S)
    await until(lambda: waiting.lease is not None)
    assert door.workers[0].window == 2
    await door.end()


class Sticky(LeastInflight):
    """Would rather wait ten seconds for the first candidate."""

    def __init__(self) -> None:
        super().__init__(seed=1)
        self.now = 0.0

    def waits_until(self, candidates: Sequence[Worker], able: Sequence[Worker], call: Call, now: float) -> float | None:
        return None if candidates[0] in able else now + 10


async def test_a_policy_may_have_a_call_wait_for_a_worker_but_not_put_it_off_again_and_again():
    door = Door(1, 1, policy=Sticky())
    one, two = door.workers
    door.call()
    await door.calls()
    first = door._calls[0]
    if first.lease.worker is not one:  # type: ignore[union-attr]
        first.leave()
        await first.task
        one.lease().__enter__()
    waiting = door.call()
    await door.calls()
    assert waiting.entry.is_queued and two.in_flight == 0
    await door.passes(9.9)
    assert waiting.entry.is_queued
    await door.passes(0.2)
    await until(lambda: waiting.lease is not None)
    assert waiting.lease.worker is two
    one.in_flight = int(first.lease is not None and first.lease.worker is one)
    await door.end()


@pytest.mark.parametrize(
    "about",
    [
        {"endpoint": Endpoint.TOKENIZE, "path": "/tokenize"},
        {"endpoint": Endpoint.RESPONSES, "path": "/v1/responses/resp_1/cancel"},
    ],
)
async def test_what_costs_the_engine_nothing_takes_no_turn(about):
    door = Door(1)
    door.call()
    door.call()
    await door.calls()
    free = door.call(**about)
    await door.calls(free)
    assert free.lease is not None and free.lease.worker.in_flight == 2
    await door.end()


async def test_who_waits_can_be_told_where_it_stands():
    door = Door(1)
    assert door.call().entry.standing is None
    waiting = [door.call(tokens=100) for _ in range(3)]
    await door.calls()
    assert [caller.entry.standing for caller in waiting] == [(1, None), (2, None), (3, None)]
    await door.end()
    door._calls.clear()
    await drained(door, tokens=100, calls=10)
    waiting = [door.call(tokens=100) for _ in range(4)]
    await door.calls()
    standing = waiting[3].entry.standing
    assert standing is not None and standing.position == 3 and 2.5 <= (standing.eta_s or 0) <= 3.5
    await door.end()


async def test_times_in_the_queue_are_counted():
    door = Door(1)
    await drained(door, calls=3, each_s=3)
    counts = door.admission.queue_time._counts
    assert sum(counts) == 3 and counts[0] == 1
    assert set(door.admission.state().num_shed) == set(REASONS) and len(counts) == len(QUEUE_TIME_S) + 1
    await door.end()


async def test_the_clock_is_looked_at_until_it_is_cancelled():
    door = Door(1, timeout_s=1)
    door.call()
    waiting = door.call()
    await door.calls()

    async def sleep(seconds: float) -> None:
        door.clock.now += seconds
        if door.clock.now > 1100:
            raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        await door.admission.run(sleep)
    await waiting.task
    assert isinstance(waiting.error, Overloaded)
    await door.end()


@pytest.mark.parametrize("seed", range(20))
async def test_whatever_happens_slots_and_places_add_up(seed):
    """Calls of several tenants come, end, are cancelled and shed at random; at the end nothing is held."""
    chance = random.Random(seed)
    door = Door(2, 3, max_waiting=8, timeout_s=20)
    for _ in range(300):
        act = chance.random()
        alive = [caller for caller in door._calls if not caller.task.done()]
        if act < 0.45 or not alive:
            tenant = chance.choice("abc")
            about = {"tenant": tenant, "tokens": chance.randint(1, 500), "priority": chance.choice([0, 0, 1])}
            door.call(deadline=door.clock.now + chance.choice([5, 1000]), **about)
        elif act < 0.75:
            chance.choice(alive).leave()
        elif act < 0.9:
            chance.choice(alive).task.cancel()
        else:
            await door.passes(chance.random() * 3)
        for _ in range(chance.randint(0, 2)):
            await asyncio.sleep(0)
        assert all(0 <= worker.in_flight <= worker.window for worker in door.workers)
        free = any(worker.in_flight < worker.window for worker in door.workers)
        waiting = [caller for caller in alive if caller.entry.is_queued and not caller.entry.done.cancelled()]
        assert not (free and waiting), "a slot is free and somebody waits"
    await door.end()
