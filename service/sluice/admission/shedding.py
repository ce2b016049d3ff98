"""Which calls may wait, and what those are told that may not: bounds in number, tokens and predicted time."""

from __future__ import annotations

from math import ceil

from sluice.admission.drain import Drain
from sluice.admission.fair_queue import FairQueue, Place
from sluice.config import Queue
from sluice.errors import Overloaded

REASONS = ("number", "tokens", "wait", "deadline", "displaced", "timeout")
LEARNT_SHARE = 0.05


class Shedding:
    """The bounds of one queue. What a place is asked for here has joined it, and does not wait yet."""

    def __init__(self, settings: Queue, queue: FairQueue, drain: Drain) -> None:
        self._settings = settings
        self._queue = queue
        self._drain = drain
        self._s_per_token: float | None = None  # from the start of a call to its end, over the tokens of its answer
        self.num_shed = dict.fromkeys(REASONS, 0)

    def objection(self, place: Place, now: float) -> str | None:
        """Why a call may not wait. Where another one's loss is fairer, that one is to be shed for it: `victim`."""
        wait_s = self._drain.wait_s(self._queue.cost_before(place), now) or 0.0
        if wait_s > self._settings.timeout_s:
            return "wait"
        if self.is_too_late(place, now + wait_s):
            return "deadline"
        reason = self._excess(place)
        return None if reason is None or self.victim(place) is not None else reason

    def victim(self, place: Place) -> Place | None:
        """The waiting call whose loss is fairer than that of `place`, as long as the bounds ask for one."""
        if self._excess(place) is None:
            return None
        last = self._queue.last()
        return last if last is not None and self._queue.outweighs(last, place) else None

    def is_too_late(self, place: Place, now: float) -> bool:
        """Whether a call that starts now would take longer than it may, by what calls have taken so far."""
        return now + (self._s_per_token or 0.0) * place.call.output_tokens > place.call.deadline

    def shed(self, place: Place, reason: str, now: float) -> Overloaded:
        """What the client is told; it is counted."""
        self.num_shed[reason] += 1
        wait_s = self._drain.retry_after_s(self._queue.waiting_cost, place.cost, now)
        if reason == "deadline":
            said = "This request cannot be answered within the time that it was given: the model is busy"
        else:
            said = "The model is busy, and as many requests wait for it as may"
        return Overloaded(f"{said}. Try again in {ceil(wait_s)} s.", retry_after_s=wait_s)

    def took(self, seconds: float, num_tokens: int) -> None:
        """A call has come to its end."""
        sample = seconds / num_tokens
        before = sample if self._s_per_token is None else self._s_per_token
        self._s_per_token = before + (sample - before) * LEARNT_SHARE

    def _excess(self, place: Place) -> str | None:
        settings, queue = self._settings, self._queue
        if len(queue) >= settings.max_waiting:
            return "number"
        if queue and queue.waiting_cost + place.cost > settings.max_waiting_tokens:
            return "tokens"
        return None
