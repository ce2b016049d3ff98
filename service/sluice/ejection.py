"""Passive health: what calls found out about a worker, whatever its probes say.

Failures in a row eject the worker: it gets no calls for a while. Then one call is let through (half-open); it readmits the
worker or ejects it for longer. The times grow and are jittered, so that many gateways do not try a sick worker at once.
"""

from __future__ import annotations

import random
from collections.abc import Callable

FAILURES = 3  # so many in a row eject
FIRST_S, LONGEST_S = 1.0, 30.0  # each ejection takes twice as long as the one before
GOOD_AFTER_S = 60.0  # so long after it was readmitted, a worker begins with the first again
JITTER = 0.2


class Ejection:
    """Whether one worker is ejected, and until when. `draw` gives random numbers from 0 to 1."""

    __slots__ = ("_draw", "_readmitted_at", "_times", "num_failures", "num_trials", "until")

    def __init__(self, draw: Callable[[], float] = random.random) -> None:
        self.until: float | None = None  # None: not ejected; in the past: half-open
        self.num_trials = 0  # calls that the worker has, and was given while it was ejected
        self.num_failures = 0  # in a row
        self._times = 0  # ejections in a row
        self._readmitted_at = 0.0
        self._draw = draw

    def is_out(self, now: float) -> bool:
        """Whether it should get no call now: its time is not over, or the one call on trial has not told yet."""
        return self.until is not None and (now < self.until or self.num_trials > 0)

    def failed(self, now: float) -> bool:
        """A call failed by the worker's fault; True where that ejects it, for the first time or anew.

        An ejected worker is judged by its trial alone: other failures are those of calls from before, or of calls that
        found nobody else.
        """
        if self.until is not None:
            if now < self.until or not self.num_trials:
                return False
        else:
            self.num_failures += 1
            if self.num_failures < FAILURES:
                return False
            if now - self._readmitted_at > GOOD_AFTER_S:
                self._times = 0
        length_s = min(LONGEST_S, FIRST_S * 2**self._times) * (1 - JITTER + 2 * JITTER * self._draw())
        self._times = min(self._times + 1, 16)
        self.until = now + length_s
        return True

    def succeeded(self, now: float) -> bool:
        """A call got what it wanted; True where that readmits the worker. Calls from before the ejection cannot."""
        if self.until is not None and not self.num_trials:
            return False
        self.num_failures = 0
        if self.until is None:
            return False
        self.until = None
        self._readmitted_at = now
        return True

    def reset(self) -> None:
        """The worker is another one now, or was started anew; calls on trial go on."""
        self.until = None
        self.num_failures = self._times = 0
