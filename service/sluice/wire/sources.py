"""What a request asks of retrieval, taken out of its body, and the place in the body where the sources will stand.

Neither `retrieval` nor a `file_search` tool may reach a worker: vLLM refuses the one and ignores the other without a word. In
their stead a random mark is put before the text of the last user turn. Once the sources are known they take its place, in one
`replace` and without a second parse; with none to be had nothing takes its place, and what goes up is what the client wrote.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import msgspec
import orjson

from sluice.errors import BadRequest, Unsupported
from sluice.prefix import MAX_BYTES, RENDERED, block_hashes
from sluice.types import Endpoint, Prefix
from sluice.wire.cuts import Cut
from sluice.wire.json_body import WHITE_SPACE, JsonBody
from sluice.wire.members import Members

SERVED = {Endpoint.CHAT: ("messages", "text"), Endpoint.RESPONSES: ("input", "input_text")}  # and the type of a text part
ASKING = frozenset({"retrieval", "tools", "data_sources"})
MAX_QUESTION_CHARS = 2_000
MAX_TURNS = 6  # of the conversation before the question, for a rewriter
INCLUDE_RESULTS = "file_search_call.results"
_raw_elements = msgspec.json.Decoder(list[msgspec.Raw]).decode


@dataclass(frozen=True, slots=True)
class Ask:
    """What was taken out, and what is known of the conversation. Without `member` and `tool` nothing was asked.

    `slot` is the mark in the body; `part_type` says that it stands between the parts of a list and not inside a string.
    """

    member: Mapping[str, Any] | None
    tool: Mapping[str, Any] | None
    include_results: bool = False
    question: str = ""
    turns: tuple[tuple[str, str], ...] = ()
    slot: bytes = b""
    part_type: str = ""
    max_prompt_tokens: int = 0  # no tokenizer makes more of the request: one for each byte
    rendered: bytes = b""  # what the prompt begins with, as its template renders it, with the slot; where a policy reads it
    num_rendered: int = 0

    @property
    def is_explicit(self) -> bool:
        return self.member is not None or self.tool is not None

    def filler(self, text: str) -> bytes:
        """What takes the slot's place in the body. `text` ends right before the user's own words."""
        if not text:
            return b""
        if self.part_type:
            return orjson.dumps({"type": self.part_type, "text": text}) + b","
        return orjson.dumps(text)[1:-1]

    def prefix(self, text: str, seed: bytes) -> Prefix:
        """The prefix of the prompt with `text` in it."""
        written = text.encode()
        found = block_hashes(self.rendered.replace(self.slot, written)[:MAX_BYTES], seed)
        return found._replace(num_bytes=self.num_rendered - len(self.slot) + len(written))


def take(endpoint: Endpoint, members: Members, changes: dict[str, bytes | None], *, has_default: bool) -> Ask | None:
    """What the request asks, noted as taken out in `changes`; None where nothing is asked and no default would apply.

    Raises `BadRequest` for what is asked in a way that we do not serve: nothing is dropped in silence.
    """
    if members.get("data_sources") is not None:
        message = "`data_sources` is not supported here: name vector stores in `retrieval.vector_store_ids` instead."
        raise Unsupported(message, param="data_sources")
    if endpoint not in SERVED:
        if members.get("retrieval") is not None:
            raise Unsupported("`retrieval` is for /v1/chat/completions and /v1/responses.", param="retrieval")
        return None
    member = members.get("retrieval")
    if "retrieval" in members:
        changes["retrieval"] = None
        if member is not None and type(member) is not dict:
            raise BadRequest("`retrieval` must be an object, such as {vector_store_ids: [...]}.", param="retrieval")
    tool = _take_tool(members, changes)
    if member is None and tool is None and not has_default:
        return None
    includes = members.get("include")
    include_results = type(includes) is list and INCLUDE_RESULTS in includes
    return Ask(member, tool, include_results=include_results)


def _take_tool(members: Members, changes: dict[str, bytes | None]) -> Mapping[str, Any] | None:
    tools = members.get("tools")
    if type(tools) is not list:
        return None
    found = [tool for tool in tools if type(tool) is dict and tool.get("type") == "file_search"]
    if not found:
        return None
    if len(found) > 1:
        raise BadRequest("`tools` holds more than one file_search: name all vector stores in one.", param="tools")
    kept = [tool for tool in tools if tool is not found[0]]
    changes["tools"] = orjson.dumps(kept) if kept else None
    choice = members.get("tool_choice")
    if "tool_choice" in members and (not kept or (type(choice) is dict and choice.get("type") == "file_search")):
        changes["tool_choice"] = None  # the search is made in any case
    if not kept and "parallel_tool_calls" in members:
        changes["parallel_tool_calls"] = None
    return found[0]


def place(endpoint: Endpoint, body: JsonBody, ask: Ask, *, renders: bool) -> tuple[Ask, Cut | None]:
    """The ask with its question and its slot, and the cut that puts the slot into the body.

    Call it before the body's other cuts are made: it may write the body anew. Raises `BadRequest` where something was asked and
    there is no text of a user to put sources before.
    """
    member, part_type = SERVED[endpoint]
    start, end = body.span(member)
    value = body.data[start:end]
    held = body.members[member]
    slot = b"sources-" + os.urandom(16).hex().encode()
    if type(held) is str:
        asked = replace(ask, question=held[:MAX_QUESTION_CHARS])
        edited: Any = slot.decode() + held
        found: Cut | None = (start + 1, start + 1, slot)
    else:
        index = _last_user(held)
        content = None if index is None else held[index].get("content")
        if index is None or (type(content) is not str and not (type(content) is list and content)):
            if ask.is_explicit:
                raise BadRequest(f"`{member}` holds no text of a user that sources could be found for.", param=member)
            return ask, None
        is_part = type(content) is list
        asked = replace(ask, question=_text(content)[:MAX_QUESTION_CHARS], turns=_turns(held[:index]))
        asked = replace(asked, part_type=part_type) if is_part else asked
        first = {"type": part_type, "text": slot.decode()}
        said: Any = [first, *content] if is_part else f"{slot.decode()}{content}"
        edited = [*held[:index], held[index] | {"content": said}, *held[index + 1 :]]
        found = _cut_in(value, start, index, slot)
    most = len(body.data) + 512  # of a template's own words
    asked = replace(asked, slot=slot, max_prompt_tokens=most)
    if renders:
        rendered = "".join(RENDERED[endpoint]({**body.members, member: edited})).encode()
        asked = replace(asked, rendered=rendered[: MAX_BYTES + len(slot)], num_rendered=len(rendered))
    return asked, found


def _cut_in(value: bytes, offset: int, index: int, slot: bytes) -> Cut:
    """The slot right behind the opening quote or bracket of the content of the message at `index`."""
    at = 1
    for position, raw in enumerate(_raw_elements(value)):
        while value[at] in WHITE_SPACE:
            at += 1
        if position == index:
            break
        at += len(bytes(raw))
        while value[at] in WHITE_SPACE:
            at += 1
        at += 1  # over the comma
    size = len(bytes(raw))
    given = value[at : at + size]
    message = JsonBody.parse(given, frozenset({"role", "content"}))
    content, _ = message.span("content")
    if message.data is given:
        return offset + at + content + 1, offset + at + content + 1, slot
    edited = message.data[: content + 1] + slot + message.data[content + 1 :]
    return offset + at, offset + at + size, edited


def _last_user(items: list[Any]) -> int | None:
    return next((i for i in reversed(range(len(items))) if type(items[i]) is dict and items[i].get("role") == "user"), None)


def _text(content: Any) -> str:
    if type(content) is str:
        return content
    if type(content) is not list:
        return ""
    parts = [part.get("text") for part in content if type(part) is dict and str(part.get("type")).endswith("text")]
    return "\n".join(part for part in parts if type(part) is str)


def _turns(before: list[Any]) -> tuple[tuple[str, str], ...]:
    """The last turns before the question that have text, bounded: enough to see what `it` stands for."""
    said = [
        (item["role"], text[:MAX_QUESTION_CHARS])
        for item in before[-4 * MAX_TURNS :]
        if type(item) is dict and item.get("role") in ("user", "assistant") and (text := _text(item.get("content")))
    ]
    return tuple(said[-MAX_TURNS:])
