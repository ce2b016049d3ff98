"""What a store of limits is, and the nouns that it is asked in. Those made for each call are plain objects: they cost least."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

from sluice.asgi import Header
from sluice.config import Fail, Limits


class Kind(StrEnum):
    """What of a subject's limits a call ran into. The values are the names in the configuration."""

    REQUESTS = "rpm"
    TOKENS = "tpm"
    CONCURRENCY = "concurrency"
    TOKENS_DAY = "tokens_per_day"
    TOKENS_MONTH = "tokens_per_month"
    GPU_DAY = "gpu_seconds_per_day"
    GPU_MONTH = "gpu_seconds_per_month"

    @property
    def is_budget(self) -> bool:
        return self not in (Kind.REQUESTS, Kind.TOKENS, Kind.CONCURRENCY)


@dataclass(frozen=True, slots=True)
class Subject:
    """Somebody whom limits hold for, and these limits as whole numbers; 0 for what is not limited.

    Requests and tokens are buckets as large as their limit that fill up within a minute; an overshoot makes them negative, and
    so delays the next calls. A call that is larger than the bucket goes when it is full. Budgets are of the calendar's days
    and months, UTC.
    """

    id: str  # in the store
    name: str  # in messages
    fail: Fail
    rpm: int = 0
    tpm: int = 0
    concurrency: int = 0
    tokens_per_day: int = 0
    tokens_per_month: int = 0
    gpu_ms_per_day: int = 0
    gpu_ms_per_month: int = 0
    # Known beforehand, for those who need it often
    has_budgets: bool = field(init=False)
    written: str = field(init=False)  # for a store that is not in this process
    rpm_header: Header = field(init=False)
    tpm_header: Header = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "has_budgets", any(self.numbers[3:]))
        object.__setattr__(self, "written", " ".join(map(str, (*self.numbers, int(self.fail == "closed")))))
        object.__setattr__(self, "rpm_header", (b"x-ratelimit-limit-requests", b"%d" % self.rpm))
        object.__setattr__(self, "tpm_header", (b"x-ratelimit-limit-tokens", b"%d" % self.tpm))

    @classmethod
    def of(cls, id: str, name: str, limits: Limits, fail: Fail) -> Subject:
        return cls(
            id,
            name,
            limits.fail or fail,
            limits.rpm or 0,
            limits.tpm or 0,
            limits.concurrency or 0,
            limits.tokens_per_day or 0,
            limits.tokens_per_month or 0,
            round((limits.gpu_seconds_per_day or 0) * 1000),
            round((limits.gpu_seconds_per_month or 0) * 1000),
        )

    @property
    def numbers(self) -> tuple[int, int, int, int, int, int, int]:
        return (
            self.rpm,
            self.tpm,
            self.concurrency,
            self.tokens_per_day,
            self.tokens_per_month,
            self.gpu_ms_per_day,
            self.gpu_ms_per_month,
        )

    def limit(self, kind: Kind) -> int:
        return self.numbers[list(Kind).index(kind)]

    def part_of(self, num_replicas: int) -> Subject:
        """One gateway's part of what all of them may give out; at least one of what is limited at all."""
        parts = [max(1, limit // num_replicas) if limit else 0 for limit in self.numbers]
        return Subject(self.id, self.name, self.fail, *parts)

    @property
    def is_limited(self) -> bool:
        return any(self.numbers)


class Ask:
    """A reservation as it is asked for: its id, whom it counts for, and how much by estimate. It is not to be changed."""

    __slots__ = ("gpu_ms", "id", "subjects", "tokens")

    def __init__(self, id: str, subjects: tuple[Subject, ...], tokens: int, gpu_ms: int = 0) -> None:
        self.id = id
        self.subjects = subjects
        self.tokens = tokens
        self.gpu_ms = gpu_ms

    def __repr__(self) -> str:
        return f"<Ask {self.id} [{self.tokens} tokens | {len(self.subjects)} subjects]>"


class State:
    """How much a subject has left after a reservation, and how long until all of it is back; -1 for what is not limited."""

    __slots__ = ("requests", "requests_full_s", "tokens", "tokens_full_s")

    def __init__(self, requests: int, tokens: int, requests_full_s: float, tokens_full_s: float) -> None:
        self.requests = requests
        self.tokens = tokens
        self.requests_full_s = requests_full_s
        self.tokens_full_s = tokens_full_s

    def __repr__(self) -> str:
        return f"<State [{self.requests} requests | {self.tokens} tokens]>"


class Answer:
    """Granted where `kind` is None; else the subject that refused, by its place in the ask, and when there is room."""

    __slots__ = ("by", "kind", "states", "wait_s")

    def __init__(self, states: Sequence[State], kind: Kind | None = None, by: int = 0, wait_s: float = 0.0) -> None:
        self.states = states
        self.kind = kind
        self.by = by
        self.wait_s = wait_s

    def __repr__(self) -> str:
        return f"<Answer [{self.kind or 'granted'}]>"


class StoreAway(Exception):
    """The store cannot be asked now. Whether the reservation was made is not known."""


class LimitStore(Protocol):
    """Counts what subjects use. Contract tests: tests/support/limit_store_contract.py.

    All subjects of an ask are reserved or none; the same ask again, by its id, is granted without a second debit. Afterwards
    it is settled or abandoned, once: what comes second does nothing.
    """

    is_away: bool
    num_replicas: int  # gateways that count there, as far as is known
    num_lost: int  # settlements that never arrived

    async def reserve(self, ask: Ask) -> Answer:
        """Take one request, a place and the estimated tokens from all subjects. Raises `StoreAway`."""

    def settle(self, ask: Ask, tokens: int, gpu_ms: int = 0) -> None:
        """Put the real usage in the estimate's place. Returns at once. An ask that the store does not know of (it was away, or
        has lost its memory) is charged in full."""

    def abandon(self, ask: Ask) -> None:
        """Nobody knows what was used: the debit stays, the place is given back. Returns at once."""

    def withdraw(self, ask: Ask) -> None:
        """What was asked for never began: everything is given back, also where nobody knows whether it was reserved."""

    async def run(self) -> None:
        """What the store does in the background, until cancelled; then what was settled has arrived, if that can be."""

    async def flush(self) -> None:
        """Wait until what was settled, abandoned and withdrawn has arrived; while the store is away, that is never."""
