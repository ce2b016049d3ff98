"""How many calls a replica may have at one worker, so that its engine is full and its queue is short.

Additive increase, multiplicative decrease on what the engine says of itself, a round of a second or more at a time. What
counts is the queue that stood there through the whole round, its shortest length (as in CoDel, Nichols and Jacobson 2012):
a call that waits for the next step is no queue. Where more stood than are wanted, the window shrinks by just the share that
was too much: all replicas by the same factor, so that after a while they have equal shares (Chiu and Jain, 1989), but none
to less than half of its part of what the engine has room for. Where none stood, the engine's cache is not nearly full, and
calls waited here, the window grows: now and then by our part of one call, since each try makes somebody wait in the engine,
and twofold a round at first, where its cache has become emptier, and where it has long not been full in spite of those tries
and runs more than it ran when it was. (Calls that come and go leave gaps in a queue of one or two, so that it is not seen.)
While such a try lasts no slot is spared there: who is tried is one of many, and not the one that a spared slot is for. It has
failed where a queue stands, and where the engine did not run more than when it was full, be it that it was not given more: a
slot that nobody has tried would be the spared one, of a light tenant who then waits in the engine.

Calls also stand in an engine that lacks no room but time, while it computes long prompts: it runs few then, some that get
their tokens and the one whose prompt it is. A window of so few would keep the next prompt away when it is done. So where its
cache has room, the window is not less than the most that the engine ran in the last minute.

An engine that says nothing new leaves the window as it is; one that never said anything has none: we could only guess.
One that lies may get too much work or too little, but never none: a window is at least 1.
"""

from __future__ import annotations

from collections import deque
from math import ceil, inf

from sluice.config import Queue
from sluice.worker import EngineLoad, Worker

ROUND_S = 1.0
MIN_SAMPLES = 2
PROBE_ROUNDS = 30
FAST_ROUNDS = 60
TRIED_ROUNDS = 3  # how long a try lasts, where no queue ends it
RAN_ROUNDS = 60  # in which what an engine ran shows that it has room for so many, where its cache is less than half full
KV_DROP = 0.2  # of the cache, since the engine was full: calls have become smaller, and there is room for more of them
KV_FACTOR = 0.9


class Window:
    """The window of one worker; `Worker.window` is what it comes to. `share` is our part of all replicas."""

    __slots__ = (
        "_began_at",
        "_calm_rounds",
        "_full_kv",
        "_full_running",
        "_had_waiting",
        "_lately",
        "_num_samples",
        "_ran",
        "_read_at",
        "_settings",
        "_size",
        "_stood",
        "_tried_rounds",
        "_was_refused",
        "_worker",
    )

    def __init__(self, worker: Worker, settings: Queue, share: float) -> None:
        self._worker = worker
        self._settings = settings
        self._size = settings.start_in_flight * share  # not whole: small steps add up
        self._calm_rounds = (
            FAST_ROUNDS  # in which calls waited here and none stood in the engine; none yet says that it is full
        )
        self._full_kv = 0.0  # how full its cache was when the engine was full
        self._full_running = 0  # and how many calls it ran
        self._lately: deque[int] = deque(maxlen=RAN_ROUNDS)  # by round: the most that it ran
        self._tried_rounds = 0  # that are left of a try
        self._read_at = -inf
        # Of the round that goes on
        self._began_at = -inf
        self._num_samples = 0
        self._stood = inf  # the fewest that waited in the engine
        self._ran = 0  # the most that it ran
        self._had_waiting = False
        self._was_refused = False
        if settings.max_in_flight is not None:
            worker.window = float(max(1, ceil(settings.max_in_flight * share)))

    @property
    def is_tried(self) -> bool:
        """Whether it is being tried if the engine has room for one call more."""
        return self._tried_rounds > 0

    def look(self, share: float, *, had_waiting: bool, spared: int = 0) -> None:
        """Take account of what the engine last said, and of whether calls have waited here since the last look. Those that wait
        because the last slots are spared say nothing of the window: it would grow until the spared ones are beyond the engine's
        room. So beyond what the engine ran when it was full it grows only where all slots are taken."""
        is_spare = spared > 0 and self._worker.in_flight < self._worker.window
        self._had_waiting |= had_waiting and not (is_spare and 0 < self._full_running * share <= self._size)
        load = self._worker.load
        if load is None or load.read_at <= self._read_at:
            return
        self._read_at = load.read_at
        if load.num_waiting_for_capacity and not load.num_running:  # it is not full: it does not work
            return
        self._num_samples += 1
        self._stood = min(self._stood, load.num_waiting_for_capacity)
        self._ran = max(self._ran, load.num_running)
        if load.read_at - self._began_at < ROUND_S or (self._num_samples < MIN_SAMPLES and self._began_at > -inf):
            return
        self._lately.append(self._ran)
        if self._tried_rounds:
            self._tried_rounds -= 1
            if not self._tried_rounds and self._has_failed():
                self._size -= share
        self._adapt(load, share)
        self._began_at, self._num_samples, self._stood, self._ran = load.read_at, 0, inf, 0
        self._had_waiting = self._was_refused = False
        most = self._settings.max_in_flight
        self._worker.window = float(max(1, ceil(self._size if most is None else min(self._size, most * share))))

    def refused(self) -> None:
        """The engine refused a call because its own queue is full: what it has of ours is as much as it takes, but at most
        half of the window is lost in a round. Where its load is not known the window would not grow again, so it stays."""
        if self._read_at > -inf and not self._was_refused:
            self._size = max(1.0, self._size / 2, min(self._size, float(self._worker.in_flight)))
            self._calm_rounds, self._was_refused = 0, True
            self._worker.window = min(self._worker.window, ceil(self._size))

    def _adapt(self, load: EngineLoad, share: float) -> None:
        wanted = self._settings.engine_waiting
        if self._stood > wanted:
            total = load.num_running + load.num_waiting_for_capacity
            room = max(1, total - (self._stood - wanted))
            if load.kv_usage < self._settings.max_kv_usage / 2:
                room = max(room, wanted + max(self._lately))
            # What we had there counts and not the window, which may have been too large to matter, or not there yet.
            self._size = max(min(1.0, self._worker.in_flight / total) * room, room * share / 2)
            self._note_full(load)
        elif load.kv_usage > self._settings.max_kv_usage:
            self._size = min(self._size, self._worker.in_flight * KV_FACTOR)
            self._note_full(load)
        elif self._had_waiting and self._stood < max(1, wanted):
            self._calm_rounds += 1
            has_grown = self._calm_rounds > FAST_ROUNDS and self._ran > self._full_running
            if has_grown or self._full_kv - load.kv_usage > KV_DROP:
                self._size += self._size
            elif self._calm_rounds % PROBE_ROUNDS == 0:
                self._size += share
                self._tried_rounds = TRIED_ROUNDS
        self._size = max(self._size, 1.0)

    def _has_failed(self) -> bool:
        """Of the try that is over: the engine did not run more than when it was full."""
        return max(list(self._lately)[-TRIED_ROUNDS:]) <= self._full_running

    def _note_full(self, load: EngineLoad) -> None:
        self._calm_rounds, self._full_kv, self._full_running = 0, load.kv_usage, self._ran
        self._tried_rounds = 0
