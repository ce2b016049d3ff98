"""What gateways tell each other of a route's workers, and what they make of it."""

import pytest

from sluice.placements import MAX_BLOCKS_HEARD, MAX_SENT, SILENT_S, Notes, Placements, Sent, State
from sluice.upstream.connections import Connections
from sluice.worker import Worker

URLS = ["http://a", "http://b", "http://c"]


class Hearing:
    """A policy that keeps what it is told."""

    def __init__(self) -> None:
        self.heard_of: list[tuple[str, int, tuple[int, ...], float]] = []

    def heard(self, worker, tokens, hashes, now):
        self.heard_of.append((worker.url, tokens, hashes, now))


class Side:
    """One gateway, as far as it places calls of one route."""

    def __init__(self, *urls: str) -> None:
        self.workers = [Worker(url, Connections(url)) for url in urls or URLS]
        self.policy = Hearing()
        self.placements = Placements("smollm2", self.policy, lambda: self.workers)

    def send(self, place: int, now: float, tokens: int = 1000, hashes: tuple[int, ...] = (1, 2)):
        """A call goes to a worker, and holds its slot from now on."""
        worker = self.workers[place]
        self.placements.placed(worker, now, tokens, hashes)
        lease = worker.lease(tokens, lambda: now, shows_first_event=True)
        lease.__enter__()
        return lease

    def tells(self, other: "Side", now: float, *, is_whole: bool = False, name: str = "one") -> Notes | None:
        notes = self.placements.notes(now, is_whole=is_whole)
        if notes is not None:
            other.placements.hear(name, notes, now)
        return notes


def test_a_prompt_that_one_has_sent_the_other_knows_of():
    one, other = Side(), Side()
    one.send(1, 10.0, 5000, (7, 8, 9))
    one.tells(other, 10.5)
    assert other.policy.heard_of == [("http://b", 5000, (7, 8, 9), 10.5)]
    assert [worker.in_flight_elsewhere for worker in other.workers] == [0, 1, 0]
    assert other.workers[1].backlog.ends_at == pytest.approx(10.0 + 5000 * other.workers[1].backlog.s_per_token)
    assert one.policy.heard_of == [] and one.workers[1].in_flight_elsewhere == 0


def test_a_first_event_that_one_saw_the_other_knows_of():
    one, other = Side(), Side()
    lease = one.send(1, 10.0, 5000)
    one.tells(other, 10.1)
    one.workers[1].backlog.began(lease._mark, 10.4)
    one.tells(other, 10.5)
    assert other.workers[1].backlog.ends_at == pytest.approx(10.4)
    assert other.workers[1].backlog.s_per_token == pytest.approx(one.workers[1].backlog.s_per_token)


def test_only_what_is_new_is_told_and_now_and_then_all():
    one, other = Side(), Side()
    lease = one.send(1, 10.0)
    assert [state.url for state in one.tells(other, 10.1).states] == ["http://b"]
    assert one.tells(other, 10.2) is None
    whole = one.tells(other, 10.3, is_whole=True)
    assert (whole.states, whole.sent) == ((State("http://b", 1, None),), ())
    lease.__exit__(None, None, None)
    assert one.tells(other, 10.4).states == (State("http://b", 0, None),)
    assert one.tells(other, 10.5, is_whole=True).states == ()
    assert other.workers[1].in_flight_elsewhere == 0


def test_a_whole_account_makes_up_for_what_was_lost():
    one, other = Side(), Side()
    lease = one.send(0, 10.0)
    one.send(1, 10.0)
    one.tells(other, 10.1)
    lease.__exit__(None, None, None)
    one.placements.notes(10.2, is_whole=False)  # nobody hears it
    assert [worker.in_flight_elsewhere for worker in other.workers] == [1, 1, 0]
    one.tells(other, 10.3, is_whole=True)
    assert [worker.in_flight_elsewhere for worker in other.workers] == [0, 1, 0]


def test_calls_of_several_others_add_up_and_those_of_one_that_is_silent_are_gone():
    one, two, other = Side(), Side(), Side()
    one.send(0, 10.0)
    two.send(0, 10.0)
    one.tells(other, 10.1, name="one")
    two.tells(other, 10.1 + SILENT_S, name="two")
    assert other.workers[0].in_flight_elsewhere == 2 and other.placements.num_others == 2
    other.placements.pass_time(10.2 + SILENT_S)
    assert other.workers[0].in_flight_elsewhere == 1 and other.placements.num_others == 1


def test_workers_that_one_does_not_know_and_places_that_are_none_are_passed_over():
    one, other = Side("http://a", "http://elsewhere"), Side()
    one.send(1, 10.0)
    one.send(0, 10.0)
    one.tells(other, 10.1)
    assert [url for url, *_ in other.policy.heard_of] == ["http://a"]
    assert [worker.in_flight_elsewhere for worker in other.workers] == [1, 0, 0]
    odd = (Sent(7, 0.0, 10, (1,)), Sent(-1, 0.0, 10, (1,)))
    other.placements.hear("one", Notes("smollm2", False, (State("http://a", 1, None),), odd), 10.2)
    assert len(other.policy.heard_of) == 1


def test_what_a_worker_was_sent_that_has_left_is_not_told():
    one, other = Side(), Side()
    one.send(1, 10.0)
    del one.workers[1]
    assert one.tells(other, 10.1) is None


def test_of_too_many_prompts_the_latest_are_told():
    one, other = Side(), Side()
    for k in range(MAX_SENT + 10):
        one.placements.placed(one.workers[0], 10.0, k, ())
    one.tells(other, 10.1)
    assert [tokens for _, tokens, *_ in other.policy.heard_of] == list(range(10, MAX_SENT + 10))
    assert repr(one.placements) == "<Placements of smollm2 [0 to tell | 0 others]>"


def test_of_prompts_that_would_take_too_long_to_read_only_the_load_is_heard():
    one, other = Side(), Side()
    for _ in range(20):
        one.placements.placed(one.workers[0], 10.0, 1000, tuple(range(256)))
    one.tells(other, 10.1)
    read = [len(hashes) for _, _, hashes, _ in other.policy.heard_of]
    assert sum(read) == MAX_BLOCKS_HEARD and read == sorted(read, reverse=True) and len(read) == 20
    assert other.workers[0].backlog.ends_at == pytest.approx(10.0 + 20_000 * other.workers[0].backlog.s_per_token)
