"""Load reports that workers put into the headers of answers (ORCA): a sample of the engine's load between two scrapes.

They are asked for only where `probes.ask_orca` says so, and come only with answers that are no streams. One refreshes a load
that is known; it does not make one known that is not: what cannot be believed at the scrape is not believed here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace

from sluice.engine_metrics import MAX_REQUESTS
from sluice.worker import Worker

ASKING = ("endpoint-load-metrics-format", "TEXT")
REPORT = "endpoint-load-metrics"
METRIC = re.compile(r"named_metrics\.(kv_cache_usage_perc|num_requests_waiting)=([0-9.e+-]{1,30})(?:,|$)")


def hear(worker: Worker, headers: Mapping[str, str], now: float) -> None:
    """Take the report in an answer's headers, if it holds a whole and possible one."""
    load, report = worker.load, headers.get(REPORT, "")
    if load is None or not report.startswith("TEXT "):
        return
    told = dict(METRIC.findall(report))
    try:
        waiting, kv_usage = float(told["num_requests_waiting"]), float(told["kv_cache_usage_perc"])
    except (KeyError, ValueError):
        return
    if 0 <= waiting <= MAX_REQUESTS and 0 <= kv_usage <= 1:
        deferred = load.num_waiting - load.num_waiting_for_capacity
        worker.load = replace(
            load,
            num_waiting=round(waiting),
            num_waiting_for_capacity=max(0, round(waiting) - deferred),
            kv_usage=kv_usage,
            read_at=now,
            num_ours=worker.in_flight + worker.in_flight_elsewhere,
        )
