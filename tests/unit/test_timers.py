"""Lazy timers: they fire when they were last told to, and never when they were told not to."""

import asyncio
from collections.abc import Callable
from typing import Any

from sluice.timers import LazyTimer


class Loop(asyncio.AbstractEventLoop):
    """A loop that holds timers, and is moved on by hand."""

    def __init__(self) -> None:
        self.now = 0.0
        self.handles: list[asyncio.TimerHandle] = []

    def call_at(self, when: float, callback: Callable[..., Any], *args: Any, context: Any = None) -> asyncio.TimerHandle:
        self.handles.append(asyncio.TimerHandle(when, callback, args, self, context))
        return self.handles[-1]

    def time(self) -> float:
        return self.now

    def get_debug(self) -> bool:
        return False

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        self.handles.remove(handle)

    def run_to(self, now: float) -> None:
        while (handle := min(self.handles, key=asyncio.TimerHandle.when, default=None)) and handle.when() <= now:
            self.handles.remove(handle)
            self.now = handle.when()
            handle._run()
        self.now = now


def made() -> tuple[Loop, LazyTimer, list[float], Callable[[], None]]:
    loop = Loop()
    fired: list[float] = []
    return loop, LazyTimer(loop), fired, lambda: fired.append(loop.now)


def test_it_fires_once_when_it_is_due():
    loop, timer, fired, note = made()
    timer.set(5, note)
    assert timer.is_set
    loop.run_to(4)
    assert fired == []
    loop.run_to(100)
    assert fired == [5] and not timer.is_set and not loop.handles


def test_unset_it_does_not_fire_and_leaves_the_loop_by_itself():
    loop, timer, fired, note = made()
    timer.set(5, note)
    timer.unset()
    assert not timer.is_set
    loop.run_to(100)
    assert fired == [] and not loop.handles


def test_set_again_and_again_it_has_one_timer_in_the_loop_and_fires_for_the_last():
    loop, timer, fired, note = made()
    for begun in range(100):
        loop.run_to(begun / 10)
        timer.set(begun / 10 + 5, note)
        assert len(loop.handles) == 1
        timer.unset()
    timer.set(9.9 + 5, note)
    loop.run_to(100)
    assert fired == [14.9] and not loop.handles


def test_it_may_be_set_from_now_on():
    loop, timer, fired, note = made()
    loop.run_to(3)
    timer.set_in(5, note)
    loop.run_to(100)
    assert fired == [8]


def test_an_earlier_time_than_before_is_kept():
    loop, timer, fired, note = made()
    timer.set(50, note)
    timer.set(5, note)
    loop.run_to(10)
    assert fired == [5] and not loop.handles


def test_what_it_calls_may_set_it_anew():
    loop, timer, fired, note = made()

    def again() -> None:
        note()
        timer.set(loop.now + 5, note)

    timer.set(5, again)
    loop.run_to(100)
    assert fired == [5, 10]


def test_closed_it_leaves_nothing_in_the_loop_and_can_be_set_again():
    loop, timer, fired, note = made()
    timer.close()
    timer.set(5, note)
    timer.close()
    assert not loop.handles and not timer.is_set
    timer.set(6, note)
    loop.run_to(10)
    assert fired == [6]
