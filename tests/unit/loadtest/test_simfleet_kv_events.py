"""KV events as a subscriber gets them, through real ZeroMQ sockets."""

import asyncio
from typing import Any

import msgpack
import zmq
import zmq.asyncio

from loadtest.simfleet.fleet import Fleet
from tests.unit.loadtest.simfleet_client import PLAIN, client, fleet, order, until

PROMPT = list(range(1000, 1040))


class Subscriber:
    """The two sockets of a subscriber of worker 0."""

    def __init__(self, running: Fleet) -> None:
        endpoints = running.workers[0].kv_endpoints
        assert endpoints is not None and endpoints.replay_endpoint is not None
        self._context = zmq.asyncio.Context()
        self._sub, self._replay = self._context.socket(zmq.SUB), self._context.socket(zmq.DEALER)
        self._sub.subscribe(b"kv")
        self._sub.connect(endpoints.endpoint)
        self._replay.connect(endpoints.replay_endpoint)

    def __enter__(self) -> "Subscriber":
        return self

    def __exit__(self, *error: object) -> None:
        self._sub.close(linger=0)
        self._replay.close(linger=0)
        self._context.term()

    async def batch(self) -> tuple[int, list[dict[str, Any]]]:
        async with asyncio.timeout(60):
            topic, sequence, payload = await self._sub.recv_multipart()
        assert topic == b"kv"
        return int.from_bytes(sequence, "big"), msgpack.unpackb(payload)[1]

    async def replay(self, start: int) -> list[tuple[int, list[dict[str, Any]]]]:
        await self._replay.send_multipart([b"", start.to_bytes(8, "big")])
        batches = []
        async with asyncio.timeout(60):
            while True:
                _, _, sequence, payload = await self._replay.recv_multipart()
                number = int.from_bytes(sequence, "big", signed=True)
                if number == -1:
                    return batches
                timestamp, events, rank = msgpack.unpackb(payload)
                assert timestamp > 0 and rank == 0
                batches.append((number, events))


async def replayed(running: Fleet) -> list[tuple[int, list[dict[str, Any]]]]:
    with Subscriber(running) as subscriber:
        return await subscriber.replay(0)


async def ask(running: Fleet, **more: Any) -> None:
    async with client(running) as http:
        body = {"prompt": PROMPT, "max_tokens": 1, **more}
        assert (await http.post("/v1/completions", json=body)).status_code == 200


async def test_stored_blocks_name_their_hashes_tokens_and_parent() -> None:
    async with fleet(kv_events_port=0, kv_replay_port=0) as running:
        await ask(running, max_tokens=30, ignore_eos=True)
        ((first, (prompt,)), *later) = await replayed(running)
    assert first == 0
    assert prompt["type"] == "BlockStored"
    assert (prompt["token_ids"], prompt["block_size"], prompt["parent_block_hash"]) == (PROMPT[:32], 16, None)
    assert len(prompt["block_hashes"]) == 2 and prompt["medium"] == "GPU" and prompt["extra_keys"] == [None, None]
    assert [number for number, _ in later] == list(range(1, len(later) + 1))
    (answer,) = later[0][1]
    assert answer["parent_block_hash"] == prompt["block_hashes"][-1]
    assert answer["token_ids"][:8] == PROMPT[32:]


async def test_salt_and_adapter_are_told_as_extra_keys() -> None:
    async with fleet(kv_events_port=0, kv_replay_port=0, worker={"lora_modules": {"ada": "/ada"}}) as running:
        await ask(running, cache_salt="tenant", model="ada")
        ((_, (stored,)),) = await replayed(running)
    assert stored["extra_keys"] == [["ada", "tenant"], ["ada"]]
    assert (stored["lora_name"], stored["lora_id"]) == ("ada", 1)


async def test_evicted_blocks_and_a_reset_are_told() -> None:
    profile = PLAIN.changed(num_kv_blocks=4, max_model_len=64)
    async with fleet(kv_events_port=0, kv_replay_port=0, worker={"profile": profile}) as running, client(running) as http:
        await ask(running)
        await ask(running, prompt=list(range(2000, 2060)))
        await http.post("/reset_prefix_cache")
        batches = await replayed(running)
        hashes = batches[0][1][0]["block_hashes"]
        told = [event for _, events in batches[1:] for event in events]
    removed = [event["block_hashes"] for event in told if event["type"] == "BlockRemoved"]
    assert removed == [[hashes[1]], [hashes[0]]]
    assert told[-1] == {"type": "AllBlocksCleared"}


async def test_a_subscriber_gets_batches_in_order_and_a_replay_from_where_it_asks() -> None:
    async with fleet(kv_events_port=0, kv_replay_port=0) as running:
        with Subscriber(running) as subscriber:
            # A subscription takes effect some time after connect, so the first batches may be missed: that is what the
            # replay is for.
            first = asyncio.create_task(subscriber.batch())
            asked = 0
            while not first.done():
                await ask(running, prompt=list(range(3000 + asked, 3040 + asked)))
                asked += 1
            sequence, _ = await first
            await ask(running, prompt=list(range(9000, 9040)))
            following = [await subscriber.batch() for _ in range(asked - sequence)]
            missed = await subscriber.replay(0)
            tail = await subscriber.replay(asked - 1)
    assert [number for number, _ in following] == list(range(sequence + 1, asked + 1))
    assert [number for number, _ in missed] == list(range(asked + 1))
    assert missed[-1] == following[-1]
    assert tail == missed[-2:]


async def test_a_restarted_worker_counts_from_zero_at_the_same_address() -> None:
    async with fleet(kv_events_port=0, kv_replay_port=0) as running:
        await ask(running)
        await ask(running, prompt=list(range(2000, 2040)))
        before = running.workers[0].kv_endpoints
        async with client(running) as http:
            await order(http, kind="restart")
        await until(running, state="up", num_starts=2)
        assert running.workers[0].kv_endpoints == before
        await ask(running)
        batches = await replayed(running)
    assert [number for number, _ in batches] == [0]


async def test_the_sources_are_listed_and_none_without_events() -> None:
    for port, sources in ((0, ["0"]), (None, [])):
        async with fleet(kv_events_port=port) as running, client(running) as http:
            assert list((await http.get("/kv_event_sources")).json()) == sources
