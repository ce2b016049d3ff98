"""Broken streams that go on at another worker: to the letter, against a simulated fleet whose text depends on every token."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import orjson
import pytest

from loadtest.simfleet.fleet import Fleet
from sluice.relay import Relay
from sluice.types import Endpoint, Outcome
from tests.support.raw_http import event_data
from tests.unit.hot_path import PATIENCE_S, Client, Line, now
from tests.unit.loadtest.simfleet_client import fleet, order, unverified

CHAT, COMPLETIONS = Endpoint.CHAT, Endpoint.COMPLETIONS
ASK: dict[str, Any] = {"messages": [{"role": "user", "content": "Tell me of the sea."}], "max_tokens": 40, "temperature": 0}
TOOLS = [{"type": "function", "function": {"name": "look_up", "parameters": {"type": "object", "properties": {}}}}]


@dataclass
class Told:
    """A stream as its client got it."""

    body: bytes
    outcome: Outcome

    @property
    def data(self) -> list[Any]:
        return event_data(self.body)

    @property
    def events(self) -> list[dict[str, Any]]:
        return [event for event in self.data if event != "[DONE]"]

    @property
    def choices(self) -> list[dict[str, Any]]:
        return [choice for event in self.events for choice in event.get("choices", ())]

    @property
    def text(self) -> str:
        return "".join(one["text"] if "text" in one else one["delta"].get("content") or "" for one in self.choices)

    @property
    def finish_reasons(self) -> list[Any]:
        return [one["finish_reason"] for one in self.choices if one["finish_reason"]]

    @property
    def usage(self) -> Any:
        return self.events[-1].get("usage")

    @property
    def error(self) -> dict[str, Any]:
        assert self.data[-1] != "[DONE]"
        error: dict[str, Any] = self.events[-1]["error"]
        return error


@asynccontextmanager
async def sea(num_workers: int = 2, *, route: dict[str, Any] | None = None, **worker: Any) -> AsyncIterator[tuple[Line, Fleet]]:
    async with fleet(num_workers, worker=worker) as running:
        async with Line(*[worker.url for worker in running.workers], **(route or {})) as line:
            yield line, running


async def ask(line: Line, body: dict[str, Any], endpoint: Endpoint = CHAT, **members: Any) -> Told:
    """The stream through the gateway. Usage is asked for as the gateway itself does it."""
    asked = {"model": "smollm2", "stream": True, "stream_options": {"include_usage": True}} | body
    call = line.call(stream=True, endpoint=endpoint, path=endpoint.value, body=orjson.dumps(asked), **members)
    client = Client()
    async with asyncio.timeout(PATIENCE_S), client:
        outcome = await Relay(line.gateway, call, now).run(client)
    assert line.pool.in_flight == 0
    return Told(client.body, outcome)


async def cut(running: Fleet, worker: int, **members: Any) -> None:
    async with unverified(base_url=running.workers[worker].url) as http:
        await order(http, kind="cut", **members)


async def mend(line: Line, running: Fleet) -> None:
    """As if nothing had ever happened."""
    async with unverified(base_url=running.control_url) as http:
        await order(http, kind="clear")
    for worker in line.workers:
        worker.ejection.reset()
        worker.on_change()


def assert_same(told: Told, whole: Told) -> None:
    """Not to be told from a stream that never broke, but for its id and time."""
    assert told.outcome.status == 200
    assert told.data[-1] == "[DONE]"
    assert told.text == whole.text
    assert told.finish_reasons == whole.finish_reasons
    assert len({(event["id"], event["created"], event["model"], event["object"]) for event in told.events}) == 1
    assert [one.get("delta", {}).get("role") for one in told.choices].count("assistant") == whole.events[0]["object"].count(
        "chat"
    )
    if told.usage is not None:
        for name in ("prompt_tokens", "completion_tokens", "total_tokens"):
            assert told.usage[name] == whole.usage[name], name
    assert told.outcome.usage.completion_tokens == whole.outcome.usage.completion_tokens
    assert told.outcome.usage.prompt_tokens == whole.outcome.usage.prompt_tokens
    assert told.outcome.usage.exact


REQUESTS: dict[str, tuple[Endpoint, dict[str, Any]]] = {
    "chat": (CHAT, ASK),
    "chat to its own end": (CHAT, ASK | {"max_tokens": None, "max_completion_tokens": None}),
    "drawn at random": (CHAT, ASK | {"temperature": 0.8, "seed": 7}),
    "a stop string": (CHAT, ASK | {"stop": ["er the "], "max_tokens": 400}),
    "a stop string that shows": (CHAT, ASK | {"stop": "zzz", "include_stop_str_in_output": True}),
    "tools that are not called": (CHAT, ASK | {"tools": TOOLS, "tool_choice": "none"}),
    "tools that may be called": (CHAT, ASK | {"tools": TOOLS}),
    "a message that it continues": (
        CHAT,
        ASK
        | {
            "messages": [*ASK["messages"], {"role": "assistant", "content": "The sea"}],
            "add_generation_prompt": False,
            "continue_final_message": True,
        },
    ),
    "completions of text": (COMPLETIONS, {"prompt": "Tell me of the sea.", "max_tokens": 40}),
    "completions of ids": (COMPLETIONS, {"prompt": [600, 700, 800], "max_tokens": 40}),
    "completions of one list": (COMPLETIONS, {"prompt": ["Tell me of the sea."]}),
}


@pytest.mark.parametrize("name", REQUESTS)
async def test_a_stream_that_breaks_anywhere_goes_on_to_the_letter(name):
    endpoint, body = REQUESTS[name]
    async with sea() as (line, running):
        whole = await ask(line, body, endpoint)
        assert whole.outcome.status == 200, whole.body
        num_words = len(whole.choices) - 1  # the last one ends it
        for num_events in range(1, num_words, max(1, num_words // 12)):
            await cut(running, 0, events=num_events)
            told = await ask(line, body, endpoint)
            assert told.outcome.num_resumes == 1, num_events
            assert_same(told, whole)
            await mend(line, running)
