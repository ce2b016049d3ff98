"""Real vLLM with the real model behind the gateway, through OpenAI's own Python SDK."""

import json
from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest
import pytest_asyncio
from openai import AsyncOpenAI

from tests.e2e.gateway import RunningGateway

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="session")]

MODEL = "smollm2"
ALIAS = "gpt-4o-mini"
ASK: list[Any] = [{"role": "user", "content": "Where is the Eiffel Tower?"}]


@pytest_asyncio.fixture(loop_scope="session")
async def client(real_gateway: RunningGateway) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=real_gateway.base_url, api_key=real_gateway.key, max_retries=0) as client:
        yield client


async def test_chat(client: AsyncOpenAI):
    answer = await client.chat.completions.create(model=MODEL, messages=ASK, max_tokens=16, temperature=0)

    assert "Paris" in (answer.choices[0].message.content or "")
    assert answer.model == MODEL
    assert answer.usage is not None and answer.usage.prompt_tokens > 10
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert answer._request_id


async def test_a_stream_says_what_the_whole_answer_says(client: AsyncOpenAI):
    poem = [{"role": "user", "content": "Write a poem about the sea."}]
    options: Any = {"model": MODEL, "messages": poem, "max_tokens": 12, "temperature": 0}
    whole = await client.chat.completions.create(**options)
    stream = await client.chat.completions.create(**options, stream=True)
    plain = [chunk async for chunk in stream]
    stream = await client.chat.completions.create(**options, stream=True, stream_options={"include_usage": True})
    *counted, last = [chunk async for chunk in stream]

    assert all(chunk.choices and chunk.usage is None for chunk in plain)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in plain) == whole.choices[0].message.content
    assert [chunk.choices[0].delta for chunk in plain] == [chunk.choices[0].delta for chunk in counted]
    assert [chunk.choices[0].finish_reason for chunk in plain][-1] == whole.choices[0].finish_reason == "length"
    assert last.choices == [] and last.usage is not None and whole.usage is not None
    assert last.usage.completion_tokens == whole.usage.completion_tokens == 12
    assert len({chunk.id for chunk in plain}) == 1


async def test_an_alias_answers_under_its_own_name(client: AsyncOpenAI):
    options: Any = {"model": ALIAS, "messages": ASK, "max_tokens": 8, "temperature": 0}
    whole = await client.chat.completions.create(**options)
    stream = await client.chat.completions.create(**options, stream=True)
    chunks = [chunk async for chunk in stream]

    assert whole.model == ALIAS and {chunk.model for chunk in chunks} == {ALIAS}
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == whole.choices[0].message.content


async def test_stop(client: AsyncOpenAI):
    answer = await client.chat.completions.create(model=MODEL, messages=ASK, max_tokens=16, temperature=0, stop=["Paris"])
    assert answer.choices[0].finish_reason == "stop"
    assert "Paris" not in (answer.choices[0].message.content or "")


async def test_n(client: AsyncOpenAI):
    answer = await client.chat.completions.create(model=MODEL, messages=ASK, max_tokens=4, temperature=1, n=3, seed=1)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert answer.usage is not None and answer.usage.completion_tokens <= 12


async def test_logprobs(client: AsyncOpenAI):
    answer = await client.chat.completions.create(
        model=MODEL, messages=ASK, max_tokens=3, temperature=0, logprobs=True, top_logprobs=2
    )
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None and logprobs.content is not None and len(logprobs.content) == 3
    assert all(len(token.top_logprobs) == 2 and token.logprob <= 0 for token in logprobs.content)


async def test_json_schema(client: AsyncOpenAI):
    schema = {
        "type": "object",
        "properties": {"city": {"type": "string", "enum": ["Paris", "London"]}},
        "required": ["city"],
        "additionalProperties": False,
    }
    answer = await client.chat.completions.create(
        model=MODEL,
        messages=ASK,
        max_tokens=32,
        temperature=0,
        response_format={"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": True}},
    )
    said = json.loads(answer.choices[0].message.content or "")
    assert said.keys() == {"city"} and said["city"] in ("Paris", "London")


async def test_legacy_completions(client: AsyncOpenAI):
    options: Any = {"model": MODEL, "prompt": "The capital of France is", "max_tokens": 6, "temperature": 0}
    whole = await client.completions.create(**options)
    stream = await client.completions.create(**options, stream=True)
    chunks = [chunk async for chunk in stream]
    batch = await client.completions.create(**options | {"prompt": ["One, two,", "A, B,"], "max_tokens": 2})

    assert "".join(chunk.choices[0].text for chunk in chunks) == whole.choices[0].text
    assert all(chunk.choices for chunk in chunks)
    assert [choice.index for choice in batch.choices] == [0, 1]


async def test_models(client: AsyncOpenAI):
    models = {model.id: model async for model in client.models.list()}
    assert models.keys() == {MODEL, ALIAS, "all-minilm"}
    assert models[MODEL].model_extra is not None
    assert models[MODEL].model_extra["max_model_len"] == models[MODEL].model_extra["context_length"] == 2048
    assert "root" not in models[MODEL].model_extra
    assert (await client.models.retrieve(ALIAS)).id == ALIAS


async def test_a_response_whole_and_streamed(client: AsyncOpenAI):
    options: Any = {"model": ALIAS, "input": "Where is the Eiffel Tower?", "max_output_tokens": 8, "temperature": 0}
    whole = await client.responses.create(**options)
    stream = await client.responses.create(**options, stream=True)
    events = [event async for event in stream]

    assert whole.output_text and whole.model == ALIAS
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == whole.output_text
    assert events[-1].type in ("response.completed", "response.incomplete")
    assert events[-1].response.model == ALIAS


async def test_storing_is_refused_where_the_worker_keeps_nothing(client: AsyncOpenAI):
    with pytest.raises(openai.BadRequestError) as caught:
        await client.responses.create(model=MODEL, input="Hi", max_output_tokens=2, store=True)
    assert caught.value.param == "store"
    with pytest.raises(openai.NotFoundError):
        await client.responses.retrieve("resp_0123456789abcdef")


# Embeddings


async def test_embeddings_are_the_same_as_floats_and_as_base64(client: AsyncOpenAI):
    texts = ["a kitten", "a small cat", "a tax form"]
    as_base64 = await client.embeddings.create(model="all-minilm", input=texts)  # the SDK's default
    as_floats = await client.embeddings.create(model="all-minilm", input=texts, encoding_format="float")

    assert [len(row.embedding) for row in as_base64.data] == [384, 384, 384]
    for one, other in zip(as_base64.data, as_floats.data, strict=True):
        assert one.embedding == pytest.approx(other.embedding, abs=1e-6)
    kitten, cat, form = (row.embedding for row in as_floats.data)
    assert dot(kitten, cat) > dot(kitten, form)


async def test_embeddings_take_token_ids_as_langchain_sends_them(client: AsyncOpenAI):
    kitten = [101, 1037, 18401, 102]
    from_ids = await client.embeddings.create(model="all-minilm", input=[kitten, kitten[:3]], encoding_format="float")
    from_text = await client.embeddings.create(model="all-minilm", input="a kitten", encoding_format="float")
    assert dot(from_ids.data[0].embedding, from_text.data[0].embedding) > 0.99
    assert from_ids.usage.prompt_tokens == 7


def dot(one: list[float], other: list[float]) -> float:
    return sum(a * b for a, b in zip(one, other, strict=True))


# Errors


async def test_too_long_a_prompt_is_openais_error(client: AsyncOpenAI):
    long: list[Any] = [{"role": "user", "content": "hi " * 4000}]
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError, match="maximum context length") as caught:
            await client.chat.completions.create(model=MODEL, messages=long, stream=stream)
        assert caught.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError) as inputs:
        await client.embeddings.create(model="all-minilm", input="hi " * 400)
    assert inputs.value.code == "context_length_exceeded"


async def test_errors_of_the_worker_and_ours_are_the_sdks_classes(client: AsyncOpenAI):
    with pytest.raises(openai.NotFoundError) as unknown:
        await client.chat.completions.create(model="nope", messages=ASK)
    assert unknown.value.code == "model_not_found"
    with pytest.raises(openai.AuthenticationError) as stranger:
        await client.with_options(api_key="sk-wrong").chat.completions.create(model=MODEL, messages=ASK)
    assert stranger.value.code == "invalid_api_key"
    with pytest.raises(openai.BadRequestError) as hot:
        await client.chat.completions.create(model=MODEL, messages=ASK, temperature=-1, stream=True)
    assert hot.value.code is None and hot.value.type == "invalid_request_error" and hot.value.request_id
    with pytest.raises(openai.BadRequestError, match="not a multimodal model"):
        image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}}
        await client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": [image]}])  # type: ignore[list-item, misc]


@pytest.mark.parametrize("model", ["all-minilm", MODEL])
async def test_an_endpoint_that_the_model_does_not_have_is_404(client: AsyncOpenAI, model: str):
    with pytest.raises(openai.NotFoundError):
        if model == MODEL:
            await client.embeddings.create(model=model, input="a")
        else:
            await client.chat.completions.create(model=model, messages=ASK)
