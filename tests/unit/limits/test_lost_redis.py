"""A Redis whose connection is lost in the moment in which it is written to: uvloop says so by a `RuntimeError`."""

import asyncio
from typing import Any, Never

import pytest

from sluice.channel import RedisChannel
from sluice.limits.base import Ask, StoreAway
from sluice.limits.redis import RedisStore
from sluice.sharing import ChannelAway

NOWHERE = "redis://127.0.0.1:9/0"


class Lost:
    """redis-py's connection, on a transport of uvloop that has just been closed."""

    async def send(self, *_: Any, **__: Any) -> Never:
        raise RuntimeError("unable to perform operation on <TCPTransport closed=True>; the handler is closed")


async def test_a_call_is_told_that_the_store_is_away_and_the_background_goes_on(monkeypatch: pytest.MonkeyPatch):
    store = RedisStore(NOWHERE, timeout_s=1, replica="one")
    monkeypatch.setattr(store._redis, "script_load", Lost().send)
    with pytest.raises(StoreAway):
        await store.reserve(Ask("req-1", (), 1, 0))
    running = asyncio.create_task(store.run())
    for _ in range(20):
        await asyncio.sleep(0)
    assert not running.done() and store.is_away
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running


async def test_who_speaks_or_listens_on_a_channel_is_told_that_it_is_away(monkeypatch: pytest.MonkeyPatch):
    channel = RedisChannel(NOWHERE, timeout_s=1)
    monkeypatch.setattr(channel._redis, "publish", Lost().send)
    with pytest.raises(ChannelAway, match="closed=True"):
        await channel.publish(b"hello")
    monkeypatch.setattr("redis.asyncio.client.PubSub.subscribe", Lost().send)
    with pytest.raises(ChannelAway, match="closed=True"):
        await anext(channel.messages())
    await channel.close()
