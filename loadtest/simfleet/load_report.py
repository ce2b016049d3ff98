"""What a worker says about its load: the metrics page and ORCA headers, as far as its faults let it."""

import time
from collections.abc import Collection, Iterable

import msgspec

from loadtest.simfleet import metrics
from loadtest.simfleet.config import WorkerConfig
from loadtest.simfleet.engine import Engine
from loadtest.simfleet.faults import Suffering
from loadtest.simfleet.http_server import Headers
from loadtest.simfleet.job import Job


class LoadReport:
    """The reports of one engine."""

    def __init__(self, engine: Engine, config: WorkerConfig, suffering: Suffering) -> None:
        self._engine = engine
        self._config = config
        self._suffering = suffering
        self._started_at = time.time()

    def page(self, names: Collection[str] | None, *, sleep_level: int | None, has_adapters: bool) -> bytes:
        """`/metrics`, or these of it. While it is to be stale the first page since then is given again and again."""
        suffering = self._suffering
        if suffering.frozen_metrics is not None:
            return suffering.frozen_metrics if names is None else metrics.only(suffering.frozen_metrics, names)
        is_stale = suffering.has("stale_metrics")
        page = metrics.render(
            self._engine,
            suffering.reading(metrics.read(self._engine)),
            self._config.model_name,
            created=self._started_at,
            sleep_level=sleep_level,
            old_kv_names=self._config.old_kv_names,
            adapters=self._adapters() if has_adapters else None,
            names=None if is_stale else names,
        )
        if is_stale:
            suffering.frozen_metrics = page
        return page if names is None else metrics.only(page, names)

    def headers(self, wanted_format: str) -> Headers:
        """The ORCA header of a reply that is no stream, if the client asked for it."""
        load = self._suffering.reading(metrics.read(self._engine))
        named = {"kv_cache_usage_perc": float(load.kv_usage), "num_requests_waiting": float(load.waiting)}
        if wanted_format.lower() == "text":
            pairs = ", ".join(f"named_metrics.{name}={value}" for name, value in named.items())
            return [("endpoint-load-metrics", f"TEXT {pairs}")]
        if wanted_format.lower() == "json":
            return [("endpoint-load-metrics", "JSON " + msgspec.json.encode({"named_metrics": named}).decode())]
        return []

    def _adapters(self) -> metrics.AdapterLoad:
        scheduler = self._engine.scheduler
        return metrics.AdapterLoad(_names(scheduler.running), _names(scheduler.waiting), self._config.max_loras, time.time())


def _names(jobs: Iterable[Job]) -> str:
    return ",".join(sorted({job.lora for job in jobs if job.lora}))
