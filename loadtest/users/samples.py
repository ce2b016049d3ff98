"""What was measured of each call, kept second by second, and the figures of a whole run. Knows nothing of locust."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple


class Sample(NamedTuple):
    """One call that ended. Times are in seconds; `at_s` counts from the start of the run."""

    at_s: float
    kind: str  # the name of its user
    ttft_s: float | None = None  # to the first event with text, of a stream
    gap_s: float | None = None  # mean time between two events of text
    longest_gap_s: float | None = None
    duration_s: float = 0.0
    num_tokens: int = 0  # generated
    error: str | None = None  # why it failed
    was_refused: bool = False  # a 429: the gateway kept its promise to others
    has_left: bool = False  # the client hung up on purpose


@dataclass(frozen=True)
class Goal:
    """What a call must keep to count as goodput: the first event within `ttft_s`, a mean gap of at most `gap_s`."""

    ttft_s: float
    gap_s: float

    def is_met(self, sample: Sample) -> bool:
        if sample.error or sample.was_refused:
            return False
        return (sample.ttft_s or 0.0) <= self.ttft_s and (sample.gap_s or 0.0) <= self.gap_s


@dataclass
class Figures:
    """The figures of a set of calls, by the names that an SLO may use."""

    num_calls: int = 0
    num_failed: int = 0
    num_refused: int = 0
    error_ratio: float = 0.0
    refused_ratio: float = 0.0
    goodput: float = math.nan  # share of the calls that ended by themselves within the goal; refused ones are not in it
    tokens_per_s: float = 0.0
    ttft_p50_ms: float = math.nan
    ttft_p95_ms: float = math.nan
    ttft_p99_ms: float = math.nan
    gap_p50_ms: float = math.nan
    gap_p99_ms: float = math.nan
    longest_gap_p99_ms: float = math.nan
    duration_p95_ms: float = math.nan


@dataclass
class Samples:
    """All samples of a run, and how many users there were in each second."""

    goal: Goal
    started_at: float = 0.0  # on `time.perf_counter`
    samples: list[Sample] = field(default_factory=list)
    users: list[tuple[float, int]] = field(default_factory=list)

    def add(self, sample: Sample) -> None:
        self.samples.append(sample)

    def kinds(self) -> list[str]:
        return sorted({sample.kind for sample in self.samples})

    def figures(self, kind: str | None = None) -> Figures:
        chosen = [sample for sample in self.samples if kind is None or sample.kind == kind]
        return figures_of(chosen, self.goal)

    def by_second(self) -> dict[int, list[Sample]]:
        seconds: dict[int, list[Sample]] = defaultdict(list)
        for sample in self.samples:
            seconds[int(sample.at_s)].append(sample)
        return seconds


def figures_of(samples: Sequence[Sample], goal: Goal) -> Figures:
    """The figures of these calls; what no call has a figure for is NaN."""
    if not samples:
        return Figures()
    failed = sum(sample.error is not None for sample in samples)
    refused = sum(sample.was_refused for sample in samples)
    judged = [sample for sample in samples if not sample.was_refused and not sample.has_left]
    ends = [sample.at_s for sample in samples]
    begins = [sample.at_s - sample.duration_s for sample in samples]
    took_s = max(max(ends) - min(begins), 1e-9)
    ttft = [sample.ttft_s for sample in samples if sample.ttft_s is not None]
    gaps = [sample.gap_s for sample in samples if sample.gap_s is not None]
    longest = [sample.longest_gap_s for sample in samples if sample.longest_gap_s is not None]
    durations = [sample.duration_s for sample in judged if not sample.error]
    return Figures(
        num_calls=len(samples),
        num_failed=failed,
        num_refused=refused,
        error_ratio=failed / len(samples),
        refused_ratio=refused / len(samples),
        goodput=sum(map(goal.is_met, judged)) / len(judged) if judged else math.nan,
        tokens_per_s=sum(sample.num_tokens for sample in samples) / took_s,
        ttft_p50_ms=percentile(ttft, 0.50) * 1000,
        ttft_p95_ms=percentile(ttft, 0.95) * 1000,
        ttft_p99_ms=percentile(ttft, 0.99) * 1000,
        gap_p50_ms=percentile(gaps, 0.50) * 1000,
        gap_p99_ms=percentile(gaps, 0.99) * 1000,
        longest_gap_p99_ms=percentile(longest, 0.99) * 1000,
        duration_p95_ms=percentile(durations, 0.95) * 1000,
    )


def percentile(figures: Iterable[float], share: float) -> float:
    """The smallest figure that at least `share` of them do not exceed; NaN of none."""
    ranked = sorted(figures)
    return ranked[max(0, math.ceil(share * len(ranked)) - 1)] if ranked else math.nan
