"""What the path of a call knows of tracing. Without it there is no object at all, and nothing is done."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from sluice.types import Call, Outcome


class Trace(Protocol):
    """One sampled call on its way. Rule of use: `headers` go up with it; `end` is called once, when it is over."""

    headers: tuple[tuple[str, str], ...]  # W3C Trace Context for the worker, which continues the trace
    id: str  # 32 hexadecimal digits, for the access line
    captures: bool  # whether it is to hold what was asked and answered

    def end(self, call: Call | None, outcome: Outcome, answer: str = "") -> None: ...


class Tracing(Protocol):
    """Decides which calls are traced. Neither method blocks, and neither raises for what a client or a collector does."""

    def begin(self, method: str, path: str, headers: Mapping[bytes, bytes]) -> Trace | None:
        """A trace for a request that has just arrived; None where it is not sampled."""

    def close(self) -> None:
        """Send what waits, within a bounded time; for the end of the process."""
