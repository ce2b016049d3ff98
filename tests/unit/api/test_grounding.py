"""What depends on a call's body follows it when its sources are put in: size, estimate, prefix, stamp, pieces."""

from collections.abc import Callable
from dataclasses import replace

import orjson
import pytest

from sluice.api.grounding import Binding, bound, filled
from sluice.errors import BadRequest
from sluice.limits.estimate import RouteEstimate
from sluice.prefix import prefix_of, seed_of
from sluice.types import Body, Call, Endpoint, PromptSize, Tenant
from sluice.wire.requests import Rules, parse
from sluice.wire.sources import Ask

MESSAGES = [{"role": "system", "content": "s" * 1500}, {"role": "user", "content": "port?"}]
BODY = {"model": "m", "messages": MESSAGES, "retrieval": {"vector_store_ids": ["vs"]}}
BLOCK = "Sources: 网关 8443.\nQuestion: "
SEED = seed_of("m")
BINDING = Binding(RouteEstimate(), SEED, None)


def asked() -> tuple[Call, Ask]:
    prepared = parse(Endpoint.CHAT, orjson.dumps(BODY)).prepare(Rules(), model="m", prefix_seed=SEED)
    assert prepared.ask is not None
    tenant = Tenant("acme", "k")
    call = Call("req-1", tenant, "m", Endpoint.CHAT, Endpoint.CHAT, body=prepared.body, size=prepared.size, prompt_tokens=7)
    return call, prepared.ask


def test_size_estimate_and_prefix_are_those_of_the_body_that_goes_up():
    call, ask = asked()

    found = filled(call, ask, BLOCK, BINDING)

    assert isinstance(found.body, bytes)
    sent = orjson.loads(found.body)
    assert sent["messages"] == [MESSAGES[0], {"role": "user", "content": BLOCK + "port?"}]
    again = parse(Endpoint.CHAT, found.body).prepare(Rules(), model="m", prefix_seed=SEED)
    assert (found.size, found.prefix) == (again.size, again.prefix) == (again.size, prefix_of(Endpoint.CHAT, sent, SEED))
    assert found.prompt_tokens == BINDING.estimate.prompt_tokens(again.size) > 300
    assert found.size == PromptSize(ascii=call.size.ascii + len(BLOCK) - 2, cjk=2, messages=2)


@pytest.mark.parametrize("cut_at", [10, 200, None])
def test_a_body_in_pieces_is_filled_too(cut_at: int | None):
    call, ask = asked()
    assert isinstance(call.body, bytes)
    place = call.body.index(ask.slot)
    pieces: Body = (call.body[:place], ask.slot, call.body[place + len(ask.slot) :])
    if cut_at is not None:
        pieces = (call.body[:cut_at], call.body[cut_at:])

    found = filled(replace(call, body=pieces), ask, BLOCK, BINDING)

    assert isinstance(found.body, tuple)
    assert orjson.loads(b"".join(found.body))["messages"][1]["content"] == BLOCK + "port?"


def test_a_body_that_is_stamped_is_stamped_anew():
    call, ask = asked()

    def stamp(body: Body) -> Callable[[str], Body]:
        assert isinstance(body, bytes)
        return lambda url: body + url.encode()

    found = filled(call, ask, BLOCK, Binding(RouteEstimate(), None, stamp))

    assert found.stamp is not None and found.prefix == call.prefix
    assert isinstance(found.body, bytes) and found.stamp("http://w") == found.body + b"http://w"


def test_who_asks_where_nothing_is_configured_is_told_so():
    call, ask = asked()

    with pytest.raises(BadRequest, match="not configured") as caught:
        bound(None, call, ask, {}, BINDING)

    assert caught.value.param == "retrieval"


async def test_a_call_whose_retrieval_is_off_goes_up_without_it():
    call, ask = asked()

    off = bound(None, call, ask, {b"x-retrieval": b"OFF"}, BINDING)
    assert off.ground is not None
    found, grounding = await off.ground(off)

    assert isinstance(found.body, bytes)
    assert orjson.loads(found.body) == {"model": "m", "messages": MESSAGES}
    assert grounding.headers[0] == (b"x-retrieval-status", b"skipped")
    assert grounding.whole(b"{}") == b"{}" and grounding.editor().feed(b"data: {}\n\n") == b"data: {}\n\n"
