"""What operators and their machines ask: alive, ready, metrics, the documentation."""

import pytest

from tests.e2e.gateway import RunningGateway
from tests.support import scripts
from tests.support.openai_error import assert_error
from tests.support.scripted_worker import ScriptedWorker

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="session")]

OPEN_PATHS = ["chat/completions", "completions", "embeddings", "responses", "messages", "messages/count_tokens"]
OPEN_PATHS += ["rerank", "score", "audio/transcriptions", "models", "models/{model}", "responses/{response_id}"]
OPEN_PATHS += ["responses/{response_id}/cancel"]


@pytest.mark.parametrize("path", ["/livez", "/readyz"])
async def test_probes_need_no_key(scripted_gateway: RunningGateway, path: str):
    response = await scripted_gateway.request("GET", path, key=None)
    assert (response.status, response.body) == (200, b"ok\n")


async def test_metrics_on_the_main_port_need_an_admins_key(scripted_gateway: RunningGateway):
    assert_error(await scripted_gateway.request("GET", "/metrics", key=None), 401)
    assert_error(await scripted_gateway.request("GET", "/metrics"), 403)
    response = await scripted_gateway.request("GET", "/metrics", key=scripted_gateway.keys["umbrella"])
    assert response.status == 200
    assert b"sluice_" in response.body


async def test_metrics_hold_no_text_of_a_client(scripted_gateway: RunningGateway, worker: ScriptedWorker):
    body = {"model": "a-strange-model", "messages": [{"role": "user", "content": "a secret"}], "user": "someone"}
    await scripted_gateway.request("POST", "/v1/chat/completions", json=body)
    await scripted_gateway.request("POST", "/v1/a-strange-path", json=body)
    metrics = await scripted_gateway.request("GET", "/metrics", key=scripted_gateway.keys["umbrella"])
    assert b"strange" not in metrics.body and b"secret" not in metrics.body


async def test_the_log_holds_neither_keys_nor_prompts_nor_answers(scripted_gateway: RunningGateway, worker: ScriptedWorker):
    worker.on("/v1/chat/completions", scripts.chat_stream(["an-answer-to-hide"]))
    ask = {"model": "smollm2", "messages": [{"role": "user", "content": "a-prompt-to-hide"}], "stream": True}
    response = await scripted_gateway.request("POST", "/v1/chat/completions", json=ask)
    assert b"an-answer-to-hide" in response.body
    log = scripted_gateway.log.read_text()
    assert not [text for text in ("a-prompt-to-hide", "an-answer-to-hide", *scripted_gateway.keys.values()) if text in log]


async def test_the_documentation_covers_all_that_is_open(scripted_gateway: RunningGateway):
    document = (await scripted_gateway.request("GET", "/openapi.json", key=None)).json()
    assert {f"/v1/{path}" for path in OPEN_PATHS} | {"/tokenize", "/detokenize"} <= document["paths"].keys()
    page = await scripted_gateway.request("GET", "/docs", key=None)
    assert page.status == 200 and (page.header("content-type") or "").startswith("text/html")
