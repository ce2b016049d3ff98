"""An event loop on which a slow machine takes no time: its clock passes while the loop waits, and hardly while it works.

Both ends of a test's sockets live on one loop, so what a machine is late with, both are late with; only a clock on the
wall goes on meanwhile, and on a busy machine it lets time-outs of milliseconds strike and simulated streams end before
their reader's turn. Here a turn of the loop counts for no more than TURN_S, however long it took, and a wait for no more
than what was to be waited. Nothing happens sooner than it would on a clock of the wall, only in the order of the timers.
"""

import asyncio
import selectors
import time

TURN_S = 0.001


class _Waits(selectors.DefaultSelector):
    """The loop's selector, which counts. Its state: the time so far, and when the loop last came from a wait."""

    def __init__(self) -> None:
        super().__init__()
        self._back_at = self.now = time.monotonic()

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        began = time.monotonic()
        self.now += min(began - self._back_at, TURN_S)
        found = super().select(0)
        if not found and timeout != 0:
            began = time.monotonic()
            found = super().select(timeout)
            waited = time.monotonic() - began
            self.now += waited if timeout is None else min(waited, max(timeout, 0.0))
        self._back_at = time.monotonic()
        return found


class PatientLoop(asyncio.SelectorEventLoop):
    """For tests; `time()` begins as the wall's clock and falls behind it."""

    def __init__(self) -> None:
        self._waits = _Waits()
        super().__init__(self._waits)

    def time(self) -> float:
        return self._waits.now
