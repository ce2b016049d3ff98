"""One client's connection: uvicorn's httptools protocol with what it lacks.

What a client may do, and what becomes of it: a head that is late is cut off, one that is too large or no HTTP gets an error
of ours; more than is asked for at once (connections, pipelined requests) is refused; a body that goes on after its answer is
passed over for a moment; an answer that is not read is cut off. Requests that came before something bad on the same
connection are still answered. Trailers are read and forgotten; an upgrade is declined by answering as if it had not been
asked for, with the body, which uvicorn would lose.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

import httptools
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from sluice.asgi import PUMP
from sluice.config import ClientTimeouts
from sluice.errors import BadRequest, GatewayError, HeadTooLarge, Overloaded
from sluice.outbox import Outbox
from sluice.server.pump import Pump
from sluice.timers import LazyTimer

MAX_HEAD_BYTES = 65_536
MAX_PIPELINED = 100
MAX_REFUSED_CONNECTIONS = 100  # beyond `max_connections`; those beyond that are closed without a word
LINGER_S = 2.0
FRESH_S = 1.0  # for the first request of a connection that was opened just before we stopped
NOWHERE: Final[Any] = deque(maxlen=0)  # forgets what is appended to it

logger = logging.getLogger("sluice.server")


@dataclass(slots=True)
class Leaving:
    """What a server tells its connections: whether each is to be closed behind its next answer."""

    is_so: bool = False


class Protocol(HttpToolsProtocol):
    """One client's connection, with at most one pump open on it."""

    def __init__(
        self,
        *args: Any,
        timeouts: ClientTimeouts,
        max_connections: int,
        leaving: Leaving | None = None,
        outbox: Outbox | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self._leaving = leaving or Leaving()
        self.outbox = outbox or Outbox()
        self.pump: Pump | None = None
        self._timeouts = timeouts
        self._max_connections = max_connections
        # What is read. A head is awaited from the end of an answer on; its bytes, and those of trailers, are counted.
        self._awaits_head = True
        self._head_bytes = 0
        self._num_read = 0
        self._read_timer = LazyTimer(self.loop)  # for a head, or for what comes after the last answer
        self._is_deaf = False  # nothing that comes from here on is a request
        self._is_draining = False  # the next request is the last one
        # What is written
        self._stall_timer = LazyTimer(self.loop)
        self._is_held = False  # the next answer waits until the client has read the one before
        self._idle_timer = LazyTimer(self.loop)  # between requests
        untyped: Any = self  # uvicorn says that this is an int; we give it fractions
        self._keep_alive_s: float = untyped.timeout_keep_alive

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        num_too_many = len(self.connections) - self._max_connections
        if num_too_many <= 0:
            self._read_timer.set_in(self._timeouts.header_s, self._head_is_late)
        elif num_too_many <= MAX_REFUSED_CONNECTIONS:
            self._refuse(Overloaded("Too many connections; try again in a moment."))
        else:
            transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._is_deaf = True
        for timer in (self._read_timer, self._stall_timer, self._idle_timer):
            timer.close()
        super().connection_lost(exc)
        if self.pump is not None:
            self.pump.gone()

    # What the client sends
    def data_received(self, data: bytes) -> None:
        if self._is_deaf:
            return
        self._idle_timer.unset()
        self._num_read = len(data)
        try:
            self._feed(data)
        except httptools.HttpParserError:
            self._refuse(BadRequest("The request is not valid HTTP."))
            return
        if self._awaits_head or (self.cycle.more_body and not self.cycle.message_event.is_set()):
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD_BYTES:
                self._refuse_head()
            elif self._awaits_head and not self._read_timer.is_set:
                self._read_timer.set_in(self._timeouts.header_s, self._head_is_late)

    def _feed(self, data: bytes) -> None:
        while True:
            try:
                self.parser.feed_data(data)
                return
            except httptools.HttpParserUpgrade as exc:
                data = self._without_upgrade() + data[exc.args[0] :]

    def _without_upgrade(self) -> bytes:
        """The head that has just been read, for a second reading: the parser passes over the body of one with an upgrade."""
        method = self.parser.get_method()
        if method == b"CONNECT":
            raise httptools.HttpParserError("we are no forward proxy")
        lines = [b"%b %b HTTP/%b" % (method, self.url, self.parser.get_http_version().encode())]
        lines += [b"%b: %b" % header for header in self.scope["headers"] if header[0] != b"upgrade"]
        return b"\r\n".join([*lines, b"", b""])

    def _should_upgrade(self) -> bool:
        return True  # so that uvicorn makes no request of the first reading

    def on_message_begin(self) -> None:
        super().on_message_begin()
        if not self._awaits_head:  # it begins behind another one: how much of this read is its head, nobody tells
            self._awaits_head = True
            self._head_bytes = -self._num_read

    def on_headers_complete(self) -> None:
        self._head_is_done()
        if self._head_bytes + self._num_read > MAX_HEAD_BYTES and self._head_size() > MAX_HEAD_BYTES:
            self._refuse_head()
            raise httptools.HttpParserError
        if len(self.pipeline) >= MAX_PIPELINED:
            raise httptools.HttpParserError
        super().on_headers_complete()
        if self._leaving.is_so or self._is_draining:
            self.cycle.keep_alive = False
        self.scope["extensions"] = {PUMP: Pump(self, self.cycle)}  # type: ignore[dict-item]
        self.headers = NOWHERE  # trailers are no headers

    def on_body(self, body: bytes) -> None:
        """The first read's part of a body, which mostly is all of it, is not copied."""
        cycle: Any = self.cycle
        if self.parser.should_upgrade() or cycle.body or cycle.response_complete:
            super().on_body(body)
            return
        cycle.body = body
        if len(body) > HIGH_WATER_LIMIT:
            self.flow.pause_reading()
        cycle.message_event.set()

    def _head_size(self) -> int:
        return len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)

    def _head_is_done(self) -> None:
        self._awaits_head = False
        self._read_timer.unset()

    def _head_is_late(self) -> None:
        if self._ends_after_answers():
            return
        self.transport.abort()

    # What the client reads
    def pause_writing(self) -> None:
        super().pause_writing()
        self._stall_timer.set_in(self._timeouts.write_stall_s, self.transport.abort)
        if self.pump is not None:
            self.pump.on_pause()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._stall_timer.unset()
        if self.pump is not None:
            self.pump.on_resume()
        if self._is_held:
            self._is_held = False
            self._next()

    # How requests and connections end
    def on_response_complete(self) -> None:
        """Where every answer ends: on to the next request, or to the end of the connection."""
        cycle = self.cycle
        if self.pipeline:  # whether the client reads is known when it has been written to
            self.outbox.flush()
        if cycle.response_complete and cycle.more_body:
            self._hang_up()
        elif cycle.response_complete and not cycle.keep_alive:
            self._close()
        elif self.flow.write_paused:
            self._is_held = True
        else:
            self._next()

    def _next(self) -> None:
        self.server_state.total_requests += 1
        if not self.transport.is_closing():
            self.flow.resume_reading()
            if self.pipeline:
                self._start_asgi_task(*self.pipeline.pop())
            else:
                self._idle_timer.set_in(self._keep_alive_s, self._close)
        if self.cycle.response_complete and not self._awaits_head:
            self._awaits_head = True
            self._head_bytes = 0

    def shutdown(self) -> None:
        """The server stops: answers that run come to their end, and the connection with them.

        One that has had no request was opened while we still listened, by somebody whose request is on its way: a proxy that
        is told nothing cannot know whether it was served, and must not send it elsewhere.
        """
        self._is_draining = True
        self.outbox.flush()
        if self.cycle is not None or self._is_deaf:
            super().shutdown()
            return
        self._read_timer.set_in(min(FRESH_S, self._timeouts.header_s), self._close)

    def _ends_after_answers(self) -> bool:
        """Whether whole requests are waiting for their answers: then they get them, and the connection ends."""
        cycle = self.cycle
        if cycle is None or cycle.response_complete or cycle.more_body:
            return False
        self._is_deaf = True
        cycle.keep_alive = False
        return True

    def _refuse_head(self) -> None:
        self._refuse(HeadTooLarge(f"The request's headers are larger than {MAX_HEAD_BYTES} bytes."))

    def _refuse(self, error: GatewayError) -> None:
        """Answer what never became a request, or whose body broke off; then hang up."""
        if self._is_deaf:
            return
        self._head_is_done()
        if self._ends_after_answers():
            return
        cycle = self.cycle
        if cycle is not None and not cycle.response_complete:
            if cycle.response_started or self.pipeline:
                self.transport.abort()  # in the middle of an answer there is no place for another
                return
            cycle.disconnected = True
            cycle.message_event.set()
            if self.pump is not None:
                self.pump.gone()
        request_id = f"req-{os.urandom(6).hex()}"
        logger.info("%s: refused %s: %s", request_id, self.client, error)
        body = error.body()
        lines = [STATUS_LINE[error.status], *[f"{name}: {value}\r\n".encode() for name, value in error.headers()]]
        lines.append(b"x-request-id: %b\r\n" % request_id.encode())
        lines.append(b"content-length: %d\r\nconnection: close\r\n\r\n" % len(body))
        self.outbox.flush()
        self.transport.write(b"".join(lines) + body)
        self._hang_up()

    def _hang_up(self) -> None:
        """Say that nothing more comes, and pass over what the client still sends, for `LINGER_S` at most.

        To close at once would reset the connection under the answer that tells the client why.
        """
        self._is_deaf = True
        self._head_is_done()
        self.outbox.flush()
        if self.transport.is_closing():
            return
        self.flow.resume_reading()
        with suppress(OSError):  # the client has just reset the connection; we shall be told
            self.transport.write_eof()
        self._read_timer.set_in(min(LINGER_S, self._timeouts.body_idle_s), self._close)

    def _close(self) -> None:
        """Close once the client has taken what is written, for which it has as long as ever."""
        self._is_deaf = True
        self.outbox.flush()
        self.transport.close()
        is_lost = self.parser is None
        if not is_lost and not self._stall_timer.is_set and self.transport.get_write_buffer_size():
            self._stall_timer.set_in(self._timeouts.write_stall_s, self.transport.abort)
