"""What of a worker's event stream goes down, and what the stream says of its end."""

import json

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sluice.errors import ContextTooLong, UpstreamError, WorkerRefused, WorkerTimeout
from sluice.types import Endpoint, Usage
from sluice.wire.events import MAX_EVENT_BYTES, Dialect, EventStream, MessagesDialect, ResponsesDialect, dialect_of


def chunk(content: str = "", *, finish: str | None = None, model: str = "smollm2", role: str | None = None, **more) -> bytes:
    delta = {"role": role} if role else {}
    event = {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "created": 1790000000,
        "model": model,
        "choices": [{"index": 0, "delta": delta | {"content": content}, "logprobs": None, "finish_reason": finish}],
    }
    return sse(event | more)


def sse(event: object, name: str = "") -> bytes:
    head = f"event: {name}\n".encode() if name else b""
    return head + b"data: " + json.dumps(event, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


USAGE = sse(
    {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "created": 1790000000,
        "model": "smollm2",
        "choices": [],
        "usage": {
            "prompt_tokens": 12,
            "total_tokens": 15,
            "completion_tokens": 3,
            "prompt_tokens_details": {"cached_tokens": 8},
        },
    }
)
DONE = b"data: [DONE]\n\n"
CHUNKS = [chunk(role="assistant"), chunk("Hello"), chunk(" 世界"), chunk("", finish="stop")]
WHOLE = b"".join(CHUNKS) + USAGE + DONE
EXACT = Usage(12, 3, 8, exact=True)


def chat(**options) -> EventStream:
    return EventStream(Dialect(), model="smollm2", **options)


def feed_all(stream: EventStream, *reads: bytes) -> bytes:
    out = b"".join(stream.feed(read) for read in reads)
    stream.finish()
    return out


def cut(data: bytes, places: list[int]) -> list[bytes]:
    borders = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    return [data[a:b] for a, b in zip(borders, borders[1:], strict=False) if a < b]


@given(st.lists(st.integers(0, 10_000), max_size=40))
def test_any_split_of_a_stream_gives_the_same_bytes_and_usage(places):
    stream = chat()

    assert feed_all(stream, *cut(WHOLE, places)) == WHOLE
    assert stream.done and stream.broken is None
    assert stream.usage == EXACT


@given(st.lists(st.integers(0, 10_000), max_size=40), st.sampled_from([b"\n", b"\r\n", b"\r"]))
def test_the_usage_chunk_is_withheld_wherever_the_reads_end(places, line_end):
    whole = WHOLE.replace(b"\n", line_end)
    stream = chat(hide_usage=True)

    assert feed_all(stream, *cut(whole, places)) == whole.replace(USAGE.replace(b"\n", line_end), b"")
    assert stream.usage == EXACT


@given(st.lists(st.integers(0, 10_000), max_size=40))
def test_an_alias_is_put_into_every_event_and_nowhere_else(places):
    text = 'they said "model":"smollm2" and meant it'
    theirs = b"".join([chunk(role="assistant"), chunk(text), chunk("x"), USAGE, DONE])
    stream = EventStream(Dialect(), model="gpt-4o-mini")

    sent = feed_all(stream, *cut(theirs, places))

    assert sent == theirs.replace(b'"model":"smollm2"', b'"model":"gpt-4o-mini"')
    assert orjson.loads(sent.split(b"\n\n")[1][6:])["choices"][0]["delta"]["content"] == text


def test_a_model_spelled_with_a_space_is_renamed_too():
    stream = EventStream(Dialect(), model="alias")
    event = b'data: {"model": "smollm2", "choices": [{"delta": {}}]}\n\n'

    assert stream.feed(event) == event.replace(b"smollm2", b"alias")


def test_each_whole_read_passes_as_the_same_object_when_nothing_is_to_be_changed():
    stream = chat()
    stream.feed(CHUNKS[0])

    assert stream.feed(CHUNKS[1]) is CHUNKS[1]


def test_text_about_errors_aborts_and_done_is_only_text():
    said = chunk('"error" "abort" "usage" [DONE] "finish_reason":"abort"')
    stream = chat()

    assert feed_all(stream, CHUNKS[0], said, DONE) == CHUNKS[0] + said + DONE
    assert stream.done


def test_without_a_usage_chunk_events_are_counted_and_the_count_is_not_exact():
    stream = chat()
    for read in CHUNKS[:3]:
        stream.feed(read)

    assert stream.usage == Usage(completion_tokens=3, exact=False)


def test_an_end_without_done_is_a_broken_stream():
    stream = chat()
    feed_all(stream, *CHUNKS)

    assert not stream.done
    assert isinstance(stream.broken, UpstreamError)


def test_an_incomplete_last_event_is_never_passed_on():
    stream = chat()

    assert feed_all(stream, CHUNKS[0], CHUNKS[1][:30]) == CHUNKS[0]
    assert stream.broken is not None


@pytest.mark.parametrize("separate", [True, False])
def test_an_error_event_followed_by_done_breaks_the_stream_and_neither_is_passed_on(separate):
    error = sse({"error": {"message": "engine died", "type": "InternalServerError", "param": None, "code": 500}})
    stream = chat()
    reads = [*CHUNKS[:2], error, DONE] if separate else [b"".join([*CHUNKS[:2], error, DONE])]

    assert feed_all(stream, *reads) == b"".join(CHUNKS[:2])
    assert not stream.done
    assert stream.broken.message == "engine died"
    assert stream.broken.envelope()["error"]["code"] == "worker_failed"


def test_an_aborted_choice_is_not_an_answer():
    stream = chat()

    assert feed_all(stream, *CHUNKS[:2], chunk("", finish="abort"), DONE) == b"".join(CHUNKS[:2])
    assert isinstance(stream.broken, UpstreamError)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        ({"message": "top_logprobs too large", "type": "BadRequestError", "code": 400}, 400),
        ({"message": "This model's maximum context length is 8192", "type": "BadRequestError", "code": 400}, ContextTooLong),
        ({"message": "queue is full", "type": "Service Unavailable", "code": 503}, WorkerRefused),
        ("a string", 502),
        ({"message": "no code"}, 502),
        ({"message": "odd", "code": 7}, 502),
    ],
)
def test_an_error_as_first_event_is_a_real_status(error, expected):
    stream = chat()

    assert stream.feed(sse({"error": error}) + DONE) == b""
    if isinstance(expected, int):
        assert stream.broken.status == expected
    else:
        assert isinstance(stream.broken, expected)


@pytest.mark.parametrize("garbage", [b"data: {\n\n", b"data: 7\n\n", b"data: \xff\n\n", b"data:\n\n"])
def test_a_first_event_that_is_no_object_breaks_the_stream(garbage):
    stream = chat()

    assert stream.feed(garbage) == b""
    assert stream.broken.status == 502


def test_comments_before_the_first_event_are_held_back_and_later_ones_pass():
    stream = chat()

    assert stream.feed(b": keep-alive\n\n") == b""
    assert stream.feed(CHUNKS[0]) == CHUNKS[0]
    assert stream.feed(b": keep-alive\n\n") == b": keep-alive\n\n"


def test_an_event_without_an_end_is_bounded():
    stream = chat()
    stream.feed(CHUNKS[0])
    for _ in range(MAX_EVENT_BYTES // 1_000_000 + 1):
        stream.feed(b"x" * 1_000_000)

    assert stream.broken is not None


def test_what_comes_after_the_end_is_dropped():
    stream = chat()

    assert stream.feed(CHUNKS[0] + DONE + chunk("more")) == CHUNKS[0] + DONE
    assert stream.done


def test_a_failure_after_the_end_changes_nothing():
    stream = chat()
    stream.feed(CHUNKS[0] + DONE)
    stream.fail(WorkerTimeout("too late"))

    assert stream.done and stream.broken is None


def test_reasoning_is_written_under_both_names_where_the_route_asks_for_it():
    event = chunk("", reasoning_effort="low").replace(b'"content":""', b'"reasoning":"hm"')
    stream = chat(reasoning_content=True)

    sent = feed_all(stream, event, chunk("plain"), DONE)

    first = orjson.loads(sent.split(b"\n\n")[0][6:])
    assert first["choices"][0]["delta"] == {"reasoning": "hm", "reasoning_content": "hm"}
    assert sent.endswith(chunk("plain") + DONE)


def test_reasoning_is_left_alone_otherwise():
    event = chunk("").replace(b'"content":""', b'"reasoning":"hm"')

    assert feed_all(chat(), event, DONE) == event + DONE


RESPONSE = {"id": "resp_1", "object": "response", "model": "smollm2", "error": None, "usage": None}
RESPONSES = [
    sse({"type": "response.created", "response": RESPONSE}, "response.created"),
    sse({"type": "response.output_text.delta", "delta": "Hi"}, "response.output_text.delta"),
]
COMPLETED = sse(
    {
        "type": "response.completed",
        "response": RESPONSE | {"usage": {"input_tokens": 5, "output_tokens": 2, "input_tokens_details": {"cached_tokens": 1}}},
    },
    "response.completed",
)


@given(st.lists(st.integers(0, 10_000), max_size=20))
def test_a_responses_stream_ends_with_its_completed_event(places):
    whole = b"".join(RESPONSES) + COMPLETED
    stream = EventStream(ResponsesDialect(), model="smollm2")

    assert feed_all(stream, *cut(whole, places)) == whole
    assert stream.done
    assert stream.usage == Usage(5, 2, 1, exact=True)


def test_a_responses_stream_is_renamed_inside_its_response():
    stream = EventStream(ResponsesDialect(), model="alias")

    assert stream.feed(RESPONSES[0]) == RESPONSES[0].replace(b'"smollm2"', b'"alias"')


@pytest.mark.parametrize(
    "failure",
    [
        sse({"type": "response.failed", "response": RESPONSE | {"error": {"message": "died", "code": "x"}}}, "response.failed"),
        sse({"type": "response.failed", "response": RESPONSE}, "response.failed"),
        sse({"type": "error", "message": "died", "code": None}, "error"),
        sse({"type": "error", "error": {"message": "died"}}, "error"),
    ],
)
def test_a_failed_response_is_a_broken_stream(failure):
    stream = EventStream(ResponsesDialect(), model="smollm2")
    sent = feed_all(stream, *RESPONSES, failure)

    assert sent == b"".join(RESPONSES)
    assert stream.broken.status == 502


MESSAGE = [
    sse({"type": "message_start", "message": {"model": "smollm2", "usage": {"input_tokens": 7}}}, "message_start"),
    sse({"type": "content_block_delta", "delta": {"text": "Hi"}}, "content_block_delta"),
    sse({"type": "message_delta", "delta": {}, "usage": {"output_tokens": 3}}, "message_delta"),
    sse({"type": "message_stop"}, "message_stop"),
]


@given(st.lists(st.integers(0, 10_000), max_size=20))
def test_a_messages_stream_ends_with_message_stop_and_adds_its_usage_up(places):
    whole = b"".join(MESSAGE)
    stream = EventStream(MessagesDialect(), model="smollm2")

    assert feed_all(stream, *cut(whole, places)) == whole
    assert stream.done
    assert stream.usage == Usage(7, 3, 0, exact=True)


def test_usage_whole_in_one_messages_event_is_taken_as_it_is():
    last = sse({"type": "message_delta", "usage": {"input_tokens": 9, "output_tokens": 3}}, "message_delta")
    stream = EventStream(MessagesDialect(), model="smollm2")
    feed_all(stream, MESSAGE[0], last, MESSAGE[3])

    assert stream.usage == Usage(9, 3, 0, exact=True)


def test_an_error_in_a_messages_stream_breaks_it():
    stream = EventStream(MessagesDialect(), model="smollm2")
    error = sse({"type": "error", "error": {"type": "api_error", "message": "died"}}, "error")

    assert feed_all(stream, MESSAGE[0], error) == MESSAGE[0]
    assert stream.broken.message == "died"


@pytest.mark.parametrize("endpoint", [Endpoint.CHAT, Endpoint.RESPONSES, Endpoint.MESSAGES])
def test_the_last_event_of_a_broken_stream_holds_the_error_object(endpoint):
    event = dialect_of(endpoint).error_event(UpstreamError("lost"))
    name, _, rest = event.rpartition(b"data: ")

    assert event.endswith(b"\n\n") and b"[DONE]" not in event
    assert orjson.loads(rest)["error"] == {"message": "lost", "type": "server_error", "param": None, "code": "worker_failed"}
    assert name == (b"" if endpoint is Endpoint.CHAT else b"event: error\n")


SHAPED = [chunk(role="assistant"), chunk("Hello"), chunk(" there")]  # by now the stream knows what its events look like


@pytest.mark.parametrize("text", ["error", '"error"', 'say "usage"', "[DONE]", "\\", 'a\\"b', "\n\n", "", "世界"])
def test_an_event_of_the_known_shape_passes_whatever_its_text(text):
    stream = chat()
    for read in (*SHAPED, chunk(text), chunk("more")):
        assert stream.feed(read) == read
    assert stream.num_events == 5
    assert not stream.ended


def test_several_events_of_the_known_shape_in_one_read_are_counted_each():
    stream = chat()
    assert feed_all(stream, *SHAPED, chunk("a") + chunk("b") + chunk("c"), DONE) == b"".join(
        [*SHAPED, chunk("a"), chunk("b"), chunk("c"), DONE]
    )
    assert stream.usage == Usage(completion_tokens=7)  # [DONE] is counted as ever


@pytest.mark.parametrize(
    "bad",
    [
        sse({"error": {"message": "EngineCore died", "code": 500}}),
        chunk("", finish="abort"),
        chunk("Hello") + sse({"error": {"message": "EngineCore died", "code": 500}}),
        sse({"error": {"message": "EngineCore died", "code": 500}}) + chunk("Hello"),
    ],
    ids=["error", "abort", "text then error", "error then text"],
)
def test_a_failure_after_events_of_the_known_shape_is_seen(bad):
    stream = chat()
    feed_all(stream, *SHAPED, bad)
    assert stream.broken is not None
    assert not stream.done


def test_an_alias_is_put_into_events_of_the_known_shape():
    stream = EventStream(Dialect(), model="gpt-4o-mini")
    out = feed_all(stream, *SHAPED, chunk("x"), chunk('"model":"smollm2"'), DONE)
    assert out.count(b'"model":"gpt-4o-mini"') == 5
    assert b'\\"model\\":\\"smollm2\\"' in out
