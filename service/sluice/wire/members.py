"""Top-level members that clients may not send as they please: dropped, refused, or held within a route's bounds.

Dropped without a word is what only steers the engine: the answer is the same without it. Refused is what would change the
answer, since dropping it would be a lie. Everything that is not named here reaches the worker as the client wrote it.

Source: the request models of vLLM 0.32 (`openai/*/protocol.py`, `pooling/base/protocol.py`, `anthropic/protocol.py`,
`serve/tokenize/protocol.py`, `speech_to_text/transcription/protocol.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sluice.config import Bounds
from sluice.errors import BadRequest
from sluice.types import Endpoint

Members = Mapping[str, Any]

DROPPED = frozenset(
    {
        "priority",  # overtakes other tenants; the gateway's to set
        "request_id",  # names the request inside the engine and in the reply; the gateway's to set
        "session_id",  # of the engine's connectors
        "cache_salt",  # separates the tenants in the prefix cache; the gateway's to set
        "kv_transfer_params",  # make a worker fetch from, or wait for, another host
        "ec_transfer_params",
    }
)

OURS = frozenset({"request_timeout_ms"})  # said to the gateway, and not for the worker
WITHHELD = DROPPED | OURS

REFUSED = {
    "chat_template": "workers use the model's own template",
    "prompt_embeds": "workers do not deserialise the tensors of clients",
    "mm_processor_kwargs": "it changes what media cost the worker",
    "media_io_kwargs": "it changes what media cost the worker",
    "vllm_xargs": "it reaches into the engine's plug-ins, and past what is dropped",
}

MAX_PATTERN_TOKENS = 128  # of repetition_detection: the engine's scheduler tries every size after every token
MAX_STREAM_INTERVAL_TOKENS = 64  # more in one event, and a slow worker looks like one that has died

BOUNDED = frozenset(
    {
        "n",
        "best_of",
        "min_tokens",
        "logprobs",
        "top_logprobs",
        "prompt_logprobs",
        "ignore_eos",
        "use_beam_search",
        "repetition_detection",
        "stream_interval",
    }
)

SPECIAL = WITHHELD | frozenset(REFUSED) | BOUNDED | {"chat_template_kwargs"}

OUTPUT_TOKENS = {
    Endpoint.CHAT: ("max_completion_tokens", "max_tokens"),  # the first wins
    Endpoint.COMPLETIONS: ("max_tokens",),
    Endpoint.RESPONSES: ("max_output_tokens",),
    Endpoint.MESSAGES: ("max_tokens",),
}
COMPLETION_TOKENS = 16  # of a /v1/completions that names none
MAX_TOKENS = 2**31 - 1


def integer(members: Members, name: str, low: int, high: int) -> int | None:
    """The member as an integer between the bounds, None where it is absent or null; raises `BadRequest` otherwise.

    vLLM would also take strings and booleans for integers: a bound that `"16384"` passes is none.
    """
    value = members.get(name)
    if value is None:
        return None
    if type(value) is float and value.is_integer():
        value = int(value)
    if type(value) is not int:
        raise BadRequest(f"`{name}` must be an integer.", param=name)
    if not low <= value <= high:
        raise BadRequest(f"`{name}` must be an integer from {low} to {high}.", param=name)
    return value


def flag(members: Members, name: str) -> bool:
    """The member as a boolean, False where it is absent or null; raises `BadRequest` otherwise."""
    value = members.get(name)
    if value is not None and type(value) is not bool:
        raise BadRequest(f"`{name}` must be true or false.", param=name)
    return bool(value)


def text(members: Members, name: str) -> str | None:
    """The member as a string, None where it is absent or null; raises `BadRequest` otherwise."""
    value = members.get(name)
    if value is not None and type(value) is not str:
        raise BadRequest(f"`{name}` must be a string.", param=name)
    return value


def max_output_tokens(endpoint: Endpoint, members: Members) -> int | None:
    """How many tokens the client wants at most, for each choice; None where it does not say."""
    chosen = None
    for name in OUTPUT_TOKENS.get(endpoint, ()):
        value = integer(members, name, 0, MAX_TOKENS)
        chosen = value if chosen is None else chosen
    return COMPLETION_TOKENS if chosen is None and endpoint is Endpoint.COMPLETIONS else chosen


def bound_output(endpoint: Endpoint, members: Members, most: int | None) -> tuple[int | None, dict[str, bytes | None]]:
    """How many tokens each answer may have, and what must change in the request for that; raises `BadRequest`.

    Who names no bound gets the route's: else an answer would be bounded by the model's context alone.
    """
    wanted = max_output_tokens(endpoint, members)
    names = OUTPUT_TOKENS.get(endpoint, ())
    if most is None or not names:
        return wanted, {}
    said = next((name for name in names if members.get(name) is not None), None)
    if said is not None:
        if wanted is not None and wanted > most:
            raise BadRequest(f"`{said}` must be at most {most} for this model.", param=said)
        return wanted, {}
    if wanted is not None and wanted <= most:
        return wanted, {}
    return most, {names[0]: b"%d" % most}


def end_user(members: Members) -> str:
    """For whom the call is: OpenAI's `safety_identifier`, or `user`, its older name; "" where neither is a text."""
    for name in ("safety_identifier", "user"):
        value = members.get(name)
        if type(value) is str and value:
            return value
    return ""


def refuse_forbidden(members: Members) -> None:
    """Raises `BadRequest` for a member that we would have to drop, and whose loss would change the answer."""
    for name, reason in REFUSED.items():
        if members.get(name):
            raise BadRequest(f"`{name}` is not accepted: {reason}.", param=name)
    template_arguments = members.get("chat_template_kwargs")
    if isinstance(template_arguments, dict) and template_arguments.get("chat_template") is not None:
        raise BadRequest(
            f"`chat_template_kwargs.chat_template` is not accepted: {REFUSED['chat_template']}.",
            param="chat_template_kwargs.chat_template",
        )


def num_choices(endpoint: Endpoint, members: Members, bounds: Bounds) -> int:
    """How many answers to each prompt; raises `BadRequest` where that or anything else is out of the route's bounds."""
    choices = integer(members, "n", 1, bounds.max_n) or 1
    integer(members, "best_of", 1, bounds.max_n)
    integer(members, "min_tokens", 0, MAX_TOKENS if bounds.min_tokens else 0)
    # -1 asks for the whole vocabulary
    integer(members, "top_logprobs", 0, bounds.max_logprobs)
    integer(members, "prompt_logprobs", 0, bounds.max_logprobs)
    if endpoint is Endpoint.COMPLETIONS:  # elsewhere it is a boolean
        integer(members, "logprobs", 0, bounds.max_logprobs)
    integer(members, "stream_interval", 1, MAX_STREAM_INTERVAL_TOKENS)
    if flag(members, "ignore_eos") and not bounds.ignore_eos:
        raise BadRequest("`ignore_eos` is not allowed for this model.", param="ignore_eos")
    if flag(members, "use_beam_search") and not bounds.beam_search:
        raise BadRequest("`use_beam_search` is not allowed for this model.", param="use_beam_search")
    repetition = members.get("repetition_detection")
    if isinstance(repetition, dict):
        integer(repetition, "max_pattern_size", 0, MAX_PATTERN_TOKENS)
    return choices
