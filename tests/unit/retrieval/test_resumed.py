"""A stream with sources that breaks and goes on at another worker: edited as one stream."""

from dataclasses import replace
from typing import Any

from sluice.retrieval.base import Passage
from sluice.retrieval.given import Given
from sluice.retrieval.hook import Grounded
from sluice.retrieval.prompt_block import Source
from sluice.types import Call, Endpoint, Grounding
from tests.unit.test_resume import ASK, CHAT, ask, assert_same, cut, sea

SOURCE = Source(1, Passage("c", "f", "f.md", "text", 0.5, "vs"), "f.md", "text", 3)


async def ground(call: Call) -> tuple[Call, Grounding]:
    body = call.body
    assert isinstance(body, bytes)
    grounded = body.replace(b"Tell me of the sea.", b"[1] It is salty. Question: Tell me of the sea.")
    return replace(call, body=grounded), Grounded(Given(call.id, sources=(SOURCE,), tokens=9), Endpoint.CHAT)


def shown(told: Any) -> tuple[int, int, int]:
    """How many events show sources, a summary, annotations."""
    deltas = [choice["delta"] for choice in told.choices]
    summaries = sum("retrieval" in event for event in told.events)
    return sum("context" in one for one in deltas), summaries, sum("annotations" in one for one in deltas)


async def test_it_shows_its_sources_once_and_its_annotations_once():
    async with sea() as (line, running):
        whole = await ask(line, ASK, ground=ground)
        for num_events in (1, 9, 30):
            await cut(running, 0, events=num_events)
            told = await ask(line, ASK, ground=ground)
            assert told.outcome.num_resumes == 1
            assert_same(told, whole)
            assert shown(told) == shown(whole) == (1, 1, 1)
            assert told.usage["prompt_tokens_details"]["retrieval_tokens"] == 9
            for worker in line.workers:
                worker.ejection.reset()


async def test_what_goes_on_is_the_grounded_prompt():
    async with sea() as (line, running):
        plain, grounded = await ask(line, ASK), await ask(line, ASK, ground=ground)
        assert grounded.usage["prompt_tokens"] > plain.usage["prompt_tokens"]
        await cut(running, 0, events=9)
        told = await ask(line, ASK, ground=ground, endpoint=CHAT)
        assert told.usage["prompt_tokens"] == grounded.usage["prompt_tokens"] and told.text == grounded.text
