"""What a call is estimated to cost, and whom it is for."""

from collections.abc import AsyncIterator

import orjson
import pytest

from sluice.admission.route import Admission
from sluice.api.bodies import LARGE_BYTES
from sluice.api.calls import CallMaker
from sluice.api.steering import Steering
from sluice.bulk import BulkReader
from sluice.config import Route
from sluice.directory import Directory
from sluice.gateway import Served
from sluice.middleware import Visit
from sluice.policies.round_robin import RoundRobin
from sluice.pool import Pool
from sluice.response_ids import ResponseIds
from sluice.types import Body, Call, Endpoint, PromptSize, Tenant
from sluice.upstream.connections import Connections
from sluice.worker import ModelInfo, Worker

URL = "http://127.0.0.1:1"
ROUTE = Route.model_validate({"workers": {"static": [URL]}})
UNTRUSTED, TRUSTED = Tenant("acme", "k1"), Tenant("acme", "k2", names_users=True)
MESSAGES = [{"role": "user", "content": "Say hi, please!"}]


@pytest.fixture
async def maker() -> AsyncIterator[CallMaker]:
    worker = Worker(URL, Connections(URL, connect_s=1))
    worker.judge(is_healthy=True, models=(ModelInfo("smollm2", max_model_len=2048),))
    pool = Pool("smollm2", [worker], RoundRobin())
    served = {"smollm2": Served(ROUTE, pool, Admission(pool, ROUTE.queue))}
    async with BulkReader() as bulk:
        yield CallMaker(
            routes=served,
            directory=Directory({"smollm2": ROUTE}),
            ids=ResponseIds(b"secret"),
            steering=Steering(b"secret"),
            bulk=bulk,
        )


async def made(
    maker: CallMaker,
    tenant: Tenant = UNTRUSTED,
    endpoint: Endpoint = Endpoint.CHAT,
    headers: tuple[tuple[bytes, bytes], ...] = (),
    **members: object,
) -> Call:
    asked = {"messages": MESSAGES} if endpoint is Endpoint.CHAT else {}
    data: Body = orjson.dumps({"model": "smollm2"} | asked | members)
    data = data if len(data) <= LARGE_BYTES else (data[:1000], data[1000:])
    visit = Visit({"headers": list(headers)}, "req-1", 0.0)
    return await maker.call(visit, tenant, endpoint, data, "application/json")


async def test_a_call_knows_what_it_is_estimated_to_cost(maker: CallMaker):
    call = await made(maker, max_completion_tokens=20, n=3)

    assert call.size == PromptSize(ascii=15, messages=1)
    assert 5 < call.prompt_tokens < 30
    assert (call.max_tokens, call.num_choices, call.output_tokens) == (20, 3, 60)


async def test_an_answer_is_not_estimated_longer_than_the_context_has_room(maker: CallMaker):
    call = await made(maker, max_tokens=100_000)

    assert call.output_tokens == 2048 - call.prompt_tokens


async def test_every_prompt_of_a_completion_has_its_answers_and_an_embedding_has_none(maker: CallMaker):
    several = await made(maker, endpoint=Endpoint.COMPLETIONS, prompt=["a", "b"], n=2, max_tokens=5)
    embedded = await made(maker, endpoint=Endpoint.EMBEDDINGS, input=["one", "two"])

    assert (several.num_choices, several.output_tokens) == (4, 20)
    assert (embedded.num_choices, embedded.output_tokens) == (0, 0) and embedded.prompt_tokens


async def test_a_large_body_is_estimated_by_the_process_that_reads_it(maker: CallMaker):
    call = await made(maker, TRUSTED, messages=[{"role": "user", "content": "字" * LARGE_BYTES}], user="ada")

    assert call.size == PromptSize(cjk=LARGE_BYTES, messages=1)
    assert call.user == "ada"


async def test_a_trusted_key_names_its_user_by_header_or_body(maker: CallMaker):
    header = ((b"x-openwebui-user-id", b"u-1"),)

    assert (await made(maker, TRUSTED, headers=header, user="ada")).user == "u-1"
    assert (await made(maker, TRUSTED, user="ada")).user == "ada"
    assert (await made(maker, TRUSTED, user="ada", safety_identifier="s-1")).user == "s-1"
    assert (await made(maker, TRUSTED, user=["no", "text"])).user == ""


async def test_an_untrusted_key_names_nobody(maker: CallMaker):
    assert (await made(maker, headers=((b"x-openwebui-user-id", b"u-1"),), user="ada")).user == ""


async def test_a_name_that_is_too_long_or_not_printable_becomes_its_hash(maker: CallMaker):
    long = (await made(maker, TRUSTED, user="a" * 500)).user
    odd = (await made(maker, TRUSTED, user="a\nb")).user

    assert long.startswith("sha256:") and odd.startswith("sha256:") and len(long) == len(odd) == 71
