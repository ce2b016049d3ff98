"""The Responses API through OpenAI's own Python SDK, with and without a store on the worker."""

from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest
import pytest_asyncio
from openai import AsyncOpenAI

from tests.e2e.gateway import RunningGateway
from tests.support import vllm_shapes as vllm
from tests.support.scripted_worker import ScriptedWorker

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="session")]

MODEL = "smollm2"


@pytest_asyncio.fixture(loop_scope="session")
async def client(scripted_gateway: RunningGateway, worker: ScriptedWorker) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=scripted_gateway.base_url, api_key=scripted_gateway.key, max_retries=0) as client:
        yield client


async def test_a_response_whole_and_streamed(client: AsyncOpenAI):
    whole = await client.responses.create(model="gpt-4o-mini", input="Say hi")
    stream = await client.responses.create(model="gpt-4o-mini", input="Say hi", stream=True)
    events = [event async for event in stream]

    assert whole.output_text == "".join(vllm.WORDS)
    assert whole.model == "gpt-4o-mini"
    assert events[0].type == "response.created" and events[-1].type == "response.completed"
    assert events[0].response.model == events[-1].response.model == "gpt-4o-mini"
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == whole.output_text


async def test_storing_where_nothing_is_stored_is_refused(client: AsyncOpenAI, worker: ScriptedWorker):
    with pytest.raises(openai.BadRequestError) as caught:
        await client.responses.create(model=MODEL, input="Say hi", store=True)
    assert caught.value.param == "store"
    with pytest.raises(openai.APIStatusError) as chained:
        await client.responses.create(model=MODEL, input="Say hi", previous_response_id="resp_" + "0" * 56)
    assert chained.value.status_code in (400, 404)
    assert not worker.calls()


@pytest.mark.parametrize("id", ["resp_x", "resp_" + "0" * 56, "%2e%2e", "resp_" + "é" * 56])
async def test_a_random_response_id_is_not_found(client: AsyncOpenAI, worker: ScriptedWorker, id: str):
    with pytest.raises(openai.NotFoundError):
        await client.responses.retrieve(id)
    with pytest.raises(openai.NotFoundError):
        await client.responses.cancel(id)
    assert not worker.calls()


@pytest.mark.parametrize("stream", [False, True])
async def test_a_stored_response_is_found_again_by_its_tenant_alone(
    client: AsyncOpenAI, scripted_gateway: RunningGateway, worker: ScriptedWorker, stream: bool
):
    made: Any = await client.responses.create(model="keeper", input="Say hi", stream=stream)
    id = [event async for event in made][-1].response.id if stream else made.id

    assert (await client.responses.retrieve(id)).output_text == "".join(vllm.WORDS)
    chained = await client.responses.create(model="keeper", input="And you?", previous_response_id=id)
    assert chained.id != id
    with pytest.raises(openai.BadRequestError, match="synchronous"):
        await client.responses.cancel(id)

    num_calls = len(worker.calls())
    other = client.with_options(api_key=scripted_gateway.keys["globex"])
    foreign = [other.responses.retrieve(id), other.responses.cancel(id)]
    foreign.append(other.responses.create(model="keeper", input="Whose?", previous_response_id=id))
    foreign.append(client.responses.retrieve(id[:-1] + ("0" if id[-1] != "0" else "1")))
    for call in foreign:
        with pytest.raises(openai.NotFoundError):
            await call
    assert len(worker.calls()) == num_calls
