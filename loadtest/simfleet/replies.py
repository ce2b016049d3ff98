"""Replies under way: what the engine reports about a request's jobs becomes events or one body.

A `Stream` writes as it goes, a `Whole` once. Both are told of progress by the worker, of a client that left by the
connection, and of the faults that concern a reply by `Mischief`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from loadtest.simfleet.answer import Answer
from loadtest.simfleet.errors import WireError
from loadtest.simfleet.http_server import Headers, Reply
from loadtest.simfleet.job import Job, Progress
from loadtest.simfleet.wire import DONE, Wire, error_event


@dataclass(slots=True)
class Mischief:
    """What is to go wrong with a stream after so many events."""

    after_events: int
    how: str  # reset | close | chunk | broken_json


class Open(Protocol):
    """A reply that is not finished."""

    jobs: list[Job]

    def advance(self, choice: "Choice", progress: Progress) -> None:
        """A job of it has more tokens."""

    def abort(self) -> None:
        """The engine gives its jobs up: they end with `finish_reason` abort."""

    def fail(self, error: WireError) -> None:
        """The engine has died."""

    def expect(self, mischief: Mischief | None) -> None:
        """What is to go wrong with it from now on."""


@dataclass(eq=False, slots=True)
class Choice:
    """One answer of a reply; the `owner` of its job."""

    reply: Open
    index: int
    answer: Answer
    prompt_ids: Sequence[int]
    echoed: str
    num_tokens: int = 0
    num_sent: int = 0
    finish: str | None = None


class _Base:
    def __init__(self, wire: Wire, reply: Reply, on_end: Callable[[Open], None]) -> None:
        self.wire = wire
        self.reply = reply
        self.choices: list[Choice] = []
        self.jobs: list[Job] = []
        self._on_end = on_end
        self._num_open = 0

    def begin(self, choices: list[Choice], jobs: list[Job]) -> None:
        """Its answers, before the engine has any of them."""
        self.choices, self.jobs, self._num_open = choices, jobs, len(choices)

    def _tokens(self) -> tuple[int, int]:
        # The choices of one prompt are next to each other and its prompt counts once.
        prompts = self.choices[:: self.wire.asked.num_choices]
        return sum(len(c.prompt_ids) for c in prompts), sum(c.num_tokens for c in self.choices)


class Stream(_Base):
    """A reply of server-sent events."""

    def __init__(self, wire: Wire, reply: Reply, on_end: Callable[[Open], None]) -> None:
        super().__init__(wire, reply, on_end)
        self._mischief: Mischief | None = None
        self._num_events = 0
        self._has_begun = False

    def open(self) -> None:
        """The head; as with vLLM it goes out long before the first event."""
        self.reply.start("text/event-stream; charset=utf-8")

    def advance(self, choice: Choice, progress: Progress) -> None:
        events = self._opening()
        choice.num_tokens = progress.stop
        if progress.finished:
            choice.finish = choice.answer.finish_reason
        if self.wire.is_plain and self.wire.asked.stream_interval == 1:
            self._add_plain(events, choice, progress)
        else:
            self._add_tokens(events, choice)
        if progress.finished:
            self._close_choice(events)
        self._write(events)

    def abort(self) -> None:
        events = self._opening()
        for choice in self.choices:
            if choice.finish is None:
                choice.finish = "abort"
                # vLLM drops the event of a choice that has no token yet, `finish_reason` and all.
                if choice.num_tokens:
                    start = choice.num_sent
                    events.append(self._event(choice, "", start, start, "abort"))
        self._num_open = 1
        self._close_choice(events)
        self._write(events)

    def fail(self, error: WireError) -> None:
        self._finish([error_event(error.body), DONE])

    def expect(self, mischief: Mischief | None) -> None:
        self._mischief = mischief

    def _opening(self) -> list[bytes]:
        if self._has_begun:
            return []
        self._has_begun = True
        asked = self.wire.asked
        if not asked.is_chat:
            return []
        events = [self.wire.role_event(choice.index, choice.prompt_ids) for choice in self.choices]
        return events + [self.wire.echo_event(c.index, c.echoed) for c in self.choices if c.echoed]

    def _add_plain(self, events: list[bytes], choice: Choice, progress: Progress) -> None:
        last = progress.stop - 1 if progress.finished else progress.stop
        deltas, index, text_event = choice.answer.deltas, choice.index, self.wire.text_event
        events += [text_event(index, deltas[at]) for at in range(choice.num_sent, last)]
        if progress.finished:
            events.append(self._event(choice, deltas[last], last, last + 1, choice.finish))
        choice.num_sent = progress.stop

    def _add_tokens(self, events: list[bytes], choice: Choice) -> None:
        interval, deltas = self.wire.asked.stream_interval, choice.answer.deltas
        while choice.num_sent < choice.num_tokens:
            start = choice.num_sent
            stop = min(start + (interval if start else 1), choice.num_tokens)
            is_last = choice.finish is not None and stop == choice.num_tokens
            if start and stop - start < interval and not is_last:
                return
            finish = choice.finish if is_last else None
            events.append(self._event(choice, "".join(deltas[start:stop]), start, stop, finish))
            choice.num_sent = stop

    def _event(self, choice: Choice, text: str, start: int, stop: int, finish: str | None) -> bytes:
        return self.wire.token_event(choice.index, text, choice.answer, start, stop, choice.prompt_ids, finish)

    def _close_choice(self, events: list[bytes]) -> None:
        self._num_open -= 1
        if self._num_open == 0:
            if self.wire.asked.include_usage:
                events.append(self.wire.usage_event(self._tokens(), self.jobs))
            events.append(DONE)

    def _write(self, events: list[bytes]) -> None:
        if self._mischief is not None and self._num_events + len(events) > self._mischief.after_events:
            self._misbehave(self._mischief, events)
        elif self._num_open == 0:
            self._finish(events)
        else:
            self._num_events += len(events)
            self.reply.write(events)

    def _finish(self, events: list[bytes]) -> None:
        self.reply.write(events)
        self.reply.end()
        self._on_end(self)

    def _misbehave(self, mischief: Mischief, events: list[bytes]) -> None:
        kept = events[: max(mischief.after_events - self._num_events, 0)]
        if mischief.how == "broken_json":
            self._finish([*kept, b'data: {"id":"chatcmpl-0","choices":[{"index":0,"delta":{"cont\n\n', DONE])
            return
        self.reply.write(kept)
        if mischief.how == "chunk":
            self.reply.raw(b"\x16\x03\x01\x00\xa5 this is no chunk\r\n\x00\xff")
        self._on_end(self)
        self.reply.cut(reset=mischief.how == "reset")


class Whole(_Base):
    """A reply of one JSON body."""

    def __init__(self, wire: Wire, reply: Reply, on_end: Callable[[Open], None], headers: Callable[[], Headers]) -> None:
        super().__init__(wire, reply, on_end)
        self._headers = headers

    def advance(self, choice: Choice, progress: Progress) -> None:
        choice.num_tokens = progress.stop
        if progress.finished:
            choice.finish = choice.answer.finish_reason
            self._num_open -= 1
            if self._num_open == 0:
                self._send()

    def abort(self) -> None:
        for choice in self.choices:
            choice.finish = choice.finish or "abort"
        self._send()

    def fail(self, error: WireError) -> None:
        self.reply.json(error.status, error.body)
        self._on_end(self)

    def expect(self, mischief: Mischief | None) -> None:
        """Nothing: there is no middle to break off in."""

    def _send(self) -> None:
        wire = self.wire
        choices = [
            wire.whole_choice(c.index, c.answer, c.num_tokens, c.finish or "stop", c.echoed, c.prompt_ids) for c in self.choices
        ]
        body = wire.whole(choices, self._tokens(), self.jobs, self.choices[0].prompt_ids)
        self.reply.json(200, body, headers=self._headers())
        self._on_end(self)
