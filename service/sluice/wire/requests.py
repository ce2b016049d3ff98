"""What a client asks: read from its body before the route is known, and made ready for a worker once it is.

`parse` validates what the gateway reads and nothing else; `Request.prepare` applies the route's rules and gives the bytes
that go up: the client's own where nothing has to change, else the client's with single members spliced in or out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import orjson

from sluice.errors import BadRequest
from sluice.prefix import prefix_of
from sluice.types import Body, Endpoint, Prefix
from sluice.wire.cuts import Cut
from sluice.wire.json_body import JsonBody
from sluice.wire.members import (
    OUTPUT_TOKENS,
    SPECIAL,
    WITHHELD,
    bound_output,
    end_user,
    flag,
    integer,
    num_choices,
    refuse_forbidden,
    text,
)
from sluice.wire.prompt_size import size_of
from sluice.wire.rules import NO_STEERING, Prepared, Rules
from sluice.wire.shapes import READ, SHAPES, Asked
from sluice.wire.sources import ASKING, Ask, place, take
from sluice.wire.uploads import UploadRequest

__all__ = ["JsonRequest", "Prepared", "Request", "Rules", "UploadRequest", "parse"]

STREAMING = frozenset({Endpoint.CHAT, Endpoint.COMPLETIONS, Endpoint.RESPONSES, Endpoint.MESSAGES})
USAGE_ON_REQUEST = frozenset({Endpoint.CHAT, Endpoint.COMPLETIONS})  # the others always end with their usage
WITH_USAGE = b'{"include_usage":true}'
MAX_TIMEOUT_MS = 86_400_000
MAX_REREAD_BYTES = 1_048_576
STORING = ("store", "background", "previous_response_id")

# A member that we read, drop, refuse or bound may occur once: what we saw must be what the worker takes.
GUARDED = (
    SPECIAL
    | READ
    | frozenset(STORING)
    | {"model", "stream", "stream_options", "tool_choice", "parallel_tool_calls", "include"}
    | ASKING
    | {name for names in OUTPUT_TOKENS.values() for name in names}
)


class Request(Protocol):
    """What a client's body says. `model` is as the client spelled it."""

    endpoint: Endpoint
    model: str
    stream: bool

    @property
    def previous_response_id(self) -> str | None:
        """The stored response that this one continues: only the worker that has it can answer."""

    @property
    def store(self) -> bool | None:
        """Whether the response shall be stored; None where the client does not say, which means yes to vLLM."""

    @property
    def timeout_ms(self) -> int | None:
        """How long the client gives the request, if the body says so; raises `BadRequest`."""

    def prepare(
        self,
        rules: Rules,
        *,
        model: str,
        response_id: str | None = None,
        prefix_seed: bytes | None = None,
        retrieves: bool = False,
        steering: Mapping[str, str | int] = NO_STEERING,
    ) -> Prepared:
        """The request for a worker that calls the model `model`; raises `BadRequest` where `rules` do not allow it.

        A `response_id` becomes the id of the response, which the worker would otherwise choose. With a `prefix_seed` the
        prompt's prefix is hashed. `retrieves` makes a place for sources even where the client asks for none.
        What `steering` holds goes into the request, instead of what the client says there.
        """


def parse(endpoint: Endpoint, data: bytes, content_type: str = "application/json") -> Request:
    """The request that `data` is; raises `BadRequest`. Uploads are multipart forms, everything else a JSON object."""
    if endpoint is Endpoint.TRANSCRIPTIONS:
        return UploadRequest.parse(endpoint, data, content_type)
    body = JsonBody.parse(data, GUARDED)
    members = body.members
    model = members.get("model")
    if type(model) is not str or not model:
        raise BadRequest("`model` must name the model to use, as a string; GET /v1/models lists them.", param="model")
    stream = endpoint in STREAMING and flag(members, "stream")
    return JsonRequest(endpoint, model, stream, body, SHAPES[endpoint](members))


@dataclass(slots=True)
class JsonRequest:
    """A request whose body is a JSON object: all but uploads."""

    endpoint: Endpoint
    model: str
    stream: bool
    body: JsonBody
    asked: Asked

    @property
    def previous_response_id(self) -> str | None:
        return text(self.body.members, "previous_response_id") if self.endpoint is Endpoint.RESPONSES else None

    @property
    def store(self) -> bool | None:
        if self.endpoint is not Endpoint.RESPONSES:
            return False
        return flag(self.body.members, "store") if self.body.members.get("store") is not None else None

    @property
    def timeout_ms(self) -> int | None:
        return integer(self.body.members, "request_timeout_ms", 1, MAX_TIMEOUT_MS)

    def prepare(
        self,
        rules: Rules,
        *,
        model: str,
        response_id: str | None = None,
        prefix_seed: bytes | None = None,
        retrieves: bool = False,
        steering: Mapping[str, str | int] = NO_STEERING,
    ) -> Prepared:
        members = self.body.members
        choices = 1
        changes: dict[str, bytes | None] = {}
        if self.asked.media:
            rules.media_hosts.check(self.asked.media)
        if not SPECIAL.isdisjoint(members):
            refuse_forbidden(members)
            choices = num_choices(self.endpoint, members, rules.bounds)
            changes |= {name: None for name in WITHHELD if name in members}
        self._check_prompts(rules.bounds.max_prompts, choices)
        if self.endpoint is Endpoint.RESPONSES:
            self._check_store(rules)
        if model != self.model:
            changes["model"] = orjson.dumps(model)
        if response_id is not None:
            changes["request_id"] = orjson.dumps(response_id)
        for name, value in steering.items():
            changes[name] = orjson.dumps(value)
        max_tokens, bounded = bound_output(self.endpoint, members, rules.bounds.max_tokens)
        changes |= bounded
        wants_usage = self._ask_for_usage(changes)
        ask, slot = None, None
        if retrieves or not ASKING.isdisjoint(members):
            ask, slot = self._ask_of_retrieval(changes, renders=prefix_seed is not None, retrieves=retrieves)
        cuts = tuple(self.body.cuts(changes)) if changes else ()
        if slot is not None:
            cuts = tuple(sorted((*cuts, slot)))
        return Prepared(
            cuts=cuts,
            data=self.body.data,
            content_type="application/json",
            stream=self.stream,
            wants_usage=wants_usage,
            num_prompts=self.asked.num_prompts,
            num_choices=choices,
            max_tokens=max_tokens,
            prefix=Prefix() if prefix_seed is None else prefix_of(self.endpoint, members, prefix_seed),
            size=size_of(self.endpoint, members),
            user=end_user(members),
            ask=ask,
        )

    def _ask_of_retrieval(
        self, changes: dict[str, bytes | None], *, renders: bool, retrieves: bool
    ) -> tuple[Ask | None, Cut | None]:
        """What is asked of retrieval, if anything is, and the cut that makes a place for sources."""
        ask = take(self.endpoint, self.body.members, changes, has_default=retrieves)
        return (None, None) if ask is None else place(self.endpoint, self.body, ask, renders=renders)

    def _check_prompts(self, max_prompts: int, choices: int) -> None:
        num_prompts, member, _ = self.asked
        if num_prompts > max_prompts:
            raise BadRequest(f"`{member}` holds {num_prompts}: at most {max_prompts} are allowed at once.", param=member)
        if num_prompts * choices > max(max_prompts, choices):
            raise BadRequest(
                f"{num_prompts} prompts with `n` {choices} each ask for more than {max_prompts} answers at once.", param="n"
            )

    def _check_store(self, rules: Rules) -> None:
        """vLLM drops `store: true` without a word where it keeps nothing: a lie that we do not pass on."""
        members = self.body.members
        for name in STORING:
            value = members.get(name) if name == "previous_response_id" else flag(members, name)
            if value and not rules.responses_store:
                raise BadRequest(
                    f"`{name}` needs stored responses (`store`), which this model's workers do not keep: send the whole "
                    "conversation in `input`, with `store` false.",
                    param=name,
                )

    def _ask_for_usage(self, changes: dict[str, bytes | None]) -> bool:
        """Whether the client asked for the usage event; if it did not, it is asked for in `changes`."""
        if self.endpoint not in USAGE_ON_REQUEST:
            return True
        options = self.body.members.get("stream_options")
        if not self.stream:
            if options:
                raise BadRequest("`stream_options` is only allowed with `stream` true.", param="stream_options")
            return True
        if not options:
            changes["stream_options"] = WITH_USAGE
            return False
        if type(options) is not dict:
            raise BadRequest("`stream_options` must be an object.", param="stream_options")
        wants_usage = _option(options, "include_usage")
        if not wants_usage or options.get("continuous_usage_stats"):
            # Usage on every event is another format, and costs more than we count.
            kept = {name: value for name, value in options.items() if name != "continuous_usage_stats"}
            changes["stream_options"] = orjson.dumps(kept | {"include_usage": True})
        return wants_usage


def with_model(body: Body, model: str) -> bytes | None:
    """A request's JSON for another model; None for what is too large to be read again here."""
    data = body if isinstance(body, bytes) else b"".join(body)
    if len(data) > MAX_REREAD_BYTES:
        return None
    return JsonBody.parse(data, GUARDED).edited({"model": orjson.dumps(model)})


def _option(options: dict[str, Any], name: str) -> bool:
    value = options.get(name)
    if value is not None and type(value) is not bool:
        raise BadRequest(f"`stream_options.{name}` must be true or false.", param=f"stream_options.{name}")
    return bool(value)
