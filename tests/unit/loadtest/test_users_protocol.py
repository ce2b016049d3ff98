"""A stream as its client reads it: every event at its time, and no success without the end."""

import io
from typing import Any

import pytest

from loadtest.users.protocol import Reading, StreamFailed, code_of, events_of, failure_of

GOOD = b'data: {"choices":[{"delta":{"role":"assistant","content":""}}]}\n\ndata: {"choices":[{"delta":{"content":"a"}}]}\n\n'
DONE = b"data: [DONE]\n\n"


class Answer:
    """What geventhttpclient gives, over bytes."""

    def __init__(self, data: bytes) -> None:
        self._data = io.BytesIO(data)

    def readline(self, sep: bytes) -> bytes:
        return self._data.readline()

    def read(self) -> bytes:
        return self._data.read()


def test_events_are_read_up_to_the_end_and_comments_are_none():
    events = list(events_of(Answer(b": keep-alive\n\n" + GOOD + DONE)))

    assert [event["choices"][0]["delta"].get("content") for event in events] == ["", "a"]


@pytest.mark.parametrize(
    "data, said",
    [
        (GOOD, "without"),
        (GOOD + b'data: {"error":{"message":"x","code":"worker_failed"}}\n\n' + DONE, "worker_failed"),
        (b"data: {broken\n\n" + DONE, "not JSON"),
        (b"", "without"),
    ],
)
def test_a_stream_that_broke_is_no_success(data: bytes, said: str):
    with pytest.raises(StreamFailed, match=said):
        list(events_of(Answer(data)))


def chunk(text: str) -> dict[str, Any]:
    return {"choices": [{"delta": {"content": text}}]}


def test_times_are_those_of_events_with_text_and_the_workers_count_of_tokens_wins():
    reading = Reading(began_at=10.0)
    for now, event in [
        (10.2, chunk("")),
        (10.5, chunk("a")),
        (10.6, chunk("b")),
        (11.1, chunk("c")),
        (11.2, {"choices": [], "usage": {"completion_tokens": 4}}),
    ]:
        reading.take(event, now)

    assert (reading.first_at, reading.num_texts, reading.num_tokens, reading.text) == (10.5, 3, 4, "abc")
    assert reading.gap_s == pytest.approx(0.3) and reading.longest_gap_s == pytest.approx(0.5)


def test_one_event_has_no_gap():
    reading = Reading(began_at=0.0)
    reading.take(chunk("a"), 1.0)

    assert reading.gap_s is None and reading.longest_gap_s is None


def test_failures_are_named_by_their_code():
    assert failure_of(429, b'{"error":{"code":"server_overloaded"}}') == "429 server_overloaded"
    assert failure_of(502, b"<html>") == "502 (no JSON)"
    assert code_of({"error": "Unauthorized"}) == "Unauthorized" and code_of([]) == "None"
