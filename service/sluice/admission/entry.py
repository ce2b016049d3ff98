"""One call's way through admission, as a context manager, and what may be told of it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import NamedTuple, Protocol

from sluice.admission.fair_queue import Place
from sluice.types import Call
from sluice.worker import Lease, Worker


class Standing(NamedTuple):
    """Where a waiting call stands."""

    position: int  # 1 is next
    eta_s: float | None  # None: nothing is known yet of how fast the queue drains


class Gate(Protocol):
    """What an entry asks of the admission that it is for."""

    def start_now(self, entry: Entry) -> Lease | None: ...
    async def wait(self, entry: Entry) -> Lease: ...
    def let_go(self, entry: Entry) -> None: ...
    def standing(self, entry: Entry) -> Standing | None: ...


class Entry(Place):
    """It waits its turn inside `__aenter__`, and holds its slot until `__aexit__`."""

    __slots__ = ("_gate", "done", "entered_at", "held_until", "is_queued", "lease", "started_at", "tried")

    def __init__(self, gate: Gate, call: Call, tried: Sequence[Worker], is_ahead: bool) -> None:
        super().__init__(call, is_ahead=is_ahead)
        self._gate = gate
        self.tried = tried
        self.entered_at = 0.0
        self.started_at = 0.0
        self.held_until: float | None = None  # a policy would rather have it wait so long for the worker of its choice
        self.is_queued = False
        self.done: asyncio.Future[None] | None = None
        self.lease: Lease | None = None

    async def __aenter__(self) -> Lease:
        lease = self._gate.start_now(self)
        return lease if lease is not None else await self._gate.wait(self)

    async def __aexit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        self._gate.let_go(self)

    @property
    def standing(self) -> Standing | None:
        """Where it stands; None where it does not wait."""
        return self._gate.standing(self) if self.is_queued else None
