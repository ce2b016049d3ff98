"""What the clients of the chaos runs find wrong with a stream."""

from typing import Any

import orjson
import pytest

from loadtest.chaos.streams import Oracle, failure, fault
from tests.unit.loadtest.simfleet_client import client, events, fleet

ASK: dict[str, Any] = {"messages": [{"role": "user", "content": "Tell me of the sea."}], "max_tokens": 12, "ignore_eos": True}


async def stream() -> tuple[list[dict[str, Any]], str]:
    """The events of a good answer, and its text by the oracle."""
    body = ASK | {"stream_options": {"include_usage": True}}
    async with fleet() as running, client(running) as http:
        found = [event async for event in events(http, body) if event != "[DONE]"]
    return found, Oracle().text(ASK["messages"], 12)


def written(found: list[dict[str, Any]]) -> bytes:
    return b"".join(b"data: %b\n\n" % orjson.dumps(event) for event in found) + b"data: [DONE]\n\n"


async def test_a_good_answer_is_good():
    found, text = await stream()
    assert failure(200, written(found)) is None
    assert fault(written(found), text, 12) is None


async def test_what_is_wrong_is_found():
    found, text = await stream()
    other = found[3] | {"id": "another"}
    finished = found[2] | {"choices": [found[2]["choices"][0] | {"delta": {}, "finish_reason": "stop"}]}
    usage = found[-1] | {"usage": {"completion_tokens": 11}}
    for wrong, said in [
        (found[:3] + found[4:], "wrong text"),
        (found[:4] + found[3:], "wrong text"),
        ([*found[:3], other, *found[4:]], "more than one id"),
        (found[:1] + found, "not begun once"),
        ([*found[:-1], finished, found[-1]], "not finished once"),
        ([*found[:-1], usage], "usage"),
    ]:
        assert said in (fault(written(wrong), text, 12) or ""), said


@pytest.mark.parametrize(("status", "body"), [(500, b"no"), (200, b"data: {}\n\n"), (200, b'data: {"error": {}}\n\n')])
def test_what_failed_is_found(status, body):
    assert failure(status, body)
