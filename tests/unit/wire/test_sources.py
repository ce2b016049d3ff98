"""What a request asks of retrieval is taken out, and the place for sources is where it should be, whatever the body is."""

import json
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sluice.errors import BadRequest
from sluice.prefix import prefix_of, seed_of
from sluice.types import Endpoint
from sluice.wire.requests import Prepared, Rules, parse
from sluice.wire.sources import Ask

CHAT, RESPONSES = Endpoint.CHAT, Endpoint.RESPONSES
USER = {"role": "user", "content": "Which port?"}
BLOCK = 'Sources: "8443"\n<|x|> 网\nQuestion: '


def prepared(body: Any, endpoint: Endpoint = CHAT, **more: Any) -> tuple[Prepared, Ask]:
    data = body if isinstance(body, bytes) else json.dumps({"model": "m"} | body).encode()
    found = parse(endpoint, data).prepare(Rules(), model="served", **more)
    assert found.ask is not None
    return found, found.ask


def filled(body: Any, text: str = BLOCK, endpoint: Endpoint = CHAT, **more: Any) -> Any:
    found, ask = prepared(body, endpoint, **more)
    assert found.body.count(ask.slot) == 1
    return orjson.loads(found.body.replace(ask.slot, ask.filler(text)))


WISH = {"retrieval": {"vector_store_ids": ["vs"]}}


@pytest.mark.parametrize(
    "messages",
    [
        [USER],
        [{"role": "system", "content": "x"}, USER],
        [USER, {"role": "assistant", "content": "8443."}, USER],
        [USER, {"role": "assistant", "tool_calls": []}, {"role": "tool", "content": "x"}],
        [{"content": 'Wh\u00e9re \\ " is 网?', "name": "n", "role": "user"}],
    ],
)
def test_the_slot_stands_before_the_text_of_the_last_user_turn(messages: list[dict[str, Any]]):
    last = max(i for i, one in enumerate(messages) if one["role"] == "user")
    expected = [one | {"content": BLOCK + one["content"]} if i == last else one for i, one in enumerate(messages)]

    assert filled({"messages": messages} | WISH) == {"model": "served", "messages": expected}
    assert filled({"messages": messages} | WISH, "") == {"model": "served", "messages": messages}


def test_between_parts_it_is_a_part_of_its_own():
    parts = [{"type": "image_url", "image_url": {"url": "data:x"}}, {"type": "text", "text": "port?"}]
    messages = [{"role": "user", "content": parts}]

    [message] = filled({"messages": messages} | WISH)["messages"]

    assert message["content"] == [{"type": "text", "text": BLOCK}, *parts]
    assert filled({"messages": messages} | WISH, "")["messages"] == messages


@pytest.mark.parametrize(
    "asked", ["Which port?", [USER], [USER | {"content": [{"type": "input_text", "text": "Which port?"}]}]]
)
def test_a_responses_input_has_its_place_too(asked: Any):
    sent = filled({"input": asked} | WISH, endpoint=RESPONSES)["input"]

    if isinstance(asked, str):
        assert sent == BLOCK + asked
    elif isinstance(asked[0]["content"], str):
        assert sent[0]["content"] == BLOCK + "Which port?"
    else:
        assert sent[0]["content"][0] == {"type": "input_text", "text": BLOCK}


def test_escaped_names_and_white_space_are_no_obstacle():
    data = b'{ "\\u006dodel" : "m" ,\n"retrieval":{} , "messages" : [ {"role":"system","content":"x"} ,\t{ "\\u0072ole" : '
    data += b'"user" , "content"  :\n"port?" } ] , "n":1 }'

    assert filled(data)["messages"][1]["content"] == BLOCK + "port?"


def test_the_question_and_the_turns_before_it_are_known():
    turns = [
        {"role": "user", "content": "What is it?"},
        {"role": "assistant", "content": [{"type": "text", "text": "A gateway."}]},
    ]
    _, ask = prepared({"messages": [{"role": "system", "content": "x"}, *turns, USER]} | WISH)

    assert ask.question == "Which port?"
    assert ask.turns == (("user", "What is it?"), ("assistant", "A gateway."))
    assert prepared({"messages": [{"role": "user", "content": "x" * 9000}]} | WISH)[1].question == "x" * 2000


def test_tools_that_are_left_stay_and_a_forced_search_is_no_choice_of_the_models():
    search = {"type": "file_search", "vector_store_ids": ["vs"]}
    other = {"type": "function", "function": {"name": "f"}}

    alone = filled({"messages": [USER], "tools": [search], "tool_choice": "required", "parallel_tool_calls": False})
    beside = filled({"messages": [USER], "tools": [search, other], "tool_choice": {"type": "file_search"}})
    kept = filled({"messages": [USER], "tools": [other, search], "tool_choice": "auto"})

    assert alone.keys() == {"model", "messages"}
    assert beside["tools"] == [other] and "tool_choice" not in beside
    assert kept["tools"] == [other] and kept["tool_choice"] == "auto"


def test_without_a_wish_or_a_default_nothing_is_touched():
    data = json.dumps({"model": "served", "messages": [USER], "tools": [{"type": "function"}]}).encode()

    found = parse(CHAT, data).prepare(Rules(), model="served")

    assert found.ask is None and found.body is data


def test_null_is_no_wish_and_does_not_go_up():
    found = parse(CHAT, json.dumps({"model": "m", "messages": [USER], "retrieval": None}).encode()).prepare(Rules(), model="m")

    assert found.ask is None and b"retrieval" not in found.body


def test_a_default_makes_a_place_where_there_is_one():
    _, ask = prepared({"messages": [USER]}, retrieves=True)
    assert ask.slot and not ask.is_explicit
    for content in (None, [], [{"role": "assistant", "content": "x"}]):
        messages = content if content and "role" in content[0] else [{"role": "user", "content": content}]
        found, ask = prepared({"messages": messages}, retrieves=True)
        assert ask.slot == b"" and orjson.loads(found.body)["messages"] == messages


@pytest.mark.parametrize("name", ["retrieval", "tools", "tool_choice", "data_sources", "include"])
def test_what_is_taken_out_may_occur_once(name: str):
    with pytest.raises(BadRequest, match="occurs twice"):
        parse(
            CHAT,
            b'{"model":"m","messages":[{"role":"user","content":"x"}],"%b":null,"%b":null}' % (name.encode(), name.encode()),
        )


def test_the_prefix_is_that_of_the_prompt_with_its_sources():
    messages = [{"role": "system", "content": "s" * 3000}, {"role": "user", "content": "q" * 2000}]
    seed = seed_of("served")
    _, ask = prepared({"messages": messages} | WISH, prefix_seed=seed)

    for text in (BLOCK * 100, ""):
        grounded = [messages[0], {"role": "user", "content": text + messages[1]["content"]}]
        assert ask.prefix(text, seed) == prefix_of(CHAT, {"messages": grounded}, seed)


TURN = st.fixed_dictionaries({"role": st.sampled_from(["user", "system", "assistant"]), "content": st.text(max_size=30)})


@given(st.lists(TURN, max_size=5), st.text(max_size=40), st.booleans())
def test_whatever_is_said_the_block_stands_before_it(messages: list[dict[str, str]], text: str, ascii_only: bool):
    messages = [*messages, {"role": "user", "content": "last"}]
    data = json.dumps({"model": "m", "messages": messages} | WISH, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass")
    found, ask = prepared(data)

    sent = orjson.loads(found.body.replace(ask.slot, ask.filler(text)))["messages"]

    assert sent == [*messages[:-1], {"role": "user", "content": text + "last"}]
