"""One worker's answer to a call, from its first byte to its last: what goes down of it, and how it is going.

It is silent, late, cut or garbage at any place: before the first event that is raised, afterwards `events.broken` says it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from sluice.config import Route
from sluice.errors import UpstreamError, WorkerRefused, WorkerTimeout
from sluice.types import Call, Endpoint, Usage
from sluice.upstream.connection import Answer, Sink
from sluice.upstream.connections import Sending
from sluice.wire.events import EventStream, dialect_of
from sluice.wire.replies import checked, rejection, usage_of_body
from sluice.wire.splice import Splice

MAX_REPLY_BYTES = 268_435_456
MAX_ERROR_BYTES = 1_048_576
END_GRACE_S = 1.0
KEEP_ALIVE = b": keep-alive\n\n"
RESUMED = frozenset({Endpoint.CHAT, Endpoint.COMPLETIONS})  # whose streams are kept, to be continued when they break


class Exchange(Sink):
    """A call in progress, from the first byte of the answer to the last: what goes down, and how it is going.

    A whole answer is in `body`. A stream has its first events in `first`; the rest comes through `pipe`. The rest of a stream
    that broke on another worker continues its `events`, and is made fit for them by `splice`.
    """

    def __init__(
        self,
        call: Call,
        settings: Route,
        sending: Sending,
        events: EventStream | None = None,
        splice: Splice | None = None,
    ) -> None:
        self.call = call
        self._settings = settings
        self._sending = sending
        self._loop = asyncio.get_running_loop()
        # The answer
        self._patience_s = 0.0
        self.content_type = ""
        self.body = b""
        self.events = events
        self._splice = splice
        self.first = b""
        self.last = b""  # what is left to write when `pipe` is done: the end of the stream, with the answer's own end behind it
        self._whole_usage: Usage | None = None
        # The stream, while it is piped
        self._write: Callable[[bytes], None]
        self._write_chunk: Callable[[bytes], None] | None = None
        self._over: asyncio.Future[None]
        self._timer: asyncio.TimerHandle | None = None
        self._last_read = 0.0
        self._is_paused = False
        self._is_closed = False

    @property
    def usage(self) -> Usage:
        if self.events is not None:
            return self.events.usage
        return self._whole_usage or Usage()

    @property
    def keep_alive_s(self) -> float | None:
        return self._settings.keep_alive_s

    async def open(self) -> None:
        """Wait for the answer's head and for the whole body or the first good event.

        Raises `WorkerRefused` where nothing was computed, else what the worker said or how it failed. A silent worker is a
        `WorkerTimeout` after `first_event_s`; a whole answer, and all attempts together, have until the call's deadline.
        """
        call, timeouts = self.call, self._settings.timeouts
        patience_s = timeouts.first_event_s if call.stream else timeouts.total_s
        due = self._loop.time() + patience_s
        if due > call.deadline:
            due, patience_s = call.deadline, call.allowed_s
        self._patience_s = patience_s
        try:
            answer = await self._sending.head(due, self._out_of_patience)
            self.content_type = answer.headers.get("content-type", "")
            if answer.status != 200:
                raise rejection(answer.status, await answer.read(MAX_ERROR_BYTES), call.path)
            if call.stream:
                await self._open_stream(answer)
            else:
                self._take_whole(await answer.read(MAX_REPLY_BYTES))
        finally:
            self._sending.be_patient()

    def pipe(self, write: Callable[[bytes], None], write_chunk: Callable[[bytes], None] | None = None) -> asyncio.Future[None]:
        """Write the rest of the stream as it comes, from within the event loop's read; done when the stream is over.

        Afterwards `events.broken` says whether it broke. `write` must not block and must not raise; nor may `write_chunk`,
        which is given what goes down as it came, where that is one whole HTTP chunk.
        """
        events = self.events
        assert events is not None
        self._write = write
        self._write_chunk = write_chunk
        self._over = self._loop.create_future()
        self._last_read = self._loop.time()
        self._sending.connection.pipe(self._sending.answer, self)
        if events.ended:
            self._settle(events)
        else:
            self._tick()
        return self._over

    def pause(self) -> None:
        """The client reads too slowly: stop reading from the worker."""
        if not self._is_closed:
            self._is_paused = True
            self._sending.connection.pause()

    def resume(self) -> None:
        if self._is_paused:
            self._is_paused = False
            self._last_read = self._loop.time()
            self._sending.connection.resume()

    def close(self) -> None:
        """No timer is left, and the connection reads again: it may be another call's next."""
        self._is_closed = True
        self.resume()
        self._disarm()

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _take_whole(self, body: bytes) -> None:
        call = self.call
        if call.endpoint is Endpoint.TRANSCRIPTIONS and not self.content_type.startswith("application/json"):
            self.body = body  # response_format text, srt or vtt
            return
        self.body = checked(body, model=call.model, reasoning_content=self._settings.reasoning_content)
        self._whole_usage = usage_of_body(self.body)

    async def _open_stream(self, answer: Answer) -> None:
        if not self.content_type.startswith("text/event-stream"):
            raise UpstreamError("The worker answered a stream with something else.")
        events = self.events or self._new_events()
        self.events = events
        while not self.first and not events.ended:
            data = await answer.some()
            if not data:
                events.finish()
                break
            self.first = self._feed(events, data)
        if events.broken and not self.first:
            raise events.broken
        if events.done and events.num_events == 1 and self.call.endpoint in RESUMED:
            # Nothing but `[DONE]`, without the usage that was asked for: so vLLM answers that is shutting down.
            raise WorkerRefused("The worker is shutting down and did not start this answer.")

    def _new_events(self) -> EventStream:
        call, resume = self.call, self._settings.resume
        return EventStream(
            dialect_of(call.endpoint),
            model=call.model,
            hide_usage=not call.wants_usage,
            reasoning_content=self._settings.reasoning_content,
            max_kept_bytes=resume.max_bytes if resume.enabled and call.endpoint in RESUMED else 0,
        )

    def _feed(self, events: EventStream, data: bytes) -> bytes:
        if self._splice is None:
            return events.feed(data)
        try:
            return events.feed(self._splice.feed(data))
        except UpstreamError as exc:
            events.fail(exc)
            return b""

    def _out_of_patience(self) -> None:
        self._sending.fail(WorkerTimeout(f"The worker did not answer within {self._patience_s:g} s."))

    # The stream's events, each from within a read or a timer of the event loop
    def take(self, data: bytes, chunk: bytes) -> None:
        self._last_read = self._loop.time()
        events = self.events
        assert events is not None
        if events.ended:
            return
        out = self._feed(events, data)
        if events.ended:
            self._end(events, out)
        elif chunk and out is data and self._write_chunk is not None:
            self._write_chunk(chunk)
        elif out:
            self._write(out)

    def end(self) -> None:
        events = self.events
        assert events is not None
        if (error := self._sending.answer.error) is not None:
            events.fail(error)
        events.finish()
        self._resolve()

    def _end(self, events: EventStream, out: bytes) -> None:
        """The stream's last bytes: where the answer ends with them too, they go down in one write with our answer's end."""
        if self._sending.connection.is_complete:
            self.last = out
        elif out:
            self._write(out)
        self._settle(events)

    def _settle(self, events: EventStream) -> None:
        """The stream has said its last word. The connection is kept if the worker ends its body soon, as it should."""
        if events.broken or self._sending.answer.ended:
            self._resolve()
            return
        self.resume()  # what is left to read is not for the client
        self._disarm()
        self._timer = self._loop.call_later(min(END_GRACE_S, self._settings.timeouts.silence_s), self._resolve)

    def _resolve(self) -> None:
        self.close()
        if not self._over.done():
            self._over.set_result(None)

    def _tick(self) -> None:
        """Look at the clock: too long, too silent, or silent enough for a comment that keeps the client's side alive.

        While the client pauses us nothing is read: then the worker is not silent, and a comment would not be read either.
        """
        events, now, timeouts = self.events, self._loop.time(), self._settings.timeouts
        assert events is not None
        heard_at = now if self._is_paused else self._last_read
        if now >= self.call.deadline:
            events.fail(WorkerTimeout(f"This stream took longer than {self.call.allowed_s:g} s."))
        elif now - heard_at >= timeouts.silence_s:
            events.fail(WorkerTimeout(f"The worker fell silent for {timeouts.silence_s:g} s in the middle of its answer."))
        if events.ended:
            self._resolve()
            return
        due = min(heard_at + timeouts.silence_s, self.call.deadline)
        if (keep_alive_s := self._settings.keep_alive_s) is not None:
            comment_due = heard_at + keep_alive_s
            if now >= comment_due:
                self._write(KEEP_ALIVE)
                comment_due = now + keep_alive_s
            due = min(due, comment_due)
        self._timer = self._loop.call_at(max(now + 0.01, due), self._tick)


class OwnAnswer(Exchange):
    """An answer that the gateway gave itself: whole, and no worker behind it."""

    def __init__(self, call: Call, content_type: str, body: bytes) -> None:
        self.call = call
        self.content_type = content_type
        self.body = body
        self.events = None
        self._whole_usage = Usage(exact=True)
