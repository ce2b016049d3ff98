"""OpenAI's own Python SDK against the gateway, for what the demo model cannot do and what a real worker does too rarely."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest
import pytest_asyncio
from openai import AsyncOpenAI

from tests.e2e.gateway import RunningGateway
from tests.support import scripts
from tests.support import vllm_shapes as vllm
from tests.support.scripted_worker import ScriptedWorker

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="session")]

CHAT = "/v1/chat/completions"
MODEL = "smollm2"
HI: list[Any] = [{"role": "user", "content": "Say hi"}]
TOOLS: list[Any] = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
        },
    }
]


@pytest_asyncio.fixture(loop_scope="session")
async def client(scripted_gateway: RunningGateway, worker: ScriptedWorker) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=scripted_gateway.base_url, api_key=scripted_gateway.key, max_retries=0) as client:
        yield client


# Tools


async def test_a_tool_is_called_and_its_result_goes_back(client: AsyncOpenAI, worker: ScriptedWorker):
    asked = await client.chat.completions.create(model=MODEL, messages=HI, tools=TOOLS)
    [choice] = asked.choices
    [call] = choice.message.tool_calls or []
    assert choice.finish_reason == "tool_calls" and choice.message.content is None
    assert (call.type, call.function.name, call.function.arguments) == ("function", "get_weather", '{"city": "Paris"}')

    result = {"role": "tool", "tool_call_id": call.id, "content": "sunny"}
    messages = [*HI, choice.message.model_dump(exclude_none=True), result]
    answer = await client.chat.completions.create(model=MODEL, messages=messages, tools=TOOLS)
    assert answer.choices[0].message.content == "".join(vllm.WORDS)
    assert worker.calls()[1].json()["messages"] == messages
    assert worker.calls()[1].json()["tools"] == TOOLS


async def test_a_tool_call_streams_in_pieces(client: AsyncOpenAI):
    async with client.chat.completions.stream(model=MODEL, messages=HI, tools=TOOLS) as stream:
        kinds = {event.type async for event in stream}
        final = await stream.get_final_completion()

    [call] = final.choices[0].message.tool_calls or []
    assert "tool_calls.function.arguments.delta" in kinds
    assert call.function.arguments == '{"city": "Paris"}'
    assert final.choices[0].finish_reason == "tool_calls"


async def test_pieces_without_an_index_are_passed_as_the_worker_sent_them(client: AsyncOpenAI, worker: ScriptedWorker):
    deltas = vllm.tool_call_deltas("get_weather", ['{"city":', '"Oslo"}'], index=None)
    worker.on(CHAT, scripts.stream(vllm.chat_events(deltas, model=MODEL, finish="tool_calls", include_usage=True)))
    stream = await client.chat.completions.create(model=MODEL, messages=HI, tools=TOOLS, stream=True)
    pieces = [call async for chunk in stream for call in chunk.choices[0].delta.tool_calls or []]
    assert "".join(piece.function.arguments or "" for piece in pieces if piece.function) == '{"city":"Oslo"}'


async def test_a_model_without_tools_says_so_readably(client: AsyncOpenAI, worker: ScriptedWorker):
    worker.on(CHAT, scripts.vllm_error(400, '\\"auto\\" tool choice requires --enable-auto-tool-choice'))
    with pytest.raises(openai.BadRequestError, match="tool choice"):
        await client.chat.completions.create(model=MODEL, messages=HI, tools=TOOLS)


# Images


def picture(num_bytes: int = 64) -> list[Any]:
    text = {"type": "text", "text": "What is this?"}
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "iVBORw0K" * (num_bytes // 6)}}
    return [{"role": "user", "content": [text, image]}]


async def test_an_image_goes_up_as_it_is_even_a_large_one(client: AsyncOpenAI, worker: ScriptedWorker):
    worker.on(CHAT, scripts.chat_stream())
    messages = picture(8 * 2**20)
    stream = await client.chat.completions.create(model=MODEL, messages=messages, stream=True)
    words = [chunk.choices[0].delta.content async for chunk in stream]

    assert "".join(word or "" for word in words) == "".join(vllm.WORDS)
    assert worker.calls()[0].json()["messages"] == messages


async def test_a_model_without_eyes_answers_400_in_words(client: AsyncOpenAI):
    with pytest.raises(openai.BadRequestError) as caught:
        await client.chat.completions.create(model=MODEL, messages=picture())
    assert "smollm2 is not a multimodal model" in caught.value.message
    assert caught.value.code is None


# Reasoning


@pytest.mark.parametrize(("model", "doubled"), [("thinker", True), ("smollm2", False)])
@pytest.mark.parametrize("stream", [False, True])
async def test_reasoning_comes_under_the_older_name_too_where_the_route_asks_for_it(
    client: AsyncOpenAI, worker: ScriptedWorker, model: str, doubled: bool, stream: bool
):
    deltas = vllm.reasoning_deltas(["Let me", " see."], ["Hi"])
    whole = {"content": "Hi", "reasoning": "Let me see."}
    if stream:
        worker.on(CHAT, scripts.stream(vllm.chat_events(deltas, model=MODEL, include_usage=True)))
        chunks = await client.chat.completions.create(model=model, messages=HI, stream=True)
        parts = [chunk.choices[0].delta async for chunk in chunks]
    else:
        worker.on(CHAT, scripts.reply(200, vllm.chat_reply(whole, model=MODEL, id="chatcmpl-1", prompt=1, completion=3)))
        parts = [(await client.chat.completions.create(model=model, messages=HI)).choices[0].message]

    said = {name: "".join(getattr(part, name, None) or "" for part in parts) for name in ("reasoning", "reasoning_content")}
    assert said == {"reasoning": "Let me see.", "reasoning_content": "Let me see." if doubled else ""}
    assert "".join(part.content or "" for part in parts) == "Hi"


# Errors


async def test_a_wrong_key_is_an_authentication_error(scripted_gateway: RunningGateway):
    async with AsyncOpenAI(base_url=scripted_gateway.base_url, api_key="sk-wrong", max_retries=0) as client:
        with pytest.raises(openai.AuthenticationError) as caught:
            await client.models.list()
    assert caught.value.code == "invalid_api_key"
    assert caught.value.request_id


@pytest.mark.parametrize(("tenant", "model"), [("acme", "nope"), ("initech", "acme/tiny")])
async def test_an_unknown_and_a_forbidden_model_are_the_same_not_found_error(
    scripted_gateway: RunningGateway, tenant: str, model: str
):
    async with AsyncOpenAI(base_url=scripted_gateway.base_url, api_key=scripted_gateway.keys[tenant], max_retries=0) as client:
        with pytest.raises(openai.NotFoundError) as caught:
            await client.chat.completions.create(model=model, messages=HI)
        assert (caught.value.code, caught.value.param) == ("model_not_found", "model")
        with pytest.raises(openai.NotFoundError):
            await client.models.retrieve(model)


async def test_a_limited_key_sees_its_own_models(scripted_gateway: RunningGateway):
    async with AsyncOpenAI(base_url=scripted_gateway.base_url, api_key=scripted_gateway.keys["initech"]) as client:
        assert {model.id async for model in client.models.list()} == {"smollm2", "gpt-4o-mini"}


@pytest.mark.parametrize(
    ("script", "kind", "code"),
    [
        (scripts.reply(400, vllm.context_too_long(8192)), openai.BadRequestError, "context_length_exceeded"),
        (scripts.vllm_error(422, "bad image", type="UnprocessableEntityError"), openai.BadRequestError, None),
        (scripts.vllm_error(500, "boom", type="InternalServerError"), openai.InternalServerError, any),
        (scripts.html_error(502), openai.InternalServerError, any),
        (scripts.queue_full(), openai.RateLimitError, any),
        (scripts.garbage(), openai.InternalServerError, any),
    ],
    ids=["context", "422", "500", "HTML", "queue full", "garbage"],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_what_a_worker_says_becomes_the_sdks_class(
    client: AsyncOpenAI, worker: ScriptedWorker, script: Any, kind: type[Exception], code: Any, stream: bool
):
    worker.on(CHAT, script)
    with pytest.raises(kind) as caught:
        await client.chat.completions.create(model=MODEL, messages=HI, stream=stream)
    assert isinstance(caught.value, openai.APIStatusError)
    assert code is any or caught.value.code == code
    assert caught.value.code is None or isinstance(caught.value.code, str)
    assert caught.value.request_id


async def test_too_large_a_body_is_413(client: AsyncOpenAI, worker: ScriptedWorker):
    with pytest.raises(openai.APIStatusError) as caught:
        await client.chat.completions.create(model=MODEL, messages=picture(40 * 2**20))
    assert caught.value.status_code == 413
    assert not worker.calls()


async def test_a_full_worker_is_tried_again_by_the_sdk(scripted_gateway: RunningGateway, worker: ScriptedWorker):
    worker.on(CHAT, scripts.queue_full(), None)
    async with AsyncOpenAI(base_url=scripted_gateway.base_url, api_key=scripted_gateway.key, max_retries=1) as client:
        answer = await client.chat.completions.create(model=MODEL, messages=HI)
    assert answer.choices[0].message.content
    assert len(worker.calls()) == 2


async def test_what_a_repeat_cannot_heal_is_not_tried_again(scripted_gateway: RunningGateway, worker: ScriptedWorker):
    worker.on(CHAT, scripts.vllm_error(500, "boom", type="InternalServerError"))
    async with AsyncOpenAI(base_url=scripted_gateway.base_url, api_key=scripted_gateway.key, max_retries=2) as client:
        with pytest.raises(openai.InternalServerError):
            await client.chat.completions.create(model=MODEL, messages=HI)
    assert len(worker.calls()) == 1


@pytest.mark.parametrize(
    "script",
    [scripts.stream_error(after=3), scripts.chat_stream(after=3), scripts.chat_stream(after=3, ending="reset")]
    + [scripts.chat_stream(finish="abort"), scripts.chat_stream(done=False)],
    ids=["error event", "cut", "reset", "aborted", "no [DONE]"],
)
async def test_a_broken_stream_raises(client: AsyncOpenAI, worker: ScriptedWorker, script: Any):
    worker.on(CHAT, script)
    stream = await client.chat.completions.create(model=MODEL, messages=HI, stream=True)
    with pytest.raises(openai.APIError):
        async for _ in stream:
            pass


async def test_every_answer_has_a_request_id(client: AsyncOpenAI):
    answer = await client.chat.completions.create(model=MODEL, messages=HI)
    raw = await client.chat.completions.with_raw_response.create(model=MODEL, messages=HI, stream=True)
    assert answer._request_id and raw.headers["x-request-id"] and raw.headers["x-request-id"] != answer._request_id


# Leaving


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
async def test_a_cancelled_call_frees_the_worker(client: AsyncOpenAI, worker: ScriptedWorker, stream: bool):
    worker.on(CHAT, scripts.never_answers())
    call = asyncio.ensure_future(client.chat.completions.create(model=MODEL, messages=HI, stream=stream))
    await worker.wait_calls(1)
    call.cancel()
    await worker.wait_aborted(1, within_s=10)


async def test_a_stream_that_is_closed_frees_the_worker(client: AsyncOpenAI, worker: ScriptedWorker):
    worker.on(CHAT, scripts.chat_stream(after=3, ending="stall"))
    async with await client.chat.completions.create(model=MODEL, messages=HI, stream=True) as stream:
        async for chunk in stream:
            if chunk.choices[0].delta.content == "Hello":
                break
    await worker.wait_aborted(1, within_s=10)


# The other endpoints


async def test_embeddings_come_as_floats_as_base64_and_from_token_ids(client: AsyncOpenAI, worker: ScriptedWorker):
    by_default = await client.embeddings.create(model=MODEL, input=["a b", "c"])
    as_floats = await client.embeddings.create(model=MODEL, input="a", encoding_format="float")
    from_ids = await client.embeddings.create(model=MODEL, input=[[1, 2, 3], [4]])

    assert [row.embedding for row in by_default.data] == [[0.5, -0.25, 0.0], [0.5, -0.25, 1.0]]
    assert as_floats.data[0].embedding == [0.5, -0.25, 0.0]
    assert len(from_ids.data) == 2
    assert worker.calls()[2].json()["input"] == [[1, 2, 3], [4]]
    assert by_default.model == MODEL and by_default.usage.prompt_tokens == 3


async def test_a_recording_is_transcribed(client: AsyncOpenAI, worker: ScriptedWorker):
    recording = ("hi.wav", b"RIFF" + b"\x00\xff\r\n--" * 1000, "audio/wav")
    answer = await client.audio.transcriptions.create(model="gpt-4o-mini", file=recording, language="en")

    assert answer.text == "".join(vllm.WORDS)
    [call] = worker.calls()
    assert call.path == "/v1/audio/transcriptions"
    assert recording[1] in call.body
    assert b'name="model"\r\n\r\nsmollm2\r\n' in call.body


async def test_endpoints_that_a_route_has_not_opened_are_404(client: AsyncOpenAI, worker: ScriptedWorker):
    with pytest.raises(openai.NotFoundError):
        await client.audio.transcriptions.create(model="acme/tiny", file=("a.wav", b"RIFF"))
    assert not worker.calls()


async def test_legacy_completions(client: AsyncOpenAI):
    whole = await client.completions.create(model=MODEL, prompt="Once", max_tokens=3)
    stream = await client.completions.create(model="gpt-4o-mini", prompt="Once", max_tokens=3, stream=True)
    chunks = [chunk async for chunk in stream]

    assert whole.choices[0].text == "Hello from the"
    assert "".join(chunk.choices[0].text for chunk in chunks) == "Hello from the"
    assert {chunk.model for chunk in chunks} == {"gpt-4o-mini"}
