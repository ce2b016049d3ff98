"""How large a prompt is, whatever the request's shape."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sluice.types import Endpoint, PromptSize
from sluice.wire.prompt_size import classes_of, size_of


def user(content) -> dict:
    return {"role": "user", "content": content}


@given(st.text())
def test_every_character_is_in_one_class(text):
    ascii_, cjk, other = classes_of(text)

    assert ascii_ == sum(one < "\x80" for one in text)
    assert cjk == sum("\u3000" <= one <= "\udfff" for one in text)
    assert ascii_ + cjk + other == len(text)


def test_messages_count_their_texts_and_themselves():
    assert size_of(Endpoint.CHAT, {"messages": [user("Hi you"), user("你好")]}) == PromptSize(ascii=6, cjk=2, messages=2)


def test_parts_of_messages_are_texts_and_media():
    parts = [{"type": "text", "text": "see"}, {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}]

    assert size_of(Endpoint.CHAT, {"messages": [user(parts)]}) == PromptSize(ascii=3, messages=1, media=1)


def test_tools_and_calls_of_tools_count_as_their_json():
    with_tools = size_of(Endpoint.CHAT, {"messages": [user("Hi")], "tools": [{"a": 1}]})
    called = {"role": "assistant", "tool_calls": [{"a": 1}]}

    assert with_tools.ascii == 2 + len('[{"a":1}]')
    assert size_of(Endpoint.CHAT, {"messages": [called]}).ascii == len('[{"a":1}]')


@pytest.mark.parametrize(
    "endpoint, members, expected",
    [
        (Endpoint.COMPLETIONS, {"prompt": "Once"}, PromptSize(ascii=4)),
        (Endpoint.COMPLETIONS, {"prompt": [1, 2, 3]}, PromptSize(token_ids=3)),
        (Endpoint.COMPLETIONS, {"prompt": [[1, 2], [3]]}, PromptSize(token_ids=3)),
        (Endpoint.EMBEDDINGS, {"input": ["ab", "é"]}, PromptSize(ascii=2, other=1)),
        (Endpoint.RESPONSES, {"input": [user("Hi")], "instructions": "Be"}, PromptSize(ascii=4, messages=1)),
        (Endpoint.MESSAGES, {"messages": [user("Hi")], "system": [{"text": "Be"}]}, PromptSize(ascii=4, messages=1)),
        (Endpoint.RERANK, {"query": "q", "documents": ["ab", {"text": "c"}]}, PromptSize(ascii=4)),
        (Endpoint.SCORE, {"queries": "q", "documents": ["ab"]}, PromptSize(ascii=3)),
        (Endpoint.TOKENIZE, {"prompt": "Hi"}, PromptSize()),
    ],
)
def test_each_endpoint_has_its_prompt_where_the_worker_finds_it(endpoint, members, expected):
    assert size_of(endpoint, members) == expected


def test_what_is_nested_beyond_all_sense_is_counted_without_recursion():
    deep = "x"
    for _ in range(900):
        deep = {"content": [deep]}

    assert size_of(Endpoint.CHAT, {"messages": [deep], "tools": [deep]}).ascii == 1
