"""The packages for Node that applications and Chatbox use: `openai`, `ai`, `@ai-sdk/openai-compatible`, `@ai-sdk/openai`."""

import asyncio
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.gateway import RunningGateway
from tests.support import scripts
from tests.support import vllm_shapes as vllm
from tests.support.scripted_worker import ScriptedWorker

FOLDER = Path(__file__).parent / "node"
NODE = shutil.which("node")
pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="session")]

CHAT = "/v1/chat/completions"
TEXT = "".join(vllm.WORDS)
BOTH = pytest.mark.parametrize("library", ["openai", "ai-sdk"])


@pytest.fixture(scope="session", autouse=True)
def node_is_here(request: pytest.FixtureRequest) -> None:
    """Skips these tests where they cannot run, and says so past pytest's capture."""
    missing = None
    if NODE is None:
        missing = "NO NODE.JS HERE: the tests of the packages for Node are SKIPPED"
    elif not (FOLDER / "node_modules").is_dir():
        missing = "THE PACKAGES FOR NODE ARE NOT INSTALLED: their tests are SKIPPED; `make e2e` installs them"
    if missing:
        with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
            print(f"\n== {missing}", file=sys.stderr)
        pytest.skip(missing)


async def node(
    gateway: RunningGateway, library: str, scenario: str, *, model: str = "smollm2", key: str = ""
) -> dict[str, Any]:
    """What client.mjs saw."""
    assert NODE is not None
    target = {"SLUICE_URL": gateway.base_url, "SLUICE_KEY": key or gateway.key, "SLUICE_MODEL": model}
    process = await asyncio.create_subprocess_exec(
        *(NODE, "client.mjs", library, scenario),
        cwd=FOLDER,
        env=os.environ | target | {"NODE_NO_WARNINGS": "1"},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(60):
        out, err = await process.communicate()
    assert process.returncode == 0, f"{library} {scenario}: {err.decode()[-3000:]}"
    saw: dict[str, Any] = json.loads(out)
    return saw


async def test_openai_chat(scripted_gateway: RunningGateway, worker: ScriptedWorker):
    saw = await node(scripted_gateway, "openai", "chat", model="gpt-4o-mini")
    assert (saw["text"], saw["finish"], saw["model"]) == (TEXT, "stop", "gpt-4o-mini")
    assert saw["usage"]["completion_tokens"] == len(vllm.WORDS)
    assert saw["requestId"]


async def test_openai_stream(scripted_gateway: RunningGateway, worker: ScriptedWorker):
    saw = await node(scripted_gateway, "openai", "stream", model="gpt-4o-mini")
    assert saw == {"text": TEXT, "finish": "stop", "models": ["gpt-4o-mini"], "emptyChoices": 0}


async def test_openai_tool_call_stream(scripted_gateway: RunningGateway, worker: ScriptedWorker):
    saw = await node(scripted_gateway, "openai", "tools_stream")
    assert [(call["name"], call["arguments"]) for call in saw["calls"]] == [("get_weather", '{"city": "Paris"}')]


async def test_openai_embeddings_models_and_responses(scripted_gateway: RunningGateway, worker: ScriptedWorker):
    embeddings, models, responses = await asyncio.gather(
        *(node(scripted_gateway, "openai", scenario) for scenario in ("embeddings", "models", "responses"))
    )
    assert embeddings["vectors"] == [[0.5, -0.25, 0], [0.5, -0.25, 1]]
    assert models["one"] == "smollm2" and "gpt-4o-mini" in models["ids"]
    assert responses == {"text": TEXT, "streamed": TEXT, "model": "smollm2"}


@pytest.mark.parametrize(
    ("options", "script", "expected"),
    [
        ({"key": "sk-wrong"}, None, {"name": "AuthenticationError", "status": 401, "code": "invalid_api_key"}),
        ({"model": "nope"}, None, {"name": "NotFoundError", "status": 404, "code": "model_not_found", "param": "model"}),
        ({}, scripts.reply(400, vllm.context_too_long(8192)), {"name": "BadRequestError", "code": "context_length_exceeded"}),
        ({}, scripts.html_error(502), {"name": "InternalServerError", "status": 502}),
    ],
    ids=["key", "model", "context", "HTML"],
)
async def test_openai_errors(
    scripted_gateway: RunningGateway, worker: ScriptedWorker, options: Any, script: Any, expected: Any
):
    worker.on(CHAT, script)
    saw = await node(scripted_gateway, "openai", "error", **options)
    assert {name: saw.get(name) for name in expected} == expected
    assert saw["requestID"] and saw["message"]


@pytest.mark.parametrize("script", [scripts.stream_error(after=3), scripts.chat_stream(after=3, ending="reset")])
async def test_openai_raises_on_a_broken_stream(scripted_gateway: RunningGateway, worker: ScriptedWorker, script: Any):
    worker.on(CHAT, script)
    assert (await node(scripted_gateway, "openai", "broken_stream"))["name"] == "APIError"


async def test_ai_sdk_chat(scripted_gateway: RunningGateway, worker: ScriptedWorker):
    saw = await node(scripted_gateway, "ai-sdk", "chat", model="gpt-4o-mini")
    assert saw == {"text": TEXT, "finishReason": "stop", "outputTokens": len(vllm.WORDS), "model": "gpt-4o-mini"}


async def test_ai_sdk_stream(scripted_gateway: RunningGateway, worker: ScriptedWorker):
    saw = await node(scripted_gateway, "ai-sdk", "stream")
    assert saw == {"text": TEXT, "reasoning": "", "finishReason": "stop", "errors": []}
    assert worker.calls()[0].json()["stream"] is True


async def test_ai_sdk_calls_a_tool_and_goes_on(scripted_gateway: RunningGateway, worker: ScriptedWorker):
    saw = await node(scripted_gateway, "ai-sdk", "tools_stream")
    assert saw["calls"] == [{"toolName": "get_weather", "input": {"city": "Paris"}}]
    assert saw["results"] == ["sunny in Paris"]
    assert (saw["text"], saw["errors"]) == (TEXT, [])
    assert [message["role"] for message in worker.calls()[1].json()["messages"]] == ["user", "assistant", "tool"]


@pytest.mark.parametrize("model", ["thinker", "smollm2"])
async def test_ai_sdk_reads_reasoning_under_either_name(scripted_gateway: RunningGateway, worker: ScriptedWorker, model: str):
    deltas = vllm.reasoning_deltas(["Let me", " see."], ["Hi"])
    worker.on(CHAT, scripts.stream(vllm.chat_events(deltas, model="smollm2", include_usage=True)))
    saw = await node(scripted_gateway, "ai-sdk", "stream", model=model)
    assert (saw["reasoning"], saw["text"], saw["errors"]) == ("Let me see.", "Hi", [])


async def test_ai_sdk_image(scripted_gateway: RunningGateway, worker: ScriptedWorker):
    refused = await node(scripted_gateway, "ai-sdk", "image")
    assert refused["status"] == 400 and "not a multimodal model" in refused["message"]

    worker.on(CHAT, scripts.reply(200, vllm.chat_reply({"content": "A cat"}, model="smollm2", id="c", prompt=1, completion=1)))
    assert await node(scripted_gateway, "ai-sdk", "image") == {"text": "A cat"}
    [_, image] = worker.calls()[1].json()["messages"][0]["content"]
    assert image["image_url"]["url"] == "data:image/png;base64,iVBORw0KGgo="


@pytest.mark.parametrize("scenario", ["error", "error_of_a_stream"])
async def test_ai_sdk_errors_carry_a_readable_body(scripted_gateway: RunningGateway, worker: ScriptedWorker, scenario: str):
    saw = await node(scripted_gateway, "ai-sdk", scenario, model="nope")
    assert (saw["name"], saw["status"], saw["isRetryable"]) == ("AI_APICallError", 404, False)
    assert "`nope`" in saw["message"]
    assert json.loads(saw["body"])["error"]["code"] == "model_not_found"


@pytest.mark.parametrize(
    "script",
    [scripts.stream_error(after=3), scripts.chat_stream(after=3), scripts.chat_stream(finish="abort")],
    ids=["error event", "cut", "aborted"],
)
async def test_ai_sdk_sees_that_a_stream_broke(scripted_gateway: RunningGateway, worker: ScriptedWorker, script: Any):
    worker.on(CHAT, script)
    saw = await node(scripted_gateway, "ai-sdk", "stream")
    assert saw["errors"] and saw["finishReason"] != "stop"


async def test_ai_sdk_responses(scripted_gateway: RunningGateway, worker: ScriptedWorker):
    assert await node(scripted_gateway, "ai-sdk", "responses") == {"text": TEXT, "errors": []}


@BOTH
async def test_the_stop_button_frees_the_worker(scripted_gateway: RunningGateway, worker: ScriptedWorker, library: str):
    worker.on(CHAT, scripts.chat_stream(after=3, ending="stall"))
    assert await node(scripted_gateway, library, "stop") == {"stopped": True}
    await worker.wait_aborted(1, within_s=10)


async def test_the_lock_names_no_registry():
    lock = json.loads((FOLDER / "package-lock.json").read_text())
    assert not [name for name, package in lock["packages"].items() if "resolved" in package]
    assert all(package.get("integrity") for name, package in lock["packages"].items() if name)
