"""What a worker's engine tells of its KV cache as it goes: blocks stored, removed, all of them cleared (ZeroMQ).

The events never say which prompt a block belongs to: that would need its tokens. They tell when the worker's cache is empty
(cleared, or the worker was started anew), when something was missed (then nothing is known of it either), and at which rates
blocks come and go, which is how long one stays. The publisher is a worker: its messages are bounded, and nonsense is a gap.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import urlsplit

import msgspec
import zmq
import zmq.asyncio

from sluice.asking import ask_json
from sluice.config import Probes, Workers
from sluice.http_json import HttpJsonError
from sluice.worker import Worker

SOURCES = "/kv_event_sources"
RETRY_S = 10.0
RATES_S = 10.0  # over so long rates are taken
MAX_MESSAGE_BYTES = 67_108_864
MAX_WAITING = 10_000  # messages that we have not read yet; beyond it they are lost, and that is a gap
MAX_RANKS = 64
ENDPOINT = re.compile(r"tcp://[^/]*:([0-9]{1,5})")

logger = logging.getLogger("sluice.kv_events")

new_context = zmq.asyncio.Context  # one is enough for a process: it has a thread


class Event(msgspec.Struct):
    """The members that we read of any event; prompts' tokens are passed over."""

    type: str
    block_hashes: list[msgspec.Raw] = []
    medium: str | None = None


class KvEvents:
    """Follows the events of one worker until cancelled. `on_empty`: its cache is empty, or unknown. `on_rates`: its
    `Worker.cache` has new rates."""

    def __init__(
        self,
        worker: Worker,
        context: zmq.asyncio.Context,
        settings: Workers,
        probes: Probes,
        clock: Callable[[], float],
        *,
        on_empty: Callable[[], None],
        on_rates: Callable[[], None],
    ) -> None:
        self._worker = worker
        self._context = context
        self._port = settings.kv_events_port
        self._timeout_s = probes.timeout_s
        self._clock = clock
        self._on_empty = on_empty
        self._on_rates = on_rates
        self._events = msgspec.msgpack.Decoder(list[msgspec.Raw])
        self._event = msgspec.msgpack.Decoder(list[Event])
        # By data-parallel rank, the sequence number of its last batch
        self._last: dict[int, int] = {}
        # Since the cache was empty, where that was seen; and since the rates were taken last
        self._num_held: int | None = None
        self._num_stored = self._num_removed = 0
        self._since = clock()

    async def run(self, sleep: Callable[[float], Awaitable[Any]] = asyncio.sleep) -> None:
        while not (endpoints := await self._endpoints()):
            await sleep(RETRY_S)
        with self._context.socket(zmq.SUB) as socket:
            socket.linger = 0
            socket.rcvhwm = MAX_WAITING
            socket.maxmsgsize = MAX_MESSAGE_BYTES
            socket.ipv6 = True
            socket.subscribe(b"")
            try:
                for endpoint in endpoints:
                    socket.connect(endpoint)
            except zmq.ZMQError as exc:
                logger.warning("worker %s: its KV events cannot be followed: %s", self._worker.url, exc)
                return
            while True:
                self.take(await socket.recv_multipart())

    async def _endpoints(self) -> list[str]:
        """Where the worker publishes: the ports are its word, the host is always its own."""
        host = urlsplit(self._worker.url).hostname or ""
        host = f"[{host}]" if ":" in host else host
        if self._port is not None:
            return [f"tcp://{host}:{self._port}"]
        try:
            sources = await ask_json(self._worker, SOURCES, self._timeout_s)
        except HttpJsonError:
            return []
        return [f"tcp://{host}:{port}" for port in ports_of(sources)]

    def take(self, parts: list[bytes]) -> None:
        """One batch: topic, sequence number, `[timestamp, events, rank]`."""
        try:
            _, sequence, payload = parts
            _, events, *rank = self._events.decode(payload)
            self._follow(int.from_bytes(sequence, "big"), msgspec.msgpack.decode(rank[0], type=int) if rank else 0)
            for event in self._event.decode(events):
                self._count(event)
        except (ValueError, msgspec.MsgspecError, RecursionError) as exc:
            logger.warning("worker %s: an event of its KV cache is none: %s", self._worker.url, str(exc)[:200])
            self._lost()
        if (passed_s := self._clock() - self._since) >= RATES_S:
            self._tell_rates(passed_s)

    def _follow(self, number: int, rank: int) -> None:
        last = self._last.get(rank)
        if len(self._last) < MAX_RANKS or rank in self._last:
            self._last[rank] = number
        if number == 0 and len(self._last) == 1:  # it begins: all that comes is known
            self._num_held = 0
            if last is not None:
                self._on_empty()
        elif last is not None and number != last + 1:
            self._lost()

    def _count(self, event: Event) -> None:
        if event.medium not in (None, "GPU"):
            return
        num = len(event.block_hashes)
        if event.type == "BlockStored":
            self._num_stored += num
            self._num_held = None if self._num_held is None else self._num_held + num
        elif event.type == "BlockRemoved":
            self._num_removed += num
            self._num_held = None if self._num_held is None else max(0, self._num_held - num)
        elif event.type == "AllBlocksCleared":
            self._num_held = 0
            self._on_empty()

    def _lost(self) -> None:
        """Something was missed: an emptied cache, perhaps."""
        self._num_held = None
        self._on_empty()

    def _tell_rates(self, passed_s: float) -> None:
        self._worker.cache = self._worker.cache._replace(
            num_held=self._num_held,
            stored_per_s=self._num_stored / passed_s,
            removed_per_s=self._num_removed / passed_s,
        )
        self._num_stored = self._num_removed = 0
        self._since = self._clock()
        self._on_rates()


def ports_of(sources: Any) -> list[int]:
    """Where each rank publishes, in a `/kv_event_sources`; whatever else it holds is passed over."""
    ranks = list(sources.values()) if isinstance(sources, dict) else []
    told = [rank.get("endpoint") for rank in ranks[:MAX_RANKS] if isinstance(rank, dict) and rank.get("publisher") == "zmq"]
    found = [ENDPOINT.fullmatch(endpoint) for endpoint in told if isinstance(endpoint, str)]
    return sorted({port for one in found if one and 0 < (port := int(one[1])) < 65_536})
