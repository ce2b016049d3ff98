"""Limits of one gateway, in its own memory: lost at a restart, unknown to other replicas."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta

from sluice.limits.base import Answer, Ask, Kind, State, Subject

DAY_S = 86_400
CONCURRENCY_WAIT_S = 1.0  # nobody knows when a call will end
MAX_IDLE_BOOKS = 10_000  # of persons, say; beyond it those that have nothing to remember are forgotten


class Book:
    """What one subject has left and has used."""

    __slots__ = (
        "calls",
        "day",
        "day_gpu_ms",
        "day_tokens",
        "filled_at",
        "month",
        "month_gpu_ms",
        "month_tokens",
        "requests",
        "subject",
        "tokens",
    )

    def __init__(self, subject: Subject, now: float) -> None:
        self.subject = subject
        self.requests = float(subject.rpm)
        self.tokens = float(subject.tpm)
        self.filled_at = now
        self.calls = 0  # in progress
        self.day = self.day_tokens = self.day_gpu_ms = 0
        self.month = self.month_tokens = self.month_gpu_ms = 0

    def fill(self, subject: Subject, now: float) -> None:
        minutes = (now - self.filled_at) / 60
        self.filled_at = now
        self.subject = subject  # its limits may have changed
        if rpm := subject.rpm:
            requests = self.requests + minutes * rpm
            self.requests = requests if requests < rpm else rpm
        if tpm := subject.tpm:
            tokens = self.tokens + minutes * tpm
            self.tokens = tokens if tokens < tpm else tpm

    def has_room(self, tokens: int) -> bool:
        """Whether nothing stands in the way of so many tokens, at first sight: budgets have to be looked at more closely."""
        subject = self.subject
        if (self.requests < 1 and subject.rpm) or (self.tokens < tokens and subject.tpm) or subject.has_budgets:
            return False
        return not subject.concurrency or self.calls < subject.concurrency

    def take(self, tokens: int, gpu_ms: int) -> State:
        self.requests -= 1
        self.tokens -= tokens
        self.calls += 1
        if self.subject.has_budgets:
            self.spend(tokens, gpu_ms)
        return self.state()

    def spend(self, tokens: int, gpu_ms: int) -> None:
        """Of the budgets."""
        self.day_tokens = max(0, self.day_tokens + tokens)
        self.month_tokens = max(0, self.month_tokens + tokens)
        if gpu_ms:
            self.day_gpu_ms = max(0, self.day_gpu_ms + gpu_ms)
            self.month_gpu_ms = max(0, self.month_gpu_ms + gpu_ms)

    def turn(self, day: int, month: int) -> None:
        """Begin new pages where the calendar has moved on."""
        if day != self.day:
            self.day, self.day_tokens, self.day_gpu_ms = day, 0, 0
        if month != self.month:
            self.month, self.month_tokens, self.month_gpu_ms = month, 0, 0

    def state(self) -> State:
        rpm, tpm, requests, tokens = self.subject.rpm, self.subject.tpm, self.requests, self.tokens
        return State(
            (int(requests) if requests > 0 else 0) if rpm else -1,
            (int(tokens) if tokens > 0 else 0) if tpm else -1,
            (rpm - requests) * 60 / rpm if rpm else 0.0,
            (tpm - tokens) * 60 / tpm if tpm else 0.0,
        )

    def is_forgettable(self, now: float) -> bool:
        self.fill(self.subject, now)
        is_full = self.requests >= self.subject.rpm and self.tokens >= self.subject.tpm
        return is_full and not (self.calls or self.month_tokens or self.month_gpu_ms)


class MemoryStore:
    """The mutable state is the books, and the asks that are reserved; nothing here awaits, so nothing is locked."""

    def __init__(self, clock: Callable[[], float], wall_clock: Callable[[], float]) -> None:
        self.is_away = False
        self.num_replicas = 1
        self.num_lost = 0
        self._clock = clock
        self._wall_clock = wall_clock
        self._books: dict[str, Book] = {}
        self._open: dict[str, int] = {}  # the day of each reservation, by its id
        self._sweep_at = MAX_IDLE_BOOKS
        self._day = -1
        self._month = 0

    def __repr__(self) -> str:
        return f"<MemoryStore [{len(self._books)} books, {len(self._open)} open]>"

    async def reserve(self, ask: Ask) -> Answer:
        now, tokens, known = self._clock(), ask.tokens, self._books
        books: list[Book] = []
        has_room = True
        for subject in ask.subjects:
            book = known.get(subject.id)
            if book is None:
                book = self._new_book(subject, now)
            else:
                book.fill(subject, now)
            has_room = book.has_room(tokens) and has_room
            books.append(book)
        if ask.id in self._open:
            return Answer([book.state() for book in books])
        if not has_room and (refused := self._refusal(ask, books)) is not None:
            return refused
        self._open[ask.id] = self._day
        return Answer([book.take(tokens, ask.gpu_ms) for book in books])

    def settle(self, ask: Ask, tokens: int, gpu_ms: int = 0) -> None:
        self._close(ask, tokens, gpu_ms, 0)

    def abandon(self, ask: Ask) -> None:
        self._close(ask, ask.tokens, ask.gpu_ms, 0)

    def withdraw(self, ask: Ask) -> None:
        self._close(ask, 0, 0, 1)

    async def run(self) -> None:
        return

    async def flush(self) -> None:
        return

    def _close(self, ask: Ask, tokens: int, gpu_ms: int, num_requests: int) -> None:
        day = self._open.pop(ask.id, None)
        if day is None:
            return
        more_tokens, more_gpu_ms = tokens - ask.tokens, gpu_ms - ask.gpu_ms
        for subject in ask.subjects:
            book = self._books[subject.id]  # while a call is in progress it is not forgotten
            book.calls -= 1
            book.requests += num_requests  # what would be too much is cut off when it is filled
            book.tokens -= more_tokens
            if subject.has_budgets:
                self._look_at_calendar()
                book.turn(self._day, self._month)
                if day != self._day:  # what was reserved stands on yesterday's page
                    more_tokens, more_gpu_ms = max(0, more_tokens), max(0, more_gpu_ms)
                book.spend(more_tokens, more_gpu_ms)

    def _new_book(self, subject: Subject, now: float) -> Book:
        if len(self._books) >= self._sweep_at:
            self._sweep(now)
        book = self._books[subject.id] = Book(subject, now)
        return book

    def _refusal(self, ask: Ask, books: Sequence[Book]) -> Answer | None:
        """By the subject that has to wait for the longest time; None where none has to."""
        kind: Kind | None = None
        by, wait_s = 0, 0.0
        self._look_at_calendar()
        for place, book in enumerate(books):
            book.turn(self._day, self._month)
            obstacle, seconds = self._obstacle(book.subject, book, ask)
            if obstacle is not None and (kind is None or seconds > wait_s):
                kind, by, wait_s = obstacle, place, seconds
        return None if kind is None else Answer([book.state() for book in books], kind, by, wait_s)

    def _obstacle(self, subject: Subject, book: Book, ask: Ask) -> tuple[Kind | None, float]:
        """The limit that stands in the way for the longest time, and for how long."""
        kind: Kind | None = None
        wait_s = 0.0
        if book.requests < 1 and subject.rpm:
            kind, wait_s = Kind.REQUESTS, (1 - book.requests) * 60 / subject.rpm
        if book.tokens < ask.tokens and subject.tpm and (lacking := min(ask.tokens, subject.tpm) - book.tokens) > 0:
            if (seconds := lacking * 60 / subject.tpm) > wait_s:
                kind, wait_s = Kind.TOKENS, seconds
        if book.calls >= subject.concurrency and subject.concurrency and wait_s < CONCURRENCY_WAIT_S:
            kind, wait_s = Kind.CONCURRENCY, CONCURRENCY_WAIT_S
        if not subject.has_budgets:
            return kind, wait_s
        for budget, limit, used, asked in (
            (Kind.TOKENS_DAY, subject.tokens_per_day, book.day_tokens, ask.tokens),
            (Kind.GPU_DAY, subject.gpu_ms_per_day, book.day_gpu_ms, ask.gpu_ms),
            (Kind.TOKENS_MONTH, subject.tokens_per_month, book.month_tokens, ask.tokens),
            (Kind.GPU_MONTH, subject.gpu_ms_per_month, book.month_gpu_ms, ask.gpu_ms),
        ):
            if limit and used + min(max(1, asked), limit) > limit and (seconds := self._until_next(budget)) > wait_s:
                kind, wait_s = budget, seconds
        return kind, wait_s

    def _look_at_calendar(self) -> None:
        day = int(self._wall_clock() // DAY_S)
        if day != self._day:
            date = datetime.fromtimestamp(day * DAY_S, UTC)
            self._day, self._month = day, date.year * 12 + date.month - 1

    def _until_next(self, budget: Kind) -> float:
        now = self._wall_clock()
        if budget in (Kind.TOKENS_DAY, Kind.GPU_DAY):
            return (self._day + 1) * DAY_S - now
        first = datetime.fromtimestamp(self._day * DAY_S, UTC).replace(day=1)
        return (first + timedelta(days=32)).replace(day=1).timestamp() - now

    def _sweep(self, now: float) -> None:
        gone = [id for id, book in self._books.items() if book.is_forgettable(now)]
        for id in gone:
            del self._books[id]
        self._sweep_at = max(MAX_IDLE_BOOKS, 2 * len(self._books))
