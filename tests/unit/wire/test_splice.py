"""The rest of a stream as another worker sends it, made into the stream that its client knows."""

from typing import Any

import orjson
import pytest

from sluice.errors import UpstreamError
from sluice.types import Endpoint
from sluice.wire.emitted import Emitted
from sluice.wire.events import MAX_EVENT_BYTES
from sluice.wire.splice import DONE, SeamMismatch, Splice, ending
from tests.support import vllm_shapes as vllm
from tests.support.raw_http import event_data

CHAT, COMPLETIONS = Endpoint.CHAT, Endpoint.COMPLETIONS
EMITTED = Emitted({"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 7, "model": "ours"}, "so far")


def text(content: str, **choice: Any) -> bytes:
    head = {"id": "cmpl-9", "object": "text_completion", "created": 9, "model": "theirs"}
    return vllm.sse(head | {"choices": [{"index": 0, "text": content, "logprobs": None, "finish_reason": None, **choice}]})


def usage(prompt: Any, completion: Any, **details: Any) -> bytes:
    counts = {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": 0} | details
    return vllm.sse({"id": "cmpl-9", "model": "theirs", "choices": [], "usage": counts})


def splice(**members: Any) -> Splice:
    return Splice(CHAT, EMITTED, **({"num_prompt": 10, "num_made": 4, "num_given": 14} | members))


def test_completions_become_events_of_the_clients_stream():
    out = splice().feed(text(" on") + text(".", finish_reason="stop", stop_reason="x") + DONE)
    first, last, done = event_data(out)
    assert first == EMITTED.head | {
        "choices": [{"index": 0, "delta": {"content": " on"}, "logprobs": None, "finish_reason": None, "token_ids": None}]
    }
    assert (last["choices"][0]["finish_reason"], last["choices"][0]["stop_reason"], done) == ("stop", "x", "[DONE]")


@pytest.mark.parametrize("size", [1, 3, 50, 10_000])
def test_however_it_is_cut(size):
    data = text(" on") + b": ping\n\n" + text(".", finish_reason="stop") + usage(14, 2) + DONE
    one = splice()
    assert b"".join(one.feed(data[at : at + size]) for at in range(0, len(data), size)) == splice().feed(data)


def test_a_second_beginning_is_left_out():
    role = vllm.sse({"id": "a", "choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]})
    word = vllm.sse({"id": "a", "choices": [{"index": 0, "delta": {"role": "assistant", "content": "Hi"}}]})
    call = vllm.sse({"id": "a", "choices": [{"index": 0, "delta": {"role": "assistant", "tool_calls": [{"index": 0}]}}]})
    one = splice(num_prompt=None)
    assert one.feed(role) == b""
    assert event_data(one.feed(word + call)) == [
        EMITTED.head | {"choices": [{"index": 0, "delta": {"content": "Hi"}}]},
        EMITTED.head | {"choices": [{"index": 0, "delta": {"tool_calls": [{"index": 0}]}}]},
    ]


def test_usage_is_that_of_one_worker():
    one = splice()
    assert one.num_recomputed == 14
    [event] = event_data(one.feed(usage(14, 5, prompt_tokens_details={"cached_tokens": 12})))
    counts = {"prompt_tokens": 10, "completion_tokens": 9, "total_tokens": 19}
    assert event["usage"] == counts | {"prompt_tokens_details": {"cached_tokens": 10}}
    assert one.num_recomputed == 2


def test_usage_of_a_call_that_begins_anew_is_its_own():
    one = splice(num_prompt=None)
    [event] = event_data(one.feed(usage(14, 5)))
    assert (event["usage"]["prompt_tokens"], event["usage"]["completion_tokens"], one.num_recomputed) == (14, 5, 14)


@pytest.mark.parametrize("bad", [usage("x", 1), usage(1, None), vllm.sse({"choices": [], "usage": 7})])
def test_usage_that_is_none_is_passed_on(bad):
    assert event_data(splice().feed(bad))[0]["usage"] == orjson.loads(bad[6:])["usage"]


@pytest.mark.parametrize(
    "event", [vllm.error_event(500, "no"), b"data: nonsense\n\n", b"data: [1]\n\n", vllm.sse({"error": {"message": "no"}})]
)
def test_what_is_no_event_of_text_is_for_the_stream_to_judge(event):
    assert splice().feed(event) == event


@pytest.mark.parametrize("choice", [7, {"delta": 7}])
def test_a_choice_of_another_kind_is_passed_on(choice):
    assert event_data(splice().feed(vllm.sse({"choices": [choice]})))[0]["choices"] == [choice]


def test_an_end_without_a_finish_is_none():
    assert splice().feed(DONE) == b""
    assert splice().feed(text("on") + DONE).endswith(b"\n\n")
    assert not splice().feed(text("on") + DONE).endswith(DONE)


def test_text_that_is_made_anew_is_compared_and_left_out():
    one = splice(overlap="o far")
    assert one.feed(text("o f")) == b""
    assert [event["choices"][0]["delta"]["content"] for event in event_data(one.feed(text("ar,") + text(" so")))] == [
        ",",
        " so",
    ]


@pytest.mark.parametrize("other", [text("o t"), text("o f", finish_reason="stop"), text("xo far")])
def test_and_where_it_differs_this_is_not_the_way(other):
    with pytest.raises(SeamMismatch):
        splice(overlap="o far").feed(other)


def test_an_event_without_end_is_cut_off():
    with pytest.raises(UpstreamError):
        splice().feed(b"data: " + b"x" * MAX_EVENT_BYTES)


@pytest.mark.parametrize("endpoint", [CHAT, COMPLETIONS])
def test_where_the_tokens_are_all_made_the_end_is_written_here(endpoint):
    finish, counts, done = event_data(ending(endpoint, EMITTED, num_prompt=10, num_made=4))
    choice = finish["choices"][0]
    assert choice["finish_reason"] == "length"
    assert (choice["delta"]["content"] if endpoint is CHAT else choice["text"]) == ""
    assert counts["usage"] == {"prompt_tokens": 10, "total_tokens": 14, "completion_tokens": 4}
    assert done == "[DONE]"


@pytest.mark.parametrize(("stop_reason", "num_tokens"), [(None, 5), ("x", 4)])
def test_where_it_had_finished_only_usage_and_end_are_missing(stop_reason, num_tokens):
    finished = EMITTED._replace(finish_reason="stop", stop_reason=stop_reason)
    counts, done = event_data(ending(CHAT, finished, num_prompt=10, num_made=4))
    assert counts["usage"]["completion_tokens"] == num_tokens  # the token that ends an answer has no text
    assert done == "[DONE]"
