"""The metrics of workers and of how they are found, read off them at the scrape: who is gone leaves no series behind."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

STATES = ("healthy", "unknown", "unhealthy", "ejected", "asleep", "draining")


class WorkerRow(NamedTuple):
    """What is shown of one worker; `running` and the rest are None where the load of its engine is unknown."""

    route: str
    worker: str
    in_flight: int
    is_up: bool
    state: str = "unknown"
    running: int | None = None
    waiting: int | None = None
    kv_usage: float | None = None
    num_tokens: int | None = None
    num_tokens_charged: int = 0


class PoolRow(NamedTuple):
    """What is shown of the workers of one route together; `age_s` is None where nobody has to be asked who they are."""

    route: str
    age_s: float | None
    num_failures: int
    num_doubted: int
    uses_ejected: bool


def shown_workers(rows: Iterable[WorkerRow]) -> Iterator[Metric]:
    labels = ["route", "worker"]
    in_flight = GaugeMetricFamily("sluice_worker_in_flight", "Calls that occupy a slot on the worker now.", labels=labels)
    up = GaugeMetricFamily("sluice_worker_up", "1 where the last probe found the worker healthy.", labels=labels)
    state = GaugeMetricFamily(
        "sluice_worker_state",
        "1 for the state that the worker is in: healthy, unknown (not probed yet), unhealthy, ejected (calls failed), asleep,"
        " draining.",
        labels=[*labels, "state"],
    )
    known = GaugeMetricFamily(
        "sluice_worker_load_known", "1 where the load that the worker's engine reports is fresh and credible.", labels=labels
    )
    running = GaugeMetricFamily("sluice_worker_engine_running", "Requests that the worker's engine computes.", labels=labels)
    waiting = GaugeMetricFamily("sluice_worker_engine_waiting", "Requests that wait in the worker's engine.", labels=labels)
    kv_usage = GaugeMetricFamily("sluice_worker_engine_kv_usage", "How full the worker's KV cache is, 0 to 1.", labels=labels)
    computed = CounterMetricFamily(
        "sluice_worker_engine_tokens", "Tokens of prompts and answers, as the worker's engine counts them.", labels=labels
    )
    charged = CounterMetricFamily(
        "sluice_worker_tokens_charged", "Tokens that this gateway's calls at the worker were charged, or wasted.", labels=labels
    )
    for row in rows:
        of = [row.route, row.worker]
        charged.add_metric(of, row.num_tokens_charged)
        if row.num_tokens is not None:
            computed.add_metric(of, row.num_tokens)
        in_flight.add_metric(of, row.in_flight)
        up.add_metric(of, row.is_up)
        for one in STATES:
            state.add_metric([*of, one], one == row.state)
        known.add_metric(of, row.running is not None)
        for family, value in ((running, row.running), (waiting, row.waiting), (kv_usage, row.kv_usage)):
            if value is not None:
                family.add_metric(of, value)
    yield from (in_flight, up, state, known, running, waiting, kv_usage, computed, charged)


def shown_pools(rows: Iterable[PoolRow]) -> Iterator[Metric]:
    labels = ["route"]
    age = GaugeMetricFamily(
        "sluice_discovery_age_seconds", "Since the source of a route's workers last said who they are.", labels=labels
    )
    failures = CounterMetricFamily(
        "sluice_discovery_failures", "Times that the source of a route's workers could not be asked.", labels=labels
    )
    doubted = GaugeMetricFamily(
        "sluice_discovery_doubted", "Workers that discovery has lost and that stay because their probes go well.", labels=labels
    )
    uses_ejected = GaugeMetricFamily(
        "sluice_pool_uses_ejected", "1 where calls failed on all workers that are up, so that all are used.", labels=labels
    )
    for row in rows:
        of = [row.route]
        if row.age_s is not None:
            age.add_metric(of, row.age_s)
        failures.add_metric(of, row.num_failures)
        doubted.add_metric(of, row.num_doubted)
        uses_ejected.add_metric(of, row.uses_ejected)
    yield from (age, failures, doubted, uses_ejected)
