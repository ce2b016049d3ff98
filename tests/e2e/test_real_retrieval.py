"""Files, stores, search and cited answers through OpenAI's own SDK, on the real models: a PDF and a Chinese Markdown file."""

import asyncio
import io
import time
from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest
import pytest_asyncio
from openai import AsyncOpenAI

from tests.e2e.gateway import RunningGateway, serving
from tests.unit.ingest.documents import pdf

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="session")]

PORTS = "The gateway listens on port 8443. Metrics are on port 8444. The retrieval process has a unix socket."
HOURS = "# 手册\n\n## 办公时间\n\n办公室从早上九点开放到下午五点。周末不开放。\n\n## 食堂\n\n食堂在二楼，中午十二点供应午餐。\n"
EMBEDDER = "all-minilm"
ASK_PORT = "Which port does the gateway listen on?"
ASK_HOURS = "办公室几点开放？"


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def gateway(
    chat_worker: Any, embedding_worker: Any, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[RunningGateway]:
    settings = {
        "auth": {"mode": "keys", "keys_file": "keys.yaml"},
        "routes": {
            "smollm2": {"workers": {"static": [chat_worker.url]}, "served_model": chat_worker.model},
            EMBEDDER: {
                "workers": {"static": [embedding_worker.url], "api_key_env": "EMBEDDING_WORKER_KEY"},
                "served_model": embedding_worker.model,
            },
        },
        "retrieval": {"embedding_route": EMBEDDER, "path": "data", "on_call": {"public_url": "https://gw.example"}},
    }
    environment = {"EMBEDDING_WORKER_KEY": embedding_worker.api_key}
    folder, tenants = tmp_path_factory.mktemp("retrieval"), {"globex": ()}
    async with serving(folder, settings, environment=environment, tenants=tenants) as gateway:
        yield gateway


@pytest_asyncio.fixture(loop_scope="session")
async def client(gateway: RunningGateway) -> AsyncIterator[AsyncOpenAI]:
    """Its answers are held to the SDK's own types: what they do not allow is an error."""
    options: Any = {"base_url": gateway.base_url, "api_key": gateway.key, "max_retries": 0}
    async with AsyncOpenAI(**options, _strict_response_validation=True) as client:
        yield client


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def store(gateway: RunningGateway) -> AsyncIterator[str]:
    """A store with both files, completed."""
    async with AsyncOpenAI(base_url=gateway.base_url, api_key=gateway.key, max_retries=0) as client:
        made = await client.vector_stores.create(name="handbook")
        for name, content in (("ports.pdf", pdf(PORTS)), ("hours.md", HOURS.encode())):
            file = await client.files.create(file=(name, io.BytesIO(content)), purpose="assistants")
            language = {"lang": "zh" if name == "hours.md" else "en"}
            done = await client.vector_stores.files.create_and_poll(
                file.id, vector_store_id=made.id, attributes=language, poll_interval_ms=200
            )
            assert done.status == "completed", done
        yield made.id


def citations(message: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = message.model_extra["context"]["citations"]
    return found


async def test_a_store_says_what_is_in_it_and_finds_it(client: AsyncOpenAI, store: str):
    held = await client.vector_stores.retrieve(store)
    english = await client.vector_stores.search(store, query=ASK_PORT)
    chinese = await client.vector_stores.search(store, query=ASK_HOURS, max_num_results=1)

    assert (held.file_counts.completed, held.file_counts.failed) == (2, 0)
    assert english.data[0].filename == "ports.pdf" and "8443" in english.data[0].content[0].text
    assert chinese.data[0].filename == "hours.md" and "九点" in chinese.data[0].content[0].text


@pytest.mark.parametrize("question, filename, words", [(ASK_PORT, "ports.pdf", "8443"), (ASK_HOURS, "hours.md", "九点")])
async def test_a_chat_is_given_its_sources(client: AsyncOpenAI, store: str, question: str, filename: str, words: str):
    asked: Any = {"model": "smollm2", "messages": [{"role": "user", "content": question}], "max_tokens": 24, "temperature": 0}

    raw = await client.chat.completions.with_raw_response.create(
        **asked, extra_body={"retrieval": {"vector_store_ids": [store], "max_num_results": 2}}
    )

    answer = raw.parse()
    message = answer.choices[0].message
    given = citations(message)
    assert given[0]["filename"] == filename and words in given[0]["content"]
    assert message.content and answer.usage is not None and answer.usage.prompt_tokens > 80
    told = (answer.model_extra or {})["retrieval"]
    assert (told["status"], told["mode"], told["failures"], told["notes"]) == ("completed", "hybrid", [], [])
    assert raw.headers["x-retrieval-status"] == "hit" and int(raw.headers["x-retrieval-count"]) == len(given)
    assert float(raw.headers["x-retrieval-ms"]) > 0


async def test_the_model_answers_from_the_source(client: AsyncOpenAI, store: str):
    tool: Any = {"type": "file_search", "vector_store_ids": [store], "max_num_results": 1}

    answer = await client.chat.completions.create(
        model="smollm2", messages=[{"role": "user", "content": ASK_PORT}], tools=[tool], max_tokens=32, temperature=0
    )

    assert "8443" in (answer.choices[0].message.content or ""), answer.choices[0].message.content


async def test_a_stream_begins_with_its_sources_and_ends_with_its_annotations(client: AsyncOpenAI, store: str):
    stream = await client.chat.completions.create(
        model="smollm2",
        messages=[{"role": "user", "content": ASK_HOURS}],
        max_tokens=16,
        stream=True,
        stream_options={"include_usage": True},
        extra_body={"retrieval": {"vector_store_ids": [store]}},
    )

    first, *_, last, usage = [chunk async for chunk in stream]

    assert citations(first.choices[0].delta)[0]["filename"] == "hours.md"
    assert (first.model_extra or {})["retrieval"]["used"] >= 1
    assert last.choices[0].finish_reason and isinstance((last.choices[0].delta.model_extra or {})["annotations"], list)
    assert usage.usage is not None and usage.usage.prompt_tokens > 80


async def test_the_responses_endpoint_searches_as_openai_does(client: AsyncOpenAI, store: str):
    tool: Any = {"type": "file_search", "vector_store_ids": [store], "max_num_results": 2}
    asked: Any = {"model": "smollm2", "input": ASK_PORT, "tools": [tool], "max_output_tokens": 24, "store": False}

    whole = await client.responses.create(**asked, include=["file_search_call.results"])
    kinds = []
    async with client.responses.stream(**asked) as stream:
        async for event in stream:
            kinds.append(event.type)
        final = await stream.get_final_response()

    search, message = whole.output
    assert search.type == "file_search_call" and search.results is not None
    assert search.results[0].filename == "ports.pdf" and message.type == "message"
    assert [item.type for item in final.output] == ["file_search_call", "message"]
    assert kinds.index("response.file_search_call.searching") < kinds.index("response.file_search_call.completed")
    assert kinds.index("response.file_search_call.completed") < kinds.index("response.output_text.delta")


async def test_what_a_call_was_given_is_shown_to_its_owner_alone(client: AsyncOpenAI, gateway: RunningGateway, store: str):
    answer = await client.chat.completions.create(
        model="smollm2",
        messages=[{"role": "user", "content": ASK_PORT}],
        max_tokens=1,
        extra_body={"retrieval": {"vector_store_ids": [store]}},
    )
    id = (answer.model_extra or {})["retrieval"]["id"]

    shown: Any = await client.get(f"/retrieval/{id}", cast_to=object)
    async with AsyncOpenAI(base_url=gateway.base_url, api_key=gateway.keys["globex"], max_retries=0) as foreign:
        with pytest.raises(openai.NotFoundError):
            await foreign.get(f"/retrieval/{id}", cast_to=object)
        with pytest.raises(openai.NotFoundError) as theirs:
            await foreign.chat.completions.create(
                model="smollm2",
                messages=[{"role": "user", "content": ASK_PORT}],
                extra_body={"retrieval": {"vector_store_ids": [store], "on_error": "open"}},
            )

    assert "8443" in shown["prompt"] and shown["vector_store_ids"] == [store]
    assert "8443" not in str(theirs.value)


async def test_filters_narrow_what_a_call_is_given(client: AsyncOpenAI, store: str):
    only: Any = {"type": "eq", "key": "lang", "value": "zh"}
    answer = await client.chat.completions.create(
        model="smollm2",
        messages=[{"role": "user", "content": ASK_PORT}],
        max_tokens=1,
        extra_body={"retrieval": {"vector_store_ids": [store], "filters": only}},
    )

    assert {one["filename"] for one in citations(answer.choices[0].message)} == {"hours.md"}


async def test_sources_never_make_a_call_too_long(client: AsyncOpenAI, gateway: RunningGateway):
    """2,048 tokens of context, and a store that could fill them ten times over; the worker's own tokenizer counts."""
    long = "\n\n".join(f"Rule {i}: " + "0x%08x " % (i * 2654435761 % 2**32) * 60 for i in range(60))
    made = await client.vector_stores.create(name="long")
    file = await client.files.create(file=("rules.txt", io.BytesIO(long.encode())), purpose="assistants")
    await client.vector_stores.files.create_and_poll(file.id, vector_store_id=made.id, poll_interval_ms=200)
    question = "Which rule? " + "word " * 800

    answer = await client.chat.completions.create(
        model="smollm2",
        messages=[{"role": "user", "content": question}],
        max_tokens=300,
        extra_body={"retrieval": {"vector_store_ids": [made.id], "query": "Rule 7", "mode": "lexical", "max_num_results": 50}},
    )

    told = (answer.model_extra or {})["retrieval"]
    assert told["truncated"] and told["used"] >= 1, told
    assert answer.usage is not None and answer.usage.prompt_tokens + 300 <= 2048


async def test_retrieval_adds_little(client: AsyncOpenAI, store: str):
    """What a lexical search adds to a call, as the header tells; the figure is printed."""
    added = []
    for _ in range(20):
        raw = await client.chat.completions.with_raw_response.create(
            model="smollm2",
            messages=[{"role": "user", "content": ASK_PORT}],
            max_tokens=1,
            extra_body={"retrieval": {"vector_store_ids": [store], "mode": "lexical"}},
        )
        added.append(float(raw.headers["x-retrieval-ms"]))
        await asyncio.sleep(0)
    print(f"\nadded by a lexical search: median {sorted(added)[10]:.1f} ms, largest {max(added):.1f} ms", time.strftime("%X"))


async def test_deleting_takes_it_away(client: AsyncOpenAI, gateway: RunningGateway):
    made = await client.vector_stores.create(name="gone")
    file = await client.files.create(file=("a.txt", io.BytesIO(b"The secret word is xylophone.")), purpose="assistants")
    await client.vector_stores.files.create_and_poll(file.id, vector_store_id=made.id, poll_interval_ms=200)
    await client.files.delete(file.id)
    answer = await client.chat.completions.create(
        model="smollm2",
        messages=[{"role": "user", "content": "secret word"}],
        max_tokens=1,
        extra_body={"retrieval": {"vector_store_ids": [made.id]}},
    )

    assert citations(answer.choices[0].message) == []
    assert (await client.vector_stores.delete(made.id)).deleted
    with pytest.raises(openai.NotFoundError):
        await client.chat.completions.create(
            model="smollm2",
            messages=[{"role": "user", "content": "secret word"}],
            extra_body={"retrieval": {"vector_store_ids": [made.id]}},
        )
