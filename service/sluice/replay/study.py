"""Many runs side by side: policies, loads, cache sizes and seeds, over the cores of this machine; and the table of them.

Each cell is the median over the seeds; ratios to the oracle are medians of the seeds' own ratios.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from inspect import signature
from itertools import product
from multiprocessing import get_context
from multiprocessing.connection import Connection
from statistics import median
from typing import NamedTuple

from sluice.policies import policy_class
from sluice.replay.engine import EngineModel
from sluice.replay.gateways import Gateways
from sluice.replay.references import REFERENCES, pooled_hit_rate
from sluice.replay.simulate import Chooser, Run, new_engines, simulate
from sluice.replay.trace import Trace

BOUND = "pooled LRU"
BASE = "oracle"


@dataclass(frozen=True, slots=True)
class Study:
    """What is to be run. A load is the share of the engines' prefill capacity that the prompts would take without a cache."""

    trace: Trace
    model: EngineModel
    policies: Sequence[str]
    loads: Sequence[float]
    kv_blocks: Sequence[int]
    num_workers: int = 8
    num_gateways: int = 1
    sticky: bool = False
    notes_late_s: float | None = None  # None: gateways tell each other nothing
    num_seeds: int = 1


class Case(NamedTuple):
    kv_blocks: int
    load: float
    policy: str
    seed: int


class Figures(NamedTuple):
    """What is told of one run, or of several."""

    hit_rate: float
    mean_s: float
    p50_s: float
    p90_s: float
    p99_s: float
    imbalance: float


class Row(NamedTuple):
    kv_blocks: int
    load: float
    policy: str
    figures: Figures
    mean_ratio: float | None  # to the oracle; None where it was not run
    p90_ratio: float | None


def run_all(study: Study, *, num_processes: int | None = None) -> dict[Case, Figures]:
    """Every case of the study, by as many processes as there are cores; which of them runs a case makes no difference."""
    cases = [Case(*case) for case in product(study.kv_blocks, study.loads, (*study.policies, BOUND), range(study.num_seeds))]
    num_processes = num_processes or os.cpu_count() or 1
    if num_processes == 1:
        return {case: run_case(study, case) for case in cases}
    context = get_context("fork")  # the trace is not sent to them: they have it
    with ExitStack() as stack:
        ends = []
        for part in range(num_processes):
            ours, theirs = context.Pipe(duplex=False)
            process = context.Process(target=_run_part, args=(study, cases[part::num_processes], theirs), daemon=True)
            process.start()
            stack.callback(process.join)
            stack.callback(process.terminate)
            theirs.close()
            ends.append(stack.enter_context(ours))
        return {case: figures for end in ends for case, figures in end.recv().items()}


def _run_part(study: Study, cases: Sequence[Case], end: Connection) -> None:
    end.send({case: run_case(study, case) for case in cases})


def run_case(study: Study, case: Case) -> Figures:
    model = replace(study.model, kv_blocks=case.kv_blocks)
    tokens_per_s = case.load * study.num_workers * model.prefill_tokens_per_s
    arrivals = study.trace.arrivals(tokens_per_s=tokens_per_s, rng=random.Random(case.seed))
    if case.policy == BOUND:
        hit_rate = pooled_hit_rate(arrivals, case.kv_blocks * study.num_workers, model.block_tokens)
        return Figures(hit_rate, *[float("nan")] * 5)
    engines = new_engines(model, study.num_workers)
    chooser: Chooser
    if case.policy in REFERENCES:
        chooser = REFERENCES[case.policy](engines, case.seed)
    else:
        make = policy_class("replay", case.policy)
        seeded = {"seed": case.seed} if "seed" in signature(make).parameters else {}
        policies = [make(**seeded) for _ in range(study.num_gateways)]
        chooser = Gateways(policies, engines, case.seed, sticky=study.sticky, notes_late_s=study.notes_late_s)
    return figures_of(simulate(arrivals, engines, chooser))


def figures_of(run: Run) -> Figures:
    return Figures(run.hit_rate, run.mean_s, run.quantile_s(0.5), run.quantile_s(0.9), run.quantile_s(0.99), run.imbalance)


def rows_of(study: Study, found: Mapping[Case, Figures]) -> Iterator[Row]:
    """The medians over the seeds, policy by policy; ratios are medians of each seed's own."""
    seeds = range(study.num_seeds)
    for kv_blocks, load, policy in product(study.kv_blocks, study.loads, (*study.policies, BOUND)):
        runs = [found[Case(kv_blocks, load, policy, seed)] for seed in seeds]
        mean_ratio = p90_ratio = None
        if BASE in study.policies and policy != BOUND:
            bases = [found[Case(kv_blocks, load, BASE, seed)] for seed in seeds]
            mean_ratio = median(one.mean_s / base.mean_s for one, base in zip(runs, bases, strict=True))
            p90_ratio = median(one.p90_s / base.p90_s for one, base in zip(runs, bases, strict=True))
        yield Row(kv_blocks, load, policy, Figures(*map(median, zip(*runs, strict=True))), mean_ratio, p90_ratio)
