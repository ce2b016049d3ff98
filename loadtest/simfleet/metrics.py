"""`GET /metrics` of a worker: vLLM's names and labels over `Stats`, in Prometheus' text format."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from math import inf

from loadtest.simfleet.engine import Engine
from loadtest.simfleet.stats import Histogram, Stats

CONTENT_TYPE = "text/plain; version=1.0.0; charset=utf-8"


@dataclass(slots=True)
class Reading:
    """The load a worker reports, which need not be the load it has."""

    running: float
    waiting: float
    deferred: float
    kv_usage: float


@dataclass(slots=True)
class AdapterLoad:
    """Which adapters run and wait, as comma lists, how many may run at once, and when that was so."""

    running: str
    waiting: str
    max_loras: int
    at: float


def read(engine: Engine) -> Reading:
    """The truth."""
    scheduler = engine.scheduler
    deferred = scheduler.num_deferred if scheduler.waiting else 0
    return Reading(len(scheduler.running), len(scheduler.waiting), deferred, engine.cache.usage)


def render(
    engine: Engine,
    reading: Reading,
    model: str,
    *,
    created: float,
    sleep_level: int | None,
    old_kv_names: bool,
    adapters: AdapterLoad | None,
    names: Collection[str] | None = None,
) -> bytes:
    """The whole page; with `names` these metrics at least, without what costs most."""
    page = _Page(model, created)
    _gauges(page, reading, old_kv_names)
    _sleep_state(page, sleep_level)
    _counters(page, engine.stats)
    if names is None or any(name.endswith(("_bucket", "_count", "_sum")) for name in names):
        _histograms(page, engine.stats)
    if adapters is not None:
        page.head("vllm:lora_requests_info", "Running stats on lora requests.", "gauge")
        labels = f'max_lora="{adapters.max_loras}",running_lora_adapters="{adapters.running}"'
        page.add("vllm:lora_requests_info", f'{labels},waiting_lora_adapters="{adapters.waiting}"', adapters.at)
    _cache_config(page, engine)
    return page.encode()


def only(page: bytes, names: Collection[str]) -> bytes:
    """The lines of these metrics alone, as `prometheus_client` gives them to who asks for `name[]`."""
    kept = [line for line in page.decode().splitlines(keepends=True) if _name(line) in names]
    return "".join(kept).encode()


def _name(line: str) -> str:
    return line.split(" ", 3)[2] if line.startswith("#") else line.partition("{")[0]


class _Page:
    """The lines of a page."""

    def __init__(self, model: str, created: float) -> None:
        self.model = model
        self.own = f'engine="0",model_name="{model}"'
        self._created = created
        self._lines: list[str] = []

    def head(self, name: str, about: str, kind: str) -> None:
        self._lines += [f"# HELP {name} {about}", f"# TYPE {name} {kind}"]

    def add(self, name: str, labels: str, value: float) -> None:
        self._lines.append(f"{name}{{{labels}}} {float(value)}")

    def labelled(self, name: str, value: str) -> str:
        """The worker's own labels and one more, in order of their names."""
        pairs = {"engine": "0", "model_name": self.model, name: value}
        return ",".join(f'{label}="{pairs[label]}"' for label in sorted(pairs))

    def counter(self, name: str, about: str, series: Mapping[str, float]) -> None:
        self.head(name + "_total", about, "counter")
        for labels, value in series.items():
            self.add(name + "_total", labels, value)
        self.created(name, about, series)

    def created(self, name: str, about: str, labels: Iterable[str]) -> None:
        """When each series began, as prometheus_client adds it to counters and histograms."""
        self.head(name + "_created", about, "gauge")
        self._lines += [f"{name}_created{{{each}}} {self._created}" for each in labels]

    def histogram(self, name: str, about: str, histogram: Histogram) -> None:
        self.head(name, about, "histogram")
        so_far = 0
        for bound, count in zip((*histogram.bounds, inf), histogram.counts, strict=True):
            so_far += count
            upper = "+Inf" if bound == inf else float(bound)
            self._lines.append(f'{name}_bucket{{engine="0",le="{upper}",model_name="{self.model}"}} {float(so_far)}')
        self.add(name + "_count", self.own, so_far)
        self.add(name + "_sum", self.own, histogram.sum)
        self.created(name, about, [self.own])

    def encode(self) -> bytes:
        return ("\n".join(self._lines) + "\n").encode()


def _gauges(page: _Page, reading: Reading, old_kv_names: bool) -> None:
    values = {
        "vllm:num_requests_running": (reading.running, "Number of requests in model execution batches."),
        "vllm:num_requests_waiting": (reading.waiting, "Number of requests waiting to be processed."),
        "vllm:kv_cache_usage_perc": (reading.kv_usage, "KV-cache usage. 1 means 100 percent usage."),
    }
    if old_kv_names:
        values["vllm:gpu_cache_usage_perc"] = (reading.kv_usage, "GPU KV-cache usage. 1 means 100 percent usage.")
    for name, (value, about) in values.items():
        page.head(name, about, "gauge")
        page.add(name, page.own, value)
    name = "vllm:num_requests_waiting_by_reason"
    page.head(name, "Number of waiting requests by reason.", "gauge")
    page.add(name, page.labelled("reason", "capacity"), reading.waiting - reading.deferred)
    page.add(name, page.labelled("reason", "deferred"), reading.deferred)


def _sleep_state(page: _Page, sleep_level: int | None) -> None:
    name = "vllm:engine_sleep_state"
    page.head(name, "Engine sleep state; awake = 0 means engine is sleeping.", "gauge")
    states = {"awake": sleep_level is None, "weights_offloaded": sleep_level == 1, "discard_all": sleep_level == 2}
    for state, is_so in states.items():
        page.add(name, page.labelled("sleep_state", state), is_so)


def _counters(page: _Page, stats: Stats) -> None:
    plain = {
        "vllm:prefix_cache_queries": ("Prefix cache queries, in queried tokens.", stats.cache_queries),
        "vllm:prefix_cache_hits": ("Prefix cache hits, in cached tokens.", stats.cache_hits),
        "vllm:external_prefix_cache_queries": ("External prefix cache queries, in queried tokens.", 0),
        "vllm:external_prefix_cache_hits": ("External prefix cache hits, in cached tokens.", 0),
        "vllm:mm_cache_queries": ("Multi-modal cache queries, in queried items.", 0),
        "vllm:mm_cache_hits": ("Multi-modal cache hits, in cached items.", 0),
        "vllm:num_preemptions": ("Cumulative number of preemption from the engine.", stats.num_preemptions),
        "vllm:prompt_tokens": ("Number of prefill tokens processed.", stats.prompt_tokens),
        "vllm:prompt_tokens_cached": ("Number of cached prompt tokens.", stats.prompt_tokens_cached),
        "vllm:generation_tokens": ("Number of generation tokens processed.", stats.generation_tokens),
    }
    for name, (about, value) in plain.items():
        page.counter(name, about, {page.own: value})
    computed = stats.prompt_tokens - stats.prompt_tokens_cached
    sources = {"local_compute": computed, "local_cache_hit": stats.prompt_tokens_cached, "external_kv_transfer": 0}
    tiers = {"device": stats.cache_hits, "host": 0, "p2p": 0, "disk": 0, "external_unspecified": 0}
    labelled: dict[str, tuple[str, str, dict[str, int]]] = {
        "vllm:prompt_tokens_by_source": ("Number of prompt tokens by source.", "source", sources),
        "vllm:prompt_tokens_cached_by_source": ("Prefix-cache hit tokens by tier.", "source", tiers),
        "vllm:request_success": ("Count of successfully processed requests.", "finished_reason", stats.finished),
    }
    for name, (about, label, values) in labelled.items():
        page.counter(name, about, {page.labelled(label, each): value for each, value in values.items()})
    rejected = {f'model_name="{page.model}",reason="{reason}"': count for reason, count in stats.rejected.items()}
    page.counter("vllm:admission_rejections", "Admission attempts rejected by a queue limit, by reason.", rejected)


def _histograms(page: _Page, stats: Stats) -> None:
    histograms = {
        "vllm:request_prompt_tokens": stats.request_prompt_tokens,
        "vllm:request_generation_tokens": stats.request_generation_tokens,
        "vllm:iteration_tokens_total": stats.step_tokens,
        "vllm:request_max_num_generation_tokens": stats.request_generation_tokens,
        "vllm:request_params_n": stats.request_choices,
        "vllm:request_params_max_tokens": stats.request_max_tokens,
        "vllm:time_to_first_token_seconds": stats.first_token_s,
        "vllm:inter_token_latency_seconds": stats.inter_token_s,
        "vllm:request_time_per_output_token_seconds": stats.per_output_token_s,
        "vllm:e2e_request_latency_seconds": stats.e2e_s,
        "vllm:request_queue_time_seconds": stats.queue_s,
        "vllm:request_inference_time_seconds": stats.inference_s,
        "vllm:request_prefill_time_seconds": stats.prefill_s,
        "vllm:request_decode_time_seconds": stats.decode_s,
        "vllm:request_num_preemptions": stats.request_preemptions,
        "vllm:request_prefill_kv_computed_tokens": stats.request_kv_computed_tokens,
    }
    for name, histogram in histograms.items():
        page.histogram(name, "As in vLLM.", histogram)


def _cache_config(page: _Page, engine: Engine) -> None:
    cache = engine.cache
    pairs = {
        "block_size": cache.block_size,
        "cache_dtype": "auto",
        "enable_prefix_caching": True,
        "engine": 0,
        "kv_cache_size_tokens": cache.num_blocks * cache.block_size,
        "num_cpu_blocks": None,
        "num_gpu_blocks": cache.num_blocks,
        "num_gpu_blocks_override": None,
        "prefix_caching_hash_algo": "sha256",
        "sliding_window": None,
    }
    page.head("vllm:cache_config_info", "Information of the LLMEngine CacheConfig", "gauge")
    page.add("vllm:cache_config_info", ",".join(f'{name}="{value}"' for name, value in pairs.items()), 1)
