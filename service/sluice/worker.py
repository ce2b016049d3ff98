"""One vLLM server that we send to, and one occupied slot on it."""

from __future__ import annotations

from dataclasses import dataclass

from sluice.upstream.connections import Connections


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What a worker says of a model it serves. Its `root` (a path on the worker) is left behind."""

    id: str
    created: int = 0
    max_model_len: int | None = None
    parent: str | None = None


@dataclass(frozen=True, slots=True)
class EngineLoad:
    """What a worker's engine last said of its own load, summed over its data-parallel ranks."""

    num_running: int = 0
    num_waiting: int = 0
    num_waiting_for_capacity: int = 0  # of those, the ones that found no room
    kv_usage: float = 0.0  # 0 to 1
    read_at: float = 0.0  # on the event loop's clock


class Worker:
    """A worker of one route, identified by its URL."""

    def __init__(self, url: str, connections: Connections) -> None:
        self.url = url
        self.connections = connections
        # Load: calls that hold a lease now, and the prompt tokens of those that have no first event yet, less what is
        # predicted to be cached there. Changed by `Lease` alone.
        self.in_flight = 0
        self.prefill_tokens = 0
        # Health: what the last probe saw; None until there was one. Changed by `judge` alone.
        self.is_healthy: bool | None = None
        self.trouble = ""
        self.models: tuple[ModelInfo, ...] = ()
        # What the last scrape of its metrics showed; None until there was one. Changed by the scraper alone.
        self.load: EngineLoad | None = None

    def __repr__(self) -> str:
        health = {None: "unknown", True: "healthy", False: "unhealthy"}[self.is_healthy]
        return f"<Worker {self.url} [{health}, {self.in_flight} in flight]>"

    def judge(self, *, is_healthy: bool, trouble: str = "", models: tuple[ModelInfo, ...] | None = None) -> None:
        self.is_healthy = is_healthy
        self.trouble = trouble
        if models is not None:
            self.models = models

    def lease(self, prefill_tokens: int = 0) -> Lease:
        """Occupy one slot, by `with`, from admission to the last byte; so many tokens of prompt are to be computed."""
        return Lease(self, prefill_tokens)


class Lease:
    """One occupied slot on a worker: in flight + 1 inside the block, whatever happens there."""

    __slots__ = ("prefill_tokens", "worker")

    def __init__(self, worker: Worker, prefill_tokens: int = 0) -> None:
        self.worker = worker
        self.prefill_tokens = prefill_tokens

    def __enter__(self) -> Lease:
        self.worker.in_flight += 1
        self.worker.prefill_tokens += self.prefill_tokens
        return self

    def __exit__(self, *exc: object) -> None:
        self.worker.in_flight -= 1
        self.prefilled()

    def prefilled(self) -> None:
        """The first event is there: the prompt weighs on the worker no more."""
        self.worker.prefill_tokens -= self.prefill_tokens
        self.prefill_tokens = 0
