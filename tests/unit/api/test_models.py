"""`GET /v1/models`: what a key may use, and what is known of it."""

from pathlib import Path

import pytest

from tests.support import scripts
from tests.support import vllm_shapes as vllm
from tests.support.scripted_worker import ScriptedWorker
from tests.unit.in_process import Gateway, serving, settings, told

pytestmark = pytest.mark.asyncio(loop_scope="module")

SMOLLM2 = {
    "id": "smollm2",
    "object": "model",
    "created": vllm.CREATED,
    "owned_by": "sluice",
    "max_model_len": 8192,
    "context_length": 8192,
}
TINY = SMOLLM2 | {"id": "acme/tiny", "architecture": {"input_modalities": ["text", "image"]}}


@pytest.mark.parametrize("path", ["/v1/models", "/models", "/v1/models/", "/v1/v1/models", "//v1/models", "/models/"])
async def test_the_list_has_every_name_that_a_client_may_use_and_what_chatbox_reads_of_it(gateway: Gateway, path: str):
    response = await gateway.request("GET", path, headers=[("content-type", "application/json")])

    assert response.json() == {
        "object": "list",
        "data": [SMOLLM2, SMOLLM2 | {"id": "gpt-4o-mini"}, TINY, SMOLLM2 | {"id": "keeper"}],
    }


async def test_a_key_for_some_routes_sees_only_those(gateway: Gateway):
    response = await gateway.request("GET", "/v1/models", key=gateway.keys.limited)
    assert [entry["id"] for entry in response.json()["data"]] == ["smollm2", "gpt-4o-mini"]


@pytest.mark.parametrize(
    "path", ["/v1/models/acme/tiny", "/v1/models/acme%2Ftiny", "/models/acme%2ftiny", "/v1/models/acme/tiny/"]
)
async def test_one_model_is_found_by_its_name_with_its_slash_written_either_way(gateway: Gateway, path: str):
    assert (await gateway.request("GET", path)).json() == TINY


async def test_a_model_of_others_is_as_unknown_as_one_that_does_not_exist(gateway: Gateway):
    paths = "/v1/models/acme/tiny", "/v1/models/nobody/tiny"
    said = [await gateway.request("GET", path, key=gateway.keys.limited) for path in paths]
    foreign, unknown = (told(response, 404, "model_not_found", param="model") for response in said)

    assert foreign.replace("acme", "nobody") == unknown


@pytest.mark.parametrize("path", ["/v1/models", "/v1/models/smollm2", "/models"])
async def test_it_needs_a_key(gateway: Gateway, path: str):
    told(await gateway.request("GET", path, key=None), 401)
    told(await gateway.request("GET", path, key="sk-wrong"), 401, "invalid_api_key")


@pytest.mark.parametrize("method", ["POST", "DELETE", "HEAD", "OPTIONS"])
@pytest.mark.parametrize("path", ["/v1/models", "/v1/models/smollm2"])
async def test_it_is_only_for_reading(gateway: Gateway, method: str, path: str):
    response = await gateway.request(method, path)
    assert (response.status, response.header("allow")) == (405, "GET")
    assert method == "HEAD" or told(response, 405)


async def test_no_worker_is_asked_for_it(gateway: Gateway, worker: ScriptedWorker):
    await gateway.request("GET", "/v1/models")
    assert worker.requests == []


async def test_of_a_model_whose_workers_were_never_seen_only_the_name_is_known(tmp_path: Path):
    async with serving(settings(tmp_path, "http://127.0.0.1:9")) as gateway:
        response = await gateway.request("GET", "/v1/models/smollm2")
    assert response.json() == {"id": "smollm2", "object": "model", "created": 0, "owned_by": "sluice"}


async def test_an_adapter_names_the_route_that_it_belongs_to(tmp_path: Path):
    served = vllm.model_list("smollm2", max_model_len=8192)
    adapter = served["data"][0] | {"id": "lawyer", "parent": "/models/smollm2", "max_model_len": None}
    async with ScriptedWorker() as scripted:
        scripted.on("/v1/models", scripts.reply(200, served | {"data": [*served["data"], adapter]}))
        async with serving(settings(tmp_path, scripted, route={"adapters": ["lawyer"]})) as gateway:
            await gateway.until(lambda: bool(gateway.pools[0].is_ready))
            response = await gateway.request("GET", "/v1/models/lawyer")
    assert response.json() == {
        "id": "lawyer",
        "object": "model",
        "created": vllm.CREATED,
        "owned_by": "sluice",
        "parent": "smollm2",
    }
