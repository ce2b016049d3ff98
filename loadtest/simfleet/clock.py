"""Time of one worker: the loop's clock times the warp, stopped while the worker is stalled."""

from collections.abc import Callable


class WorkerClock:
    """Virtual seconds since the start. A warp of 10 lets ten of them pass in a second."""

    def __init__(self, wall: Callable[[], float], warp: float) -> None:
        self._wall = wall
        self._warp = warp
        self._zero = wall()
        self._stopped_at: float | None = None

    @property
    def is_stopped(self) -> bool:
        return self._stopped_at is not None

    def now(self) -> float:
        """The virtual time."""
        wall = self._wall() if self._stopped_at is None else self._stopped_at
        return (wall - self._zero) * self._warp

    def wall_at(self, virtual_s: float) -> float:
        """When, on the loop's clock, this virtual time comes."""
        return self._zero + virtual_s / self._warp

    def stop(self) -> None:
        """Let no time pass."""
        if self._stopped_at is None:
            self._stopped_at = self._wall()

    def go_on(self) -> None:
        """Let time pass again; what passed meanwhile did not happen."""
        if self._stopped_at is not None:
            self._zero += self._wall() - self._stopped_at
            self._stopped_at = None
