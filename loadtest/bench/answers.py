"""What is asked, and whether the answer is right: a benchmark of wrong answers is worth nothing.

Every answer is checked for its status, its end and its number of events; every `DEEP_EVERY`th is parsed whole: the
text, the id, the model in each event, the finish reason.
"""

from dataclasses import dataclass
from typing import Any

import orjson

from loadtest.bench.shape import expected_text, num_events

DEEP_EVERY = 20
_DONE = b"data: [DONE]\n\n"
_TEXT = (
    "The keeper of the sluice looks at the river each morning and writes down how high it stands.\n"
    'When snow melts in the hills he opens the gates one by one, "never two at once", and waits.\n'
)


class WrongAnswer(Exception):
    """The subject answered something else than the worker said; the message tells what."""


@dataclass(frozen=True, slots=True)
class Ask:
    """One request, ready for the socket, and what its answer must be."""

    request: bytes
    model: str
    num_tokens: int
    stream: bool


def prompt_text(num_bytes: int) -> str:
    """Prose of that many bytes once it is JSON (line ends and quotes take two)."""
    as_json = orjson.dumps(_TEXT)[1:-1]
    whole, rest = divmod(num_bytes, len(as_json))
    return _TEXT * whole + "x" * rest


def make_ask(
    host: str, key: str, model: str, num_tokens: int, *, stream: bool = False, contents: tuple[str, ...] = ("Why?",)
) -> Ask:
    """A chat whose messages are `contents`, the first from the user, then by turns."""
    members: dict[str, Any] = {"model": model, "max_tokens": num_tokens}
    if stream:
        members["stream"] = True
    members["messages"] = [
        {"role": "assistant" if turn % 2 else "user", "content": content} for turn, content in enumerate(contents)
    ]
    body = orjson.dumps(members)
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: {host}\r\nUser-Agent: bench\r\nAccept: */*\r\n"
        f"Authorization: Bearer {key}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return Ask(head.encode() + body, model, num_tokens, stream)


def check(ask: Ask, status: int, body: bytes | bytearray, *, deep: bool) -> None:
    """Raises WrongAnswer."""
    if status != 200:
        raise WrongAnswer(f"status {status}: {bytes(body[:300])!r}")
    if not ask.stream:
        if b'"finish_reason":"length"' not in body:
            raise WrongAnswer(f"not a whole reply: {bytes(body[:300])!r}")
        if deep:
            _check_reply(ask, body)
        return
    if not body.endswith(_DONE):
        raise WrongAnswer(f"a stream that does not end in [DONE] but in {bytes(body[-200:])!r}")
    seen, expected = body.count(b"data: ") - 1, num_events(ask.num_tokens)
    if seen != expected:
        raise WrongAnswer(f"{seen} events instead of {expected}; the last bytes are {bytes(body[-400:])!r}")
    if deep:
        _check_stream(ask, body)


def _check_reply(ask: Ask, body: bytes | bytearray) -> None:
    reply = orjson.loads(body)
    text = reply["choices"][0]["message"]["content"]
    seen = (reply["model"], text, reply["usage"]["completion_tokens"])
    expected = (ask.model, expected_text(ask.num_tokens), ask.num_tokens)
    if seen != expected:
        raise WrongAnswer(f"model, text and tokens are {seen} instead of {expected}")


def sse_data(body: bytes | bytearray) -> list[bytes]:
    """The data of each event; comments are left out."""
    events = bytes(body).split(b"\n\n")
    if events.pop() != b"":
        raise WrongAnswer("the last event has no end")
    return [event[6:] for event in events if not event.startswith(b":")]


def _check_stream(ask: Ask, body: bytes | bytearray) -> None:
    chunks = [orjson.loads(data) for data in sse_data(body)[:-1]]
    if {chunk["model"] for chunk in chunks} != {ask.model} or len({chunk["id"] for chunk in chunks}) != 1:
        raise WrongAnswer(f"not {ask.model!r} and one id in each event: {chunks[0]} ... {chunks[-1]}")
    choices = [chunk["choices"][0] for chunk in chunks if chunk["choices"]]
    text = "".join(choice["delta"]["content"] for choice in choices)
    if text != expected_text(ask.num_tokens) or choices[-1]["finish_reason"] != "length":
        raise WrongAnswer(f"the text of the stream is not what the worker sent: {text!r}")
