"""One run of a trace in virtual time: somebody chooses an engine for each request, and hears what comes of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush
from typing import Protocol

from sluice.replay.engine import NEVER, Engine, EngineModel, Job
from sluice.replay.trace import Request

Arrivals = Sequence[tuple[float, Request]]


class Chooser(Protocol):
    """Whoever says which engine a request goes to. Everything is told in the order in which it happens."""

    def choose(self, job: Job, request: Request, now: float) -> int:
        """The number of an engine; the job is there at once."""

    def started(self, job: Job, now: float) -> None:
        """It has its first token."""

    def ended(self, job: Job, now: float) -> None: ...

    def changes(self, number: int, now: float) -> None:
        """Something is about to happen at this engine."""


@dataclass(slots=True)
class Run:
    """What came of one run."""

    ttft_s: list[float] = field(default_factory=list)  # times to first token, sorted
    prompt_tokens: int = 0
    cached_tokens: int = 0
    worker_tokens: list[int] = field(default_factory=list)  # computed prompt tokens of each engine

    @property
    def hit_rate(self) -> float:
        return self.cached_tokens / self.prompt_tokens

    @property
    def mean_s(self) -> float:
        return sum(self.ttft_s) / len(self.ttft_s)

    @property
    def imbalance(self) -> float:
        """What the busiest engine has computed, over the mean."""
        return max(self.worker_tokens) * len(self.worker_tokens) / max(sum(self.worker_tokens), 1)

    def quantile_s(self, share: float) -> float:
        return self.ttft_s[min(int(share * len(self.ttft_s)), len(self.ttft_s) - 1)]


def simulate(arrivals: Arrivals, engines: Sequence[Engine], chooser: Chooser) -> Run:
    """All requests, to the last token of the last answer."""
    run = Run()
    events: list[tuple[float, int]] = []  # when something happens at which engine; those that were moved are passed over

    def run_until(until: float) -> None:
        while events and events[0][0] <= until:
            now, number = heappop(events)
            engine = engines[number]
            if engine.next_s != now:
                continue
            chooser.changes(number, now)
            started, ended = engine.fire()
            if engine.next_s < NEVER:
                heappush(events, (engine.next_s, number))
            for job in started:
                run.ttft_s.append(now - job.arrived_s)
                run.cached_tokens += job.cached_tokens
                chooser.started(job, now)
            for job in ended:
                chooser.ended(job, now)

    for now, request in arrivals:
        run_until(now)
        job = Job(request.blocks, request.prompt_tokens, request.output_tokens)
        run.prompt_tokens += request.prompt_tokens
        number = chooser.choose(job, request, now)
        chooser.changes(number, now)
        engine = engines[number]
        engine.add(job, now)
        if engine.next_s < NEVER:
            heappush(events, (engine.next_s, number))
    run_until(NEVER)
    run.ttft_s.sort()
    run.worker_tokens = [engine.prefilled_tokens for engine in engines]
    return run


def new_engines(model: EngineModel, num_workers: int) -> list[Engine]:
    return [Engine(model) for _ in range(num_workers)]
