"""What a client has got of a broken stream: read back from what `EventStream` keeps of it, however it was cut into reads."""

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sluice.types import Endpoint
from sluice.wire.emitted import CannotResume, read_emitted
from sluice.wire.events import Dialect, EventStream
from tests.support import vllm_shapes as vllm

CHAT, COMPLETIONS = Endpoint.CHAT, Endpoint.COMPLETIONS
HEAD = {"id": "x", "object": "chat.completion.chunk", "created": 7, "model": "m"}


def chat(delta: dict[str, object], **choice: object) -> bytes:
    return vllm.sse(HEAD | {"choices": [{"index": 0, "delta": delta, "finish_reason": None, **choice}]})


def kept(*events: bytes) -> bytes:
    return b"".join(b"\0%b\0" % event for event in events)


@given(
    words=st.lists(st.text(min_size=1, max_size=12), max_size=30),
    sizes=st.lists(st.integers(1, 6), min_size=1, max_size=40),
    as_ascii=st.booleans(),
)
def test_the_text_is_the_one_that_went_down(words, sizes, as_ascii):
    stream = EventStream(Dialect(), model="m", max_kept_bytes=1_000_000)
    stream.feed(chat({"role": "assistant", "content": ""}))
    events = [chat({"content": word}) for word in words]
    if as_ascii:
        events = [event.decode().encode("ascii", "backslashreplace") if event.isascii() else event for event in events]
    while events:  # several events a read
        size = sizes[len(events) % len(sizes)]
        read, events = events[:size], events[size:]
        assert stream.feed(b"".join(read)) == b"".join(read)
    assert stream.kept is not None
    emitted = read_emitted(CHAT, bytes(stream.kept))
    assert emitted.text == "".join(words)
    assert emitted.head == HEAD


def test_most_events_are_kept_by_their_text_alone():
    stream = EventStream(Dialect(), model="m", max_kept_bytes=1_000_000)
    stream.feed(chat({"role": "assistant", "content": ""}))
    for _ in range(100):
        stream.feed(chat({"content": " word"}))
        stream.feed(chat({"content": ' a "quoted" word'}) * 4)
    assert stream.kept is not None
    assert len(stream.kept) < 20_000


@pytest.mark.parametrize("in_one_read", [False, True])
def test_what_becomes_too_much_is_kept_no_more(in_one_read):
    stream = EventStream(Dialect(), model="m", max_kept_bytes=1000)
    stream.feed(chat({"role": "assistant", "content": ""}))
    events = [chat({"content": "x" * 50})] * 40
    for read in [b"".join(events)] if in_one_read else events:
        stream.feed(read)
    assert stream.kept is None
    assert stream.feed(events[0]) == events[0]


def test_what_finishes_it_is_read_too():
    events = [chat({"content": "a"}), chat({"content": "b"}, finish_reason="stop", stop_reason="x")]
    usage = vllm.sse(HEAD | {"choices": [], "usage": {"prompt_tokens": 1}})
    emitted = read_emitted(CHAT, kept(*events))
    assert (emitted.text, emitted.finish_reason, emitted.stop_reason, emitted.has_usage) == ("ab", "stop", "x", False)
    assert read_emitted(CHAT, kept(*events, b": comment\n\n", usage)).has_usage


def test_completions_have_their_text_elsewhere():
    event = vllm.sse(HEAD | {"choices": [{"index": 0, "text": "a", "logprobs": None, "finish_reason": None}]})
    assert read_emitted(COMPLETIONS, kept(event, event)).text == "aa"


@pytest.mark.parametrize(
    ("event", "why"),
    [
        (chat({"tool_calls": [{"index": 0}]}), "a tool call has begun"),
        (chat({"function_call": {"name": "f"}}), "a tool call has begun"),
        (chat({"reasoning": "hm"}), "its reasoning has begun"),
        (chat({"reasoning_content": "hm"}), "its reasoning has begun"),
        (chat({"content": "a"}, logprobs={"content": []}), "it carries logprobs"),
        (chat({"content": "a"}, token_ids=[1]), "it carries token ids"),
        (chat({"audio": {"id": "a"}}), "it carries `audio`"),
        (chat({"content": "a"}, index=1), "it holds several answers"),
        (chat({"content": ["a"]}), "it holds events of another kind"),
        (vllm.sse(HEAD | {"choices": [7]}), "it holds events of another kind"),
        (vllm.sse(HEAD | {"choices": [{"delta": 7}]}), "it holds events of another kind"),
        (vllm.sse(HEAD), "it holds events of another kind"),
        (b"data: {\n\n", "it holds an event that is not JSON"),
        (b"data: [1]\n\n", "it holds an event that is not JSON"),
    ],
)
def test_what_a_parser_of_the_lost_worker_has_begun_cannot_go_on(event, why):
    with pytest.raises(CannotResume, match=why):
        read_emitted(CHAT, kept(chat({"role": "assistant"}), event))


@pytest.mark.parametrize("bad", [b"", kept(b": comment\n\n"), kept(chat({})) + b"\\x", kept(chat({})) + b'a"b'])
def test_nor_can_what_is_no_stream(bad):
    with pytest.raises(CannotResume):
        read_emitted(CHAT, bad)


def test_escapes_across_reads_are_one_text():
    assert read_emitted(CHAT, kept(chat({"content": "a"})) + b"\\ud83d\\ude00\\n").text == "a\N{GRINNING FACE}\n"
    assert orjson.loads(b'"\\n"') == "\n"
