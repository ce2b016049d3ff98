"""Runs an exchange for a client: the hot path down, clients that leave or read slowly, errors before and after the start.

A `Downstream` is the way to one client. There are two: the pump of `server`, which writes to the transport without waking
a task, and `AsgiDownstream`, which works under any ASGI server. Relay does not ask which one it holds.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, Protocol, Self

from sluice.asgi import Headers, Message, Receive, Send
from sluice.errors import GatewayError, InternalError
from sluice.exchange import KEEP_ALIVE, Exchange
from sluice.gateway import Gateway
from sluice.types import Call, Endpoint, Outcome, Source
from sluice.wire.events import EventStream, dialect_of

EVENT_STREAM: Headers = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]
CLIENT_LEFT = 499  # nginx's status for it; nobody receives it, logs and metrics show it
HIGH_WATER_BYTES = 65_536

logger = logging.getLogger("sluice.relay")


class Downstream(Protocol):
    """The way to one client. Rule of use: inside `async with`, either `respond` once, or `start`, `write`s and `finish`.

    All of them return at once; bytes for a client that has left go nowhere. While the client reads too slowly `on_pause`
    has been called, `on_resume` will be, and `is_paused` is true. When the client leaves, the task that entered the block is
    cancelled and `is_gone` is true.
    """

    started: bool
    is_gone: bool
    on_pause: Callable[[], None]
    on_resume: Callable[[], None]
    write_chunk: Callable[[bytes], None] | None  # for one whole HTTP chunk; None where it cannot go down as it is

    @property
    def is_paused(self) -> bool: ...

    async def __aenter__(self) -> Self: ...
    async def __aexit__(self, *exc: object) -> None: ...
    def respond(self, status: int, headers: Headers, body: bytes) -> None: ...
    def start(self, status: int, headers: Headers, first: bytes) -> None: ...
    def write(self, data: bytes) -> None: ...
    def finish(self, last: bytes = b"") -> None: ...


class Relay:
    """One call for one client: `run` returns how it ended, and everything it took has been let go by then."""

    def __init__(
        self,
        gateway: Gateway,
        call: Call,
        clock: Callable[[], float],
        *,
        early_s: float | None = None,
        place_s: float | None = None,
    ) -> None:
        self._call = call
        self._clock = clock
        self._early_s = early_s
        self._place_s = place_s  # how often a waiting stream is told its place
        self._exchanging = gateway.exchange(call)
        self._timer: asyncio.TimerHandle | None = None
        self._place_timer: asyncio.TimerHandle | None = None

    async def run(self, downstream: Downstream) -> Outcome:
        """Serve the call. Raises `CancelledError` only where somebody other than the client's leaving cancelled it."""
        error: GatewayError | None = None
        try:
            if self._call.stream:
                self._arm(downstream, self._early_s)
                if self._place_s is not None:
                    self._arm_place(downstream, 0.0, self._place_s)
            async with self._exchanging as exchange:
                self._disarm()
                error = await self._relay(exchange, downstream)
        except GatewayError as exc:
            error = exc
            refuse(downstream, exc, self._call.endpoint)
        except asyncio.CancelledError:
            if not downstream.is_gone:
                raise
            _forgive_cancellation()
        except Exception:
            logger.exception("call %s failed inside the gateway", self._call.id)
            error = InternalError()
            refuse(downstream, error, self._call.endpoint)
        finally:
            self._disarm()
        return self._outcome(error, downstream)

    async def _relay(self, exchange: Exchange, downstream: Downstream) -> GatewayError | None:
        events, grounding = exchange.events, self._exchanging.grounding
        if events is None:
            headers = [(b"content-type", exchange.content_type.encode("latin-1")), *self._exchanging.headers]
            body = exchange.body
            if grounding is not None:
                headers, body = headers + grounding.headers, grounding.whole(body)
                if self._call.stream:  # an answer of our own
                    downstream.start(200, EVENT_STREAM + grounding.headers, body)
                    downstream.finish()
                    return None
            downstream.respond(200, headers, body)
            return None
        downstream.on_pause, downstream.on_resume = exchange.pause, exchange.resume  # the first write may be too much
        headers, first, edit = EVENT_STREAM + self._exchanging.headers, exchange.first, None
        write: Callable[[bytes], None] = downstream.write
        if grounding is not None:
            edit = grounding.editor().feed
            headers, first, write = headers + grounding.headers, edit(first), _edited(write, edit)
        if downstream.started:
            downstream.write(first)
        else:
            downstream.start(200, headers, first)
        if not events.broken:
            await exchange.pipe(write, downstream.write_chunk if edit is None else None)
        last = exchange.last
        if events.broken:
            last = await self._resume(exchange, events, downstream, write)
        if edit is not None:
            last = edit(last)
        if events.broken:
            last += events.dialect.error_event(events.broken)
        downstream.finish(last)
        return events.broken

    async def _resume(
        self, exchange: Exchange, events: EventStream, downstream: Downstream, write: Callable[[bytes], None]
    ) -> bytes:
        """A broken stream, continued as long as that can be; what is left to write of it in the end."""
        while events.broken:
            if exchange.last:
                write(exchange.last)
            self._arm(downstream, exchange.keep_alive_s)
            try:
                more = await self._exchanging.resume()
            finally:
                self._disarm()
            if more is None:
                return b""
            if self._exchanging.exchange is None or self._exchanging.exchange is exchange:
                return more  # and with that it has ended
            exchange = self._exchanging.exchange
            downstream.on_pause, downstream.on_resume = exchange.pause, exchange.resume
            if downstream.is_paused:
                exchange.pause()
            write(more)
            if not events.broken:
                await exchange.pipe(write)
        return exchange.last

    def _arm(self, downstream: Downstream, every_s: float | None) -> None:
        """Send a comment so often while there is nothing else to send; keeps impatient proxies quiet.

        Before the first event that commits the 200, and turns later errors into events.
        """
        if every_s is not None:
            self._timer = asyncio.get_running_loop().call_later(every_s, self._comment, downstream, every_s)

    def _comment(self, downstream: Downstream, every_s: float) -> None:
        if downstream.started:
            downstream.write(KEEP_ALIVE)
        else:
            downstream.start(200, EVENT_STREAM, KEEP_ALIVE)
        self._arm(downstream, every_s)

    def _arm_place(self, downstream: Downstream, first_s: float, every_s: float) -> None:
        """Tell a stream that waits for a worker where it stands, at once and every so often.

        The first time that commits the 200, with the place in its headers too, and turns later errors into events.
        """
        self._place_timer = asyncio.get_running_loop().call_later(first_s, self._tell_place, downstream, every_s)

    def _tell_place(self, downstream: Downstream, every_s: float) -> None:
        standing = self._exchanging.standing
        if standing is not None:
            said = [("position", standing.position)]
            if standing.eta_s is not None:
                said.append(("eta_ms", math.ceil(standing.eta_s * 1000)))
            comment = f": queue {' '.join(f'{name}={value}' for name, value in said)}\n\n".encode()
            if downstream.started:
                downstream.write(comment)
            else:
                headers = [(f"x-queue-{name.replace('_', '-')}".encode(), b"%d" % value) for name, value in said]
                downstream.start(200, EVENT_STREAM + headers, comment)
        self._arm_place(downstream, every_s, every_s)

    def _disarm(self) -> None:
        for timer in (self._timer, self._place_timer):
            if timer is not None:
                timer.cancel()
        self._timer = self._place_timer = None

    def _outcome(self, error: GatewayError | None, downstream: Downstream) -> Outcome:
        call, exchanging = self._call, self._exchanging
        exchange = exchanging.exchange
        events = exchange.events if exchange else None
        is_done = downstream.started and (not call.stream or (events is not None and events.done))
        status, source, code = 200, None, None
        if error is not None:
            status, source, code = error.status, error.source, error.code
        elif downstream.is_gone and not is_done:
            status, source, code = CLIENT_LEFT, Source.DOWNSTREAM, "client_left"
        sent_at, opened_at = exchanging.sent_at, exchanging.opened_at
        return Outcome(
            status=status,
            source=source,
            code=code,
            worker=exchanging.worker.url if exchanging.worker else None,
            usage=exchanging.usage,
            gpu_ms=exchanging.gpu_ms,
            gpu_exact=exchanging.usage.step_ms > 0,
            tokens_wasted=exchanging.tokens_wasted,
            attempts=exchanging.attempts,
            reason=exchanging.reason,
            num_resumes=exchanging.num_resumes,
            fell_back=exchanging.fell_back,
            hedge=exchanging.hedge,
            first_event_s=opened_at - call.started_at if opened_at is not None and events is not None else None,
            overhead_s=sent_at - call.started_at - exchanging.waited_s if sent_at is not None else None,
            queued_s=exchanging.queued_s,
            duration_s=self._clock() - call.started_at,
        )


def _edited(write: Callable[[bytes], None], edit: Callable[[bytes], bytes]) -> Callable[[bytes], None]:
    def edit_and_write(events: bytes) -> None:
        if out := edit(events):
            write(out)

    return edit_and_write


def refuse(downstream: Downstream, error: GatewayError, endpoint: Endpoint | None = None) -> None:
    """Tell the client: as a status while that is possible, else as the event that ends its stream."""
    if downstream.started:
        downstream.finish(dialect_of(endpoint or Endpoint.CHAT).error_event(error))
        return
    headers = [(name.encode(), value.encode("latin-1", "replace")) for name, value in error.headers()]
    downstream.respond(error.status, headers, error.body(is_anthropic=endpoint is Endpoint.MESSAGES))


def _forgive_cancellation() -> None:
    """The cancellation was ours, asked for by a client that left: the task goes on and leaves in order."""
    task = asyncio.current_task()
    assert task is not None
    task.uncancel()


class AsgiDownstream:
    """The way to a client under any ASGI server: a task that writes what has gathered, one that waits for the leaving.

    What gathers is bounded, by `on_pause`; how long a client may take to read it is the server's business.
    """

    def __init__(self, receive: Receive, send: Send, extra: Iterable[tuple[bytes, bytes]]) -> None:
        self.started = False
        self.is_gone = False
        self.is_paused = False
        self.on_pause: Callable[[], None] = _nothing
        self.on_resume: Callable[[], None] = _nothing
        self.write_chunk: Callable[[bytes], None] | None = None
        self._receive = receive
        self._send = send
        self._extra = list(extra)
        self._messages: deque[Message] = deque()
        self._num_bytes = 0
        self._has_work = asyncio.Event()
        self._is_finished = False
        self._owner: asyncio.Task[Any]

    async def __aenter__(self) -> Self:
        owner = asyncio.current_task()
        assert owner is not None
        self._owner = owner
        self._watcher = asyncio.create_task(self._watch())
        self._writer = asyncio.create_task(self._drain())
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._watcher.cancel()
        if exc[0] is not None or self.is_gone:
            self._writer.cancel()
        else:
            self._is_finished = True
            self._has_work.set()
        try:
            await asyncio.wait([self._watcher, self._writer])
        finally:
            self._writer.cancel()
        if exc[0] is None and not self._writer.cancelled() and (failure := self._writer.exception()) is not None:
            raise failure

    def respond(self, status: int, headers: Headers, body: bytes) -> None:
        length = (b"content-length", str(len(body)).encode())
        self._put({"type": "http.response.start", "status": status, "headers": [*headers, *self._extra, length]})
        self._put({"type": "http.response.body", "body": body})
        self.started = True

    def start(self, status: int, headers: Headers, first: bytes) -> None:
        self.started = True
        self._put({"type": "http.response.start", "status": status, "headers": [*headers, *self._extra]})
        self._put({"type": "http.response.body", "body": first, "more_body": True})

    def write(self, data: bytes) -> None:
        self._put({"type": "http.response.body", "body": data, "more_body": True})

    def finish(self, last: bytes = b"") -> None:
        self._put({"type": "http.response.body", "body": last})

    def _put(self, message: Message) -> None:
        self._messages.append(message)
        self._has_work.set()
        self._num_bytes += len(message.get("body", b""))
        if self._num_bytes > HIGH_WATER_BYTES and not self.is_paused:
            self.is_paused = True
            self.on_pause()

    async def _drain(self) -> None:
        while True:
            await self._has_work.wait()
            self._has_work.clear()
            while self._messages:
                message = self._messages.popleft()
                try:
                    await self._send(message)
                except OSError:  # a server's word for a client that has left
                    self._leave()
                    return
                self._num_bytes -= len(message.get("body", b""))
            if self.is_paused:
                self.is_paused = False
                self.on_resume()
            if self._is_finished:
                return

    async def _watch(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._leave()

    def _leave(self) -> None:
        if not self.is_gone and not self._is_finished:
            self.is_gone = True
            self._owner.cancel()


def _nothing() -> None:
    pass
