"""Tells the other gateways what we placed, round by round, and hears what they did: never on a call's path.

A gateway that is alone says once a second that it is there. A channel that is away, slow or full of nonsense costs what was
to be heard on it, and nothing else: each gateway then routes by what it knows itself. Whoever can write to the channel can
make us believe that workers are busy or hold prompts, and no more than that.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from math import inf
from typing import Annotated, Protocol

import msgspec
from msgspec import Meta, Struct

from sluice.placements import Notes, Placements

ROUND_S = 0.02  # what is heard much later than this costs waiting: two gateways send to the same idle worker
WHOLE_S = 1.0
RETRY_S = 1.0
MAX_BYTES = 1_048_576  # of one message
ID_BYTES = 8
LATEST = 0.1  # the weight of one message in the running mean

logger = logging.getLogger("sluice.sharing")


class ChannelAway(Exception):
    """It cannot be spoken to, or says nothing; the message says why."""


class Channel(Protocol):
    """Where all gateways speak and listen. Both ways raise `ChannelAway`, and may be tried again."""

    async def publish(self, message: bytes) -> int: ...
    def messages(self) -> AsyncGenerator[bytes]: ...
    async def close(self) -> None: ...


class Message(Struct, array_like=True, frozen=True):
    number: Annotated[int, Meta(ge=0)]
    notes: Annotated[tuple[Notes, ...], Meta(max_length=1024)]


class Sharing:
    """The mutable state is what was said and not heard yet, and how long it takes to be heard."""

    def __init__(self, channel: Channel, placements: Sequence[Placements], clock: Callable[[], float]) -> None:
        self._channel = channel
        self._placements = {one.route: one for one in placements}
        self._clock = clock
        self._id = secrets.token_bytes(ID_BYTES)
        self._decoder = msgspec.msgpack.Decoder(Message)
        self._encoder = msgspec.msgpack.Encoder()
        self._number = 0
        self._said_at: dict[int, float] = {}  # by message, of the last second
        self._way_s = 0.0  # from us through the channel to us: as long as that of others
        self._is_troubled = self._met_nonsense = False  # that was said in the log

    @property
    def num_others(self) -> int:
        """How many gateways are heard."""
        return max((one.num_others for one in self._placements.values()), default=0)

    async def run(self, sleep: Callable[[float], Awaitable[object]] = asyncio.sleep) -> None:
        """Until cancelled."""
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._keep_telling(sleep))
                tasks.create_task(self._keep_listening(sleep))
        finally:
            await self._channel.close()

    async def _keep_telling(self, sleep: Callable[[float], Awaitable[object]]) -> None:
        whole_at = -inf
        while True:
            is_whole = self._clock() - whole_at >= WHOLE_S
            if is_whole:
                whole_at = self._clock()
            try:
                num_listeners = await self.tell(is_whole=is_whole)
            except ChannelAway as exc:
                self._doubt(str(exc))
                num_listeners = 1
            await sleep(ROUND_S if num_listeners > 1 or self.num_others else WHOLE_S)

    async def _keep_listening(self, sleep: Callable[[float], Awaitable[object]]) -> None:
        while True:
            try:
                async with aclosing(self._channel.messages()) as messages:
                    async for message in messages:
                        self.hear(message)
            except ChannelAway as exc:
                self._doubt(str(exc))
            await sleep(RETRY_S)

    async def tell(self, *, is_whole: bool) -> int:
        """One round. Returns how many listen; as if many did, where there was nothing to say."""
        now = self._clock()
        if is_whole:
            for one in self._placements.values():
                one.pass_time(now)
            self._said_at = {number: at for number, at in self._said_at.items() if now - at < WHOLE_S}
        notes = [told for one in self._placements.values() if (told := one.notes(now, is_whole=is_whole)) is not None]
        if not notes:
            return 2
        self._number += 1
        self._said_at[self._number] = now
        return await self._channel.publish(self._id + self._encoder.encode(Message(self._number, tuple(notes))))

    def hear(self, data: bytes) -> None:
        """A message, whoever says it and whatever it is."""
        now = self._clock()
        try:
            if len(data) > MAX_BYTES:
                raise ValueError(f"{len(data)} bytes")
            message = self._decoder.decode(memoryview(data)[ID_BYTES:])
        except ValueError as exc:  # msgspec's are
            if not self._met_nonsense:
                logger.warning("what is said where gateways tell their placements is not understood: %s", exc)
            self._met_nonsense = True
            return
        name = data[:ID_BYTES]
        if name == self._id:
            said_at = self._said_at.pop(message.number, None)
            if said_at is not None:
                self._way_s += LATEST * (now - said_at - self._way_s)
                self._is_troubled = False
            return
        for notes in message.notes:
            if (placements := self._placements.get(notes.route)) is not None:
                placements.hear(name.hex(), notes, now - self._way_s)

    def _doubt(self, trouble: str) -> None:
        """A line in the log, until we hear ourselves again."""
        if not self._is_troubled:
            logger.warning("placements of other gateways are not heard, or ours by them: %s", trouble)
        self._is_troubled = True
