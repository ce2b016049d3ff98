"""Runs an engine in real time: one timer, set to the end of the step under way."""

import asyncio
from collections.abc import Callable

from loadtest.simfleet.clock import WorkerClock
from loadtest.simfleet.engine import Engine
from loadtest.simfleet.job import Job, Progress
from loadtest.simfleet.kv_cache import Event
from loadtest.simfleet.scheduler import Paused


class Driver:
    """Everything that changes the engine goes through here, so that it is always up to date and the timer right.

    A loop that is late runs the steps it missed in one go: nothing is lost, and `worst_lag_s` says by how much the
    simulator, and not what it simulates, was the bottleneck.
    """

    def __init__(
        self,
        engine: Engine,
        clock: WorkerClock,
        on_progress: Callable[[Progress], None],
        on_cache_events: Callable[[list[Event]], None],
    ) -> None:
        self.engine = engine
        self.clock = clock
        self.worst_lag_s = 0.0
        self._on_progress = on_progress
        self._on_cache_events = on_cache_events
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None

    def add(self, jobs: list[Job], delay_s: float = 0.0) -> None:
        """Hand jobs to the engine."""
        self.catch_up()
        now_s = self.clock.now()
        for job in jobs:
            self.engine.add(job, now_s, delay_s=delay_s)
        self._rearm()

    def abort(self, job: Job) -> None:
        """Take a job back."""
        self.engine.abort(job)
        self._flush_events()
        self._rearm()

    def abort_all(self) -> list[Job]:
        """Take everything back."""
        self.catch_up()
        aborted = self.engine.abort_all()
        self._rearm()
        return aborted

    def pause(self, paused: Paused) -> None:
        """Stop the scheduler, or let it go on."""
        self.catch_up()
        self.engine.pause(paused, self.clock.now())
        self._rearm()

    def stop(self) -> None:
        """Let no time pass for this engine."""
        self.catch_up()
        self.clock.stop()
        self._rearm()

    def go_on(self) -> None:
        """End `stop`."""
        self.clock.go_on()
        self._rearm()

    def close(self) -> None:
        """No more timers."""
        self.clock.stop()
        self._rearm()

    def catch_up(self) -> None:
        """Bring the engine to the present."""
        for progress in self.engine.advance(self.clock.now()):
            self._on_progress(progress)
        self._flush_events()

    def _flush_events(self) -> None:
        if events := self.engine.take_events():
            self._on_cache_events(events)

    def _on_timer(self, due: float) -> None:
        self._timer = None
        self.worst_lag_s = max(self.worst_lag_s, self._loop.time() - due)
        self.catch_up()
        self._rearm()

    def _rearm(self) -> None:
        next_s = self.engine.next_event_s()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if not self.clock.is_stopped and next_s != float("inf"):
            due = self.clock.wall_at(next_s)
            self._timer = self._loop.call_at(due, self._on_timer, due)
