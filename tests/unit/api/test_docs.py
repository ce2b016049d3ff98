"""The OpenAPI document and its page say what is open, and nothing comes from elsewhere."""

import re
from typing import Any

import pytest
from fastapi.openapi.models import OpenAPI

from sluice import __version__
from sluice.api import docs
from sluice.api.vector_stores import RELAYED, SEARCH
from sluice.types import Endpoint
from tests.support.scripted_worker import ScriptedWorker
from tests.unit.api.test_openai import form
from tests.unit.in_process import Gateway, told

pytestmark = pytest.mark.asyncio(loop_scope="module")

KEYLESS = {"/livez", "/readyz"}


async def document(gateway: Gateway) -> dict[str, Any]:
    response = await gateway.request("GET", "/openapi.json", key=None)
    assert response.status == 200
    found: dict[str, Any] = response.json()
    return found


def operations(api: dict[str, Any]) -> dict[tuple[str, str], dict[str, Any]]:
    return {(method.upper(), path): spec for path, methods in api["paths"].items() for method, spec in methods.items()}


async def test_the_document_is_valid_openapi(gateway: Gateway):
    api = await document(gateway)

    OpenAPI.model_validate(api)
    assert api["info"]["version"] == __version__
    references = set(re.findall(r'"\$ref":\s*"([^"]+)"', (await gateway.request("GET", "/openapi.json")).body.decode()))
    assert references == {"#/components/schemas/Error"}
    names = [spec["operationId"] for spec in operations(api).values() if "operationId" in spec]
    assert len(names) == len(set(names))
    for (_, path), spec in operations(api).items():
        declared = {one["name"] for one in spec.get("parameters", ()) if one["in"] == "path"}
        assert declared == set(re.findall(r"{(\w+)}", path)), path


async def test_it_has_every_endpoint_that_is_open_and_no_other(gateway: Gateway):
    others = [
        ("GET", "/v1/responses/{response_id}"),
        ("POST", "/v1/responses/{response_id}/cancel"),
        ("GET", "/v1/retrieval/{call_id}"),
        ("POST", "/v1/retrieval"),
        ("GET", "/v1/models"),
        ("GET", "/v1/models/{model}"),
        ("GET", "/v1/queue"),
        ("POST", "/v1/workers/drain"),
        ("GET", "/v1/usage"),
        ("GET", "/livez"),
        ("GET", "/readyz"),
        ("GET", "/metrics"),
        ("POST", SEARCH),
        *((method, path) for method, path, _ in RELAYED),
    ]
    assert set(operations(await document(gateway))) == {*others, *(("POST", endpoint.value) for endpoint in Endpoint)}


async def test_what_it_says_of_keys_is_true(gateway: Gateway):
    for (method, path), spec in operations(await document(gateway)).items():
        needs_key = "401" in spec["responses"]
        assert needs_key == (path not in KEYLESS)
        assert spec.get("security") == (None if needs_key else [])
        body = {"body": b""} if method == "POST" else {}
        response = await gateway.request(method, re.sub("{.*?}", "x", path), key=None, **body)
        assert (response.status == 401) == needs_key, path


@pytest.mark.parametrize("endpoint", Endpoint)
async def test_the_members_that_it_calls_required_are(gateway: Gateway, worker: ScriptedWorker, endpoint: Endpoint):
    spec = operations(await document(gateway))["POST", endpoint.value]
    ((media, content),) = spec["requestBody"]["content"].items()
    required = content["schema"]["required"]
    assert required[0] == "model"
    assert set(required) <= content["schema"]["properties"].keys()
    if endpoint is Endpoint.TRANSCRIPTIONS:
        assert media == "multipart/form-data"
        body = {"body": form(model="acme/tiny")["body"].replace(b'name="file"', b'name="other"')}
        response = await gateway.request("POST", endpoint.value, headers=form()["headers"], **body)
        told(response, 400, param="file")
        return
    for missing in required:
        whole = {"model": "acme/tiny"} | {name: ["x"] for name in required[1:]}
        response = await gateway.request("POST", endpoint.value, json={k: v for k, v in whole.items() if k != missing})
        assert response.status == 400, (missing, response)


async def test_nothing_of_a_worker_or_a_route_is_in_it(gateway: Gateway):
    body = (await gateway.request("GET", "/openapi.json", key=None)).body
    for secret in (b"smollm2", b"acme", b"keeper", b"127.0.0.1"):
        assert secret not in body


async def test_the_page_loads_nothing_from_elsewhere_and_may_not(gateway: Gateway):
    response = await gateway.request("GET", "/docs", key=None)

    page = response.body.decode()
    assert response.header("content-type") == "text/html; charset=utf-8"
    assert response.header("content-security-policy") == docs.PAGE_POLICY
    assert "default-src 'none'" in docs.PAGE_POLICY and "connect-src 'self'" in docs.PAGE_POLICY
    assert not re.search(r"""https?://|["'(]//|@import|<(img|link|iframe|object|embed)\b|\bsrc=""", page)
    assert "fetch('openapi.json')" in page
    assert "innerHTML" not in page
