"""Anthropic's own Python SDK against `/v1/messages`."""

from collections.abc import AsyncIterator
from typing import Any

import anthropic
import pytest
import pytest_asyncio
from anthropic import AsyncAnthropic

from tests.e2e.gateway import RunningGateway
from tests.support import scripts, vllm_agents
from tests.support import vllm_shapes as vllm
from tests.support.scripted_worker import ScriptedWorker

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="session")]

MESSAGES = "/v1/messages"
HI: list[Any] = [{"role": "user", "content": "Say hi"}]


@pytest_asyncio.fixture(loop_scope="session")
async def client(scripted_gateway: RunningGateway, worker: ScriptedWorker) -> AsyncIterator[AsyncAnthropic]:
    async with AsyncAnthropic(base_url=scripted_gateway.url, api_key=scripted_gateway.key, max_retries=0) as client:
        yield client


async def test_a_message_whole_and_streamed(client: AsyncAnthropic, worker: ScriptedWorker):
    whole = await client.messages.create(model="gpt-4o-mini", messages=HI, max_tokens=16)
    async with client.messages.stream(model="gpt-4o-mini", messages=HI, max_tokens=16) as stream:
        text = "".join([piece async for piece in stream.text_stream])
        final = await stream.get_final_message()

    assert whole.content[0].text == text == "".join(vllm.WORDS)
    assert (whole.model, final.model) == ("gpt-4o-mini", "gpt-4o-mini")
    assert (whole.stop_reason, final.stop_reason) == ("end_turn", "end_turn")
    assert final.usage.output_tokens == whole.usage.output_tokens == len(vllm.WORDS)
    assert "stream_options" not in worker.calls()[1].json()
    assert scripted_gateway_key_is_absent(worker)


def scripted_gateway_key_is_absent(worker: ScriptedWorker) -> bool:
    return all(call.header("x-api-key") is None for call in worker.calls())


async def test_tokens_are_counted(client: AsyncAnthropic):
    assert (await client.messages.count_tokens(model="smollm2", messages=HI)).input_tokens == 2


async def test_errors_are_the_sdks_classes(client: AsyncAnthropic, scripted_gateway: RunningGateway, worker: ScriptedWorker):
    with pytest.raises(anthropic.NotFoundError) as caught:
        await client.messages.create(model="nope", messages=HI, max_tokens=1)
    assert caught.value.body["type"] == "error"

    with pytest.raises(anthropic.AuthenticationError):
        await client.with_options(api_key="sk-wrong").messages.create(model="smollm2", messages=HI, max_tokens=1)

    worker.on(MESSAGES, scripts.reply(400, vllm_agents.message_error("top_k must be positive")))
    with pytest.raises(anthropic.BadRequestError, match="top_k must be positive"):
        await client.messages.create(model="smollm2", messages=HI, max_tokens=1)


async def test_a_stream_that_breaks_raises(client: AsyncAnthropic, worker: ScriptedWorker):
    good = vllm_agents.message_events(vllm.WORDS, model="smollm2", id="chatcmpl-1", prompt=2)
    for events in (good[:4], [*good[:4], vllm_agents.message_error_event("boom")]):
        worker.on(MESSAGES, scripts.stream(events))
        with pytest.raises(anthropic.APIError):
            async with client.messages.stream(model="smollm2", messages=HI, max_tokens=16) as stream:
                async for _ in stream:
                    pass


async def test_a_stream_that_is_closed_frees_the_worker(client: AsyncAnthropic, worker: ScriptedWorker):
    events = vllm_agents.message_events(vllm.WORDS, model="smollm2", id="chatcmpl-1", prompt=2)
    worker.on(MESSAGES, scripts.stream(events, after=4, ending="stall"))
    async with client.messages.stream(model="smollm2", messages=HI, max_tokens=16) as stream:
        async for event in stream:
            if event.type == "content_block_delta":
                break
    await worker.wait_aborted(1, within_s=10)
