"""A call's way through the limits: what it asks of the store, what its client is told, and what it is charged in the end."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol, Self

from sluice.asgi import Headers
from sluice.config import Fail
from sluice.errors import BudgetSpent, GatewayError, LimitsAway, RateLimited
from sluice.limits.base import Answer, Ask, Kind, LimitStore, State, StoreAway, Subject
from sluice.limits.memory import MemoryStore
from sluice.limits.rules import Rules
from sluice.types import Call

HELD = {
    Kind.REQUESTS: "requests per minute",
    Kind.TOKENS: "tokens per minute",
    Kind.CONCURRENCY: "calls at the same time",
    Kind.TOKENS_DAY: "tokens a day",
    Kind.TOKENS_MONTH: "tokens a month",
    Kind.GPU_DAY: "GPU milliseconds a day",
    Kind.GPU_MONTH: "GPU milliseconds a month",
}


# Durations are told with every answer
UP_TO_1_S = tuple([b"%dms" % ms for ms in range(1000)])
FRACTIONS = tuple([f"{ms / 1000:.3f}"[1:].rstrip("0").rstrip(".").encode() + b"s" for ms in range(1000)])


class Reservation(Protocol):
    """What a call holds of its limits, by `async with` or until `close`, which settles it once.

    Entering raises `RateLimited`, `BudgetSpent` or `LimitsAway`. Inside, `spend` says what the call has really used; where
    nobody calls it, nothing was computed, and only the request counts.
    """

    @property
    def headers(self) -> Headers:
        """For the answer."""

    async def __aenter__(self) -> Self: ...
    async def __aexit__(self, *exc: object) -> None: ...
    def close(self) -> None: ...
    def spend(self, tokens: int, gpu_ms: int = 0) -> None: ...


class Unlimited:
    """The reservation of a call that nothing limits."""

    def __init__(self) -> None:
        self.headers: Headers = []

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        return

    def close(self) -> None:
        return

    def spend(self, tokens: int, gpu_ms: int = 0) -> None:
        return


class Limiter:
    """All limits of the gateway."""

    def __init__(self, rules: Rules, store: LimitStore, fallback: MemoryStore) -> None:
        """`fallback` counts what is counted here while the store is away."""
        self._rules = rules
        self._unlimited = Unlimited()
        self.store = store
        self.fallback = fallback
        # What the metrics show
        self.num_refused: dict[Kind, int] = dict.fromkeys(Kind, 0)
        self.num_without_store: dict[Fail, int] = {"open": 0, "closed": 0, "local": 0}

    def reservation(self, call: Call) -> Reservation:
        subjects = self._rules.subjects(call)
        if not subjects:
            return self._unlimited
        return Limited(self, Ask(call.id, subjects, call.prompt_tokens + call.output_tokens))


class Limited:
    """The reservation of a call with limits.

    While the store is away each limit does as its `fail` says: `closed` refuses; `local` is counted here, with this gateway's
    part of what is allowed; `open` lets pass. What has passed is charged when the store is back.
    """

    __slots__ = ("_ask", "_gpu_ms", "_limiter", "_local", "_tokens", "headers")

    def __init__(self, limiter: Limiter, ask: Ask) -> None:
        self._limiter = limiter
        self._ask = ask
        self._local: Ask | None = None
        self._tokens = self._gpu_ms = 0
        self.headers: Headers = []

    async def __aenter__(self) -> Self:
        limiter, ask = self._limiter, self._ask
        try:
            answer = await limiter.store.reserve(ask)
        except StoreAway:
            await self._enter_without_store()
            return self
        except BaseException:
            limiter.store.withdraw(ask)
            raise
        self.headers = shown(ask.subjects, answer.states)
        if answer.kind is not None:
            limiter.num_refused[answer.kind] += 1
            raise refusal(ask, answer, self.headers)
        return self

    async def __aexit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        self._limiter.store.settle(self._ask, self._tokens, self._gpu_ms)
        if self._local is not None:
            self._limiter.fallback.settle(self._local, self._tokens, self._gpu_ms)

    def spend(self, tokens: int, gpu_ms: int = 0) -> None:
        self._tokens, self._gpu_ms = tokens, gpu_ms

    async def _enter_without_store(self) -> None:
        limiter, ask = self._limiter, self._ask
        modes = {subject.fail for subject in ask.subjects}
        for mode in modes:
            limiter.num_without_store[mode] += 1
        self.headers = [(b"x-sluice-limits", ", ".join(sorted(modes)).encode())]
        try:
            if "closed" in modes:
                raise LimitsAway("The limits of this key cannot be checked now; try again in a moment.", headers=self.headers)
            if "local" in modes:
                await self._enter_locally(limiter.store.num_replicas)
        except GatewayError:
            limiter.store.withdraw(ask)
            raise

    async def _enter_locally(self, num_replicas: int) -> None:
        limiter = self._limiter
        subjects = tuple([subject.part_of(num_replicas) for subject in self._ask.subjects if subject.fail == "local"])
        local = Ask(self._ask.id, subjects, self._ask.tokens, self._ask.gpu_ms)
        answer = await limiter.fallback.reserve(local)
        self.headers += shown(subjects, answer.states)
        if answer.kind is not None:
            limiter.num_refused[answer.kind] += 1
            raise refusal(local, answer, self.headers)
        self._local = local


def refusal(ask: Ask, answer: Answer, headers: Headers) -> GatewayError:
    """What the client is told: who may use how much of what, and when there will be room."""
    assert answer.kind is not None
    subject = ask.subjects[answer.by]
    allowed = f"{subject.limit(answer.kind)} {HELD[answer.kind]}"
    again = duration(answer.wait_s).decode()
    if answer.kind.is_budget:
        return BudgetSpent(
            f"The budget of {subject.name} is used up: {allowed}. It is renewed in {again}.",
            headers=headers,
        )
    return RateLimited(
        f"Rate limit reached for {subject.name}: {allowed}. Try again in {again}.",
        retry_after_s=answer.wait_s,
        headers=headers,
    )


def shown(subjects: Sequence[Subject], states: Sequence[State]) -> Headers:
    """OpenAI's headers, of the subjects that have the fewest requests and the fewest tokens left."""
    fewest_requests = fewest_tokens = -1
    requests_of = tokens_of = 0
    for place, state in enumerate(states):
        requests, tokens = state.requests, state.tokens
        if requests >= 0 and (fewest_requests < 0 or requests < fewest_requests):
            fewest_requests, requests_of = requests, place
        if tokens >= 0 and (fewest_tokens < 0 or tokens < fewest_tokens):
            fewest_tokens, tokens_of = tokens, place
    headers: Headers = []
    if fewest_requests >= 0:
        headers += (
            subjects[requests_of].rpm_header,
            (b"x-ratelimit-remaining-requests", b"%d" % fewest_requests),
            (b"x-ratelimit-reset-requests", duration(states[requests_of].requests_full_s)),
        )
    if fewest_tokens >= 0:
        headers += (
            subjects[tokens_of].tpm_header,
            (b"x-ratelimit-remaining-tokens", b"%d" % fewest_tokens),
            (b"x-ratelimit-reset-tokens", duration(states[tokens_of].tokens_full_s)),
        )
    return headers


def duration(seconds: float) -> bytes:
    """As Go and OpenAI write it: 12ms, 1s, 6m0s, 1h0m2.5s."""
    ms = math.ceil(seconds * 1000)
    if ms < 1000:
        return UP_TO_1_S[ms] if ms > 0 else UP_TO_1_S[0]
    whole, ms = divmod(ms, 1000)
    if whole < 60:
        return b"%d%b" % (whole, FRACTIONS[ms])
    minutes, whole = divmod(whole, 60)
    if minutes < 60:
        return b"%dm%d%b" % (minutes, whole, FRACTIONS[ms])
    return b"%dh%dm%d%b" % (minutes // 60, minutes % 60, whole, FRACTIONS[ms])
