"""Chatbox's check list (app 1.20.0), a test for each line that a server decides; the AI SDK that it uses is in test_sdk_node.

Chatbox calls `{host}/chat/completions` and `{host}/models` with whatever host and path a person typed, sends
`Content-Type: application/json` on every request and never asks for usage.
"""

from typing import Any

import pytest

from tests.e2e.gateway import RunningGateway
from tests.support import scripts
from tests.support import vllm_shapes as vllm
from tests.support.raw_http import event_data
from tests.support.scripted_worker import ScriptedWorker

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="session")]

CHAT = "/v1/chat/completions"
JSON = ("content-type", "application/json")
AGENT = ("user-agent", "ai/6.0.326 ai-sdk/openai-compatible/2.0.87 runtime/browser")
HI: dict[str, Any] = {"model": "smollm2", "messages": [{"role": "user", "content": "Hi"}]}
STREAM = HI | {"stream": True, "temperature": 0.7, "top_p": 1}
ORIGINS = ["https://web.chatboxai.app", "capacitor://localhost", "http://localhost", "null"]
STAINLESS = "x-stainless-lang, x-stainless-os, x-stainless-retry-count, x-stainless-runtime-version, x-stainless-timeout"


@pytest.mark.parametrize("path", [CHAT, "/chat/completions"])
async def test_chat_answers_with_and_without_v1(scripted_gateway: RunningGateway, worker: ScriptedWorker, path: str):
    response = await scripted_gateway.request("POST", path, json=STREAM, headers=[AGENT])
    assert response.status == 200
    assert event_data(response.body)[-1] == "[DONE]"


@pytest.mark.parametrize("path", ["/v1/models", "/models"])
async def test_the_list_of_models_is_asked_for_with_a_content_type(scripted_gateway: RunningGateway, path: str):
    response = await scripted_gateway.request("GET", path, headers=[JSON, AGENT])

    models = {model["id"]: model for model in response.json()["data"]}
    assert models["smollm2"]["context_length"] == 8192
    assert models["acme/tiny"]["architecture"]["input_modalities"] == ["text", "image"]
    assert all("root" not in model and "permission" not in model for model in models.values())


@pytest.mark.parametrize("path", ["/v1/models/", "/v1/v1/models", "/v1/chat/completions/", "/v1/v1/chat/completions"])
async def test_what_people_type_behind_the_host_does_not_matter(
    scripted_gateway: RunningGateway, worker: ScriptedWorker, path: str
):
    method, body = ("GET", {}) if "models" in path else ("POST", {"json": HI})
    response = await scripted_gateway.request(method, path, **body)
    assert response.status == 200, response.body


async def test_an_empty_key_is_a_401_in_json(scripted_gateway: RunningGateway, worker: ScriptedWorker):
    response = await scripted_gateway.request("POST", CHAT, key=None, headers=[("authorization", "Bearer ")], json=HI)
    assert response.status == 401
    assert response.json()["error"]["message"]


async def test_the_stream_is_what_its_parser_needs(scripted_gateway: RunningGateway, worker: ScriptedWorker):
    response = await scripted_gateway.request("POST", CHAT, json=STREAM)
    *events, _ = event_data(response.body)

    assert all(isinstance(event["choices"], list) and event["choices"] for event in events)
    deltas = [event["choices"][0]["delta"] for event in events]
    assert all(delta.get("role", "assistant") == "assistant" for delta in deltas)
    assert all(isinstance(delta["content"], str) for delta in deltas)
    assert events[-1]["choices"][0]["finish_reason"] == "stop"
    assert "usage" not in str(events)
    assert worker.calls()[0].json()["stream_options"] == {"include_usage": True}


async def test_streaming_switched_off_is_a_plain_answer(scripted_gateway: RunningGateway, worker: ScriptedWorker):
    response = await scripted_gateway.request("POST", CHAT, json=HI)
    assert response.header("content-type") == "application/json"
    assert response.json()["choices"][0]["message"]["content"]


async def test_every_piece_of_a_tool_call_has_an_index(scripted_gateway: RunningGateway, worker: ScriptedWorker):
    tool = {"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object", "properties": {}}}}
    response = await scripted_gateway.request("POST", CHAT, json=STREAM | {"tools": [tool]})
    pieces = [piece for event in event_data(response.body)[:-1] for piece in event["choices"][0]["delta"].get("tool_calls", ())]
    assert {piece["index"] for piece in pieces} == {0}
    assert pieces[0]["id"] and pieces[0]["function"]["name"] == "get_weather"
    assert all(isinstance(piece["function"]["arguments"], str) for piece in pieces)


async def test_knowledge_base_gets_as_many_vectors_as_texts(scripted_gateway: RunningGateway, worker: ScriptedWorker):
    texts = [f"passage {number}" for number in range(50)]
    body = {"model": "smollm2", "input": texts, "encoding_format": "float"}
    response = await scripted_gateway.request("POST", "/v1/embeddings", json=body)
    assert [row["index"] for row in response.json()["data"]] == list(range(50))


@pytest.mark.parametrize("num_mebibytes", [1, 30])
async def test_pictures_of_many_megabytes_go_up(scripted_gateway: RunningGateway, worker: ScriptedWorker, num_mebibytes: int):
    worker.on(CHAT, scripts.chat_stream())
    part = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * (num_mebibytes * 2**20)}}
    body = STREAM | {"messages": [{"role": "user", "content": [{"type": "text", "text": "?"}, part]}]}
    response = await scripted_gateway.request("POST", CHAT, json=body)
    assert response.status == 200
    assert len(worker.calls()[0].body) > num_mebibytes * 2**20


@pytest.mark.parametrize("stream", [False, True])
async def test_the_check_button_reads_why_a_model_cannot(
    scripted_gateway: RunningGateway, worker: ScriptedWorker, stream: bool
):
    part = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}}
    body = HI | {"messages": [{"role": "user", "content": [part]}], "stream": stream}
    response = await scripted_gateway.request("POST", CHAT, json=body)
    assert response.status == 400
    message = response.json()["error"]["message"]
    assert "not a multimodal model" in message
    assert len(message) <= 200 and message.count("\n") < 3, "Chatbox cuts what is longer"


@pytest.mark.parametrize("stream", [False, True])
async def test_the_tip_for_a_full_context_is_found_in_the_body(
    scripted_gateway: RunningGateway, worker: ScriptedWorker, stream: bool
):
    worker.on(CHAT, scripts.reply(400, vllm.context_too_long(8192)))
    response = await scripted_gateway.request("POST", CHAT, json=HI | {"stream": stream})
    assert response.status == 400
    assert b"context_length_exceeded" in response.body and b"maximum context length" in response.body


@pytest.mark.parametrize("script", [scripts.html_error(502), scripts.garbage(), scripts.stream_error()])
async def test_what_fails_before_the_first_token_is_a_status_and_json(
    scripted_gateway: RunningGateway, worker: ScriptedWorker, script: Any
):
    worker.on(CHAT, script)
    response = await scripted_gateway.request("POST", CHAT, json=STREAM)
    assert 500 <= response.status < 600
    assert isinstance(response.json()["error"]["message"], str)


# Browsers: the web app and the phone


@pytest.mark.parametrize("origin", ORIGINS)
@pytest.mark.parametrize("path", [CHAT, "/v1/models", "/chat/completions", "/v1/responses"])
async def test_a_preflight_needs_no_key(scripted_gateway: RunningGateway, worker: ScriptedWorker, origin: str, path: str):
    asked = f"authorization, content-type, user-agent, {STAINLESS}"
    headers = [("origin", origin), ("access-control-request-method", "POST"), ("access-control-request-headers", asked)]
    response = await scripted_gateway.request("OPTIONS", path, key=None, headers=headers)

    assert response.status in (200, 204)
    assert response.header("access-control-allow-origin") in (origin, "*")
    allowed = (response.header("access-control-allow-headers") or "").lower()
    assert {name.strip() for name in asked.split(",")} <= {name.strip() for name in allowed.split(",")}
    assert "POST" in (response.header("access-control-allow-methods") or "")
    assert not worker.calls()


async def test_a_strange_origin_is_not_let_in(scripted_gateway: RunningGateway):
    headers = [("origin", "https://evil.example"), ("access-control-request-method", "POST")]
    response = await scripted_gateway.request("OPTIONS", CHAT, key=None, headers=headers)
    assert response.header("access-control-allow-origin") is None
    response = await scripted_gateway.request("POST", CHAT, json=HI, headers=[("origin", "https://evil.example")])
    assert response.header("access-control-allow-origin") is None


@pytest.mark.parametrize("kind", ["answer", "stream", "error", "no key", "unknown path", "models", "broken worker"])
async def test_a_browser_may_read_every_kind_of_answer(scripted_gateway: RunningGateway, worker: ScriptedWorker, kind: str):
    body = {"answer": HI, "stream": STREAM, "error": HI | {"model": "nope"}, "no key": HI, "broken worker": HI}.get(kind)
    path = {"unknown path": "/v1/nope", "models": "/v1/models"}.get(kind, CHAT)
    worker.on(CHAT, scripts.garbage() if kind == "broken worker" else None)
    response = await scripted_gateway.request(
        "POST" if body else "GET",
        path,
        key=None if kind == "no key" else "",
        headers=[("origin", ORIGINS[0])],
        **({"json": body} if body else {}),
    )
    assert response.header("access-control-allow-origin") == ORIGINS[0]
    exposed = (response.header("access-control-expose-headers") or "").lower()
    assert {"x-request-id", "retry-after"} <= {name.strip() for name in exposed.split(",")}
    assert "origin" in (response.header("vary") or "").lower()
