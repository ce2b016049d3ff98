"""What was injected into the last calls, for their owners to look at. Kept in this process's memory, bounded, for a while."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from sluice.retrieval.base import Attributes
from sluice.retrieval.citations import citations
from sluice.retrieval.given import Given

MAX_BYTES = 67_108_864
KEPT_S = 3600.0


class Records:
    """By call id. A tenant sees its own: one of another tenant is as unknown as one that never was."""

    def __init__(self, clock: Callable[[], float], *, max_bytes: int = MAX_BYTES, kept_s: float = KEPT_S) -> None:
        self._clock = clock
        self._max_bytes = max_bytes
        self._kept_s = kept_s
        # Oldest first, each with its owner, when it was made and its size. Only `keep` and `_trim` change them.
        self._records: OrderedDict[str, tuple[str, float, int, Given, float]] = OrderedDict()
        self._num_bytes = 0

    def __repr__(self) -> str:
        return f"<Records {len(self._records)} calls, {self._num_bytes} bytes>"

    def keep(self, tenant: str, given: Given, *, created_at: float) -> None:
        size = (
            1024 + len(given.prompt) + sum(2 * len(source.text) + _size(source.passage.attributes) for source in given.sources)
        )
        self._records[given.id] = (tenant, self._clock(), size, given, created_at)
        self._num_bytes += size
        self._trim()

    def get(self, tenant: str, call_id: str) -> dict[str, Any] | None:
        """What that call was given, if it was this tenant's and is still kept."""
        self._trim()
        found = self._records.get(call_id)
        if found is None or found[0] != tenant:
            return None
        _, _, _, given, created_at = found
        shown = given.summary() | {"object": "retrieval", "created_at": int(created_at)}
        shown["vector_store_ids"] = list(given.store_ids)
        return shown | {"tokens": given.tokens, "prompt": given.prompt, "citations": citations(given.sources)}

    def _trim(self) -> None:
        oldest = self._clock() - self._kept_s
        while self._records:
            _, made_at, size, _, _ = next(iter(self._records.values()))
            if made_at > oldest and self._num_bytes <= self._max_bytes:
                return
            self._records.popitem(last=False)
            self._num_bytes -= size


def _size(attributes: Attributes) -> int:
    return sum(len(key) + len(str(value)) + 64 for key, value in attributes.items())
