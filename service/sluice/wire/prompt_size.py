"""How large a prompt is: its characters by class, counted without looking at one of them in Python.

A tokenizer makes about four ASCII characters into a token, of Chinese, Japanese and Korean about one and a half, of other
scripts about two. A route learns its own ratios (`limits.estimate`); what it learns them from is counted here.
"""

from __future__ import annotations

from typing import Any

import orjson

from sluice.types import Endpoint, PromptSize
from sluice.wire.media import URL_MEMBERS
from sluice.wire.members import Members

# In UTF-8 these begin U+3000 to U+DFFF: kana, Han, Hangul and what stands beside them. They stand nowhere but at the begin.
CJK_LEADS = bytes(range(0xE3, 0xEE))
NOT_ASCII = bytes(range(0x80, 0x100))

# What the worker puts into a prompt. Tokenizing costs none.
PROMPTS = {
    Endpoint.CHAT: ("messages",),
    Endpoint.COMPLETIONS: ("prompt",),
    Endpoint.EMBEDDINGS: ("input", "messages"),
    Endpoint.RESPONSES: ("input", "instructions", "previous_input_messages"),
    Endpoint.MESSAGES: ("messages", "system"),
    Endpoint.RERANK: ("query", "documents"),
    Endpoint.SCORE: ("queries", "documents", "items", "data_1", "data_2", "text_1", "text_2"),
}
HOLDERS = ("content", "text", "output", "arguments", "input", "thinking", "refusal")  # of text, in messages, items and parts
MEDIA = frozenset({*URL_MEMBERS, "source", "input_audio", "file"})
_CALLS = ("tool_calls", "function_call")


def size_of(endpoint: Endpoint, members: Members) -> PromptSize:
    """What the prompt of a request with these members is made of; `tools` count as the JSON that they are."""
    names = PROMPTS.get(endpoint)
    if names is None:
        return PromptSize()
    texts: list[str] = []
    waiting = [value for name in names if (value := members.get(name)) is not None]
    num_ids = num_messages = num_media = 0
    while waiting:  # and not recursion: a body may be nested deeper than our stack
        value = waiting.pop()
        kind = type(value)
        if kind is str:
            texts.append(value)
        elif kind is list:
            if value and type(value[0]) is int:
                num_ids += len(value)
            else:
                waiting += value
        elif kind is dict:
            num_messages += "role" in value
            if len(value) == 2 and type(text := value.get("content")) is str and "role" in value:
                texts.append(text)  # what most messages are
                continue
            num_media += not MEDIA.isdisjoint(value)
            waiting += [inner for name in HOLDERS if (inner := value.get(name)) is not None]
            waiting += [_json(inner) for name in _CALLS if (inner := value.get(name)) is not None]
    if (tools := members.get("tools")) is not None:
        texts.append(_json(tools))
    ascii_, cjk, other = classes_of(texts[0] if len(texts) == 1 else "".join(texts))
    return PromptSize(ascii_, cjk, other, num_ids, num_messages, num_media)


def classes_of(text: str) -> tuple[int, int, int]:
    """How many characters are ASCII, CJK, and neither: three passes in C at most, none for plain ASCII."""
    if text.isascii():
        return len(text), 0, 0
    data = text.encode()
    ascii_ = len(data.translate(None, NOT_ASCII))
    cjk = len(data) - len(data.translate(None, CJK_LEADS))
    return ascii_, cjk, len(text) - ascii_ - cjk


def _json(value: Any) -> str:
    try:
        return orjson.dumps(value).decode()
    except orjson.JSONEncodeError:  # nested more deeply than it writes; the worker will not like that either
        return ""
