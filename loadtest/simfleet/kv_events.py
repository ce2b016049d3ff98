"""KV cache events over ZeroMQ as vLLM publishes them: a PUB socket, and a ROUTER socket to ask for missed batches.

A batch is three parts: topic, 8-byte big-endian sequence number from 0, msgpack `[timestamp, [event, ...], rank]`. A
subscriber that is slow loses batches beyond the high-water mark; one that was not there asks the ROUTER, which keeps
the last `_MAX_KEPT` batches. A restarted worker counts from 0 again.
"""

import asyncio
import time
from collections import deque
from collections.abc import Sequence
from typing import Any

import msgspec
import zmq

from loadtest.simfleet.answer import Manuscript
from loadtest.simfleet.kv_cache import Cleared, Event, Removed, Stored

_MAX_KEPT = 10_000
_HIGH_WATER_MARK = 100_000
_END = (-1).to_bytes(8, "big", signed=True)
_RANK = 0


class Publisher:
    """Open until `close`. Both sockets are bound in the constructor: OSError if an address is taken, which it is for a
    moment after another publisher there was closed."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], endpoint: str, replay_endpoint: str | None, topic: str) -> None:
        self.endpoint = endpoint
        self.replay_endpoint = replay_endpoint
        self._topic = topic.encode()
        self._encode = msgspec.msgpack.Encoder().encode
        self._next_sequence = 0
        self._kept: deque[tuple[bytes, bytes]] = deque(maxlen=_MAX_KEPT)
        self._loop = asyncio.get_running_loop()
        self._pub = context.socket(zmq.PUB)
        self._pub.set_hwm(_HIGH_WATER_MARK)
        self._pub.linger = 0
        self._replay: zmq.Socket[bytes] | None = None
        try:
            self.endpoint = _bind(self._pub, endpoint)
            if replay_endpoint is not None:
                self._replay = context.socket(zmq.ROUTER)
                self._replay.linger = 0
                self.replay_endpoint = _bind(self._replay, replay_endpoint)
                self._loop.add_reader(self._replay.fileno(), self._answer_replays)
        except zmq.ZMQError as error:
            self.close()
            raise OSError(error.errno, f"KV events cannot be published at {endpoint}: {error}") from error

    def publish(self, events: Sequence[Event], block_size: int) -> None:
        """Send one batch."""
        batch = [time.time(), [_encode(event, block_size) for event in events], _RANK]
        sequence, payload = self._next_sequence.to_bytes(8, "big"), self._encode(batch)
        self._next_sequence += 1
        self._kept.append((sequence, payload))
        self._pub.send_multipart((self._topic, sequence, payload), zmq.NOBLOCK)
        # ZeroMQ's descriptor tells of a change once: what came while we sent is read now or never.
        self._answer_replays()

    def describe(self) -> dict[str, Any]:
        """The effective configuration, as `/kv_event_sources` shows it."""
        return {
            "enable_kv_cache_events": True,
            "publisher": "zmq",
            "endpoint": self.endpoint,
            "replay_endpoint": self.replay_endpoint,
            "buffer_steps": _MAX_KEPT,
            "hwm": _HIGH_WATER_MARK,
            "max_queue_size": _HIGH_WATER_MARK,
            "topic": self._topic.decode(),
        }

    def close(self) -> None:
        """Close both sockets; what is unsent is lost."""
        if self._replay is not None:
            self._loop.remove_reader(self._replay.fileno())
            self._replay.close()
            self._replay = None
        self._pub.close()

    def _answer_replays(self) -> None:
        while self._replay is not None and self._replay.poll(0):
            frames = self._replay.recv_multipart(zmq.NOBLOCK)
            if len(frames) != 3:
                continue
            client, _, start = frames
            for sequence, payload in self._kept:
                if sequence >= start:
                    self._send_replay((client, b"", self._topic, sequence, payload))
            self._send_replay((client, b"", b"", _END, b""))

    def _send_replay(self, frames: tuple[bytes, ...]) -> None:
        assert self._replay is not None
        self._replay.send_multipart(frames, zmq.NOBLOCK)


def _bind(socket: "zmq.Socket[bytes]", endpoint: str) -> str:
    socket.bind(endpoint)
    bound = socket.getsockopt(zmq.LAST_ENDPOINT)
    assert isinstance(bound, bytes)
    return bound.rstrip(b"\0").decode()


def _encode(event: Event, block_size: int) -> dict[str, Any]:
    if isinstance(event, Removed):
        return {"type": "BlockRemoved", "block_hashes": [event.hash], "medium": "GPU", "group_idx": 0}
    if isinstance(event, Cleared):
        return {"type": "AllBlocksCleared"}
    return _encode_stored(event, block_size)


def _encode_stored(event: Stored, block_size: int) -> dict[str, Any]:
    text = event.source
    assert isinstance(text, Manuscript)
    last = event.first + len(event.hashes)
    lora, salt = text.namespace.lora, text.namespace.cache_salt
    keys = [tuple(key for key in (lora, salt if at == 0 else None) if key) or None for at in range(event.first, last)]
    stored: dict[str, Any] = {
        "type": "BlockStored",
        "block_hashes": event.hashes,
        "parent_block_hash": event.parent,
        "token_ids": text.tokens(event.first * block_size, last * block_size),
        "block_size": block_size,
        "lora_id": text.namespace.lora_id,
        "medium": "GPU",
        "lora_name": lora,
        "extra_keys": keys,
        "group_idx": 0,
    }
    return stored
