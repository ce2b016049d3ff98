"""The error contract, row by row, over raw HTTP: what clients are told who ask for something wrong."""

import asyncio
from typing import Any

import pytest

from tests.e2e.gateway import RunningGateway
from tests.support.openai_error import assert_error
from tests.support.raw_http import RawClient, chunked, request_bytes
from tests.support.scripted_worker import ScriptedWorker

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="session")]

CHAT = "/v1/chat/completions"
ASK: dict[str, Any] = {"model": "smollm2", "messages": [{"role": "user", "content": "Say hi"}]}
JSON = ("content-type", "application/json")


# Keys


@pytest.mark.parametrize("value", [None, "", "Bearer", "Bearer ", "Basic c2s6", "sk-alone", "Bearer a b"])
async def test_no_key_is_401_with_a_challenge(scripted_gateway: RunningGateway, worker: ScriptedWorker, value: str | None):
    headers = [] if value is None else [("authorization", value)]
    response = await scripted_gateway.request("POST", CHAT, key=None, headers=headers, json=ASK)

    error = assert_error(response, 401)
    assert response.header("www-authenticate") == "Bearer"
    assert value in ("sk-alone", "Bearer a b") or error["code"] is None
    assert not worker.calls()


@pytest.mark.parametrize("path", [CHAT, "/v1/models", "/v1/embeddings", "/chat/completions", "/v1/messages"])
async def test_a_wrong_key_is_401_and_is_not_repeated(scripted_gateway: RunningGateway, worker: ScriptedWorker, path: str):
    method = "GET" if path.endswith("models") else "POST"
    body = {} if method == "GET" else {"json": ASK}
    response = await scripted_gateway.request(method, path, key="sk-wrong-0123456789", **body)

    assert_error(response, 401, "invalid_api_key")
    assert b"sk-wrong-0123456789" not in response.body
    assert not worker.calls()


async def test_the_key_comes_before_the_body(scripted_gateway: RunningGateway, worker: ScriptedWorker):
    broken = await scripted_gateway.request("POST", CHAT, key="sk-wrong", body=b"{", headers=[JSON])
    assert_error(broken, 401, "invalid_api_key")

    async with RawClient(scripted_gateway.url) as client:  # the body never comes
        head = [("authorization", "Bearer sk-wrong"), JSON, ("content-length", "1000000")]
        await client.send(request_bytes("POST", CHAT, headers=head))
        assert_error(await client.read_response(), 401, "invalid_api_key")


async def test_x_api_key_is_a_key_too(scripted_gateway: RunningGateway, worker: ScriptedWorker):
    headers = [("x-api-key", scripted_gateway.key)]
    assert (await scripted_gateway.request("POST", CHAT, key=None, headers=headers, json=ASK)).status == 200


# Models


@pytest.mark.parametrize("path", [CHAT, "/v1/completions", "/v1/embeddings", "/v1/responses", "/v1/rerank", "/v1/score"])
async def test_an_unknown_model_is_404(scripted_gateway: RunningGateway, worker: ScriptedWorker, path: str):
    body = {"messages": ASK["messages"], "prompt": "a", "input": "a", "query": "a", "queries": "a", "documents": ["a"]}
    response = await scripted_gateway.request("POST", path, json=body | {"model": "gpt-17"})

    assert_error(response, 404, "model_not_found", param="model")
    assert b"smollm2" not in response.body, "the names of others are no help to strangers"


@pytest.mark.parametrize("id", ["gpt-17", "acme/huge", "acme%2Fhuge", "%00", "a" * 300, "../health"])
async def test_an_unknown_model_id_is_404(scripted_gateway: RunningGateway, id: str):
    assert_error(await scripted_gateway.request("GET", f"/v1/models/{id}"), 404, "model_not_found")


@pytest.mark.parametrize("id", ["acme/tiny", "acme%2Ftiny", "smollm2", "gpt-4o-mini"])
@pytest.mark.parametrize("prefix", ["/v1", ""])
async def test_a_model_id_may_have_a_slash(scripted_gateway: RunningGateway, prefix: str, id: str):
    response = await scripted_gateway.request("GET", f"{prefix}/models/{id}")
    assert response.status == 200
    assert response.json()["id"] == id.replace("%2F", "/")
    assert response.json()["object"] == "model"


@pytest.mark.parametrize("members", [{}, {"model": None}, {"model": 7}, {"model": ["smollm2"]}, {"model": ""}])
async def test_a_model_that_is_no_name_is_400(scripted_gateway: RunningGateway, worker: ScriptedWorker, members: Any):
    body = {"messages": ASK["messages"]} | members
    response = await scripted_gateway.request("POST", CHAT, json=body)

    assert_error(response, 404 if members.get("model") == "" and response.status == 404 else 400, param="model")
    assert not worker.calls()


# Paths and methods


@pytest.mark.parametrize(
    "path",
    ["/", "/v1", "/v2/chat/completions", "/v1/chat", "/v1/chat/completions/batch", "/invocations", "/v1/nope", "/load"]
    + ["/version", "/score", "/pooling", "/classify", "/collective_rpc", "/sleep", "/v1/load_lora_adapter", "/is_sleeping"]
    + ["/tokenizer_info", "/inference/v1/generate", "/v1/completions/render", "/reset_prefix_cache", "/v1/audio/nope"],
)
async def test_everything_else_is_404_and_never_goes_up(scripted_gateway: RunningGateway, worker: ScriptedWorker, path: str):
    response = await scripted_gateway.request("POST", path, json=ASK)

    if path == "/score":  # the short spelling of /v1/score, and goes up as that
        assert [call.path for call in worker.calls()] in ([], ["/v1/score"])
        return
    assert response.status in (404, 405)
    assert_error(response, response.status)
    assert not worker.calls()


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [("GET", CHAT, "POST"), ("PUT", CHAT, "POST"), ("DELETE", "/v1/embeddings", "POST")]
    + [("GET", "/v1/messages", "POST"), ("POST", "/v1/models", "GET"), ("DELETE", "/v1/models/smollm2", "GET")],
)
async def test_a_wrong_method_is_405_and_names_the_right_one(
    scripted_gateway: RunningGateway, worker: ScriptedWorker, method: str, path: str, allowed: str
):
    response = await scripted_gateway.request(method, path, json=ASK)
    assert_error(response, 405)
    assert allowed in (response.header("allow") or "")
    assert not worker.calls()


# Bodies


@pytest.mark.parametrize("content_type", [None, "text/plain", "application/x-www-form-urlencoded", "multipart/form-data"])
async def test_a_body_that_does_not_say_it_is_json_is_refused(
    scripted_gateway: RunningGateway, worker: ScriptedWorker, content_type: str | None
):
    headers = [] if content_type is None else [("content-type", content_type)]
    response = await scripted_gateway.request("POST", CHAT, headers=headers, body=b'{"model":"smollm2"}')
    assert response.status in (400, 415)
    assert_error(response, response.status)
    assert not worker.calls()


@pytest.mark.parametrize("content_type", ["application/json; charset=utf-8", "Application/JSON"])
async def test_parameters_of_the_content_type_do_no_harm(
    scripted_gateway: RunningGateway, worker: ScriptedWorker, content_type: str
):
    body = request_bytes("POST", CHAT, json=ASK).partition(b"\r\n\r\n")[2]
    response = await scripted_gateway.request("POST", CHAT, headers=[("content-type", content_type)], body=body)
    assert response.status == 200


HEAD = b'{"model":"smollm2","messages":[{"role":"user","content":'
BAD_BODIES = {
    "empty": b"",
    "white space": b"  \n",
    "half": HEAD,
    "a list": b"[]",
    "a string": b'"hi"',
    "a number": b"1",
    "null": b"null",
    "single quotes": b"{'model':'smollm2'}",
    "a comma too many": b'{"model":"smollm2",}',
    "two objects": b'{"model":"smollm2"}{"model":"smollm2"}',
    "NaN": HEAD + b'"a"}],"temperature":NaN}',
    "Infinity": HEAD + b'"a"}],"temperature":Infinity}',
    "minus Infinity": HEAD + b'"a"}],"temperature":-Infinity}',
    "bad UTF-8": HEAD + b'"\xff\xfe"}]}',
    "overlong UTF-8": HEAD + b'"\xc0\xaf"}]}',
    "UTF-16": '{"model":"smollm2"}'.encode("utf-16"),
    "a byte order mark": b"\xef\xbb\xbf{}",
    "a raw control character": HEAD + b'"\x01"}]}',
    "a lone surrogate": HEAD + b'"\\ud800"}]}',
    "an escaped lone low surrogate": HEAD + b'"a\\udc00b"}]}',
    "100,000 deep arrays": HEAD + b"[" * 100_000 + b"]" * 100_000 + b"}]}",
    "100,000 deep objects": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    "an integer of 6,000 digits": HEAD + b'"a"}],"seed":' + b"9" * 6000 + b"}",
    "messages missing": b'{"model":"smollm2"}',
    "messages a string": b'{"model":"smollm2","messages":"hi"}',
    "messages null": b'{"model":"smollm2","messages":null}',
    "stream a string": HEAD + b'"a"}],"stream":"yes"}',
    "n too large": HEAD + b'"a"}],"n":10000}',
    "n negative": HEAD + b'"a"}],"n":-1}',
    "n a string": HEAD + b'"a"}],"n":"2"}',
    "top_logprobs too many": HEAD + b'"a"}],"logprobs":true,"top_logprobs":500}',
    "ignore_eos": HEAD + b'"a"}],"ignore_eos":true}',
    "beam search": HEAD + b'"a"}],"use_beam_search":true}',
    "model twice": b'{"model":"smollm2","model":"thinker","messages":[]}',
    "model twice, once escaped": b'{"model":"smollm2","m\\u006fdel":"thinker","messages":[]}',
    "stream twice": HEAD + b'"a"}],"stream":false,"stream":true}',
}


@pytest.mark.parametrize("body", BAD_BODIES.values(), ids=BAD_BODIES.keys())
async def test_a_bad_body_is_400_and_never_goes_up(scripted_gateway: RunningGateway, worker: ScriptedWorker, body: bytes):
    response = await scripted_gateway.request("POST", CHAT, headers=[JSON], body=body)

    assert_error(response, 400)
    assert not worker.calls()


async def test_depth_100_is_no_reason_to_fall_over(scripted_gateway: RunningGateway, worker: ScriptedWorker):
    body = HEAD + b'"a"}],"chat_template_kwargs":{"a":' + b"[" * 100 + b"]" * 100 + b"}}"
    response = await scripted_gateway.request("POST", CHAT, headers=[JSON], body=body)
    assert response.status in (200, 400)


async def test_a_declared_length_beyond_the_limit_is_413_at_once(scripted_gateway: RunningGateway, worker: ScriptedWorker):
    for length in (33_554_433, 10 * 2**30, 10**17):
        async with RawClient(scripted_gateway.url) as client:
            key = ("authorization", f"Bearer {scripted_gateway.key}")
            await client.send(request_bytes("POST", CHAT, headers=[key, JSON, ("content-length", str(length))]))
            assert_error(await client.read_response(), 413)


async def test_a_chunked_body_beyond_the_limit_is_413(scripted_gateway: RunningGateway, worker: ScriptedWorker):
    async with RawClient(scripted_gateway.url) as client:
        key = ("authorization", f"Bearer {scripted_gateway.key}")
        await client.send(request_bytes("POST", CHAT, headers=[key, JSON, ("transfer-encoding", "chunked")]))
        piece = b"10000\r\n" + b" " * 2**16 + b"\r\n"
        answer = asyncio.ensure_future(client.read_response())
        try:
            for _ in range(2**9 + 16):
                await client.send(piece)
                if answer.done():
                    break
        except ConnectionError:
            pass  # it may close once it has answered
        assert_error(await answer, 413)
    assert not worker.calls()


async def test_a_chunked_body_within_the_limit_is_read(scripted_gateway: RunningGateway, worker: ScriptedWorker):
    whole = request_bytes("POST", CHAT, json=ASK).partition(b"\r\n\r\n")[2]
    async with RawClient(scripted_gateway.url) as client:
        key = ("authorization", f"Bearer {scripted_gateway.key}")
        head = request_bytes("POST", CHAT, headers=[key, JSON, ("transfer-encoding", "chunked")])
        await client.send(head + chunked([whole[:7], whole[7:8], whole[8:]]))
        assert (await client.read_response()).status == 200
    assert worker.calls()[0].json()["messages"] == ASK["messages"]


@pytest.mark.parametrize(
    "sent",
    [b"", b"POST /v1/chat/completions HTTP/1.1\r\nhost: a\r\n", None],
    ids=["nothing", "half of the headers", "half of the body"],
)
async def test_a_stalled_request_is_cut(scripted_gateway: RunningGateway, worker: ScriptedWorker, sent: bytes | None):
    if sent is None:
        key = ("authorization", f"Bearer {scripted_gateway.key}")
        sent = request_bytes("POST", CHAT, headers=[key, JSON, ("content-length", "500")]) + b'{"model":'
    async with RawClient(scripted_gateway.url) as client:
        await client.send(sent)
        said = await client.read_rest()
    assert said == b"" or said.startswith(b"HTTP/1.1 408 ")
    assert not worker.calls()


async def test_trickled_headers_are_cut(scripted_gateway: RunningGateway, worker: ScriptedWorker):
    async with RawClient(scripted_gateway.url) as client:
        said = asyncio.ensure_future(client.read_rest())
        try:
            await client.send_slowly(request_bytes("POST", CHAT, json=ASK)[:60], piece_bytes=1, pause_s=0.1)
        except ConnectionError:
            pass
        assert await said == b"" or (await said).startswith(b"HTTP/1.1 408 ")
    assert not worker.calls()
