"""One channel of Redis or Valkey that all gateways speak and listen on: nothing is kept there, who is away misses it."""

from __future__ import annotations

from collections.abc import AsyncGenerator

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from sluice.sharing import ChannelAway

NAME = "{sluice}:placements:1"  # the number is the format's: gateways of another one are not understood
PATIENCE_S = 3.5  # a listener hears himself each second; after that there is nothing to hear any more
# The last one is uvloop's word for a connection that was lost just before something was written.
LOST = (RedisError, OSError, TimeoutError, RuntimeError)


class RedisChannel:
    """Two connections, made when they are needed; what fails is `ChannelAway`, and the next try connects anew."""

    def __init__(self, url: str, *, username: str | None = None, password: str | None = None, timeout_s: float) -> None:
        self._redis = Redis.from_url(
            url,
            username=username,
            password=password,
            socket_timeout=timeout_s,
            socket_connect_timeout=timeout_s,
            retry=Retry(NoBackoff(), 0),
            protocol=2,
        )

    async def publish(self, message: bytes) -> int:
        """How many listeners it went to."""
        try:
            return int(await self._redis.publish(NAME, message))
        except LOST as exc:
            raise ChannelAway(_said(exc)) from exc

    async def messages(self) -> AsyncGenerator[bytes]:
        """What anybody says from now on, ourselves too."""
        try:
            async with self._redis.pubsub() as listener:
                await listener.subscribe(NAME)
                while True:
                    message = await listener.get_message(timeout=PATIENCE_S)
                    if message is None:
                        raise ChannelAway("nothing is heard, not even what we say ourselves")
                    if message["type"] == "message":
                        yield message["data"]
        except LOST as exc:
            raise ChannelAway(_said(exc)) from exc

    async def close(self) -> None:
        await self._redis.aclose()


def _said(exc: BaseException) -> str:
    return str(exc).partition("\n")[0] or type(exc).__name__
