"""Every metric of the gateway, declared in one place and shown on a registry that is handed in.

Label values come from the configuration (routes, workers, endpoints) or from fixed sets (status, source), never from a
request. What a call updates is plain numbers that only the event loop changes, shown when they are scraped: a tenth of what
the client library's locked values cost.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Protocol

from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from sluice.fleet_metrics import PoolRow, WorkerRow, shown_pools, shown_workers
from sluice.limit_metrics import LimitNumbers, shown_limits
from sluice.types import Outcome

FIRST_EVENT_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160)
PER_TOKEN_S = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1, 2.5)
DURATION_S = (0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 900, 3600)
OVERHEAD_S = (0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.05, 0.25)
RETRIEVAL_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)
KINDS = ("prompt", "completion", "cached")


class Histogram:
    """Observations by bucket; the last count is of those beyond every bound."""

    __slots__ = ("_bounds", "_counts", "_sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def show(self, family: HistogramMetricFamily, labels: Sequence[str]) -> None:
        total, buckets = 0, []
        for bound, count in zip((*map(str, map(float, self._bounds)), "+Inf"), self._counts, strict=True):
            total += count
            buckets.append((bound, total))
        family.add_metric(labels, buckets, self._sum)


class RouteMetrics:
    """The numbers of one route."""

    __slots__ = (
        "duration",
        "fallbacks",
        "first_event",
        "hedges",
        "overhead",
        "per_token",
        "resumes",
        "retries",
        "tokens",
        "tokens_wasted",
    )

    def __init__(self) -> None:
        self.duration = Histogram(DURATION_S)
        self.first_event = Histogram(FIRST_EVENT_S)
        self.overhead = Histogram(OVERHEAD_S)
        self.per_token = Histogram(PER_TOKEN_S)
        self.retries = 0
        self.resumes = 0
        self.fallbacks = 0
        self.hedges = {"first": 0, "copy": 0}
        self.tokens_wasted = 0
        self.tokens = {True: [0, 0, 0], False: [0, 0, 0]}  # by whether they are exact, as in KINDS


class RetrievalMetrics:
    """What calls with retrieval count."""

    __slots__ = ("_calls", "_failures", "_passages", "_seconds", "_store_requests", "_tokens")

    def __init__(self) -> None:
        self._calls: dict[tuple[str, str], int] = {}
        self._failures: dict[str, int] = {}
        self._store_requests: dict[tuple[str, int], int] = {}
        self._seconds = Histogram(RETRIEVAL_S)
        self._passages = 0
        self._tokens = 0

    def ended(self, status: str, mode: str, seconds: float, num_passages: int = 0, num_tokens: int = 0) -> None:
        key = (status, mode)
        self._calls[key] = self._calls.get(key, 0) + 1
        self._seconds.observe(seconds)
        self._passages += num_passages
        self._tokens += num_tokens

    def store_request(self, method: str, status: int) -> None:
        key = (method, status)
        self._store_requests[key] = self._store_requests.get(key, 0) + 1

    def failed(self, code: str) -> None:
        self._failures[code] = self._failures.get(code, 0) + 1

    def show(self) -> Iterator[Metric]:
        calls = CounterMetricFamily(
            "sluice_retrieval_requests",
            "Calls that retrieved, by what came of it (hit, empty, degraded, error) and by how was searched.",
            labels=["status", "mode"],
        )
        for (status, mode), count in list(self._calls.items()):
            calls.add_metric([status, mode], count)
        failures = CounterMetricFamily(
            "sluice_retrieval_failures",
            "Stores not searched of calls that were answered anyway.",
            labels=["code"],
        )
        for code, count in list(self._failures.items()):
            failures.add_metric([code], count)
        stores = CounterMetricFamily(
            "sluice_store_requests",
            "Requests for files and vector stores that were relayed or searched.",
            labels=["method", "status"],
        )
        for (method, status_code), count in list(self._store_requests.items()):
            stores.add_metric([method, str(status_code)], count)
        seconds = HistogramMetricFamily("sluice_retrieval_seconds", "What retrieval added to the time of a call.", labels=[])
        self._seconds.show(seconds, [])
        yield from (calls, failures, stores, seconds)
        yield CounterMetricFamily("sluice_retrieval_passages", "Passages put into prompts.", value=self._passages)
        yield CounterMetricFamily("sluice_retrieval_context_tokens", "Their tokens, as estimated.", value=self._tokens)


class QueueState(Protocol):
    """What a route's queue shows at a scrape."""

    @property
    def num_waiting(self) -> int: ...
    @property
    def waiting_tokens(self) -> float: ...
    @property
    def limit(self) -> float: ...
    @property
    def tokens_per_s(self) -> float | None: ...
    @property
    def predicted_wait_s(self) -> float | None: ...
    @property
    def num_shed(self) -> Mapping[str, int]: ...
    @property
    def queue_time(self) -> Histogram: ...


def _shown_queues(states: Mapping[str, QueueState]) -> Iterator[Metric]:
    """What is not known yet has no sample."""
    labels = ["route"]
    times = HistogramMetricFamily("sluice_queue_seconds", "How long calls waited for a slot on a worker.", labels=labels)
    shed = CounterMetricFamily(
        "sluice_shed",
        "Calls refused by our own load: too many or too large ones waiting (number, tokens), predicted to wait too long "
        "(wait), or to miss their deadline (deadline), gave way to a fairer one (displaced), waited too long (timeout).",
        labels=["route", "reason"],
    )
    waiting = GaugeMetricFamily("sluice_queue_waiting", "Calls that wait for a slot now.", labels=labels)
    tokens = GaugeMetricFamily(
        "sluice_queue_waiting_tokens", "Their tokens: those of the prompts, and twice those of the answers.", labels=labels
    )
    limit = GaugeMetricFamily("sluice_in_flight_limit", "How many calls may be at all workers together now.", labels=labels)
    rate = GaugeMetricFamily("sluice_queue_tokens_per_second", "Tokens that start, while calls wait.", labels=labels)
    wait = GaugeMetricFamily(
        "sluice_queue_predicted_seconds", "How long what waits now will take to start, as predicted.", labels=labels
    )
    for route, state in states.items():
        state.queue_time.show(times, [route])
        for reason, count in state.num_shed.items():
            shed.add_metric([route, reason], count)
        waiting.add_metric([route], state.num_waiting)
        tokens.add_metric([route], state.waiting_tokens)
        limit.add_metric([route], state.limit)
        if state.tokens_per_s is not None:
            rate.add_metric([route], state.tokens_per_s)
        if state.predicted_wait_s is not None:
            wait.add_metric([route], state.predicted_wait_s)
    yield from (times, shed, waiting, tokens, limit, rate, wait)


class TenantMetrics:
    """The numbers of one tenant, over all routes."""

    __slots__ = ("calls", "tokens")

    def __init__(self) -> None:
        self.calls: dict[int, int] = {}  # by status
        self.tokens = [0, 0, 0]  # as in KINDS


class Metrics(Collector):
    """What calls, keys and the access log count, and the gauges of workers."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry
        self._calls: dict[tuple[str, str, int, str | None], int] = {}
        self._routes: dict[str, RouteMetrics] = {}
        self._tenants: dict[str, TenantMetrics] = {}
        self._authentication_failures = 0
        self._lines_dropped = 0
        self._workers: Callable[[], Iterable[WorkerRow]] = tuple
        self._queues: Callable[[], Mapping[str, QueueState]] = dict
        self._pools: Callable[[], Iterable[PoolRow]] = tuple
        self.retrieval = RetrievalMetrics()
        self._limits: Callable[[], LimitNumbers] = LimitNumbers
        self._num_others: Callable[[], int] = int
        self._ledger_rows_lost: Callable[[], int] = int
        registry.register(self)

    @classmethod
    def of_process(cls) -> Metrics:
        """Those of a whole process: with its memory, file descriptors, CPU time and garbage collections."""
        registry = CollectorRegistry()
        for collector in (ProcessCollector, PlatformCollector, GCCollector):
            collector(registry=registry)
        return cls(registry)

    def watch_fleet(self, workers: Callable[[], Iterable[WorkerRow]], pools: Callable[[], Iterable[PoolRow]]) -> None:
        """Show the workers and the pools that these yield at each scrape; a worker that is gone leaves no series behind."""
        self._workers = workers
        self._pools = pools

    def watch_queues(self, states: Callable[[], Mapping[str, QueueState]]) -> None:
        """Show the queues of all routes, by name, at each scrape."""
        self._queues = states

    def watch_ledger(self, num_lost: Callable[[], int]) -> None:
        self._ledger_rows_lost = num_lost

    def watch_gateways(self, num_others: Callable[[], int]) -> None:
        self._num_others = num_others

    def watch_limits(self, numbers: Callable[[], LimitNumbers]) -> None:
        self._limits = numbers

    def call_ended(self, route: str, endpoint: str, outcome: Outcome, tenant: str | None = None) -> None:
        """The one update of a call. The tenant is one of the keys file; None where nobody is known yet."""
        key = (route, endpoint, outcome.status, outcome.source)
        self._calls[key] = self._calls.get(key, 0) + 1
        numbers = self._routes.get(route)
        if numbers is None:
            numbers = self._routes[route] = RouteMetrics()
        numbers.duration.observe(outcome.duration_s)
        if outcome.overhead_s is not None:
            numbers.overhead.observe(outcome.overhead_s)
        if outcome.first_event_s is not None:
            numbers.first_event.observe(outcome.first_event_s)
            if outcome.usage.completion_tokens > 1:
                gaps_s = outcome.duration_s - outcome.first_event_s
                numbers.per_token.observe(gaps_s / (outcome.usage.completion_tokens - 1))
        if outcome.attempts > 1:
            numbers.retries += outcome.attempts - 1 - outcome.num_resumes
            numbers.resumes += outcome.num_resumes
            if outcome.hedge is not None:
                numbers.hedges[outcome.hedge] += 1
                numbers.retries -= 1
            numbers.tokens_wasted += outcome.tokens_wasted
        numbers.fallbacks += outcome.fell_back
        usage = outcome.usage
        tokens = numbers.tokens[usage.exact]
        tokens[0] += usage.prompt_tokens
        tokens[1] += usage.completion_tokens
        tokens[2] += usage.cached_tokens
        if tenant is not None:
            self._tenant_call_ended(tenant, outcome)

    def _tenant_call_ended(self, tenant: str, outcome: Outcome) -> None:
        numbers = self._tenants.get(tenant)
        if numbers is None:
            numbers = self._tenants[tenant] = TenantMetrics()
        numbers.calls[outcome.status] = numbers.calls.get(outcome.status, 0) + 1
        usage, tokens = outcome.usage, numbers.tokens
        tokens[0] += usage.prompt_tokens
        tokens[1] += usage.completion_tokens
        tokens[2] += usage.cached_tokens

    def authentication_failed(self) -> None:
        self._authentication_failures += 1

    def access_lines_dropped(self, count: int) -> None:
        self._lines_dropped += count

    def collect(self) -> Iterator[Metric]:
        yield self._shown_calls()
        yield from self._shown_routes()
        yield from self._shown_tenants()
        yield CounterMetricFamily(
            "sluice_authentication_failures",
            "Requests without a key or with a bad one.",
            value=self._authentication_failures,
        )
        yield CounterMetricFamily(
            "sluice_access_lines_dropped",
            "Access lines lost because their reader was too slow.",
            value=self._lines_dropped,
        )
        yield from shown_limits(self._limits(), self._ledger_rows_lost())
        yield GaugeMetricFamily(
            "sluice_gateways_heard", "Other gateways that tell this one which prompts went where.", value=self._num_others()
        )
        yield from shown_workers(self._workers())
        yield from shown_pools(self._pools())
        yield from _shown_queues(self._queues())
        yield from self.retrieval.show()

    def _shown_calls(self) -> Metric:
        family = CounterMetricFamily(
            "sluice_calls",
            "Calls that ended, by HTTP status and by whose fault a failure was (downstream, gateway, upstream, none).",
            labels=["route", "endpoint", "status", "source"],
        )
        for (route, endpoint, status, source), count in list(self._calls.items()):
            family.add_metric([route, endpoint, str(status), source or "none"], count)
        return family

    def _shown_routes(self) -> Iterator[Metric]:
        duration = HistogramMetricFamily(
            "sluice_call_duration_seconds", "From the arrival of a call to its last byte.", labels=["route"]
        )
        first_event = HistogramMetricFamily(
            "sluice_time_to_first_event_seconds", "From the arrival of a streamed call to its first event.", labels=["route"]
        )
        per_token = HistogramMetricFamily(
            "sluice_time_per_output_token_seconds",
            "Mean time between the tokens of a stream, from its first event to its end.",
            labels=["route"],
        )
        overhead = HistogramMetricFamily(
            "sluice_overhead_seconds",
            "The time that the gateway itself takes: from the arrival of a call until it is written to a worker, without "
            "waiting for a slot or for sources.",
            labels=["route"],
        )
        retries = CounterMetricFamily(
            "sluice_retries",
            "Attempts after the first one of a call, without those that continued its stream.",
            labels=["route"],
        )
        resumes = CounterMetricFamily(
            "sluice_resumes", "How often a stream whose worker was lost went on at another one.", labels=["route"]
        )
        hedges = CounterMetricFamily(
            "sluice_hedges",
            "Second copies of calls with a late first event, by which was taken (first, copy).",
            labels=["route", "taken"],
        )
        fallbacks = CounterMetricFamily(
            "sluice_fallbacks",
            "Calls that no worker of the route could take and that went to its fallback.",
            labels=["route"],
        )
        wasted = CounterMetricFamily(
            "sluice_tokens_wasted",
            "Tokens that workers computed and nobody is billed for, as far as is known.",
            labels=["route"],
        )
        tokens = CounterMetricFamily(
            "sluice_tokens",
            "Tokens as the workers counted them (exact=true) or as we did (exact=false).",
            labels=["route", "kind", "exact"],
        )
        for route, numbers in list(self._routes.items()):
            numbers.duration.show(duration, [route])
            numbers.first_event.show(first_event, [route])
            numbers.per_token.show(per_token, [route])
            numbers.overhead.show(overhead, [route])
            retries.add_metric([route], numbers.retries)
            resumes.add_metric([route], numbers.resumes)
            for taken, count in numbers.hedges.items():
                hedges.add_metric([route, taken], count)
            fallbacks.add_metric([route], numbers.fallbacks)
            wasted.add_metric([route], numbers.tokens_wasted)
            for exact, counts in numbers.tokens.items():
                for kind, count in zip(KINDS, counts, strict=True):
                    tokens.add_metric([route, kind, str(exact).lower()], count)
        yield from (duration, first_event, per_token, overhead, retries, resumes, hedges, fallbacks, wasted, tokens)

    def _shown_tenants(self) -> Iterator[Metric]:
        calls = CounterMetricFamily("sluice_tenant_calls", "Calls of a tenant, by HTTP status.", labels=["tenant", "status"])
        tokens = CounterMetricFamily("sluice_tenant_tokens", "Tokens of a tenant's calls.", labels=["tenant", "kind"])
        for tenant, numbers in list(self._tenants.items()):
            for status, count in list(numbers.calls.items()):
                calls.add_metric([tenant, str(status)], count)
            for kind, count in zip(KINDS, numbers.tokens, strict=True):
                tokens.add_metric([tenant, kind], count)
        yield from (calls, tokens)
