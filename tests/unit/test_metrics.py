"""Metrics, read as Prometheus reads them."""

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from sluice.fleet_metrics import PoolRow, WorkerRow
from sluice.metrics import DURATION_S, FIRST_EVENT_S, OVERHEAD_S, Metrics
from sluice.types import Endpoint, Outcome, Source, Usage

CHAT = Endpoint.CHAT.value


class Scrape:
    """One scrape of a registry of its own."""

    def __init__(self, metrics: Metrics) -> None:
        text = generate_latest(metrics.registry).decode()
        self.samples = {
            (sample.name, tuple(sorted(sample.labels.items()))): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }

    def value(self, name: str, **labels: str) -> float | None:
        return self.samples.get((name, tuple(sorted(labels.items()))))

    def of(self, name: str) -> dict[tuple[tuple[str, str], ...], float]:
        return {labels: value for (sample, labels), value in self.samples.items() if sample == name}


@pytest.fixture
def metrics() -> Metrics:
    return Metrics(CollectorRegistry())


WELL = Outcome(200, usage=Usage(10, 5, 2, exact=True), attempts=1, first_event_s=0.3, overhead_s=0.0001, duration_s=2.0)


def test_a_call_is_one_update(metrics):
    metrics.call_ended("smollm2", CHAT, WELL)
    scrape = Scrape(metrics)
    assert scrape.of("sluice_calls_total") == {
        (("endpoint", CHAT), ("route", "smollm2"), ("source", "none"), ("status", "200")): 1
    }
    for name, seconds in (
        ("sluice_call_duration_seconds", 2.0),
        ("sluice_time_to_first_event_seconds", 0.3),
        ("sluice_overhead_seconds", 0.0001),
    ):
        assert scrape.value(f"{name}_count", route="smollm2") == 1
        assert scrape.value(f"{name}_sum", route="smollm2") == seconds
    for kind, count in (("prompt", 10), ("completion", 5), ("cached", 2)):
        assert scrape.value("sluice_tokens_total", route="smollm2", kind=kind, exact="true") == count
        assert not scrape.value("sluice_tokens_total", route="smollm2", kind=kind, exact="false")
    assert scrape.value("sluice_retries_total", route="smollm2") == 0


def test_what_a_tenant_had_is_counted_over_all_routes(metrics):
    metrics.call_ended("smollm2", CHAT, WELL, "acme")
    metrics.call_ended("minilm", Endpoint.EMBEDDINGS.value, WELL, "acme")
    metrics.call_ended("smollm2", CHAT, Outcome(429, source=Source.GATEWAY), "guests")
    metrics.call_ended("", CHAT, Outcome(401, source=Source.DOWNSTREAM))
    scrape = Scrape(metrics)
    assert scrape.of("sluice_tenant_calls_total") == {
        (("status", "200"), ("tenant", "acme")): 2,
        (("status", "429"), ("tenant", "guests")): 1,
    }
    for kind, count in (("prompt", 20), ("completion", 10), ("cached", 4)):
        assert scrape.value("sluice_tenant_tokens_total", tenant="acme", kind=kind) == count
        assert not scrape.value("sluice_tenant_tokens_total", tenant="guests", kind=kind)


def test_calls_are_counted_by_what_became_of_them(metrics):
    for source, status in ((None, 200), (Source.UPSTREAM, 502), (Source.DOWNSTREAM, 499), (Source.UPSTREAM, 502)):
        metrics.call_ended("smollm2", CHAT, Outcome(status, source=source))
    metrics.call_ended("minilm", Endpoint.EMBEDDINGS.value, Outcome(429, source=Source.GATEWAY))
    metrics.call_ended("", CHAT, Outcome(401, source=Source.DOWNSTREAM))
    counted = {tuple(dict(labels)[k] for k in ("route", "endpoint", "status", "source")): value
               for labels, value in Scrape(metrics).of("sluice_calls_total").items()}  # fmt: skip
    assert counted == {
        ("smollm2", CHAT, "200", "none"): 1,
        ("smollm2", CHAT, "502", "upstream"): 2,
        ("smollm2", CHAT, "499", "downstream"): 1,
        ("minilm", "/v1/embeddings", "429", "gateway"): 1,
        ("", CHAT, "401", "downstream"): 1,
    }


def test_what_did_not_happen_is_not_observed(metrics):
    metrics.call_ended("smollm2", CHAT, Outcome(503, source=Source.UPSTREAM, duration_s=0.1))
    scrape = Scrape(metrics)
    assert scrape.value("sluice_call_duration_seconds_count", route="smollm2") == 1
    assert scrape.value("sluice_time_to_first_event_seconds_count", route="smollm2") == 0
    assert scrape.value("sluice_overhead_seconds_count", route="smollm2") == 0


@pytest.mark.parametrize("tokens, expected", [(0, None), (1, None), (2, 1.0), (5, 0.25)])
def test_the_time_per_token_is_that_between_the_first_event_and_the_end(metrics, tokens, expected):
    metrics.call_ended("smollm2", CHAT, Outcome(200, usage=Usage(1, tokens), first_event_s=1.0, duration_s=2.0))
    scrape = Scrape(metrics)
    assert scrape.value("sluice_time_per_output_token_seconds_count", route="smollm2") == (expected is not None)
    assert scrape.value("sluice_time_per_output_token_seconds_sum", route="smollm2") == (expected or 0)


def test_retries_are_the_attempts_after_the_first(metrics):
    for attempts in (0, 1, 3, 2):
        metrics.call_ended("smollm2", CHAT, Outcome(200, attempts=attempts))
    assert Scrape(metrics).value("sluice_retries_total", route="smollm2") == 3


def test_tokens_that_we_counted_are_kept_apart_from_those_of_the_workers(metrics):
    metrics.call_ended("smollm2", CHAT, WELL)
    metrics.call_ended("smollm2", CHAT, Outcome(499, usage=Usage(completion_tokens=7)))
    scrape = Scrape(metrics)
    assert scrape.value("sluice_tokens_total", route="smollm2", kind="completion", exact="true") == 5
    assert scrape.value("sluice_tokens_total", route="smollm2", kind="completion", exact="false") == 7


@pytest.mark.parametrize(
    ("name", "member", "bounds"),
    [
        ("sluice_call_duration_seconds", "duration_s", DURATION_S),
        ("sluice_time_to_first_event_seconds", "first_event_s", FIRST_EVENT_S),
        ("sluice_overhead_seconds", "overhead_s", OVERHEAD_S),
    ],
)
def test_a_bucket_holds_what_is_not_above_its_bound(metrics, name, member, bounds):
    for seconds in (0.0, bounds[3], bounds[3] * 1.001, bounds[-1] * 2):
        metrics.call_ended("smollm2", CHAT, Outcome(200, **{member: seconds}))
    buckets = {dict(labels)["le"]: value for labels, value in Scrape(metrics).of(f"{name}_bucket").items()}
    assert list(buckets) == [*map(str, map(float, bounds)), "+Inf"]
    assert list(buckets.values()) == [*[1] * 3, 2, *[3] * (len(bounds) - 4), 4]


def test_failed_authentication_and_dropped_lines_are_counted(metrics):
    assert Scrape(metrics).value("sluice_authentication_failures_total") == 0
    metrics.authentication_failed()
    metrics.access_lines_dropped(3)
    scrape = Scrape(metrics)
    assert scrape.value("sluice_authentication_failures_total") == 1
    assert scrape.value("sluice_access_lines_dropped_total") == 3


def test_workers_are_shown_as_they_are_at_the_scrape_and_vanish_with_the_worker(metrics):
    rows = [
        WorkerRow("smollm2", "http://a", 3, True, "ejected", 2, 1, 0.5),
        WorkerRow("smollm2", "http://b", 0, False),
    ]
    assert Scrape(metrics).of("sluice_worker_up") == {}
    metrics.watch_fleet(lambda: iter(rows), tuple)
    scrape = Scrape(metrics)
    a, b = {"route": "smollm2", "worker": "http://a"}, {"route": "smollm2", "worker": "http://b"}
    assert scrape.value("sluice_worker_in_flight", **a) == 3
    assert (scrape.value("sluice_worker_up", **a), scrape.value("sluice_worker_up", **b)) == (1, 0)
    assert scrape.value("sluice_worker_state", **a, state="ejected") == 1
    assert scrape.value("sluice_worker_state", **b, state="unknown") == 1
    assert sum(scrape.of("sluice_worker_state").values()) == 2
    assert (scrape.value("sluice_worker_load_known", **a), scrape.value("sluice_worker_load_known", **b)) == (1, 0)
    engine = ("running", "waiting", "kv_usage")
    assert [scrape.value(f"sluice_worker_engine_{name}", **a) for name in engine] == [2, 1, 0.5]

    rows[:] = [WorkerRow("smollm2", "http://b", 2, True)]
    scrape = Scrape(metrics)
    assert scrape.of("sluice_worker_in_flight") == {(("route", "smollm2"), ("worker", "http://b")): 2}
    assert scrape.of("sluice_worker_up") == {(("route", "smollm2"), ("worker", "http://b")): 1}
    assert scrape.of("sluice_worker_engine_running") == {}


def test_how_workers_are_found_is_shown(metrics):
    rows = [PoolRow("a", 1.5, 3, 2, uses_ejected=True), PoolRow("b", None, 0, 0, uses_ejected=False)]
    metrics.watch_fleet(tuple, lambda: rows)
    scrape = Scrape(metrics)
    assert scrape.of("sluice_discovery_age_seconds") == {(("route", "a"),): 1.5}
    assert scrape.value("sluice_discovery_failures_total", route="a") == 3
    assert scrape.value("sluice_discovery_doubted", route="a") == 2
    assert [scrape.value("sluice_pool_uses_ejected", route=route) for route in "ab"] == [1, 0]


def test_every_metric_has_our_prefix_and_says_what_it_is(metrics):
    metrics.call_ended("smollm2", CHAT, WELL)
    families = list(metrics.registry.collect())
    assert len({family.name for family in families}) == len(families)
    for family in families:
        assert family.name.startswith("sluice_") and family.documentation.endswith(".")


def test_those_of_a_process_show_its_memory_and_time_too():
    names = {family.name for family in Metrics.of_process().registry.collect()}
    assert {"process_resident_memory_bytes", "process_cpu_seconds", "python_gc_collections", "sluice_calls"} <= names
