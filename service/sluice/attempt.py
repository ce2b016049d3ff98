"""One try at a call: a slot on a worker, the request that goes there, and its answer; held until it is closed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from sluice import orca
from sluice.config import Route
from sluice.exchange import Exchange
from sluice.types import Call
from sluice.upstream.connections import Sending
from sluice.wire.events import EventStream
from sluice.wire.splice import Splice
from sluice.worker import Lease, Worker


class Slot(Protocol):
    """A slot on a worker, waited for on entering, and held until it is closed."""

    async def __aenter__(self) -> Lease: ...
    def close(self) -> None: ...


class Attempt:
    """What one try holds. `take` and `open` come once each, in this order; `close` lets everything go, at any time.

    It is an `AsyncExitStack` of two, written out: a stack costs a whole call 1.5 us more.
    """

    __slots__ = ("_clock", "_lease", "_sending", "_settings", "_slot", "exchange", "queued_s", "sent_at", "worker")

    def __init__(self, settings: Route, clock: Callable[[], float]) -> None:
        self._settings = settings
        self._clock = clock
        self._slot: Slot | None = None
        self._lease: Lease | None = None
        self._sending: Sending | None = None
        self.worker: Worker | None = None
        self.exchange: Exchange | None = None
        self.queued_s = 0.0
        self.sent_at: float | None = None

    async def take(self, slot: Slot) -> Worker:
        """Occupy the slot, when its turn has come. Raises where there is none to be had."""
        lease = self._lease = await slot.__aenter__()
        self._slot = slot
        self.worker, self.queued_s = lease.worker, lease.queued_s
        return lease.worker

    @property
    def reason(self) -> str:
        """Why this worker, where the call wants to know."""
        return self._lease.reason if self._lease is not None else ""

    async def open(
        self, call: Call, request_id: str, events: EventStream | None = None, splice: Splice | None = None
    ) -> Exchange:
        """Send the request, and wait for the first event or the whole answer. Raises what comes instead."""
        worker, lease = self.worker, self._lease
        assert worker is not None and lease is not None
        asks_orca = worker.asks_orca and not call.stream
        body = call.body if call.stamp is None else call.stamp(worker.url)
        head = worker.connections.head(
            call.method,
            call.path,
            content_type=call.content_type,
            length=len(body) if isinstance(body, bytes) else sum(map(len, body)),
            request_id=request_id,
            headers=(*call.headers, orca.ASKING) if asks_orca else call.headers,
        )
        sending = await worker.connections.send(head, body).__aenter__()
        self._sending = sending
        self.sent_at = self._clock()
        exchange = self.exchange = lease.meter = Exchange(call, self._settings, sending, events, splice)
        await exchange.open()
        if asks_orca:
            orca.hear(worker, sending.answer.headers, self._clock())
        lease.prefilled()
        return exchange

    def close(self) -> None:
        if self.exchange is not None:
            self.exchange.close()
        sending, self._sending = self._sending, None
        slot, self._slot = self._slot, None
        try:
            if sending is not None:
                sending.close()
        finally:
            if slot is not None:
                slot.close()
