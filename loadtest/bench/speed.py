"""Whether a core runs as fast as it can, and which figures were taken while it did.

Virtual machines share their cores with neighbours that nothing inside can see, for seconds at a time. Python then takes up
to twice the CPU time, the kernel's part much less, so that even the ratio of two programs is wrong. A fixed piece of work
before and after each measurement tells.
"""

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass

_STEPS = 30_000
_SLOW = 1.25  # times the best that was seen
MIN_SAMPLES = 3


@dataclass(frozen=True)
class Sample:
    """A figure, and the slower of the probes before and after it was taken."""

    figure: float
    probe_s: float


class CoreSpeed:
    """Probes one core; `best_s` is the best probe so far, of the whole run."""

    def __init__(self, core: int) -> None:
        self._core = core
        self.best_s = float("inf")

    def probe_s(self) -> float:
        """CPU time of a fixed piece of Python on that core."""
        home = os.sched_getaffinity(0)
        os.sched_setaffinity(0, {self._core})
        try:
            began_s = time.thread_time()
            table: dict[int, str] = {}
            for number in range(_STEPS):
                table[number & 1023] = str(number)
            took_s = time.thread_time() - began_s
        finally:
            os.sched_setaffinity(0, home)
        self.best_s = min(self.best_s, took_s)
        return took_s

    def at_full_speed(self, samples: Sequence[Sample]) -> list[float]:
        return [sample.figure for sample in samples if sample.probe_s <= _SLOW * self.best_s]


def chosen(speed: CoreSpeed, sides: Sequence[Sequence[Sample]]) -> list[list[float]] | None:
    """The figures of each side that were taken at full speed; None where one of the sides has too few of them."""
    kept = [speed.at_full_speed(samples) for samples in sides]
    return kept if min(map(len, kept)) >= MIN_SAMPLES else None
