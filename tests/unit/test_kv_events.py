"""KV cache events: what they tell of a cache, and that whatever was missed is not taken for known."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest
import zmq
import zmq.asyncio
from hypothesis import given
from hypothesis import strategies as st

from sluice.config import Probes, Workers
from sluice.kv_events import RATES_S, KvEvents, ports_of
from sluice.upstream.connections import Connections
from sluice.worker import Worker
from tests.support import scripts
from tests.support.scripted_worker import ScriptedWorker

encode = msgspec.msgpack.encode


class Followed:
    """A worker whose batches the test makes up, at times that it sets."""

    def __init__(self, url: str = "http://127.0.0.1:8000", context: Any = None, port: int | None = None) -> None:
        self.worker = Worker(url, Connections(url))
        self.now = 0.0
        self.num_emptied = 0
        self.num_rates = 0
        settings = Workers.model_validate({"static": ["http://a"], "kv_events": True, "kv_events_port": port})
        self.events = KvEvents(
            self.worker,
            context,
            settings,
            Probes(timeout_s=10),
            lambda: self.now,
            on_empty=self._emptied,
            on_rates=self._rated,
        )

    def _emptied(self) -> None:
        self.num_emptied += 1

    def _rated(self) -> None:
        self.num_rates += 1

    def take(self, number: int, *events: Any, rank: int = 0) -> None:
        self.events.take([b"kv", number.to_bytes(8, "big"), encode([1.0, list(events), rank])])


def stored(*hashes: Any, medium: str | None = "GPU") -> dict[str, Any]:
    event = {"type": "BlockStored", "block_hashes": list(hashes), "parent_block_hash": None, "token_ids": [1, 2, 3]}
    return event if medium is None else event | {"medium": medium}


def removed(*hashes: Any) -> dict[str, Any]:
    return {"type": "BlockRemoved", "block_hashes": list(hashes), "medium": "GPU"}


CLEARED = {"type": "AllBlocksCleared"}


def test_rates_and_what_is_held_are_those_of_the_events():
    one = Followed()
    one.take(0, stored(1, 2, b"three", -4), stored(5, medium=None))
    one.take(1, removed(1))
    assert one.num_rates == 0
    one.now = RATES_S
    one.take(2, stored(6), removed(2))
    cache = one.worker.cache
    assert (one.num_rates, one.num_emptied) == (1, 0)
    assert (cache.num_held, cache.stored_per_s, cache.removed_per_s) == (4, 0.6, 0.2)
    assert cache.age_s == 20
    one.now = 2 * RATES_S
    one.take(3)
    assert (one.worker.cache.stored_per_s, one.worker.cache.age_s) == (0, None)


def test_blocks_elsewhere_than_on_the_gpu_are_not_counted():
    one = Followed()
    one.take(0, stored(1, medium="CPU"), stored(2))
    one.now = RATES_S
    one.take(1)
    assert one.worker.cache.num_held == 1


@pytest.mark.parametrize(
    ("numbers", "num_emptied"),
    [((0, 1, 2), 0), ((7, 8), 0), ((7, 9), 1), ((7, 9, 10), 1), ((7, 6), 1), ((7, 0, 1), 1), ((7, 7), 1)],
)
def test_a_gap_or_a_new_beginning_empties_what_is_known(numbers, num_emptied):
    one = Followed()
    for number in numbers:
        one.take(number, stored(number))
    assert one.num_emptied == num_emptied


def test_after_a_gap_it_is_not_known_what_is_held_until_all_is_cleared():
    one = Followed()
    one.take(5, stored(1))
    one.now = RATES_S
    one.take(6, stored(2), removed(1))
    cache = one.worker.cache
    assert cache.num_held is None and cache.age_s is None
    assert cache._replace(num_blocks=1000).age_s == 10_000  # it must be full
    one.take(7, CLEARED)
    one.take(8, stored(3))
    one.now = 2 * RATES_S
    one.take(9)
    assert (one.worker.cache.num_held, one.num_emptied) == (1, 1)


def test_each_rank_counts_for_itself():
    one = Followed()
    for number, rank in [(0, 0), (5, 1), (1, 0), (6, 1)]:
        one.take(number, stored(1), rank=rank)
    assert one.num_emptied == 0
    one.take(8, rank=1)
    assert one.num_emptied == 1


@pytest.mark.parametrize(
    "parts",
    [
        [],
        [b"kv"],
        [b"kv", b"\0" * 8],
        [b"kv", b"\0" * 8, b""],
        [b"kv", b"\0" * 8, b"\xc1"],
        [b"kv", b"\0" * 8, encode(7)],
        [b"kv", b"\0" * 8, b"\x93\x01" + b"\x91" * 200_000],
        [b"kv", b"\0" * 8, encode([1.0])],
        [b"kv", b"\0" * 8, encode([1.0, [{"type": 7}], 0])],
        [b"kv", b"\0" * 8, encode([1.0, [{"type": "BlockStored", "block_hashes": 7}], 0])],
        [b"kv", b"\0" * 8, encode([1.0, [], "first"])],
    ],
)
def test_nonsense_is_a_gap(parts, caplog):
    one = Followed()
    one.events.take(parts)
    assert one.num_emptied == 1 and "an event of its KV cache is none" in caplog.text


@given(st.lists(st.binary(max_size=30), max_size=4))
def test_any_bytes_are_taken(parts):
    Followed().events.take(parts)


def test_events_that_are_not_known_yet_are_passed_over():
    one = Followed()
    one.take(0, {"type": "BlockMoved", "from": 1}, stored(1))
    assert one.num_emptied == 0


# Where they come from


@pytest.mark.parametrize(
    ("sources", "ports"),
    [
        ({"0": {"publisher": "zmq", "endpoint": "tcp://*:5557", "replay_endpoint": "tcp://*:5558"}}, [5557]),
        ({str(k): {"publisher": "zmq", "endpoint": f"tcp://*:{5557 + k}"} for k in (1, 0)}, [5557, 5558]),
        ({"0": {"publisher": "zmq", "endpoint": "tcp://evil.example:5557"}}, [5557]),
        ({"0": {"publisher": "null", "endpoint": "tcp://*:5557"}}, []),
        ({"0": {"publisher": "zmq", "endpoint": "ipc:///tmp/x"}}, []),
        ({"0": {"publisher": "zmq", "endpoint": "tcp://*:99999"}}, []),
        ({"0": {"publisher": "zmq", "endpoint": 7}, "1": 7}, []),
        ({}, []),
        ([], []),
        (None, []),
    ],
)
def test_the_ports_are_the_workers_word(sources, ports):
    assert ports_of(sources) == ports


@asynccontextmanager
async def publisher() -> AsyncIterator[tuple[zmq.asyncio.Context, Any, int]]:
    context = zmq.asyncio.Context()
    socket = context.socket(zmq.XPUB)
    try:
        port = socket.bind_to_random_port("tcp://127.0.0.1")
        yield context, socket, port
    finally:
        context.destroy(linger=0)


@pytest.mark.parametrize("is_told_the_port", [True, False])
async def test_a_worker_is_followed_over_the_wire(is_told_the_port):
    naps: list[float] = []

    async def sleep(seconds: float) -> None:
        naps.append(seconds)
        scripted.on("/kv_event_sources", scripts.reply(200, {"0": {"publisher": "zmq", "endpoint": f"tcp://*:{port}"}}))

    async with ScriptedWorker() as scripted, publisher() as (context, socket, port):
        one = Followed(scripted.url, context, port if is_told_the_port else None)
        emptied = asyncio.Event()
        one.events._on_empty = emptied.set
        task = asyncio.create_task(one.events.run(sleep))
        try:
            async with asyncio.timeout(60):
                assert await socket.recv() == b"\x01"  # it has subscribed, to everything
                await socket.send_multipart([b"kv", bytes(8), encode([1.0, [stored(1), CLEARED], 0])])
                await emptied.wait()
        finally:
            task.cancel()
            await asyncio.wait({task})
            one.worker.connections.close()
    assert len(naps) == (0 if is_told_the_port else 1)


async def test_a_worker_whose_address_cannot_be_followed_is_said_and_left(caplog):
    async with publisher() as (context, _, port):
        await Followed("http://worker name:8000", context, port).events.run()
    assert "its KV events cannot be followed" in caplog.text
