"""Streams and whole answers with what was given, however the events come."""

from typing import Any

import orjson
import pytest
from hypothesis import given as given_by
from hypothesis import strategies as st

from sluice.retrieval import chat_reply
from sluice.retrieval.base import Passage
from sluice.retrieval.chat_reply import ChatEditor, whole_chat
from sluice.retrieval.given import Given
from sluice.retrieval.prompt_block import Source
from sluice.retrieval.responses_reply import ResponsesEditor
from tests.support import vllm_agents
from tests.support import vllm_shapes as vllm

SOURCES = tuple(Source(i, Passage(f"c{i}", f"f{i}", f"{i}.md", "t", 0.5, "vs"), f"{i}.md", "t", 1) for i in (1, 2))
GIVEN = Given("req-1", sources=SOURCES, queries=("q",), tokens=7)
WORDS = ("It ", "is [", "1", "] ", "or ［2］", " `[1]", "`.")
TEXT = "".join(WORDS)


def payloads(stream: bytes) -> list[Any]:
    return [orjson.loads(one.partition(b"data: ")[2]) for one in stream.split(b"\n\n") if one and not one.endswith(b"[DONE]")]


def annotations(stream: bytes) -> list[tuple[int, str]]:
    found = []
    for chunk in payloads(stream):
        for choice in chunk["choices"]:
            for one in choice["delta"].get("annotations", ()):
                cited = one["url_citation"]
                found.append((choice["index"], TEXT[cited["start_index"] : cited["end_index"]]))
    return found


@given_by(st.lists(st.integers(1, 4), max_size=20))
def test_any_grouping_of_events_gives_the_same_stream(sizes: list[int]):
    events = vllm.chat_events(vllm.content_deltas(WORDS), model="m", include_usage=True, n=2)
    editor, out, at = ChatEditor(GIVEN), b"", 0
    for size in [*sizes, *[1] * len(events)]:
        out += editor.feed(b"".join(events[at : at + size]))
        at += size

    assert annotations(out) == [(i, marker) for i in (0, 1) for marker in ("[1]", "［2］")]
    assert sum("context" in choice["delta"] for chunk in payloads(out) for choice in chunk["choices"]) >= 1
    assert sum("retrieval" in chunk for chunk in payloads(out)) == 1
    assert payloads(out)[-1]["usage"]["prompt_tokens_details"]["retrieval_tokens"] == 7
    text = [
        "".join(c["delta"].get("content", "") for chunk in payloads(out) for c in chunk["choices"] if c["index"] == i)
        for i in (0, 1)
    ]
    assert text == [TEXT, TEXT]


def test_a_long_answer_is_not_kept_as_events(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(chat_reply, "KEPT_BYTES", 500)
    editor = ChatEditor(GIVEN)
    events = vllm.chat_events(vllm.content_deltas(["a "] * 50 + ["[2]"]), model="m")

    out = b""
    for event in events:
        out += editor.feed(event)
        assert sum(map(len, editor._kept)) <= 1000

    [chunk] = [one for one in payloads(out) if any("annotations" in c["delta"] for c in one["choices"])]
    [found] = chunk["choices"][0]["delta"]["annotations"]
    assert (found["url_citation"]["start_index"], found["url_citation"]["title"]) == (100, "2.md")


def test_comments_and_what_is_no_json_go_through():
    editor = ChatEditor(GIVEN)
    first = vllm.chat_events(vllm.content_deltas(WORDS), model="m")[0]

    assert editor.feed(b": keep-alive\n\n") == b": keep-alive\n\n"
    assert b'"context"' in editor.feed(first)
    assert editor.feed(b"data: [DONE]\n\n") == b"data: [DONE]\n\n"


def test_who_wants_no_citations_gets_the_summary_alone():
    quiet = Given("req-1", sources=SOURCES, shows_citations=False)
    events = vllm.chat_events(vllm.content_deltas(WORDS), model="m")
    editor = ChatEditor(quiet)

    out = b"".join(map(editor.feed, events))

    assert b"annotations" not in out and b'"context"' not in out and out.count(b'"retrieval":{') == 1
    whole = orjson.loads(
        whole_chat(orjson.dumps(vllm.chat_reply({"content": TEXT}, model="m", id="x", prompt=1, completion=1)), quiet)
    )
    assert "context" not in whole["choices"][0]["message"] and whole["retrieval"]["used"] == 2


def test_a_message_without_text_has_no_annotations():
    reply = vllm.chat_reply({"content": None, "tool_calls": []}, model="m", id="x", prompt=1, completion=1)

    whole = orjson.loads(whole_chat(orjson.dumps(reply), GIVEN))

    assert whole["choices"][0]["message"]["annotations"] == []
    assert len(whole["choices"][0]["message"]["context"]["citations"]) == 2


@given_by(st.lists(st.integers(1, 5), max_size=12))
def test_any_grouping_of_events_gives_the_same_response(sizes: list[int]):
    events = vllm_agents.response_events(WORDS, model="m", id="resp_1", prompt=5)
    editor, out, at = ResponsesEditor(GIVEN), b"", 0
    for size in [*sizes, *[1] * len(events)]:
        out += editor.feed(b"".join(events[at : at + size]))
        at += size

    found = payloads(out)
    assert [one["sequence_number"] for one in found] == list(range(len(found)))
    assert sum(one["type"] == "response.output_text.annotation.added" for one in found) == 2
    assert {one["output_index"] for one in found if one["type"] == "response.output_text.delta"} == {1}
    assert [len(item.get("content", ())) for item in found[-1]["response"]["output"]] == [0, 1]


def test_a_responses_stream_passes_what_it_does_not_know():
    editor = ResponsesEditor(GIVEN)

    assert editor.feed(b": keep-alive\n\n") == b": keep-alive\n\n"
    assert editor.feed(b"data: [1]\n\n") == b"data: [1]\n\n"
