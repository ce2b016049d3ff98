"""The workers of a route: who may be picked, and what the pool says of itself."""

from collections.abc import Sequence

import pytest

from sluice.ejection import FAILURES, FIRST_S, Ejection
from sluice.errors import WorkerUnavailable
from sluice.pool import Pool
from sluice.types import Call, Endpoint, Tenant
from sluice.upstream.connections import Connections
from sluice.worker import ModelInfo, Worker
from tests.unit.hot_path import InOrder

URLS = ["http://a", "http://b", "http://c"]


def pool(*healths: bool | None) -> Pool:
    """A pool whose workers a, b, c are healthy, ill or unknown."""
    workers = [Worker(url, Connections(url)) for url in URLS[: len(healths)]]
    for worker, is_healthy in zip(workers, healths, strict=True):
        if is_healthy is not None:
            worker.judge(is_healthy=is_healthy)
    return Pool("smollm2", workers, InOrder())


def call(pinned: str | None = None) -> Call:
    path = Endpoint.CHAT
    return Call(id="1", tenant=Tenant("acme", "k"), route="smollm2", endpoint=path, path=path.value, pinned_worker=pinned)


def names(workers: Sequence[Worker]) -> str:
    return "".join(worker.url[-1] for worker in workers)


@pytest.mark.parametrize(
    ("healths", "candidates"),
    [
        ((True, True, True), "abc"),
        ((True, False, True), "ac"),
        ((None, False, True), "ac"),
        ((None, None, None), "abc"),
        ((False, False, False), ""),
    ],
)
def test_the_ill_are_no_candidates_and_the_unknown_are(healths, candidates):
    assert names(pool(*healths).candidates(call(), [])) == candidates


def test_who_was_tried_is_no_candidate():
    here = pool(True, True, True)
    assert names(here.candidates(call(), here.workers[:2])) == "c"
    assert names(here.candidates(call(), here.workers)) == ""


@pytest.mark.parametrize(("health", "candidates"), [(True, "b"), (None, "b"), (False, "")])
def test_a_pinned_worker_is_the_only_candidate_if_it_is_one_at_all(health, candidates):
    here = pool(True, health, True)
    assert names(here.candidates(call("http://b"), [])) == candidates
    assert names(here.candidates(call("http://elsewhere"), [])) == ""


def test_a_lease_is_on_the_worker_that_the_policy_picks():
    class Last(InOrder):
        def pick(self, candidates: Sequence[Worker], call: Call, now: float) -> Worker:
            seen.append((names(candidates), now))
            return candidates[-1]

    seen: list[tuple[str, float]] = []
    here = Pool("smollm2", pool(True, False, True).workers, Last())
    with here.lease(call(), [], 7.5) as lease:
        assert lease.worker.url == "http://c"
        assert repr(here) == "<Pool smollm2 [3 workers | 1 in flight]>"
    assert seen == [("ac", 7.5)]
    assert repr(here) == "<Pool smollm2 [3 workers | 0 in flight]>"


@pytest.mark.parametrize("healths", [(), (False,), (False, False)])
def test_without_a_candidate_there_is_no_lease(healths):
    with pytest.raises(WorkerUnavailable, match="No worker of smollm2") as caught:
        pool(*healths).lease(call(), [], 0.0)
    assert caught.value.retry_after_s == 2


@pytest.mark.parametrize(("healths", "is_ready"), [((), False), ((None,), False), ((False,), False), ((False, True), True)])
def test_a_pool_is_ready_when_one_worker_was_seen_well(healths, is_ready):
    assert pool(*healths).is_ready is is_ready


def test_models_are_merged_and_the_first_to_name_one_describes_it():
    here = pool(True, True)
    here.workers[0].judge(is_healthy=True, models=(ModelInfo("base", max_model_len=1), ModelInfo("one")))
    here.workers[1].judge(is_healthy=True, models=(ModelInfo("base", max_model_len=2), ModelInfo("two", parent="base")))
    assert here.models() == {
        "base": ModelInfo("base", max_model_len=1),
        "one": ModelInfo("one"),
        "two": ModelInfo("two", parent="base"),
    }


# Ejection


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def timed(num: int) -> tuple[Pool, Clock]:
    clock = Clock()
    workers = [Worker(url, Connections(url), ejection=Ejection(lambda: 0.5)) for url in URLS[:num]]
    return Pool("smollm2", workers, InOrder(), clock), clock


def eject(worker: Worker, now: float = 0.0) -> None:
    for _ in range(FAILURES):
        worker.failed(now)


def test_an_ejected_worker_is_no_candidate_until_its_time_is_over_and_then_for_one_call():
    here, clock = timed(2)
    eject(here.workers[0])
    assert names(here.candidates(call(), [])) == "b"
    clock.now = FIRST_S
    assert names(here.candidates(call(), [])) == "ab"
    with here.lease(call(), [], clock.now) as lease:
        assert lease.worker is here.workers[0]
        assert names(here.candidates(call(), [])) == "b"
    assert names(here.candidates(call(), [])) == "ab"
    with here.lease(call(), [], clock.now) as lease:
        lease.worker.succeeded(clock.now)
        assert names(here.candidates(call(), [])) == "ab"


def test_an_ejected_worker_is_better_than_none():
    here, _ = timed(3)
    eject(here.workers[0])
    assert names(here.candidates(call(), here.workers[1:2])) == "c"
    assert names(here.candidates(call(), here.workers[1:])) == "a"


def test_after_a_failure_those_are_asked_whose_last_call_did_not_fail():
    here, _ = timed(3)
    here.workers[1].failed(0.0)
    assert names(here.candidates(call(), [])) == "abc"
    assert names(here.candidates(call(), here.workers[:1])) == "c"
    assert names(here.candidates(call(), [here.workers[0], here.workers[2]])) == "b"
    here.workers[1].succeeded(0.0)
    assert names(here.candidates(call(), here.workers[:1])) == "bc"


def test_where_all_are_ejected_all_are_used_and_it_is_said_once(caplog):
    here, clock = timed(2)
    for worker in here.workers:
        eject(worker)
        here.candidates(call(), [])
        here.candidates(call(), [])
    assert names(here.candidates(call(), [])) == "ab" and here.uses_ejected
    assert [record.getMessage() for record in caplog.records] == [
        "route smollm2: calls failed on all 2 workers that are up; all are used"
    ]
    with here.lease(call(), [], clock.now) as lease:
        lease.worker.succeeded(clock.now)
    assert names(here.candidates(call(), [])) == "a" and not here.uses_ejected


@pytest.mark.parametrize(
    "mark", [lambda one: one.mark_draining("discovery", True), lambda one: one.mark_asleep("metrics", True)]
)
def test_who_drains_or_sleeps_gets_nothing_new(mark):
    here, _ = timed(2)
    assert names(here.candidates(call(), [])) == "ab"
    mark(here.workers[0])
    assert names(here.candidates(call(), [])) == "b"
    mark(here.workers[1])
    assert names(here.candidates(call(), [])) == ""


def test_a_pinned_call_goes_to_a_worker_that_drains():
    here, _ = timed(1)
    here.workers[0].mark_draining("discovery", True)
    assert names(here.candidates(call("http://a"), [])) == "a"


# Workers that come and go


def test_workers_that_are_gone_keep_their_calls_and_are_forgotten():
    forgotten: list[str] = []

    class Remembering(InOrder):
        def forget(self, worker: Worker) -> None:
            forgotten.append(worker.url)

    old, new = pool(True, True).workers, Worker("http://d", Connections("http://d"))
    here = Pool("smollm2", old, Remembering())
    with here.lease(call(), [], 0.0) as lease:
        here.adopt([old[1], new])
        assert names(here.workers) == "bd" and names(here.candidates(call(), [])) == "bd"
        assert forgotten == ["http://a"]
        assert lease.worker is old[0] and old[0].in_flight == 1
        old[0].judge(is_healthy=False)  # says nothing to the pool
    assert old[0].in_flight == 0
    here.forget(new)
    assert forgotten == ["http://a", "http://d"]


def test_those_who_wait_are_told_of_changes():
    here, told = pool(True, None), []
    here.watch(lambda: told.append(names(here.candidates(call(), []))))
    here.workers[1].judge(is_healthy=False)
    here.workers[1].judge(is_healthy=True)
    here.adopt(here.workers[:1])
    assert told == ["a", "ab", "a"]


def test_who_may_be_picked_is_not_found_anew_for_each_call():
    here = pool(True, False, True)
    first = here.candidates(call(), [])
    assert here.candidates(call(), []) is first
    here.workers[1].judge(is_healthy=True)
    assert names(here.candidates(call(), [])) == "abc"
