"""The endpoints of workers: which paths are open, to whom, and what goes up and down."""

import time
from collections.abc import Mapping
from typing import Any

import pytest
from fastapi import FastAPI
from prometheus_client import CollectorRegistry, generate_latest

from sluice.api.bodies import BodyReader, Buffers
from sluice.api.calls import CallMaker
from sluice.api.openai import HotEndpoints
from sluice.api.steering import Steering
from sluice.bulk import BulkReader
from sluice.config import ClientTimeouts
from sluice.directory import Directory
from sluice.gateway import Gateway as RealGateway
from sluice.metrics import Metrics
from sluice.middleware import Edge
from sluice.response_ids import ResponseIds
from sluice.types import Endpoint, Tenant
from tests.support import scripts
from tests.support import vllm_shapes as vllm
from tests.support.asgi_client import asgi_request
from tests.support.raw_http import event_data
from tests.support.scripted_worker import ScriptedWorker
from tests.unit.in_process import ASK, CHAT, JSON, STREAM, Gateway, told

pytestmark = pytest.mark.asyncio(loop_scope="module")

MESSAGES = {"messages": [{"role": "user", "content": "Say hi"}]}
ASKED: dict[Endpoint, dict[str, Any]] = {
    Endpoint.CHAT: MESSAGES,
    Endpoint.COMPLETIONS: {"prompt": "Say hi"},
    Endpoint.EMBEDDINGS: {"input": ["one", "two"]},
    Endpoint.RESPONSES: {"input": "Say hi", "store": False},
    Endpoint.MESSAGES: MESSAGES | {"max_tokens": 16},
    Endpoint.COUNT_TOKENS: MESSAGES,
    Endpoint.RERANK: {"query": "hi", "documents": ["one", "two"]},
    Endpoint.SCORE: {"queries": "hi", "documents": ["one", "two"]},
    Endpoint.TOKENIZE: {"prompt": "Say hi"},
    Endpoint.DETOKENIZE: {"tokens": [1, 2]},
}
AUDIO = bytes(range(256)) * 10


def form(boundary: str = "limit", **fields: str) -> dict[str, Any]:
    """The options of a request with a form: `fields`, and a file."""
    parts = [
        f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n' for name, value in fields.items()
    ]
    head = f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\nContent-Type: audio/wav\r\n\r\n'
    body = "".join(parts).encode() + head.encode() + AUDIO + f"\r\n--{boundary}--\r\n".encode()
    return {"body": body, "headers": [("content-type", f"multipart/form-data; boundary={boundary}")]}


# Paths


@pytest.mark.parametrize("spelled", ["{v1}", "{plain}", "/v1{v1}", "/v1/v1{v1}", "{v1}/", "/{v1}", "{plain}//"])
@pytest.mark.parametrize("endpoint", ASKED)
async def test_every_endpoint_has_its_path_with_and_without_v1_and_as_clients_misspell_it(
    gateway: Gateway, worker: ScriptedWorker, endpoint: Endpoint, spelled: str
):
    plain = endpoint.value.removeprefix("/v1")
    path = spelled.format(v1="/v1" + plain, plain=plain)
    response = await gateway.request("POST", path, json={"model": "acme/tiny"} | ASKED[endpoint])

    assert response.status == 200, response
    (call,) = worker.calls()
    assert (call.method, call.target) == ("POST", endpoint.value)
    assert call.json() == {"model": "smollm2"} | ASKED[endpoint]


async def test_the_query_stays_behind(gateway: Gateway, worker: ScriptedWorker):
    assert (await gateway.request("POST", CHAT + "?api-version=2024&x=%0d%0a", json=ASK)).status == 200
    assert worker.calls()[0].target == CHAT


CLOSED = """
/v1/chat/completions/batch /v1/chat/completions/render /v1/completions/render /v1/messages/render /v1/completions/derender
/v1/systemone /generative_scoring /pooling /v1/pooling /classify /v1/classify /v2/embed /v2/rerank /v1/audio/translations
/v1/realtime /invocations /ping /health /load /version /kv_event_sources /redoc /scale_elastic_ep /is_scaling_elastic_ep
/inference/v1/generate /inference/v1/abort_requests /v1/load_lora_adapter /v1/unload_lora_adapter /adapters /tokenizer_info
/start_profile /stop_profile /fault_tolerance/apply /fault_tolerance/status /cohere/v2/chat /sleep /wake_up /is_sleeping
/release_kv_cache_memory /collective_rpc /reset_prefix_cache /reset_mm_cache /reset_encoder_cache /server_info /pause /resume
/is_paused /abort_requests /update_weights /get_world_size /v1/chat/completions/../../../collective_rpc /v1 / /v1/chat
/v1/responses/abc/input_items /v1/responses/abc/cancel/now /v1/uploads /admin /v1/chat/completions/abc
""".split()


@pytest.mark.parametrize("path", CLOSED)
async def test_what_else_a_worker_serves_is_not_there(gateway: Gateway, worker: ScriptedWorker, path: str):
    for method, body in (("GET", {}), ("POST", {"json": ASK})):
        message = told(await gateway.request(method, path, **body), 404)
        assert message.startswith(f"There is no {method} /")
    assert not worker.calls()


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH", "OPTIONS", "HEAD"])
@pytest.mark.parametrize("path", [CHAT, "/embeddings"])
async def test_another_method_is_a_405_that_names_the_right_one(
    gateway: Gateway, worker: ScriptedWorker, method: str, path: str
):
    async with gateway.connect() as client:
        await client.send(gateway.bytes(method, path) + gateway.bytes("GET", "/livez"))
        response = await client.read_response(method=method)
        assert (response.status, response.header("allow")) == (405, "POST")
        assert method == "HEAD" or "POST" in told(response, 405)
        assert (await client.read_response()).body == b"ok\n", "the answer to HEAD has no body, and the next one is whole"
    assert not worker.calls()


@pytest.mark.parametrize(
    ("method", "path", "allowed"), [("POST", "/v1/responses/abc", "GET"), ("GET", "/responses/abc/cancel", "POST")]
)
async def test_stored_responses_have_their_own_methods(gateway: Gateway, method: str, path: str, allowed: str):
    response = await gateway.request(method, path)
    told(response, 405)
    assert response.header("allow") == allowed


# Keys


@pytest.mark.parametrize("headers", [[], [("authorization", "Bearer")], [("authorization", "Basic eA==")], [("x-api-key", "")]])
async def test_without_a_key_it_is_a_401_that_says_how_to_send_one(
    gateway: Gateway, worker: ScriptedWorker, headers: list[tuple[str, str]]
):
    response = await gateway.request("POST", CHAT, key=None, json=ASK, headers=headers)

    assert "Authorization: Bearer" in told(response, 401)
    assert response.header("www-authenticate") == "Bearer"
    assert not worker.calls()


async def test_a_wrong_key_is_a_401_that_does_not_repeat_it(gateway: Gateway, worker: ScriptedWorker):
    before = gateway.metric("sluice_authentication_failures_total")
    assert "sk-wrong" not in told(await gateway.request("POST", CHAT, key="sk-wrong", json=ASK), 401, "invalid_api_key")
    assert gateway.metric("sluice_authentication_failures_total") == before + 1
    assert not worker.calls()


async def test_a_key_may_come_as_anthropics_clients_send_it(gateway: Gateway):
    response = await gateway.request("POST", CHAT, key=None, json=ASK, headers=[("x-api-key", gateway.keys.acme)])
    assert response.status == 200


@pytest.mark.parametrize("path", [CHAT, "/v1/responses/abc", "/v1/audio/transcriptions"])
async def test_the_key_is_looked_at_before_a_byte_of_the_body_and_before_anything_else_is_wrong(gateway: Gateway, path: str):
    async with gateway.connect() as client:
        await client.send(gateway.bytes("PUT", path, key=None, headers=[("content-length", "1000")]))
        told(await client.read_response(), 401)


async def test_a_route_of_others_looks_as_if_it_were_not_there(gateway: Gateway, worker: ScriptedWorker):
    asked = [ASK | {"model": model} for model in ("acme/tiny", "nobody/tiny")]
    said = [await gateway.request("POST", CHAT, key=gateway.keys.limited, json=body) for body in asked]
    foreign, unknown = (told(response, 404, "model_not_found", param="model") for response in said)

    assert foreign.replace("acme", "nobody") == unknown
    assert not worker.calls()
    assert (await gateway.request("POST", CHAT, key=gateway.keys.limited, json=ASK)).status == 200


@pytest.mark.parametrize("name", ["tokenize", "detokenize", "transcriptions"])
async def test_what_a_route_does_not_open_is_not_there(gateway: Gateway, worker: ScriptedWorker, name: str):
    if name == "transcriptions":
        response = await gateway.request("POST", "/v1/audio/transcriptions", **form(model="smollm2"))
    else:
        response = await gateway.request("POST", f"/{name}", json={"model": "smollm2"} | ASKED[Endpoint(f"/{name}")])

    assert "routes.smollm2.open" in told(response, 404)
    assert not worker.calls()


# Headers, up and down


async def test_only_what_is_on_the_list_goes_up(gateway: Gateway, worker: ScriptedWorker):
    theirs = [
        ("cookie", "session=1"),
        ("x-api-key", "sk-another"),
        ("x-forwarded-for", "10.0.0.1"),
        ("x-request-id", "mine"),
        ("x-vllm-priority", "-1"),
        ("x-data-parallel-rank", "1"),
        ("x-session-id", "s"),
        ("accept-encoding", "gzip"),
        ("user-agent", "test"),
        ("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
        ("tracestate", "a=1"),
        ("baggage", "b=2"),
    ]
    assert (await gateway.request("POST", CHAT, json=ASK, headers=theirs)).status == 200

    (call,) = worker.calls()
    names = [name for name, _ in call.headers]
    assert sorted(names) == ["content-length", "content-type", "host", "traceparent", "tracestate", "x-request-id"]
    assert call.header("host") == worker.url.removeprefix("http://")
    assert call.header("traceparent") == theirs[-3][1] and call.header("tracestate") == "a=1"
    assert str(call.header("x-request-id")).startswith("req-")
    assert gateway.keys.acme not in str(call.headers)


@pytest.mark.parametrize(
    ("body", "own"),
    [
        (ASK, {"content-length"}),
        (STREAM, {"transfer-encoding", "cache-control", "x-accel-buffering"}),
        (ASK | {"model": "gpt-9"}, {"content-length", "x-should-retry"}),
    ],
)
async def test_only_what_is_on_the_list_comes_down(
    gateway: Gateway, worker: ScriptedWorker, body: Mapping[str, Any], own: set[str]
):
    theirs = [("set-cookie", "a=b"), ("x-worker", "7"), ("x-request-id", "theirs"), ("content-encoding", "identity")]
    if "stream" in body:
        events = vllm.chat_events(vllm.content_deltas(), model="smollm2", include_usage=True)
        worker.on(CHAT, scripts.stream(events, headers=[*scripts.STREAM_HEADERS, *theirs]))
    else:
        whole = vllm.chat_reply({"content": "hi"}, model="smollm2", id="x", prompt=1, completion=1)
        worker.on(CHAT, scripts.reply(200, whole, headers=theirs))
    response = await gateway.request("POST", CHAT, json=body)

    assert {name for name, _ in response.headers} == own | {"date", "content-type", "x-request-id"}
    assert str(response.header("x-request-id")).startswith("req-")


async def test_a_stream_says_that_it_is_one(gateway: Gateway):
    response = await gateway.request("POST", CHAT, json=STREAM)

    assert response.header("content-type") == "text/event-stream; charset=utf-8"
    assert (response.header("cache-control"), response.header("x-accel-buffering")) == ("no-cache", "no")


# Names


async def test_an_alias_is_what_the_client_sees_and_the_worker_does_not(gateway: Gateway, worker: ScriptedWorker):
    whole = await gateway.request("POST", CHAT, json=ASK | {"model": "gpt-4o-mini"})
    streamed = await gateway.request("POST", CHAT, json=STREAM | {"model": "gpt-4o-mini"})

    assert whole.json()["model"] == "gpt-4o-mini"
    assert {event["model"] for event in event_data(streamed.body)[:-1]} == {"gpt-4o-mini"}
    assert [call.json()["model"] for call in worker.calls()] == ["smollm2", "smollm2"]


async def test_a_form_goes_up_under_the_workers_name_with_its_file_untouched(gateway: Gateway, worker: ScriptedWorker):
    response = await gateway.request("POST", "/v1/audio/transcriptions", **form(model="acme/tiny", language="en"))

    assert response.json()["text"]
    (call,) = worker.calls()
    assert AUDIO in call.body and b"acme/tiny" not in call.body
    assert call.body == form(model="smollm2", language="en")["body"]
    assert call.header("content-type") == 'multipart/form-data; boundary="limit"'


async def test_json_is_no_form_and_a_form_is_no_json(gateway: Gateway, worker: ScriptedWorker):
    assert "multipart" in told(await gateway.request("POST", "/v1/audio/transcriptions", json=ASK), 415)
    assert "json" in told(await gateway.request("POST", CHAT, **form(model="smollm2")), 415)
    assert not worker.calls()


# Stored responses


async def stored(gateway: Gateway, **members: Any) -> str:
    response = await gateway.request("POST", "/v1/responses", json={"model": "keeper", "input": "Say hi"} | members)
    assert response.status == 200, response
    made: str = response.json()["id"]
    return made


def holder(keepers: tuple[ScriptedWorker, ScriptedWorker], response_id: str) -> ScriptedWorker:
    return next(keeper for keeper in keepers if response_id in keeper.defaults.stored)


async def test_a_stored_response_is_found_again_on_its_worker(gateway: Gateway, keepers: tuple[ScriptedWorker, ScriptedWorker]):
    made = [await stored(gateway) for _ in range(4)]

    assert len(set(made)) == 4 and {holder(keepers, one) for one in made} == set(keepers)
    for path in ("/v1/responses/", "/responses/", "/v1/v1/responses/"):
        for one in made:
            response = await gateway.request("GET", path + one)
            assert (response.status, response.json()["id"]) == (200, one)


async def test_of_a_foreign_id_and_of_a_random_one_the_same_is_said(
    gateway: Gateway, keepers: tuple[ScriptedWorker, ScriptedWorker]
):
    mine = await stored(gateway)
    tried = [mine, mine[:-1] + ("0" if mine[-1] != "0" else "1"), "resp_" + "0" * 56, "resp_0", "x", "%00", "é", mine + "0"]
    for keeper in keepers:
        keeper.requests.clear()
    said = set()
    for number, one in enumerate(tried):
        key = gateway.keys.globex if number == 0 else gateway.keys.acme
        target = "/v1/responses/" + one.replace("é", "%C3%A9")
        for method, path in (("GET", target), ("POST", target + "/cancel")):
            said.add(told(await gateway.request(method, path, key=key), 404, param="response_id"))
        if one.isascii() and one.isalnum():
            body = {"model": "keeper", "input": "hi", "previous_response_id": one}
            said.add(told(await gateway.request("POST", "/v1/responses", key=key, json=body), 404, param="response_id"))

    assert len(said) == 1
    assert not any(keeper.calls() for keeper in keepers)


async def test_a_conversation_goes_on_where_it_is_kept(gateway: Gateway, keepers: tuple[ScriptedWorker, ScriptedWorker]):
    first = await stored(gateway)
    for _ in range(3):
        following = await stored(gateway, previous_response_id=first)
        assert holder(keepers, following) is holder(keepers, first)


async def test_a_response_that_shall_not_be_stored_is_not(gateway: Gateway, keepers: tuple[ScriptedWorker, ScriptedWorker]):
    response = await gateway.request("POST", "/v1/responses", json={"model": "keeper", "input": "hi", "store": False})

    assert response.status == 200
    (call,) = [call for keeper in keepers for call in keeper.calls()]
    assert "request_id" not in call.json()
    told(await gateway.request("GET", f"/v1/responses/{response.json()['id']}"), 404, param="response_id")


async def test_a_stored_response_can_be_cancelled(gateway: Gateway, keepers: tuple[ScriptedWorker, ScriptedWorker]):
    made = await stored(gateway)
    keeper = holder(keepers, made)
    response = await gateway.request("POST", f"/v1/responses/{made}/cancel?stream=true", body=b"")

    assert told(response, 400, param="response_id") == "Cannot cancel a synchronous response."
    assert [(call.method, call.target) for call in keeper.calls()][-1] == ("POST", f"/v1/responses/{made}/cancel")


async def test_a_stored_stream_is_streamed_from_where_the_client_left_it(
    gateway: Gateway, keepers: tuple[ScriptedWorker, ScriptedWorker]
):
    made = await stored(gateway)
    keeper = holder(keepers, made)
    event = {"type": "response.completed", "sequence_number": 8, "response": {"id": made, "object": "response", "usage": None}}
    keeper.on(f"/v1/responses/{made}", scripts.stream([vllm.sse(event, "response.completed")]))
    response = await gateway.request("GET", f"/v1/responses/{made}?stream=true&starting_after=7&x=1&starting_after=%0d")
    again = await gateway.request("GET", f"/v1/responses/{made}?starting_after=7&stream=True")

    assert keeper.calls()[-2].target == f"/v1/responses/{made}?stream=true"
    assert keeper.calls()[-1].target == f"/v1/responses/{made}?stream=true&starting_after=7"
    assert response.header("content-type") == "text/event-stream; charset=utf-8"
    assert again.body == response.body == vllm.sse(event, "response.completed")


async def test_a_route_that_keeps_nothing_finds_nothing(gateway: Gateway, worker: ScriptedWorker):
    body = {"model": "smollm2", "input": "hi", "store": True}
    assert "store" in told(await gateway.request("POST", "/v1/responses", json=body), 400, param="store")
    assert (await gateway.request("POST", "/v1/responses", json={"model": "smollm2", "input": "hi"})).status == 200
    assert "request_id" not in worker.calls()[0].json()


async def test_a_key_for_another_route_does_not_reach_a_stored_response(
    gateway: Gateway, keepers: tuple[ScriptedWorker, ScriptedWorker]
):
    made = await stored(gateway)
    told(await gateway.request("GET", f"/v1/responses/{made}", key=gateway.keys.limited), 404, param="response_id")


# Large bodies, which are read in a process of their own

FILLER = {"metadata": {"filler": "x" * 300_000}}


async def test_a_large_body_goes_up_as_it_came_but_for_what_has_to_change(gateway: Gateway, worker: ScriptedWorker):
    body = ASK | FILLER
    assert (await gateway.request("POST", CHAT, json=body)).status == 200
    assert (await gateway.request("POST", CHAT, json=body | {"model": "gpt-4o-mini", "priority": 1})).status == 200

    plain, changed = worker.calls()
    assert plain.json() == changed.json() == body


async def test_a_large_body_that_is_wrong_is_told_what_a_small_one_is(gateway: Gateway, worker: ScriptedWorker):
    told(await gateway.request("POST", CHAT, body=b"[" * 300_000, headers=[JSON]), 400)
    told(await gateway.request("POST", CHAT, json=FILLER | {"messages": []}), 400, param="model")
    told(await gateway.request("POST", CHAT, json=ASK | FILLER | {"model": "gpt-9"}), 404, "model_not_found", param="model")
    told(await gateway.request("POST", "/tokenize", json=FILLER | {"model": "smollm2", "prompt": "hi"}), 404)
    assert not worker.calls()


async def test_a_large_body_that_comes_in_pieces_is_stored_and_found_again(
    gateway: Gateway, keepers: tuple[ScriptedWorker, ScriptedWorker]
):
    made = await stored(gateway, **FILLER)
    (call,) = [call for keeper in keepers for call in keeper.calls()]
    assert call.json() == {"model": "smollm2", "input": "Say hi", "request_id": made} | FILLER
    assert (await gateway.request("GET", f"/v1/responses/{made}")).json()["id"] == made


# What is counted


async def test_calls_and_refusals_are_counted_by_route_and_endpoint(gateway: Gateway):
    done = 'sluice_calls_total{endpoint="/v1/chat/completions",route="smollm2",source="none",status="200"}'
    refused = 'sluice_calls_total{endpoint="/v1/chat/completions",route="",source="downstream",status="415"}'
    before = gateway.metric(done), gateway.metric(refused)
    await gateway.request("POST", CHAT, json=ASK)
    await gateway.request("POST", CHAT, body=b"x", headers=[("content-type", "text/plain")])
    await gateway.request("POST", CHAT, body=b"{}", headers=[JSON], key="sk-wrong")

    assert (gateway.metric(done), gateway.metric(refused)) == (before[0] + 1, before[1] + 1)


# What must not happen


class BrokenDoor:
    """A bug of ours, where nobody expects one."""

    def resolve(self, authorization: bytes | None, x_api_key: bytes | None, *, address: str, now: float) -> Tenant:
        raise ZeroDivisionError("secret")

    async def watch(self, interval_s: float, sleep: Any = None) -> None:
        return


async def test_a_bug_is_a_500_that_says_nothing_of_it_and_is_logged_under_the_requests_id(caplog: pytest.LogCaptureFixture):
    metrics, buffers = Metrics(CollectorRegistry()), Buffers(1000)
    hot = HotEndpoints(
        gateway=RealGateway({}, time.monotonic),
        routes={},
        calls=CallMaker(
            routes={},
            directory=Directory({}),
            ids=ResponseIds(b"secret"),
            steering=Steering(b"secret"),
            bulk=BulkReader(),
        ),
        door=BrokenDoor(),
        reader=BodyReader(1000, ClientTimeouts(), time.monotonic),
        buffers=buffers,
        metrics=metrics,
        clock=time.monotonic,
    )
    app = Edge(hot, FastAPI(), origins=(), log=None, clock=time.monotonic, wall_clock=time.time)
    call = await asgi_request(app, "POST", CHAT, json=ASK)

    assert call.status == 500 and b"secret" not in call.body
    assert call.json()["error"]["code"] == "internal_error"
    (record,) = caplog.records
    assert str(call.header("x-request-id")) in record.getMessage() and record.exc_info
    assert repr(buffers) == "<Buffers 0 of 1000 bytes>"
    assert 'source="gateway",status="500"' in generate_latest(metrics.registry).decode()
