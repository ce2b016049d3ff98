"""Real vLLM behind the gateway, byte by byte and slot by slot: nothing is changed, nothing is left running."""

import asyncio
import re
import time
from typing import Any

import anthropic
import pytest
from anthropic import AsyncAnthropic

from tests.e2e.gateway import RunningGateway
from tests.support import raw_http
from tests.support.raw_http import RawClient, request_bytes

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="session")]

CHAT = "/v1/chat/completions"
ASK: dict[str, Any] = {
    "model": "smollm2",
    "messages": [{"role": "user", "content": "Write a poem about the sea."}],
    "temperature": 0,
    "max_tokens": 12,
}
LONG = ASK | {"max_tokens": 1500, "min_tokens": 1400}
VARYING = re.compile(rb'"(id|created|request_id)":("[^"]*"|[0-9]+),?')


def settled(body: bytes) -> bytes:
    """Without what differs between any two answers: their ids and times."""
    return VARYING.sub(b"", body)


@pytest.mark.parametrize(
    ("path", "members"),
    [
        (CHAT, ASK),
        (CHAT, ASK | {"stream": True, "stream_options": {"include_usage": True}}),
        (CHAT, ASK | {"logprobs": True, "top_logprobs": 1, "stream": True, "stream_options": {"include_usage": True}}),
        ("/v1/completions", {"model": "smollm2", "prompt": "The sea", "temperature": 0, "max_tokens": 8}),
        ("/v1/messages", ASK),
        ("/tokenize", {"model": "smollm2", "prompt": "The sea"}),
        ("/detokenize", {"model": "smollm2", "tokens": [504, 4546]}),
    ],
    ids=["chat", "stream", "stream with logprobs", "completion", "message", "tokenize", "detokenize"],
)
async def test_what_comes_through_the_gateway_is_what_vllm_says(
    real_gateway: RunningGateway, chat_worker: Any, path: str, members: dict[str, Any]
):
    through = await real_gateway.request("POST", path, json=members)
    straight = await raw_http.request(chat_worker.url, "POST", path, json=members)

    assert through.status == straight.status == 200
    assert settled(through.body) == settled(straight.body)
    assert through.header("content-type") == straight.header("content-type")


async def test_the_usage_chunk_is_all_that_a_client_does_not_get_unasked(real_gateway: RunningGateway):
    options = {"stream": True, "stream_options": {"include_usage": True}}
    asked = await real_gateway.request("POST", CHAT, json=ASK | options)
    unasked = await real_gateway.request("POST", CHAT, json=ASK | {"stream": True})

    counted = raw_http.events(settled(asked.body))
    assert [event for event in counted if b'"choices":[]' not in event] == raw_http.events(settled(unasked.body))
    assert len(counted) == len(raw_http.events(unasked.body)) + 1


async def test_reranking_and_scoring(real_gateway: RunningGateway):
    ask = {"model": "all-minilm", "query": "cat", "documents": ["a car", "a kitten"], "top_n": 1}
    ranked = await real_gateway.request("POST", "/v1/rerank", json=ask)
    scored = await real_gateway.request(
        "POST", "/v1/score", json={"model": "all-minilm", "queries": "cat", "documents": ["a car", "a kitten"]}
    )
    assert [result["index"] for result in ranked.json()["results"]] == [1]
    car, kitten = (row["score"] for row in scored.json()["data"])
    assert kitten > car


async def test_a_worker_with_a_key_of_its_own_gets_that_one_and_never_the_clients(
    real_gateway: RunningGateway, embedding_worker: Any
):
    ask = {"model": "all-minilm", "input": "a"}
    clients = [("authorization", f"Bearer {real_gateway.key}")]
    straight = await raw_http.request(embedding_worker.url, "POST", "/v1/embeddings", json=ask, headers=clients)
    assert (straight.status, straight.json()) == (401, {"error": "Unauthorized"})
    assert (await real_gateway.request("POST", "/v1/embeddings", json=ask)).status == 200


async def test_messages_through_anthropics_sdk(real_gateway: RunningGateway):
    messages: Any = ASK["messages"]
    options: Any = {"model": "gpt-4o-mini", "messages": messages, "max_tokens": 8, "extra_body": {"temperature": 0}}
    async with AsyncAnthropic(base_url=real_gateway.url, api_key=real_gateway.key, max_retries=0) as client:
        whole = await client.messages.create(**options)
        async with client.messages.stream(**options) as stream:
            final = await stream.get_final_message()
        counted = await client.messages.count_tokens(model="gpt-4o-mini", messages=messages)
        with pytest.raises(anthropic.NotFoundError):
            await client.messages.create(model="nope", messages=messages, max_tokens=8)

    assert whole.content[0].text == final.content[0].text and whole.model == final.model == "gpt-4o-mini"
    assert whole.stop_reason == final.stop_reason == "max_tokens"
    assert counted.input_tokens == whole.usage.input_tokens == final.usage.input_tokens


# Clients that leave


async def running(worker: Any) -> int:
    """vLLM's own count of what it computes or holds back."""
    text = (await raw_http.request(worker.url, "GET", "/metrics")).body.decode()
    found = re.findall(r"^vllm:num_requests_(?:running|waiting)\{[^}]*\} ([0-9.e+]+)$", text, re.MULTILINE)
    assert len(found) == 2, found
    return sum(int(float(value)) for value in found)


async def until_running(worker: Any, num: int, *, within_s: float) -> None:
    deadline = time.monotonic() + within_s
    while (now := await running(worker)) != num:
        assert time.monotonic() < deadline, f"{now} requests in vLLM after {within_s} s, {num} expected"
        await asyncio.sleep(0.02)  # another process: there is no event to wait for


@pytest.mark.parametrize("how", ["leave", "reset"])
@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
async def test_a_client_that_leaves_stops_the_generation(
    real_gateway: RunningGateway, chat_worker: Any, stream: bool, how: str
):
    await until_running(chat_worker, 0, within_s=60)
    async with RawClient(real_gateway.url) as client:
        key = ("authorization", f"Bearer {real_gateway.key}")
        await client.send(request_bytes("POST", CHAT, json=LONG | {"stream": stream}, headers=[key]))
        if stream:
            await client.read_until(b'"content":"')
            await client.read_until(b'"content":"')
        await until_running(chat_worker, 1, within_s=60)
        await client.leave() if how == "leave" else await client.reset()
        await until_running(chat_worker, 0, within_s=10)


async def test_a_client_that_leaves_before_the_first_token_stops_the_generation(real_gateway: RunningGateway, chat_worker: Any):
    await until_running(chat_worker, 0, within_s=60)
    prompt = f"{time.time_ns()} " + "the sea is wide and the sea is deep and " * 140  # new to the prefix cache
    body = LONG | {"messages": [{"role": "user", "content": prompt}], "max_tokens": 500, "min_tokens": 400}
    async with RawClient(real_gateway.url) as client:
        key = ("authorization", f"Bearer {real_gateway.key}")
        await client.send(request_bytes("POST", CHAT, json=body | {"stream": True}, headers=[key]))
        await until_running(chat_worker, 1, within_s=60)
        await client.leave()
        await until_running(chat_worker, 0, within_s=10)  # one step of the engine, the prefill, cannot be interrupted
