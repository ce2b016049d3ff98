"""How fast the queue of a route drains, how long what waits will take, and when who is sent away should come back."""

from __future__ import annotations

from math import exp

SMOOTHED_OVER_S = 5.0
SAMPLE_S = 0.2  # calls that start together are one sample
MAX_RETRY_S = 60.0  # clients follow a longer one badly


class Drain:
    """Tokens that start in a second, while calls wait. Before some have started nothing is known.

    Idle times do not count: then the rate is that of the clients and not of the workers.
    """

    def __init__(self) -> None:
        self._rate: float | None = None  # tokens a second
        self._since: float | None = None  # when the sample began; None: none waits
        self._cost = 0.0  # of the sample
        self._last_cost = 0.0  # of the sample before
        self._promised = 0.0  # what has been sent away, and was told to come back
        self._promised_at = 0.0

    def begin(self, now: float) -> None:
        """Calls begin to wait."""
        self._since, self._cost = now, 0.0

    def started(self, cost: float, now: float) -> None:
        """A call that waited has started."""
        if self._since is None:
            return
        self._cost += cost
        lasted_s = now - self._since
        if lasted_s < SAMPLE_S:
            return
        sample = self._cost / lasted_s
        rate = sample if self._rate is None else self._rate
        self._rate = rate + (sample - rate) * (1.0 - exp(-lasted_s / SMOOTHED_OVER_S))
        self._since, self._cost, self._last_cost = now, 0.0, self._cost

    def end(self) -> None:
        """None waits any more."""
        self._since = None

    def rate(self, now: float) -> float | None:
        """Tokens a second; less where nothing has started for long. None: unknown."""
        rate = self._rate
        if rate is not None and self._since is not None and (silent_s := now - self._since) > SMOOTHED_OVER_S:
            rate = min(rate, self._last_cost / silent_s)
        return rate

    def wait_s(self, cost: float, now: float) -> float | None:
        """How long until so many tokens have started; None where that is unknown."""
        rate = self.rate(now)
        return None if rate is None else cost / max(rate, 1e-9)

    def retry_after_s(self, waiting_cost: float, cost: float, now: float) -> float:
        """When a call that is sent away should come back: once what waits now has started, and what was sent away before it
        and comes back too. So they do not all come back at once, but as fast as there is room for them."""
        rate = self.rate(now)
        if rate is None:
            return 1.0
        self._promised = max(0.0, self._promised - rate * (now - self._promised_at))
        self._promised_at = now
        self._promised = min(self._promised + cost, MAX_RETRY_S * rate)
        return min(MAX_RETRY_S, max(1.0, (waiting_cost + self._promised) / max(rate, 1e-9)))
