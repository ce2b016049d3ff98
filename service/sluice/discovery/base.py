"""What a discovery is: it says who the workers of a route are, and goes on saying so."""

from __future__ import annotations

import logging
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass

logger = logging.getLogger("sluice.discovery")


@dataclass(frozen=True, slots=True)
class Found:
    """A worker as discovery sees it. Another `identity` at the same URL is another process: nothing known of it holds."""

    url: str
    identity: str = ""
    is_draining: bool = False  # it ends what it has and gets nothing new


class Discovery(ABC):
    """The workers of one route, as their source knows them.

    Rule of use: `watch` runs until it is cancelled and yields the whole set whenever it may have changed, the first time
    once it is known. What cannot be asked keeps its last set: `watch` raises nothing, counts the failure and says it once in
    the log. `confirmed_at` is when the source last said that the set is so.
    """

    initial: tuple[Found, ...] = ()  # who they are before anybody is asked
    is_certain: bool = False  # whether it is believed at once that many workers are gone

    def __init__(self, name: str, clock: Callable[[], float] = time.monotonic) -> None:
        self.confirmed_at: float | None = None
        self.num_failures = 0
        self._name = name
        self._clock = clock
        self._trouble = ""

    @abstractmethod
    def watch(self) -> AsyncGenerator[frozenset[Found], None]: ...

    def confirmed(self) -> None:
        self.confirmed_at = self._clock()
        if self._trouble:
            logger.warning("%s: workers can be found again", self._name)
            self._trouble = ""

    def failed(self, trouble: str) -> None:
        self.num_failures += 1
        if trouble != self._trouble:
            logger.warning("%s: workers cannot be found, the last ones stay: %s", self._name, trouble)
            self._trouble = trouble

    @property
    def trouble(self) -> str:
        """Why the source cannot be asked; empty where it can."""
        return self._trouble
