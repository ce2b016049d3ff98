"""Figures of a run: what counts, what does not, and what nobody measured."""

import math

import pytest

from loadtest.users.samples import Figures, Goal, Sample, Samples, figures_of, percentile
from loadtest.users.slo import Slo, parse_slos

GOAL = Goal(ttft_s=1.0, gap_s=0.1)


def stream(at_s: float = 1.0, ttft_s: float = 0.5, gap_s: float | None = 0.05, **more: object) -> Sample:
    return Sample(at_s, "StreamUser", ttft_s=ttft_s, gap_s=gap_s, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "sample, is_met",
    [
        (stream(), True),
        (stream(ttft_s=1.0, gap_s=0.1), True),
        (stream(ttft_s=1.01), False),
        (stream(gap_s=0.11), False),
        (stream(gap_s=None), True),
        (stream(error="502"), False),
        (stream(was_refused=True), False),
        (Sample(1.0, "ChatUser", duration_s=30.0), True),
    ],
)
def test_goodput_is_what_keeps_its_goal(sample: Sample, is_met: bool):
    assert GOAL.is_met(sample) is is_met


def test_refused_calls_and_those_whose_client_left_are_not_judged_but_failed_ones_are():
    samples = [stream(), stream(ttft_s=2), stream(error="cut"), stream(was_refused=True), stream(has_left=True)]

    figures = figures_of(samples, GOAL)

    assert (figures.num_calls, figures.num_failed, figures.num_refused) == (5, 1, 1)
    assert (figures.error_ratio, figures.refused_ratio, figures.goodput) == (0.2, 0.2, 1 / 3)


def test_tokens_are_counted_over_the_time_from_the_first_begin_to_the_last_end():
    samples = [stream(at_s=2.0, duration_s=2.0, num_tokens=30), stream(at_s=10.0, duration_s=1.0, num_tokens=70)]

    assert figures_of(samples, GOAL).tokens_per_s == 10.0


def test_what_nobody_measured_is_no_number():
    figures = figures_of([Sample(1.0, "ChatUser", duration_s=0.5)], GOAL)

    assert math.isnan(figures.ttft_p95_ms) and math.isnan(figures.gap_p99_ms) and figures.duration_p95_ms == 500
    assert math.isnan(Figures().goodput) and figures_of([], GOAL).num_calls == 0


def test_percentiles_are_figures_that_were_measured():
    assert [percentile([4, 1, 3, 2], share) for share in (0.0, 0.5, 0.51, 0.95, 1.0)] == [1, 2, 3, 4, 4]
    assert math.isnan(percentile([], 0.5))


def samples() -> Samples:
    gathered = Samples(GOAL)
    for ttft_s in (0.1, 0.2, 0.3):
        gathered.add(stream(ttft_s=ttft_s))
    gathered.add(Sample(2.5, "ChatUser", duration_s=1.0, error="500"))
    return gathered


@pytest.mark.parametrize(
    "text, is_met",
    [
        ("ttft_p95_ms<=300", True),
        ("ttft_p95_ms<300", False),
        ("error_ratio <= 0.25", True),
        ("StreamUser.error_ratio<=0", True),
        ("ChatUser.error_ratio<1", False),
        ("goodput>=0.75", True),
        ("num_calls>4", False),
        ("ChatUser.ttft_p95_ms<=1e9", False),  # nobody measured it
        ("Nobody.error_ratio<=0", True),
        ("Nobody.goodput>=0", False),
    ],
)
def test_a_condition_is_met_by_a_figure_that_was_measured(text: str, is_met: bool):
    [slo] = parse_slos(text)

    assert slo.is_met(samples()) is is_met


def test_conditions_are_set_apart_by_commas_and_show_as_they_were_written():
    slos = parse_slos(" ttft_p50_ms<=1500, StreamUser.goodput>=0.95 ,")

    assert slos == [Slo(None, "ttft_p50_ms", "<=", 1500.0), Slo("StreamUser", "goodput", ">=", 0.95)]
    assert [str(slo) for slo in slos] == ["ttft_p50_ms<=1500", "StreamUser.goodput>=0.95"]


@pytest.mark.parametrize("text", ["ttft<=1", "ttft_p95_ms=1", "ttft_p95_ms<=", "a.b.goodput>=1", "goodput>=1e", "goodput >= x"])
def test_a_condition_that_is_none_is_refused_with_what_would_be_one(text: str):
    with pytest.raises(ValueError, match="is no"):
        parse_slos(text)


def test_samples_are_found_by_second_and_by_kind():
    gathered = samples()

    assert gathered.kinds() == ["ChatUser", "StreamUser"]
    assert {second: len(those) for second, those in gathered.by_second().items()} == {1: 3, 2: 1}
