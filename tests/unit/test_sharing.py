"""Gateways that tell each other what they placed, over a channel that may be anything."""

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress

import pytest

from sluice.sharing import ID_BYTES, MAX_BYTES, ROUND_S, WHOLE_S, ChannelAway, Sharing
from tests.unit.test_placements import Side


class Air:
    """A channel in this process: whoever listens gets what is published from then on."""

    def __init__(self) -> None:
        self.listeners: list[asyncio.Queue[bytes | None]] = []
        self.is_away = False
        self.is_closed = False

    async def publish(self, message: bytes) -> int:
        if self.is_away:
            raise ChannelAway("gone")
        for listener in self.listeners:
            listener.put_nowait(message)
        return len(self.listeners)

    async def messages(self) -> AsyncGenerator[bytes]:
        if self.is_away:
            raise ChannelAway("gone")
        self.listeners.append(queue := asyncio.Queue())
        try:
            while (message := await queue.get()) is not None:
                yield message
            raise ChannelAway("cut")
        finally:
            self.listeners.remove(queue)

    async def close(self) -> None:
        self.is_closed = True

    def cut(self) -> None:
        for listener in self.listeners:
            listener.put_nowait(None)


class Gateway:
    """One that shares, at its own time."""

    def __init__(self, air: Air) -> None:
        self.now = 100.0
        self.side = Side()
        self.sharing = Sharing(air, [self.side.placements], lambda: self.now)
        self.slept: list[float] = []

    async def _sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds
        await asyncio.sleep(0)

    @asynccontextmanager
    async def running(self):
        task = asyncio.create_task(self.sharing.run(self._sleep))
        try:
            yield self
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task


async def until(condition) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - rounds tell no event
            await asyncio.sleep(0)


async def said(gateway: Gateway) -> bytes:
    """The message of the next round."""
    air = gateway.sharing._channel
    air.listeners.append(queue := asyncio.Queue())
    await gateway.sharing.tell(is_whole=False)
    air.listeners.remove(queue)
    return queue.get_nowait()


async def test_what_one_gateway_places_the_other_hears_and_itself_passes_over():
    air = Air()
    one, other = Gateway(air), Gateway(air)
    async with one.running(), other.running():
        await until(lambda: len(air.listeners) == 2)
        one.side.send(2, one.now)
        await until(lambda: other.side.policy.heard_of)
    assert other.side.workers[2].in_flight_elsewhere == 1
    assert one.side.policy.heard_of == [] and one.side.workers[2].in_flight_elsewhere == 0
    assert air.is_closed and not air.listeners


async def test_a_gateway_that_is_alone_says_once_a_second_that_it_is_there():
    alone = Gateway(Air())
    async with alone.running():
        await until(lambda: len(alone.slept) > 5)
        assert set(alone.slept) == {WHOLE_S} and alone.sharing.num_others == 0
        async with Gateway(alone.sharing._channel).running():
            await until(lambda: alone.sharing.num_others == 1)
            await until(lambda: alone.slept[-1] == ROUND_S)
        await until(lambda: alone.sharing.num_others == 0)


async def test_the_way_through_the_channel_is_known_by_ones_own_messages():
    air = Air()
    one, other = Gateway(air), Gateway(air)
    for _ in range(100):
        one.side.send(0, one.now)
        own = await said(one)
        one.now += 0.2
        one.sharing.hear(own)
        one.sharing.hear(own)  # a second time it says nothing
    other.side.send(1, other.now, tokens=1000)
    other.now += 0.05
    one.sharing.hear(await said(other))
    [(_, _, _, told_at)] = one.side.policy.heard_of
    assert one.now - told_at == pytest.approx(0.2, abs=0.001)


@pytest.mark.parametrize("message", [b"", b"x", b"other-id" + b"\x00" * 100, b"other-id" + b"\xc1", b"x" * (MAX_BYTES + 1)])
async def test_nonsense_is_logged_once_and_no_more(message, caplog):
    gateway = Gateway(Air())
    with caplog.at_level(logging.WARNING):
        gateway.sharing.hear(message)
        gateway.sharing.hear(message)
    assert len(caplog.records) == 1
    assert "not understood" in caplog.text


async def test_numbers_that_cannot_be_are_nonsense(caplog):
    one, other = Gateway(Air()), Gateway(Air())
    one.side.placements.placed(one.side.workers[0], 99.0, -5, (1,))
    other.sharing.hear(await said(one))
    assert "not understood" in caplog.text and other.side.policy.heard_of == []


async def test_routes_that_one_does_not_have_are_passed_over(caplog):
    one, other = Gateway(Air()), Gateway(Air())
    one.side.placements.route = "elsewhere"
    one.side.send(0, one.now)
    other.sharing.hear(await said(one))
    assert other.side.policy.heard_of == [] and not caplog.text


async def test_a_channel_that_is_away_is_tried_again_and_again_and_logged_once(caplog):
    air = Air()
    one, other = Gateway(air), Gateway(air)
    air.is_away = True
    with caplog.at_level(logging.WARNING, "sluice.sharing"):
        async with one.running(), other.running():
            await until(lambda: len(one.slept) > 6)
            assert [record.getMessage().rpartition(": ")[2] for record in caplog.records] == ["gone", "gone"]  # by each
            air.is_away = False
            await until(lambda: one.sharing.num_others == other.sharing.num_others == 1)
            air.cut()
            await until(lambda: len(air.listeners) == 0)
            await until(lambda: len(air.listeners) == 2)
            one.side.send(0, one.now)
            await until(lambda: other.side.policy.heard_of)


async def test_nothing_is_said_where_nothing_is_new():
    air = Air()
    gateway = Gateway(air)
    air.listeners.append(queue := asyncio.Queue())
    await gateway.sharing.tell(is_whole=False)
    assert queue.empty()
    await gateway.sharing.tell(is_whole=True)
    assert len(queue.get_nowait()) > ID_BYTES
