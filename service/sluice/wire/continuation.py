"""How a broken stream is asked for on another worker: what to tokenise, what to send, and when not to.

The exact way on is token ids: the ids of the prompt, as its template renders it, and those of the text that the client
has. Text at the beginning of canonical tokens has canonical tokens itself, so that these are the ids that the lost worker
made, less those that had given no text yet (half a character); they are made anew. Only where a stop string made the
lost worker hold characters back may the text end inside a token: then, and where the answer is not drawn at random, the
last word is made anew too and compared (`overlap`).

Members of a request that this module does not know forbid it: they might say what we would lose.

Source: vLLM 0.32 `openai/chat_completion/protocol.py`, `openai/completion/protocol.py`, `serve/tokenize/protocol.py`,
`v1/engine/detokenizer.py` (what is held back for stop strings).
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import orjson

from sluice.types import Endpoint
from sluice.wire.emitted import CannotResume, Emitted
from sluice.wire.members import COMPLETION_TOKENS, OUTPUT_TOKENS

MAX_BODY_BYTES = 1_048_576  # parsed and written on the event loop
MAX_SEED = 2**63 - 1
OVERLAP = re.compile(r".*\w(?= \w)", re.DOTALL)  # up to the last space between two words, where tokenizers cut
OVERLAP_CHARS = 256

# What goes to /v1/completions as the client wrote it.
CARRIED = frozenset(
    {"model", "temperature", "top_p", "top_k", "min_p", "logit_bias", "stop", "stop_token_ids", "ignore_eos", "user"}
    | {"include_stop_str_in_output", "allowed_token_ids", "skip_special_tokens", "spaces_between_special_tokens"}
    | {"cache_salt", "priority", "stream_interval"}
)
# What the prompt of a chat is rendered from.
RENDERED = frozenset(
    {"messages", "tools", "chat_template_kwargs", "add_generation_prompt", "continue_final_message", "add_special_tokens"}
)
OURS = frozenset({"prompt", "max_tokens", "max_completion_tokens", "seed", "stream", "stream_options", "tool_choice"})
HARMLESS = frozenset(
    {"metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_retention"}
    | {"parallel_tool_calls", "include_reasoning", "request_id", "session_id"}
)
KNOWN = CARRIED | RENDERED | OURS | HARMLESS
# Values that ask for nothing, besides null, false, zero and what is empty.
NEUTRAL = {
    "n": 1,
    "best_of": 1,
    "repetition_penalty": 1,
    "length_penalty": 1,
    "response_format": {"type": "text"},
    "modalities": ["text"],
}
TEXT_PARTS = ("text", "input_text", "refusal")


class Tokens(NamedTuple):
    """A worker's answer to /tokenize."""

    ids: list[int]
    max_model_len: int


class Continuation:
    """A request and the part of its answer that has gone down, ready to be asked for the rest.

    Rule of use: `is_restart` needs nothing more. Else ask the worker for the tokens of `prompt_question` (once) and of
    `text_question`, and let `body` write the request.
    """

    def __init__(self, endpoint: Endpoint, body: bytes, emitted: Emitted) -> None:
        self.emitted = emitted
        self.members: dict[str, Any] = orjson.loads(body)
        self._is_chat = endpoint is Endpoint.CHAT
        self.is_restart = not emitted.text and emitted.finish_reason is None
        if not self.is_restart:
            self._check()
        # Tools may be called in what is still to come: only the chat endpoint has a parser for that.
        self.needs_chat = bool(self.members.get("tools")) and self.members.get("tool_choice") != "none"

    @property
    def max_tokens(self) -> int | None:
        for name in OUTPUT_TOKENS[Endpoint.CHAT if self._is_chat else Endpoint.COMPLETIONS]:
            if (value := self.members.get(name)) is not None:
                return int(value)
        return None if self._is_chat else COMPLETION_TOKENS

    @property
    def prompt_ids(self) -> list[int] | None:
        """The prompt, where it was asked in ids."""
        prompt = self.members.get("prompt")
        if not isinstance(prompt, list):
            return None
        ids = prompt[0] if len(prompt) == 1 and isinstance(prompt[0], list) else prompt
        return ids if ids and type(ids[0]) is int else None

    def prompt_question(self) -> bytes:
        """For /tokenize: the prompt as the template renders it."""
        asked = {"model": self.members.get("model")}
        if self._is_chat:
            return orjson.dumps(asked | {name: self.members[name] for name in RENDERED & self.members.keys()})
        prompt = self.members["prompt"]
        asked["prompt"] = prompt[0] if isinstance(prompt, list) else prompt
        return orjson.dumps(asked | {"add_special_tokens": self.members.get("add_special_tokens", True)})

    def continued_question(self) -> bytes:
        """For /tokenize: the prompt with the text as a last message that goes on."""
        rendered = {name: self.members[name] for name in RENDERED & self.members.keys()}
        return orjson.dumps({"model": self.members.get("model")} | rendered | self._continued())

    def overlap(self) -> str:
        """The end of the text that is to be made anew and compared, because it may end inside a token."""
        stops = bool(self.members.get("stop")) and not self.members.get("include_stop_str_in_output")
        is_random = self.members.get("temperature") != 0 and self.members.get("top_k") != 1
        if not stops or is_random:
            return ""
        tail = self.emitted.text[-OVERLAP_CHARS:]
        found = OVERLAP.match(tail)
        return tail[found.end() :] if found else ""

    def text_question(self, overlap: str) -> bytes:
        """For /tokenize: the text that the client has, less what is made anew."""
        text = self.emitted.text.removesuffix(overlap)
        return orjson.dumps({"model": self.members.get("model"), "prompt": text, "add_special_tokens": False})

    def tokens_left(self, prompt: Tokens, num_made: int) -> int:
        room = prompt.max_model_len - len(prompt.ids) - num_made
        return room if self.max_tokens is None else min(room, self.max_tokens - num_made)

    def body(self, prompt: Tokens, made: list[int]) -> bytes:
        """For /v1/completions: the rest, after these ids."""
        asked = {name: self.members[name] for name in CARRIED & self.members.keys()}
        if (seed := self.members.get("seed")) is not None:
            asked["seed"] = seed + len(made) if seed + len(made) <= MAX_SEED else seed - len(made)  # not the same draws again
        asked |= {"prompt": prompt.ids + made, "max_tokens": self.tokens_left(prompt, len(made)), "stream": True}
        return orjson.dumps(asked | {"stream_options": {"include_usage": True}})

    def chat_body(self, prompt: Tokens, num_made: int) -> bytes:
        """For /v1/chat/completions: the rest of the last message."""
        kept = {name: value for name, value in self.members.items() if name not in ("max_completion_tokens", "seed")}
        if (seed := self.members.get("seed")) is not None:
            kept["seed"] = seed + num_made if seed + num_made <= MAX_SEED else seed - num_made
        return orjson.dumps(kept | self._continued() | {"max_tokens": self.tokens_left(prompt, num_made)})

    def _continued(self) -> dict[str, Any]:
        messages = [*self.members["messages"], {"role": "assistant", "content": self.emitted.text}]
        return {"messages": messages, "add_generation_prompt": False, "continue_final_message": True}

    def _check(self) -> None:
        """Raises `CannotResume` where the rest would not be what the lost worker would have said."""
        for name, value in self.members.items():
            if name not in KNOWN and value and value != NEUTRAL.get(name):
                raise CannotResume(f"its request sets `{name}`")
        if self.members.get("tools") and self.members.get("tool_choice") not in (None, "none", "auto"):
            raise CannotResume("its request forces a tool")
        if self._is_chat:
            if not all(map(_is_text, self.members["messages"])):
                raise CannotResume("its prompt is not text alone")
            if self.members.get("tools") and self.members.get("continue_final_message"):
                raise CannotResume("its request continues a message, with tools")
        elif isinstance(self.members["prompt"], list) and self.prompt_ids is None and len(self.members["prompt"]) > 1:
            raise CannotResume("its request has several prompts")
        self._check_stops()

    def _check_stops(self) -> None:
        """Where stop strings go down too, one may have begun on the lost worker: it would not be seen by the next."""
        if not self.members.get("include_stop_str_in_output"):
            return
        stops = self.members.get("stop") or []
        for stop in [stops] if isinstance(stops, str) else stops:
            if any(self.emitted.text.endswith(stop[:end]) for end in range(1, len(stop))):
                raise CannotResume("a stop string may have begun")


def _is_text(message: dict[str, Any]) -> bool:
    content = message.get("content")
    if content is None or isinstance(content, str):
        return True
    return isinstance(content, list) and all(isinstance(p, dict) and p.get("type", "text") in TEXT_PARTS for p in content)


def parse_tokens(answer: bytes) -> Tokens:
    """A worker's answer to /tokenize; raises `CannotResume` where it is none."""
    try:
        found = orjson.loads(answer)
        ids, max_model_len = found["tokens"], found["max_model_len"]
    except (orjson.JSONDecodeError, TypeError, KeyError) as exc:
        raise CannotResume("its worker does not tokenise as vLLM does") from exc
    if not isinstance(ids, list) or set(map(type, ids)) - {int} or type(max_model_len) is not int:
        raise CannotResume("its worker does not tokenise as vLLM does")
    return Tokens(ids, max_model_len)
