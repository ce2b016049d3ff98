"""What is kept of an answer on its way down, and that it goes down all the same."""

from collections.abc import Callable
from typing import Any, Self

import orjson
import pytest

from sluice.api.captured import MAX_CAPTURED_BYTES, Captured, text_of
from sluice.asgi import Headers


class Way:
    """A way down that notes what goes along it."""

    def __init__(self) -> None:
        self.started = self.is_gone = self.is_paused = self.is_left = False
        self.on_pause: Callable[[], None] = lambda: None
        self.on_resume: Callable[[], None] = lambda: None
        self.write_chunk: Callable[[bytes], None] | None = self.write  # which what is captured must not pass by
        self.sent: list[Any] = []

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        self.is_left = True

    def respond(self, status: int, headers: Headers, body: bytes) -> None:
        self.started = True
        self.sent += [status, headers, body]

    def start(self, status: int, headers: Headers, first: bytes) -> None:
        self.started = True
        self.sent += [status, headers, first]

    def write(self, data: bytes) -> None:
        self.sent.append(data)

    def finish(self, last: bytes = b"") -> None:
        self.sent.append(last)


def an_event(text: str) -> bytes:
    return b"data: " + orjson.dumps({"choices": [{"index": 0, "delta": {"content": text}}]}) + b"\n\n"


async def test_of_a_stream_its_text_is_kept_and_every_byte_goes_down():
    way, paused = Way(), []
    pieces = [an_event("Hel"), b": keep-alive\n\n" + an_event("lo") + an_event(" you"), an_event("!") + b"data: [DONE]\n\n"]
    async with Captured(way) as captured:
        captured.on_pause, captured.on_resume = (lambda: paused.append("pause")), (lambda: paused.append("resume"))
        captured.start(200, [], pieces[0])
        captured.write(pieces[1])
        captured.finish(pieces[2])
        way.on_pause(), way.on_resume(), captured.on_pause(), captured.on_resume()
    assert captured.answer == "Hello you!"
    assert way.sent == [200, [], *pieces] and way.is_left
    assert paused == ["pause", "resume"] * 2
    assert captured.started and not captured.is_gone and not captured.is_paused
    assert captured.write_chunk is None  # nothing passes it by


async def test_a_whole_answer_is_kept_as_it_is():
    way = Way()
    async with Captured(way) as captured:
        captured.respond(200, [(b"a", b"b")], b'{"id":1}')
    assert captured.answer == '{"id":1}' and way.sent == [200, [(b"a", b"b")], b'{"id":1}']


async def test_no_more_is_kept_than_a_span_may_hold():
    async with Captured(Way()) as stream, Captured(Way()) as whole:
        for _ in range(70):
            stream.write(an_event("é" * 1000))
        whole.respond(200, [], b"x" * (MAX_CAPTURED_BYTES + 1))
    assert stream.answer == "é" * (MAX_CAPTURED_BYTES // 2)
    assert whole.answer == "x" * MAX_CAPTURED_BYTES


@pytest.mark.parametrize(
    "event, said",
    [
        ({"choices": [{"delta": {"reasoning": "Hm. ", "content": "Yes"}}, {"delta": {"content": "No"}}]}, "Hm. YesNo"),
        ({"choices": [{"delta": {"tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}}]}, "f{}"),
        ({"choices": [{"text": "once"}]}, "once"),
        ({"choices": [], "usage": {"completion_tokens": 3}}, ""),
        ({"type": "response.output_text.delta", "delta": "word"}, "word"),
        ({"type": "response.completed", "response": {"output": []}}, ""),
        ({"type": "content_block_delta", "delta": {"type": "text_delta", "text": "claude"}}, "claude"),
        ({"type": "content_block_delta", "delta": {"type": "input_json_delta", "partial_json": '{"a":'}}, '{"a":'),
        ({"choices": [None, {"delta": {"content": 5, "tool_calls": [None, {"function": "f"}]}}, {"delta": []}]}, ""),
        ([{"choices": 1}], ""),
        ("delta", ""),
    ],
)
def test_each_api_has_its_own_place_for_the_text(event: object, said: str):
    assert text_of(orjson.dumps(event)) == said


def test_what_is_no_json_says_nothing():
    assert text_of(b"[DONE]") == text_of(b"\xff{") == ""
