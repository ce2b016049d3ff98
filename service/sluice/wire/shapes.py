"""What the body of each endpoint must hold, as far as the gateway reads it: the rest is the worker's to judge.

Source: the request models of vLLM 0.32. A shape that vLLM takes must pass; one that it would take for something else, or
that would cost it more than we count, must not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from sluice.errors import BadRequest
from sluice.types import Endpoint
from sluice.wire.media import RemoteMedia, remote_media
from sluice.wire.members import MAX_TOKENS, Members, integer

SCORE_MEMBERS = ("queries", "documents", "items", "data_1", "data_2", "text_1", "text_2")


class Asked(NamedTuple):
    """How many prompts, inputs or documents the worker is given, in which member, and what it would have to fetch."""

    num_prompts: int
    member: str
    media: list[RemoteMedia]


def _missing(name: str, expected: str) -> BadRequest:
    return BadRequest(f"`{name}` is missing: it must be {expected}.", param=name)


def _wrong(name: str, expected: str) -> BadRequest:
    return BadRequest(f"`{name}` must be {expected}.", param=name)


def _messages(members: Members) -> list[Any]:
    """The conversation: a list of objects that is not empty. What is in them is the worker's to judge."""
    messages = members.get("messages")
    if messages is None:
        raise _missing("messages", "a list of messages")
    if type(messages) is not list or not messages:
        raise _wrong("messages", "a list of at least one message")
    if set(map(type, messages)) != {dict}:
        i = next(i for i, message in enumerate(messages) if type(message) is not dict)
        raise _wrong(f"messages[{i}]", "an object with `role` and `content`")
    return messages


def _num_prompts(members: Members, name: str) -> int:
    """How many prompts the member holds: a string or a list of token ids is one, a list of those is as many."""
    value = members.get(name)
    expected = "a string, a list of strings, a list of token ids, or a list of such lists"
    if value is None:
        raise _missing(name, expected)
    if type(value) is str:
        return 1
    if type(value) is not list or not value:
        raise _wrong(name, expected)
    # The first element is enough: vLLM takes a list as a whole for one of these, or refuses it.
    return 1 if type(value[0]) in (int, float, dict) else len(value)


def _chat(members: Members) -> Asked:
    return Asked(1, "messages", remote_media("messages", _messages(members)))


def _completions(members: Members) -> Asked:
    if members.get("prompt_embeds") is not None and members.get("prompt") is None:
        return Asked(1, "prompt_embeds", [])  # refused with its reason later
    return Asked(_num_prompts(members, "prompt"), "prompt", [])


def _embeddings(members: Members) -> Asked:
    """Texts, token ids, or (for multimodal models) conversations, in `input` or in `messages`."""
    asked = []
    if members.get("messages") is not None:
        messages = members["messages"]
        if type(messages) is not list or not messages:
            raise _wrong("messages", "a list of at least one message")
        num_conversations = len(messages) if type(messages[0]) is list else 1
        asked.append(Asked(num_conversations, "messages", remote_media("messages", messages)))
    if members.get("input") is not None or not asked:
        num_inputs = _num_prompts(members, "input")
        first = members["input"][0] if type(members["input"]) is list else None
        first = first[0] if type(first) is list and first else first
        # Only lists that begin with a message are conversations: token ids need not be looked through.
        asked.append(Asked(num_inputs, "input", remote_media("input", members["input"]) if type(first) is dict else []))
    most = max(asked, key=lambda one: one.num_prompts)
    return most._replace(media=[found for one in asked for found in one.media])


def _responses(members: Members) -> Asked:
    asked = members.get("input")
    if asked is None:
        raise _missing("input", "a string or a list of items")
    if type(asked) is not str and type(asked) is not list:
        raise _wrong("input", "a string or a list of items")
    media = remote_media("input", asked) if type(asked) is list else []
    if members.get("previous_input_messages") is not None:
        media += remote_media("previous_input_messages", members["previous_input_messages"])
    return Asked(1, "input", media)


def _anthropic(members: Members) -> Asked:
    media = remote_media("messages", _messages(members))
    system = members.get("system")
    if system is not None and type(system) is not str:
        if type(system) is not list:
            raise _wrong("system", "a string or a list of text blocks")
        media += remote_media("system", system)
    return Asked(1, "messages", media)


def _anthropic_messages(members: Members) -> Asked:
    if integer(members, "max_tokens", 1, MAX_TOKENS) is None:
        raise _missing("max_tokens", "an integer of at least 1")
    return _anthropic(members)


def _scored(members: Members, names: tuple[str, ...]) -> Asked:
    """The given members, each a text, an object with `content`, or a list of those."""
    media: list[RemoteMedia] = []
    num_prompts, longest = 1, names[0]
    for name in names:
        value = members.get(name)
        if value is None:
            continue
        if type(value) not in (str, dict, list):
            raise _wrong(name, "a string, or a list of strings")
        if type(value) is not str:
            media += remote_media(name, value)
        if type(value) is list and len(value) > num_prompts:
            num_prompts, longest = len(value), name
    return Asked(num_prompts, longest, media)


def _rerank(members: Members) -> Asked:
    for name, expected in (("query", "a string"), ("documents", "a list of strings")):
        if members.get(name) is None:
            raise _missing(name, expected)
    if type(members["query"]) not in (str, dict):
        raise _wrong("query", "a string")
    return _scored(members, ("documents", "query"))


def _score(members: Members) -> Asked:
    if all(members.get(name) is None for name in SCORE_MEMBERS):
        raise _missing("queries", "a string or a list of strings, and `documents` beside it")
    return _scored(members, SCORE_MEMBERS)


def _tokenize(members: Members) -> Asked:
    if members.get("messages") is not None:
        return _chat(members)
    prompt = members.get("prompt")
    if prompt is None:
        raise _missing("prompt", "a string (or `messages` instead, a list of messages)")
    if type(prompt) is not str:
        raise _wrong("prompt", "a string")
    return Asked(1, "prompt", [])


def _detokenize(members: Members) -> Asked:
    if members.get("tokens") is None:
        raise _missing("tokens", "a list of token ids")
    if type(members["tokens"]) is not list:
        raise _wrong("tokens", "a list of token ids")
    return Asked(1, "tokens", [])


SHAPES: Mapping[Endpoint, Callable[[Members], Asked]] = {
    Endpoint.CHAT: _chat,
    Endpoint.COMPLETIONS: _completions,
    Endpoint.EMBEDDINGS: _embeddings,
    Endpoint.RESPONSES: _responses,
    Endpoint.MESSAGES: _anthropic_messages,
    Endpoint.COUNT_TOKENS: _anthropic,
    Endpoint.RERANK: _rerank,
    Endpoint.SCORE: _score,
    Endpoint.TOKENIZE: _tokenize,
    Endpoint.DETOKENIZE: _detokenize,
}

# The members that the shapes read: what was checked in one of two must not be served from the other.
READ = frozenset(
    {"messages", "prompt", "input", "previous_input_messages", "system", "query", "tokens", "max_tokens", *SCORE_MEMBERS}
)
