"""The load generator: many keep-alive connections, each asking again as soon as it is answered.

Raw `asyncio.Protocol`s on uvloop, HTTP parsed by httptools, so that it holds thousands of streams on a part of one
core. Every answer is checked: a wrong one, a connection that is closed or a run that takes longer than it may ends the
run with `WrongAnswer`.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import httptools

from loadtest.bench.answers import DEEP_EVERY, Ask, WrongAnswer, check

_CONNECT_AT_ONCE = 64
# A large body comes at a gigabit a second, as from a network. At the speed of loopback its copying would hold up the
# client and the workers, which share a core, and their delay would be taken for the subject's.
_SEND_AT_ONCE_BYTES = 131_072
_SEND_EVERY_S = 0.001

Watch = Callable[["Connection", int], None]  # so many events of a stream have just come in one piece


class GapLog:
    """A watch that notes the gaps between the events of each stream, in seconds. Events of one piece have gap 0."""

    def __init__(self) -> None:
        self.into_s: list[float] | None = None  # None: not now

    def __call__(self, connection: "Connection", num_events: int) -> None:
        now = time.perf_counter()
        if self.into_s is not None and connection.last_event_at:
            self.into_s.append(now - connection.last_event_at)
            self.into_s.extend([0.0] * (num_events - 1))
        connection.last_event_at = now


class Connection(asyncio.Protocol):
    """One connection: asks, reads and checks one answer after the other."""

    _transport: asyncio.Transport  # from `connection_made` on
    _ask: Ask  # from `ask` on

    def __init__(self, number: int, watch: Watch | None) -> None:
        self.last_event_at = 0.0  # of the stream that is coming
        self._watch = watch
        self._num_answered = number  # so that each connection has another answer parsed whole
        self._times_left = 0
        self._done: asyncio.Future[None] | None = None
        self._unsent = memoryview(b"")
        self._body = bytearray()
        self.on_body = self._body.extend if watch is None else self._on_watched_body
        self._parser = httptools.HttpResponseParser(self)  # takes the callbacks as they are now

    async def ask(self, ask: Ask, times: int, after_s: float = 0.0) -> None:
        if after_s:
            await asyncio.sleep(after_s)
        self._ask, self._times_left = ask, times
        self._done = asyncio.get_running_loop().create_future()
        self._send()
        await self._done

    def close(self) -> None:
        self._transport.abort()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as exc:
            self._fail(WrongAnswer(f"not HTTP: {exc!r}, in {data[:300]!r}"))

    def connection_lost(self, exc: Exception | None) -> None:
        self._fail(WrongAnswer(f"the connection was closed within an answer ({exc}), after {bytes(self._body[-200:])!r}"))

    def _on_watched_body(self, body: bytes) -> None:
        end = len(self._body)
        self._body += body
        num_ended = self._body.count(b"\n\n", max(0, end - 1))  # a gateway may cut even between the two
        if num_ended and self._watch is not None:
            self._watch(self, num_ended)

    def on_message_complete(self) -> None:
        self._num_answered += 1
        deep = self._num_answered % DEEP_EVERY == 0
        try:
            check(self._ask, self._parser.get_status_code(), self._body, deep=deep)
        except WrongAnswer as exc:
            self._fail(exc)
            return
        except (ValueError, KeyError, IndexError, TypeError) as exc:
            self._fail(WrongAnswer(f"{exc!r} in {bytes(self._body[:300])!r}"))
            return
        self._body.clear()
        self.last_event_at = 0.0
        self._times_left -= 1
        if self._times_left:
            self._send()
        elif self._done is not None and not self._done.done():
            self._done.set_result(None)

    def _send(self) -> None:
        if self._transport.is_closing():
            self._fail(WrongAnswer("the connection was closed between two requests"))
        elif len(self._ask.request) <= _SEND_AT_ONCE_BYTES:
            self._transport.write(self._ask.request)
        else:
            self._unsent = memoryview(self._ask.request)
            self._send_piece()

    def _send_piece(self) -> None:
        if self._transport.is_closing():
            return
        piece, self._unsent = self._unsent[:_SEND_AT_ONCE_BYTES], self._unsent[_SEND_AT_ONCE_BYTES:]
        self._transport.write(piece)
        if self._unsent:
            self._send_when_written()

    def _send_when_written(self) -> None:
        loop = asyncio.get_running_loop()
        has_room = self._transport.get_write_buffer_size() == 0
        loop.call_later(_SEND_EVERY_S, self._send_piece if has_room else self._send_when_written)

    def _fail(self, exc: WrongAnswer) -> None:
        if self._done is not None and not self._done.done():
            self._done.set_exception(exc)


class Crew:
    """A number of connections to one subject that do the same together."""

    def __init__(self, connections: list[Connection]) -> None:
        self.connections = connections

    async def ask(self, ask: Ask, times: int, *, spread_s: float = 0.0, within_s: float = 120.0) -> None:
        """Each connection asks that many times, the first starts now and the last after `spread_s`."""
        step_s = spread_s / len(self.connections)
        asking = [
            asyncio.ensure_future(connection.ask(ask, times, number * step_s))
            for number, connection in enumerate(self.connections)
        ]
        try:
            done, waiting = await asyncio.wait(asking, timeout=within_s, return_when=asyncio.FIRST_EXCEPTION)
            for task in done:
                task.result()
            if waiting:
                raise WrongAnswer(f"{len(waiting)} of {len(asking)} clients wait for an answer after {within_s:g} s")
        finally:
            for task in asking:
                task.cancel()


@asynccontextmanager
async def connected(port: int, num_connections: int, watch: Watch | None = None) -> AsyncIterator[Crew]:
    loop = asyncio.get_running_loop()
    crew = Crew([])

    async def connect(number: int) -> None:
        _, connection = await loop.create_connection(lambda: Connection(number, watch), "127.0.0.1", port)
        crew.connections.append(connection)

    try:
        for first in range(0, num_connections, _CONNECT_AT_ONCE):
            await asyncio.gather(*map(connect, range(first, min(first + _CONNECT_AT_ONCE, num_connections))))
        yield crew
    finally:
        for connection in crew.connections:
            connection.close()
