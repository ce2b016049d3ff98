"""What a prompt begins with, as hashes of its blocks: two prompts share a prefix as far as their hashes are equal.

The prompt is hashed as chat templates render it (tools first, then message by message, roles apart) and not as the client's
JSON spells it, so that a text and a list of one text part, or members in another order, are the same prompt. Hash i covers
everything before block i too, and the seed: the model or adapter, and the tenant's `cache_salt`, since the engine shares
nothing across those. Every replica of the gateway gets the same hashes.

The hashes are CRCs, at a third of a cryptographic hash's cost, and hints: a worker's cache compares tokens by hashes of its
own. Who makes two prompts collide gets a call of theirs sent to a worker that does not have its prefix, and no more.
"""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import blake2b
from typing import Any
from zlib import crc32

import orjson

from sluice.types import Endpoint, Prefix

# Fine where most prompts differ, coarse further on: 256 hashes for 832 KiB, about 200,000 tokens, and none beyond.
FINE_BYTES, NUM_FINE = 1024, 64
COARSE_BYTES, NUM_COARSE = 4096, 192
MAX_BLOCKS = NUM_FINE + NUM_COARSE
MAX_BYTES = NUM_FINE * FINE_BYTES + NUM_COARSE * COARSE_BYTES

NEXT_MESSAGE, NEXT_TEXT = "\x1e", "\x1f"  # which no text that people write holds
TEXT_PARTS = ("text", "input_text", "output_text")


def covered_bytes(num_blocks: int) -> int:
    """How much of a prompt its first so many hashes cover."""
    return num_blocks * FINE_BYTES + max(0, num_blocks - NUM_FINE) * (COARSE_BYTES - FINE_BYTES)


def prefix_of(endpoint: Endpoint, members: Mapping[str, Any], seed: bytes) -> Prefix:
    """The prefix of the prompt in a request's members, whatever they are; an endpoint that generates nothing has none."""
    render = RENDERED.get(endpoint)
    return Prefix() if render is None else block_hashes("".join(render(members)).encode(), seed)


def seed_of(served_model: str, cache_salt: str = "") -> bytes:
    """What prompts must share besides their text: what the worker calls the model or adapter, and the salt."""
    return f"{served_model}\0{cache_salt}".encode()


def block_hashes(prompt: bytes, seed: bytes = b"") -> Prefix:
    """The hashes of a rendered prompt's whole blocks; what is left at its end has none."""
    value = crc32(seed)
    num_bytes = len(prompt)
    fine_end = min(num_bytes, NUM_FINE * FINE_BYTES)
    hashes = [value := crc32(prompt[at : at + FINE_BYTES], value) for at in range(0, fine_end - FINE_BYTES + 1, FINE_BYTES)]
    if num_bytes >= NUM_FINE * FINE_BYTES + COARSE_BYTES:
        last = min(num_bytes, MAX_BYTES) - COARSE_BYTES
        hashes += [
            value := crc32(prompt[at : at + COARSE_BYTES], value) for at in range(NUM_FINE * FINE_BYTES, last + 1, COARSE_BYTES)
        ]
    return Prefix(tuple(hashes), num_bytes)


def _chat(members: Mapping[str, Any]) -> list[str]:
    return _tools(members) + _messages(members.get("messages"))


def _anthropic(members: Mapping[str, Any]) -> list[str]:
    system = {"role": "system", "content": members.get("system")}
    return _tools(members) + _messages([system]) + _messages(members.get("messages"))


def _responses(members: Mapping[str, Any]) -> list[str]:
    system = {"role": "system", "content": members.get("instructions")}
    asked = members.get("input")
    messages = asked if type(asked) is list else [{"role": "user", "content": asked}]
    return _tools(members) + _messages([system]) + _messages(messages)


def _completions(members: Mapping[str, Any]) -> list[str]:
    """The prompt's text or token ids; of several prompts the first."""
    prompt = members.get("prompt")
    if type(prompt) is list and prompt and type(prompt[0]) is not int:
        prompt = prompt[0]
    return [prompt if type(prompt) is str else _json(prompt)]


def _tools(members: Mapping[str, Any]) -> list[str]:
    tools = members.get("tools")
    return [_json(tools)] if tools else []


def _messages(messages: Any) -> list[str]:
    """Each message's role, content and whatever else it has, with separators between them."""
    parts: list[str] = []
    if type(messages) is not list:
        return parts
    for message in messages:
        if type(message) is not dict:
            parts.append(f"{NEXT_MESSAGE}{_json(message)}")
            continue
        role, content = message.get("role"), message.get("content")
        if type(content) is str:
            parts.append(f"{NEXT_MESSAGE}{role}{NEXT_TEXT}{content}")
        else:
            parts.append(f"{NEXT_MESSAGE}{role}")
            if type(content) is list:
                parts += [NEXT_TEXT + _part(part) for part in content]
        if len(message) > 2:
            rest = {name: value for name, value in message.items() if name not in ("role", "content")}
            parts.append(NEXT_TEXT + orjson.dumps(rest, option=orjson.OPT_SORT_KEYS).decode())
    return parts


def _part(part: Any) -> str:
    """A text as it is; of an image or a sound what tells it from others, since its size says nothing of its tokens."""
    if type(part) is str:
        return part
    if type(part) is dict and part.get("type") in TEXT_PARTS and type(text := part.get("text")) is str:
        return text
    return blake2b(orjson.dumps(part), digest_size=16).hexdigest()


def _json(value: Any) -> str:
    return orjson.dumps(value).decode()


RENDERED = {
    Endpoint.CHAT: _chat,
    Endpoint.COMPLETIONS: _completions,
    Endpoint.RESPONSES: _responses,
    Endpoint.MESSAGES: _anthropic,
}
