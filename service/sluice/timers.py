"""Time-outs that are set for each of many requests and hardly ever come."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class LazyTimer:
    """One time-out at a time, set and unset at the cost of some assignments.

    The event loop's timer below it stays when the time-out is unset or put off, and looks what there is to do when it fires: to
    make one and to cancel it for every request costs 2 us.
    """

    __slots__ = ("_due", "_fires_at", "_loop", "_on_due", "_timer")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._due = 0.0
        self._on_due: Callable[[], None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._fires_at = 0.0

    @property
    def is_set(self) -> bool:
        return self._on_due is not None

    def set(self, due: float, on_due: Callable[[], None]) -> None:
        """Call `on_due` at `due`, on the loop's clock, in the place of what was set before."""
        self._due = due
        self._on_due = on_due
        if self._timer is None or due < self._fires_at:
            self._arm(due)

    def set_in(self, delay_s: float, on_due: Callable[[], None]) -> None:
        """The same, so many seconds from now."""
        self.set(self._loop.time() + delay_s, on_due)

    def unset(self) -> None:
        self._on_due = None

    def close(self) -> None:
        """Unset it, and leave nothing in the loop."""
        self._on_due = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _arm(self, due: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._fires_at = due
        self._timer = self._loop.call_at(due, self._look)

    def _look(self) -> None:
        self._timer = None
        on_due = self._on_due
        if on_due is None:
            return
        if self._due > self._fires_at:
            self._arm(self._due)
        else:
            self._on_due = None
            on_due()
