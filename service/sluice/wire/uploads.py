"""What a client asks with a form: transcriptions. The audio in it is neither read nor copied before it goes up.

Source: vLLM 0.32 `speech_to_text/transcription/protocol.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sluice.errors import BadRequest
from sluice.types import Endpoint, PromptSize
from sluice.wire.members import DROPPED, MAX_TOKENS, REFUSED, SPECIAL, num_choices, refuse_forbidden
from sluice.wire.multipart import Multipart, parse_multipart
from sluice.wire.rules import NO_STEERING, Prepared, Rules

# What a form's text means where the worker expects a boolean; its framework takes more than `true` and `false`.
TRUE = frozenset({"1", "on", "t", "true", "y", "yes"})
FALSE = frozenset({"0", "off", "f", "false", "n", "no", ""})

FLAGS = ("stream", "stream_include_usage", "stream_continuous_usage_stats", "use_beam_search")
COUNTS = ("n", "max_completion_tokens")
GUARDED = SPECIAL | {"model", "file", *FLAGS, *COUNTS}


@dataclass(slots=True)
class UploadRequest:
    """A request whose body is a form."""

    endpoint: Endpoint
    model: str
    stream: bool
    form: Multipart
    members: dict[str, bool | int | str | None]  # those that we read, as the types that a JSON body would give them

    previous_response_id = None
    store = False
    timeout_ms = None

    @classmethod
    def parse(cls, endpoint: Endpoint, data: bytes, content_type: str) -> UploadRequest:
        """The form's request; raises `BadRequest`."""
        form = parse_multipart(content_type, data, GUARDED)
        if not any(part.name == "file" and part.is_file for part in form.parts):
            raise BadRequest("`file` is missing: it must be a part with the audio and a file name.", param="file")
        model = form.fields.get("model")
        if not model or not model.isprintable():
            raise BadRequest("`model` must name the model to use; GET /v1/models lists them.", param="model")
        members: dict[str, bool | int | str | None] = {name: _flag(form, name) for name in FLAGS}
        members |= {name: _count(form, name) for name in COUNTS}
        members |= {name: form.fields[name] for name in REFUSED if name in form.fields}
        return cls(endpoint, model, bool(members["stream"]), form, members)

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
        refuse_forbidden(self.members)
        choices = num_choices(self.endpoint, self.members, rules.bounds)
        changes: dict[str, bytes | None] = dict.fromkeys(DROPPED & {part.name for part in self.form.parts})
        if model != self.model:
            changes["model"] = model.encode()
        wants_usage = self._ask_for_usage(changes)
        max_tokens = self.members["max_completion_tokens"]
        return Prepared(
            cuts=tuple(self.form.cuts(changes)),
            data=self.form.data,
            content_type=self.form.content_type,
            stream=self.stream,
            wants_usage=wants_usage,
            num_prompts=1,
            num_choices=choices,
            max_tokens=max_tokens if type(max_tokens) is int else None,
            size=PromptSize(media=1),
            user="",
        )

    def _ask_for_usage(self, changes: dict[str, bytes | None]) -> bool:
        wants_usage = bool(self.members["stream_include_usage"])
        if not self.stream:
            for name in ("stream_include_usage", "stream_continuous_usage_stats"):
                if self.members[name]:
                    raise BadRequest(f"`{name}` is only allowed with `stream` true.", param=name)
            return True
        if not wants_usage:
            changes["stream_include_usage"] = b"true"
        if self.members["stream_continuous_usage_stats"]:
            changes["stream_continuous_usage_stats"] = None
        return wants_usage


def _flag(form: Multipart, name: str) -> bool:
    said = form.fields.get(name, "").lower()
    if said not in TRUE and said not in FALSE:
        raise BadRequest(f"`{name}` must be true or false.", param=name)
    return said in TRUE


def _count(form: Multipart, name: str) -> int | None:
    said = form.fields.get(name, "")
    if not said:
        return None
    if not (said.isascii() and said.isdigit() and int(said[:12]) <= MAX_TOKENS and len(said) < 12):
        raise BadRequest(f"`{name}` must be an integer from 0 to {MAX_TOKENS}.", param=name)
    return int(said)
