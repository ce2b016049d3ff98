"""What gateways tell each other of the workers of one route: which prompts went where, which have begun, how many calls run.

With that a gateway knows nearly as much of a worker as if it had sent all calls itself: what its cache holds, and how long it
will be busy. Who hears nothing goes by its own calls and by what engines show. Ages are told and not times, since clocks
differ. What is lost is made up for by the next whole account of the calls, and by the engines' own word.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Annotated, NamedTuple, Protocol

from msgspec import Meta, Struct

from sluice.prefix import MAX_BLOCKS
from sluice.worker import Worker

MAX_SENT = 256  # of one round; of more the oldest are not told
MAX_BLOCKS_HEARD = 4096  # of one round: about two milliseconds; prompts beyond it count for waits alone
MAX_WORKERS = 4096
MAX_AGE_S = 600.0
SILENT_S = 3.5  # after which a gateway that told nothing is gone, and its calls with it

Age = Annotated[float, Meta(ge=0, le=MAX_AGE_S)]
Tokens = Annotated[int, Meta(ge=0, le=100_000_000)]
Hash = Annotated[int, Meta(ge=0, lt=1 << 32)]


class Sent(Struct, array_like=True, frozen=True):
    """A prompt went to a worker."""

    place: int  # of the worker in the notes
    age_s: Age
    tokens: Tokens  # that are to be computed there
    hashes: Annotated[tuple[Hash, ...], Meta(max_length=MAX_BLOCKS)]


class State(Struct, array_like=True, frozen=True):
    """A worker as one gateway sees it."""

    url: str
    in_flight: Annotated[int, Meta(ge=0, le=1_000_000)]
    begun: tuple[Age, Age] | None  # how long ago the latest prompt of which it saw the first event was sent, and the event seen


class Notes(Struct, array_like=True, frozen=True):
    """All that one gateway has to tell of one route in one round."""

    route: str
    is_whole: bool  # whether all workers are named where it has calls
    states: Annotated[tuple[State, ...], Meta(max_length=MAX_WORKERS)]
    sent: Annotated[tuple[Sent, ...], Meta(max_length=MAX_SENT)]


class Hears(Protocol):
    """A routing policy, as far as it is told what others do."""

    def heard(self, worker: Worker, tokens: int, hashes: Sequence[int], now: float) -> None: ...


class Fact(NamedTuple):
    """A prompt that went to a worker, not told yet."""

    worker: Worker
    at: float
    tokens: int
    hashes: tuple[int, ...]


class Other:
    """Another gateway: when it was last heard, and how many calls it said it had at which worker."""

    __slots__ = ("heard_at", "in_flight")

    def __init__(self) -> None:
        self.heard_at = 0.0
        self.in_flight: dict[str, int] = {}


class Placements:
    """One route's. The mutable state is what was not told yet, what was told last, and what others said last."""

    def __init__(self, route: str, policy: Hears, workers: Callable[[], Sequence[Worker]]) -> None:
        self.route = route
        self._policy = policy
        self._workers = workers
        self._facts: deque[Fact] = deque(maxlen=MAX_SENT)
        self._told: dict[Worker, tuple[int, float]] = {}  # calls, and the mark of the latest first event
        self._others: dict[str, Other] = {}

    def __repr__(self) -> str:
        return f"<Placements of {self.route} [{len(self._facts)} to tell | {len(self._others)} others]>"

    @property
    def num_others(self) -> int:
        return len(self._others)

    def placed(self, worker: Worker, at: float, tokens: int, hashes: tuple[int, ...]) -> None:
        """A call of ours goes there."""
        self._facts.append(Fact(worker, at, tokens, hashes))

    def notes(self, now: float, *, is_whole: bool) -> Notes | None:
        """What there is to tell since the last time; all of it or what has changed, None where that is nothing."""
        facts, self._facts = self._facts, deque(maxlen=MAX_SENT)
        told, self._told = self._told, {}
        named = {fact.worker for fact in facts}
        states: list[State] = []
        places: dict[Worker, int] = {}
        for worker in self._workers():
            mark = worker.backlog.seen_mark
            before = told.get(worker, (0, 0.0))
            self._told[worker] = worker.in_flight, mark
            is_new = before != (worker.in_flight, mark)
            if is_new or worker in named or (is_whole and worker.in_flight):
                places[worker] = len(states)
                begun = (_age(mark, now), _age(worker.backlog.seen_at, now)) if mark > before[1] else None
                states.append(State(worker.url, worker.in_flight, begun))
        sent = [
            Sent(places[fact.worker], _age(fact.at, now), fact.tokens, fact.hashes) for fact in facts if fact.worker in places
        ]
        return Notes(self.route, is_whole, tuple(states), tuple(sent)) if states or is_whole else None

    def hear(self, gateway: str, notes: Notes, now: float) -> None:
        """What another gateway told at this time, a moment ago. Workers that are not known here are passed over."""
        known = {worker.url: worker for worker in self._workers()}
        workers = [known.get(state.url) for state in notes.states]
        num_blocks = 0
        for sent in notes.sent:
            worker = workers[sent.place] if 0 <= sent.place < len(workers) else None
            num_blocks += len(sent.hashes)
            if worker is not None:
                worker.backlog.sent_elsewhere(sent.tokens, now - sent.age_s)
                self._policy.heard(worker, sent.tokens, sent.hashes if num_blocks <= MAX_BLOCKS_HEARD else (), now)
        other = self._others.setdefault(gateway, Other())
        other.heard_at = now
        before = other.in_flight
        if notes.is_whole:
            other.in_flight = {}
        for state, worker in zip(notes.states, workers, strict=True):
            if worker is not None:
                other.in_flight[state.url] = state.in_flight
                if state.begun is not None:
                    worker.backlog.began_elsewhere(now - state.begun[0], now - state.begun[1])
        changed = before.keys() | other.in_flight.keys() if notes.is_whole else [state.url for state in notes.states]
        for url in changed:
            self._count(known.get(url))

    def pass_time(self, now: float) -> None:
        """Gateways that tell nothing any more are gone."""
        gone = [name for name, other in self._others.items() if now - other.heard_at > SILENT_S]
        for name in gone:
            del self._others[name]
        if gone:
            for worker in self._workers():
                self._count(worker)

    def _count(self, worker: Worker | None) -> None:
        if worker is not None:
            worker.in_flight_elsewhere = sum([other.in_flight.get(worker.url, 0) for other in self._others.values()])


def _age(at: float, now: float) -> float:
    return min(max(now - at, 0.0), MAX_AGE_S)
