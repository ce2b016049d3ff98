"""What retrieval gave to one call: the sources, how they were found, and what an answer and its headers say of that."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import orjson

from sluice.retrieval.base import Failure
from sluice.retrieval.citations import Cited, citations
from sluice.retrieval.prompt_block import Source

Status = Literal["hit", "empty", "skipped", "degraded"]


@dataclass(frozen=True, slots=True)
class Given:
    """`id` is the call's. `prompt` is what was put before the question, word for word."""

    id: str
    sources: tuple[Source, ...] = ()
    prompt: str = ""
    queries: tuple[str, ...] = ()
    mode: str = ""
    num_results: int = 0
    tokens: int = 0
    latency_s: float = 0.0
    failures: tuple[Failure, ...] = ()
    notes: tuple[str, ...] = ()
    is_degraded: bool = False
    is_truncated: bool = False
    is_skipped: bool = False
    # What the answer shall show
    shows_citations: bool = True
    shows_content: bool = True
    shows_results: bool = False  # in the item of /v1/responses
    public_url: str = ""
    store_ids: tuple[str, ...] = field(default=())

    @property
    def status(self) -> Status:
        if self.is_skipped:
            return "skipped"
        if self.is_degraded:
            return "degraded"
        return "hit" if self.sources else "empty"

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        return [
            (b"x-retrieval-status", self.status.encode()),
            (b"x-retrieval-count", str(len(self.sources)).encode()),
            (b"x-retrieval-ms", f"{self.latency_s * 1000:.1f}".encode()),
        ]

    def summary(self) -> dict[str, Any]:
        """The top-level `retrieval` of an answer."""
        return {
            "id": self.id,
            "status": self.status if self.is_skipped or self.is_degraded else "completed",
            "mode": self.mode,
            "queries": list(self.queries),
            "results": self.num_results,
            "used": len(self.sources),
            "latency_ms": round(self.latency_s * 1000, 1),
            "failures": [{"vector_store_id": one.vector_store_id, "code": one.code} for one in self.failures],
            "notes": list(self.notes),
            "truncated": self.is_truncated,
        }

    def context(self, found: list[Cited] | None = None) -> dict[str, Any]:
        """`context` of a message, in the shape that Azure gave it."""
        shown = citations(self.sources, found or (), content=self.shows_content)
        return {"citations": shown, "intent": orjson.dumps(list(self.queries)).decode()}
