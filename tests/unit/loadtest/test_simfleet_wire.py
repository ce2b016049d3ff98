"""The simulated workers' replies against those recorded from vLLM 0.32.0, and through OpenAI's own SDK."""

import json
from pathlib import Path
from typing import Any

import openai
import pytest

from loadtest.simfleet.config import WorkerConfig
from tests.unit.loadtest.simfleet_client import ASK, PLAIN, client, events, fleet, unverified

RECORDED: dict[str, Any] = json.loads(Path(__file__).with_name("simfleet_wire_shapes.json").read_text())
_KEPT = ("object", "role", "finish_reason", "type", "param", "detail", "message", "owned_by")


def shape(value: Any, name: str = "") -> Any:
    """What is the same for every vLLM worker: names and order of members, nulls, flags and a few texts."""
    if isinstance(value, dict):
        return "map" if name == "top_logprobs" and "token" not in value else {k: shape(v, k) for k, v in value.items()}
    if isinstance(value, list):
        return [shape(value[0], name)] if value else []
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return value if name in _KEPT else "str"
    return value if name in ("code", "index") else "number"


def shape_of(text: str) -> Any:
    if not text.startswith("data: "):
        return shape(json.loads(text))
    shapes: list[Any] = []
    for event in filter(None, text.split("\n\n")):
        data = event.removeprefix("data: ")
        found = data if data == "[DONE]" else shape(json.loads(data))
        if shapes[-1:] != [found]:
            shapes.append(found)
    return shapes


async def test_replies_and_errors_have_the_shapes_recorded_from_vllm() -> None:
    as_recorded = WorkerConfig(PLAIN.changed(num_kv_blocks=1024, max_model_len=8192))
    settings = {"profile": as_recorded.profile, "enable_per_request_metrics": True}
    async with fleet(worker=settings) as running, client(running) as http:
        for name, case in RECORDED.items():
            if name == "e_long":
                case["body"]["messages"][0]["content"] = "hello " * 9000
            body = case["raw"].encode("latin-1") if "raw" in case else json.dumps(case.get("body", {})).encode()
            headers = {"content-type": "application/json"}
            response = await http.request(case["method"], case["path"], content=body, headers=headers)
            assert response.status_code == case["status"], (name, response.text)
            assert json.dumps(shape_of(response.text)) == json.dumps(case["reply"]), name


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
async def test_a_stream_in_intervals_of_tokens_says_the_same_in_fewer_events(path: str) -> None:
    ask = {**ASK, "prompt": "The sea"} if path == "/v1/completions" else ASK
    async with fleet() as running, client(running) as http:

        async def texts(**more: Any) -> list[str]:
            choices = [e["choices"][0] async for e in events(http, {**ask, **more}, path) if e != "[DONE]"]
            return [choice.get("text") or choice.get("delta", {}).get("content", "") for choice in choices]

        single, several = await texts(), await texts(stream_interval=7)
    assert "".join(single) == "".join(several)
    assert len(several) < len(single) / 4


async def test_include_usage_counts_and_continuous_usage_counts_on_every_event() -> None:
    options = {"stream_options": {"include_usage": True, "continuous_usage_stats": True}}
    async with fleet() as running, client(running) as http:
        seen = [event async for event in events(http, {**ASK, **options, "max_tokens": 3})]
    assert [event["usage"]["completion_tokens"] for event in seen[:-1]] == [0, 1, 2, 3, 3]
    assert seen[-2]["choices"] == []


async def test_token_ids_of_prompt_and_deltas_are_those_of_tokenize() -> None:
    async with fleet() as running, client(running) as http:
        prompt = (await http.post("/tokenize", json={"messages": ASK["messages"]})).json()["tokens"]
        seen = [e async for e in events(http, {**ASK, "return_token_ids": True}) if e != "[DONE]"]
        emitted = [token for event in seen[1:] for token in event["choices"][0]["token_ids"]]
        text = "".join(event["choices"][0]["delta"]["content"] for event in seen)
        again = (await http.post("/tokenize", json={"prompt": text, "add_special_tokens": False})).json()["tokens"]
        detokenized = (await http.post("/detokenize", json={"tokens": emitted})).json()["prompt"]
    assert seen[0]["prompt_token_ids"] == prompt
    assert (emitted, detokenized) == (again, text)


async def test_cached_tokens_are_told_in_usage() -> None:
    ask = {"prompt": list(range(1000, 1200)), "max_tokens": 2}
    async with fleet() as running, client(running) as http:
        usages = [(await http.post("/v1/completions", json=ask)).json()["usage"] for _ in range(2)]
    assert [usage["prompt_tokens_details"]["cached_tokens"] for usage in usages] == [0, 192]


async def test_a_prompt_that_is_several_prompts_has_a_choice_for_each_times_n() -> None:
    async with fleet() as running, client(running) as http:
        ask = {"prompt": ["The sea", "The sky"], "n": 2, "max_tokens": 4, "ignore_eos": True}
        reply = (await http.post("/v1/completions", json=ask)).json()
    assert [choice["index"] for choice in reply["choices"]] == [0, 1, 2, 3]
    assert len({choice["text"] for choice in reply["choices"]}) == 4
    assert reply["usage"]["completion_tokens"] == 16


async def test_model_names_echo_the_first_alias_and_adapters_their_own() -> None:
    settings = {"served_model_name": ("one", "two"), "lora_modules": {"ada": "/adapters/ada"}}
    async with fleet(worker=settings) as running, client(running) as http:
        names = [(await http.post("/v1/chat/completions", json={**ASK, "model": m})).json()["model"] for m in ("two", "ada")]
    assert names == ["one", "ada"]


async def test_openais_sdk_reads_chats_streams_completions_embeddings_and_errors() -> None:
    async with fleet() as running, unverified() as http:
        sdk = openai.AsyncOpenAI(base_url=running.workers[0].url + "/v1", api_key="none", http_client=http, max_retries=0)
        chat = await sdk.chat.completions.create(model="smollm2", messages=[{"role": "user", "content": "Hi"}], max_tokens=9)
        stream = await sdk.chat.completions.create(
            model="smollm2",
            messages=[{"role": "user", "content": "Hi"}],
            max_tokens=9,
            stream=True,
            stream_options={"include_usage": True},
        )
        chunks = [chunk async for chunk in stream]
        embedding = await sdk.embeddings.create(model="smollm2", input=["the sea", "the sea and the sky", "iron"])
        with pytest.raises(openai.NotFoundError):
            await sdk.completions.create(model="other", prompt="Hi")
    assert chat.choices[0].message.content == "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert chunks[-1].usage is not None and chunks[-1].usage.completion_tokens == 9
    sea, both, iron = (each.embedding for each in embedding.data)
    assert sum(a * b for a, b in zip(sea, both, strict=True)) > sum(a * b for a, b in zip(sea, iron, strict=True))


async def test_metrics_have_vllms_names_and_old_names_by_option() -> None:
    def names(running_page: str) -> set[str]:
        return {line.split("{")[0] for line in running_page.splitlines() if line.startswith("vllm:")}

    async with fleet() as running, client(running) as http:
        await http.post("/v1/chat/completions", json=ASK)
        page = (await http.get("/metrics")).text
    assert 'vllm:generation_tokens_total{engine="0",model_name="smollm2"} 40.0' in page
    assert 'vllm:e2e_request_latency_seconds_bucket{engine="0",le="+Inf",model_name="smollm2"} 1.0' in page
    assert 'vllm:request_success_total{engine="0",finished_reason="length",model_name="smollm2"} 1.0' in page
    async with fleet(worker={"old_kv_names": True}) as running, client(running) as http:
        assert names((await http.get("/metrics")).text) - names(page) == {"vllm:gpu_cache_usage_perc"}
