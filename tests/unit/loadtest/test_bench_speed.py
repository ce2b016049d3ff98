"""Figures that were taken on a slow core are left out, unless there are no others."""

import os

from loadtest.bench.speed import CoreSpeed, Sample, chosen

CORE = min(os.sched_getaffinity(0))


def speed(best_s: float) -> CoreSpeed:
    known = CoreSpeed(CORE)
    known.best_s = best_s
    return known


def samples(*probes_s: float) -> list[Sample]:
    return [Sample(figure, probe_s) for figure, probe_s in enumerate(probes_s)]


def test_figures_beside_a_slow_probe_are_left_out_of_each_side() -> None:
    sides = [samples(1.0, 2.0, 1.2, 1.1), samples(1.0, 1.0, 1.0, 1.3)]

    assert chosen(speed(1.0), sides) == [[0, 2, 3], [0, 1, 2]]


def test_too_few_figures_at_full_speed_on_one_side_are_none_at_all() -> None:
    assert chosen(speed(1.0), [samples(1.0, 1.0, 2.0), samples(1.0, 1.0, 1.0)]) is None


def test_what_is_full_speed_is_known_from_the_best_probe_of_the_run() -> None:
    assert speed(0.5).at_full_speed(samples(1.0, 0.6)) == [1]


def test_a_probe_takes_cpu_time_is_remembered_when_it_is_the_best_and_leaves_the_process_where_it_was() -> None:
    home = os.sched_getaffinity(0)
    core_speed = CoreSpeed(CORE)
    probes_s = [core_speed.probe_s() for _ in range(3)]

    assert core_speed.best_s == min(probes_s) > 0
    assert os.sched_getaffinity(0) == home
