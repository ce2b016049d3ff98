"""A circuit breaker: what has failed several times in a row is left alone for a while, then asked once."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

MAX_FAILURES = 5
WINDOW_S = 10.0
OPEN_S = 5.0


class Breaker:
    """Ask `is_open` before, tell `failed` or `succeeded` after. While it is half open one attempt is let through."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._failures: deque[float] = deque(maxlen=MAX_FAILURES)
        self._opened_at: float | None = None

    @property
    def is_open(self) -> bool:
        """Whether to leave it alone. Where its time is over, the one who asks is the one attempt."""
        if self._opened_at is None:
            return False
        now = self._clock()
        if now - self._opened_at < OPEN_S:
            return True
        self._opened_at = now  # the others wait for how this attempt ends
        return False

    def failed(self) -> None:
        now = self._clock()
        self._failures.append(now)
        if len(self._failures) == MAX_FAILURES and now - self._failures[0] <= WINDOW_S:
            self._opened_at = now

    def succeeded(self) -> None:
        self._failures.clear()
        self._opened_at = None
