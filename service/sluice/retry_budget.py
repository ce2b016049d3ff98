"""How much may be sent twice: a share of the traffic of the last seconds, and a little that is always allowed.

A retry costs the workers what the first try has cost them. Bounded to a share of the traffic, retries cannot keep workers
down that fell under their load; what is always allowed lets a quiet gateway retry too.
"""

from __future__ import annotations

WINDOW_S = 10


class RetryBudget:
    """Over any ten seconds at most `share` of the calls plus `per_s` each second are sent again."""

    __slots__ = ("_calls", "_per_s", "_retries", "_seconds", "_share")

    def __init__(self, share: float = 0.2, per_s: float = 10.0) -> None:
        self._share = share
        self._per_s = per_s
        # Calls and retries of each of the last seconds; which second it was, at the same place.
        self._seconds = [-1] * WINDOW_S
        self._calls = [0] * WINDOW_S
        self._retries = [0] * WINDOW_S

    def count_call(self, now: float) -> None:
        """A call has come."""
        self._calls[self._place(int(now))] += 1

    def take(self, now: float) -> bool:
        """Whether one may be sent again now; it counts as sent."""
        second = int(now)
        place = self._place(second)
        oldest = second - WINDOW_S
        recent = [i for i in range(WINDOW_S) if self._seconds[i] > oldest]
        num_calls = sum(self._calls[i] for i in recent)
        num_retries = sum(self._retries[i] for i in recent)
        if num_retries + 1 > num_calls * self._share + self._per_s * WINDOW_S:
            return False
        self._retries[place] += 1
        return True

    def _place(self, second: int) -> int:
        place = second % WINDOW_S
        if self._seconds[place] != second:
            self._seconds[place] = second
            self._calls[place] = self._retries[place] = 0
        return place
