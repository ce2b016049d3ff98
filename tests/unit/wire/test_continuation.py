"""What another worker is asked for the rest of a broken stream, and when it is not."""

from typing import Any

import orjson
import pytest

from sluice.types import Endpoint
from sluice.wire.continuation import MAX_SEED, Continuation, Tokens, parse_tokens
from sluice.wire.emitted import CannotResume, Emitted

CHAT, COMPLETIONS = Endpoint.CHAT, Endpoint.COMPLETIONS
PROMPT = Tokens([1, 2, 3], 100)
USER = {"role": "user", "content": "Hi"}


def begun(text: str) -> Emitted:
    return Emitted({"id": "x"}, text)


def chat(text: str = "so far", **members: Any) -> Continuation:
    asked = {"model": "m", "messages": [USER], "stream": True, "stream_options": {"include_usage": True}}
    return Continuation(CHAT, orjson.dumps(asked | members), begun(text))


def completion(prompt: Any, text: str = "so far", **members: Any) -> Continuation:
    return Continuation(COMPLETIONS, orjson.dumps({"model": "m", "prompt": prompt, "stream": True} | members), begun(text))


def test_the_prompt_is_asked_for_as_its_template_renders_it():
    rendered = {"tools": [{"type": "function"}], "chat_template_kwargs": {"a": 1}, "add_generation_prompt": True}
    question = orjson.loads(chat(tool_choice="none", temperature=1, **rendered).prompt_question())
    assert question == {"model": "m", "messages": [USER]} | rendered


@pytest.mark.parametrize("prompt", ["Hi", ["Hi"]])
def test_that_of_completions_as_it_is(prompt):
    question = {"model": "m", "prompt": "Hi", "add_special_tokens": True}
    assert orjson.loads(completion(prompt).prompt_question()) == question
    assert not orjson.loads(completion(prompt, add_special_tokens=False).prompt_question())["add_special_tokens"]


@pytest.mark.parametrize("prompt", [[4, 5], [[4, 5]]])
def test_one_in_ids_is_not_asked_for(prompt):
    assert completion(prompt).prompt_ids == [4, 5]
    assert completion("Hi").prompt_ids is None


def test_the_rest_is_asked_for_in_ids_with_what_steers_it():
    body = chat(max_tokens=50, temperature=0.5, stop=["x"], cache_salt="s", metadata={"a": "b"}, seed=7).body(PROMPT, [8, 9])
    assert orjson.loads(body) == {
        "model": "m",
        "prompt": [1, 2, 3, 8, 9],
        "max_tokens": 48,
        "temperature": 0.5,
        "stop": ["x"],
        "cache_salt": "s",
        "seed": 9,  # the same would draw the same numbers again
        "stream": True,
        "stream_options": {"include_usage": True},
    }


def test_a_seed_stays_one():
    assert orjson.loads(chat(seed=MAX_SEED).body(PROMPT, [8]))["seed"] == MAX_SEED - 1
    assert orjson.loads(chat(seed=MAX_SEED).chat_body(PROMPT, 1))["seed"] == MAX_SEED - 1


@pytest.mark.parametrize(
    ("one", "left"),
    [
        (chat(), 95),  # as many as fit
        (chat(max_tokens=30), 28),
        (chat(max_tokens=30, max_completion_tokens=20), 18),
        (chat(max_tokens=1000), 95),
        (completion("Hi"), 14),
        (completion("Hi", max_tokens=2), 0),
    ],
)
def test_as_many_tokens_are_left_as_were_not_made(one, left):
    assert one.tokens_left(PROMPT, 2) == left


def test_a_message_that_goes_on_is_the_last_one():
    tools = [{"type": "function", "function": {"name": "f"}}]
    one = chat(tools=tools, max_completion_tokens=20, add_generation_prompt=True, temperature=0)
    assert one.needs_chat
    goes_on = {
        "messages": [USER, {"role": "assistant", "content": "so far"}],
        "add_generation_prompt": False,
        "continue_final_message": True,
    }
    assert orjson.loads(one.continued_question()) == {"model": "m", "tools": tools} | goes_on
    body = orjson.loads(one.chat_body(PROMPT, 2))
    assert goes_on.items() <= body.items() and body["tools"] == tools and body["temperature"] == 0
    assert body["max_tokens"] == 18 and "max_completion_tokens" not in body
    assert not chat(tools=tools, tool_choice="none").needs_chat


@pytest.mark.parametrize(
    ("text", "members", "overlap"),
    [
        ("The sea is calm", {"stop": "x", "temperature": 0}, " calm"),
        ("The sea is calm", {"stop": ["x"], "top_k": 1}, " calm"),
        ("The sea. Is, well", {"stop": "x", "temperature": 0}, ". Is, well"),
        ("word", {"stop": "x", "temperature": 0}, ""),
        ("The sea is calm", {"stop": "x", "temperature": 0.7}, ""),
        ("The sea is calm", {"stop": "x"}, ""),
        ("The sea is calm", {"temperature": 0}, ""),
        ("The sea is calm", {"stop": "x", "temperature": 0, "include_stop_str_in_output": True}, ""),
        ("a b" + "x" * 300, {"stop": "x", "temperature": 0}, ""),
    ],
)
def test_the_last_word_is_made_anew_where_it_may_end_inside_a_token(text, members, overlap):
    one = chat(text, **members)
    found = one.overlap()
    if overlap.startswith("."):  # it goes back to between two words
        assert found == overlap or text.endswith(found)
    else:
        assert found == overlap
    assert orjson.loads(one.text_question(found))["prompt"] + found == text


@pytest.mark.parametrize(
    "one",
    [
        lambda: chat(n=2),
        lambda: chat(logprobs=True),
        lambda: chat(bad_words=["a"]),
        lambda: chat(use_beam_search=True),
        lambda: chat(tools=[{}], tool_choice={"type": "function"}),
        lambda: chat(tools=[{}], continue_final_message=True, add_generation_prompt=False),
        lambda: chat(messages=[{"role": "user", "content": [{"type": "image_url"}]}]),
        lambda: chat(messages=[{"role": "user", "content": 7}]),
        lambda: chat("abc st", stop="stop", include_stop_str_in_output=True),
        lambda: completion(["a", "b"]),
        lambda: completion([[1], [2]]),
        lambda: completion("a", echo=True),
        lambda: completion("a", suffix="b"),
        lambda: completion("a", best_of=2),
        lambda: completion("a", logprobs=1),
    ],
)
def test_what_would_be_wrong_is_not_asked_for(one):
    with pytest.raises(CannotResume):
        one()


def test_what_asks_for_nothing_forbids_nothing():
    neutral = {"n": 1, "best_of": 1, "repetition_penalty": 1.0, "frequency_penalty": 0, "echo": False, "stop": None, "x": None}
    chat(**neutral, modalities=["text"], messages=[{"role": "user", "content": [{"type": "text", "text": "Hi"}]}])
    chat("abc st", stop=["xyz"], include_stop_str_in_output=True)


def test_before_any_text_nothing_is_looked_at():
    assert chat("", n=2, logprobs=True, messages=[{"role": "user", "content": [{"type": "image_url"}]}]).is_restart
    assert not chat("a").is_restart


def test_tokens_are_read():
    assert parse_tokens(b'{"count":2,"tokens":[1,2],"max_model_len":100}') == Tokens([1, 2], 100)


@pytest.mark.parametrize(
    "answer",
    [b"no", b"[]", b"{}", b'{"tokens":["a"],"max_model_len":1}', b'{"tokens":7,"max_model_len":1}', b'{"tokens":[1]}'],
)
def test_what_is_no_answer_to_that_is_found(answer):
    with pytest.raises(CannotResume):
        parse_tokens(answer)
