"""Reading request bodies: bounded each, bounded together, and bounded in time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Self

from sluice.asgi import Message, Receive
from sluice.config import ClientTimeouts
from sluice.errors import BadRequest, BodyTooLarge, Overloaded, RequestTimeout
from sluice.middleware import Visit
from sluice.types import Body

LARGE_BYTES = 262_144  # more is not parsed on the event loop: a millisecond or two, which streams would feel


class ClientLeft(Exception):
    """The client hung up while it was sending; there is nobody to answer."""


class Buffers:
    """How many bytes of bodies the gateway holds now, and how many it may."""

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.held_bytes = 0

    def __repr__(self) -> str:
        return f"<Buffers {self.held_bytes} of {self.limit_bytes} bytes>"

    def hold(self) -> Held:
        return Held(self)


class Held:
    """What one call holds of the buffers, given back at the end of its `with`."""

    __slots__ = ("_buffers", "num_bytes")

    def __init__(self, buffers: Buffers) -> None:
        self._buffers = buffers
        self.num_bytes = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._buffers.held_bytes -= self.num_bytes

    def take(self, num_bytes: int) -> None:
        """Raises `Overloaded` where all calls together would hold too much."""
        if self._buffers.held_bytes + num_bytes > self._buffers.limit_bytes:
            raise Overloaded("The gateway holds too many large requests; try again in a moment.", retry_after_s=2)
        self._buffers.held_bytes += num_bytes
        self.num_bytes += num_bytes


class BodyReader:
    """Reads bodies within the limits of the configuration."""

    def __init__(self, limit_bytes: int, timeouts: ClientTimeouts, clock: Callable[[], float]) -> None:
        self._limit_bytes = limit_bytes
        self._timeouts = timeouts
        self._clock = clock

    async def read(self, visit: Visit, receive: Receive, held: Held, whole: bytes | None = None) -> Body:
        """The whole body, in pieces if it is large; `whole` where the server had it already when the request began.

        Raises `BodyTooLarge` at once where its announced length is beyond the limit, `RequestTimeout` for a client that
        stalls or trickles, `Overloaded` where all bodies together are too many bytes, `ClientLeft`.
        """
        self._check_length(visit)
        if whole is None:
            parts = await self._pieces(receive, held)
        else:
            self._check_size(len(whole))
            held.take(len(whole))
            parts = [whole]
        return tuple(parts) if held.num_bytes > LARGE_BYTES else b"".join(parts)

    async def _pieces(self, receive: Receive, held: Held) -> list[bytes]:
        parts: list[bytes] = []
        ends_at = self._clock() + self._timeouts.body_s
        has_more = True
        while has_more:
            message = await self._next(receive, min(self._timeouts.body_idle_s, ends_at - self._clock()))
            part = message.get("body", b"")
            held.take(len(part))
            parts.append(part)
            self._check_size(held.num_bytes)
            has_more = message.get("more_body", False)
        return parts

    def _check_length(self, visit: Visit) -> None:
        announced = visit.headers.get(b"content-length")
        if announced is None:
            if visit.headers.get(b"transfer-encoding", b"chunked").lower() != b"chunked":
                raise BadRequest("Send the request body as it is, or with transfer-encoding chunked.")
            return
        if not announced.isdigit():
            raise BadRequest("The content-length header is not a number.")
        if len(announced) > 15 or int(announced) > self._limit_bytes:
            raise BodyTooLarge(f"The request body is larger than {self._limit_bytes} bytes.")

    def _check_size(self, size: int) -> None:
        if size > self._limit_bytes:
            raise BodyTooLarge(f"The request body is larger than {self._limit_bytes} bytes.")

    async def _next(self, receive: Receive, patience_s: float) -> Message:
        try:
            async with asyncio.timeout(patience_s):
                message = await receive()
        except TimeoutError as exc:
            raise RequestTimeout("The request body did not arrive in time.") from exc
        if message["type"] == "http.disconnect":
            raise ClientLeft
        return message
