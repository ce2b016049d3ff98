"""Binds what a request asks of retrieval to its call: the call then finds its sources when its turn comes.

Nothing that was asked is dropped in silence: without a retriever it is a 400. `X-Retrieval: off` switches retrieval off for one
request, also where it is a default, and can do nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from sluice.errors import BadRequest
from sluice.limits.estimate import RouteEstimate
from sluice.retrieval.given import Given
from sluice.retrieval.hook import Grounded, Hook
from sluice.retrieval.wish import wish_of
from sluice.types import Body, Call, Ground, Grounding, Tenant
from sluice.wire.prompt_size import classes_of
from sluice.wire.sources import Ask


@dataclass(frozen=True, slots=True)
class Binding:
    """What else of a call depends on its body."""

    estimate: RouteEstimate
    prefix_seed: bytes | None
    stamp: Callable[[Body], Callable[[str], Body]] | None


def retrieves(hook: Hook | None, route: str, tenant: Tenant) -> bool:
    """Whether a call gets sources that asks for none."""
    return hook is not None and hook.default(route, tenant) is not None


def bound(hook: Hook | None, call: Call, ask: Ask, headers: Mapping[bytes, bytes], binding: Binding) -> Call:
    """The call with its `ground`. Raises `BadRequest` for what is asked wrongly, or of nobody."""
    switch = headers.get(b"x-retrieval")
    if switch is not None and switch.lower() != b"off":
        raise BadRequest("The header X-Retrieval can only be off; ask by `retrieval` or a file_search tool.")
    if switch is not None:
        return replace(call, ground=_skipping(ask, binding))
    if hook is None:
        param = "retrieval" if ask.member is not None else "tools"
        raise BadRequest("Retrieval is not configured on this gateway.", param=param)
    wish = wish_of(ask, hook.default(call.route, call.tenant))
    if wish is None or not ask.slot:
        return replace(call, ground=_skipping(ask, binding))
    found = hook

    async def ground(call: Call) -> tuple[Call, Grounding]:
        given = await found.ground(call, ask, wish)
        return filled(call, ask, given.prompt, binding), found.grounded(call, given, wish)

    most = call.prompt_tokens + wish.max_context_tokens  # what limits reserve, until it is known
    return replace(call, ground=ground, prompt_tokens=most)


def _skipping(ask: Ask, binding: Binding) -> Ground:
    async def ground(call: Call) -> tuple[Call, Grounding]:
        return filled(call, ask, "", binding), Grounded(Given(call.id, is_skipped=True), call.endpoint)

    return ground


def filled(call: Call, ask: Ask, prompt: str, binding: Binding) -> Call:
    """The call as it goes up, with `prompt` before the question; everything that depends on the body follows it."""
    body = _replaced(call.body, ask.slot, ask.filler(prompt)) if ask.slot else call.body
    ascii_, cjk, other = classes_of(prompt)
    size = call.size._replace(ascii=call.size.ascii + ascii_, cjk=call.size.cjk + cjk, other=call.size.other + other)
    return replace(
        call,
        body=body,
        stamp=None if binding.stamp is None else binding.stamp(body),
        size=size,
        prompt_tokens=binding.estimate.prompt_tokens(size),
        prefix=call.prefix if binding.prefix_seed is None else ask.prefix(prompt, binding.prefix_seed),
    )


def _replaced(body: Body, slot: bytes, filler: bytes) -> Body:
    if isinstance(body, bytes):
        return body.replace(slot, filler, 1)
    if slot in body:  # what we wrote ourselves is a piece of its own
        return tuple(filler if piece == slot else piece for piece in body)
    return tuple(piece.replace(slot, filler, 1) for piece in body)
