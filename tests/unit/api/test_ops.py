"""Alive, ready, metrics: for operators and their machines."""

from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.support import scripts
from tests.support.asgi_client import asgi_request
from tests.support.scripted_worker import ScriptedWorker
from tests.unit.in_process import ASK, CHAT, Gateway, serving, settings, told

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def readiness(gateway: Gateway) -> tuple[int, str]:
    """The same on both ports."""
    response = await gateway.request("GET", "/readyz", key=None)
    inside = await asgi_request(gateway.app.metrics_app, "GET", "/readyz")
    assert (response.status, response.body) == (inside.status, inside.body)
    assert response.header("content-type") == "text/plain; charset=utf-8"
    return response.status, response.body.decode()


async def test_alive_needs_no_key(gateway: Gateway):
    response = await gateway.request("GET", "/livez", key=None)
    assert (response.status, response.body) == (200, b"ok\n")
    assert (await asgi_request(gateway.app.metrics_app, "GET", "/livez")).body == b"ok\n"


async def test_ready_means_that_a_route_has_a_healthy_worker(tmp_path: Path):
    async with ScriptedWorker() as worker:
        worker.on("/health", scripts.empty(503), None)
        asked = settings(tmp_path, worker, probes={"health_interval_s": 0.02})
        async with serving(asked) as gateway:
            assert await readiness(gateway) == (503, "no route has a healthy worker\n")
            await gateway.until(lambda: bool(gateway.pools[0].is_ready))
            assert await readiness(gateway) == (200, "ok\n")
            await worker.stop()
            await gateway.until(lambda: not gateway.pools[0].is_ready)
            assert await readiness(gateway) == (503, "no route has a healthy worker\n")


async def test_ready_ends_with_the_drain_and_alive_does_not(gateway: Gateway):
    gateway.app.readiness.is_draining = True
    try:
        assert await readiness(gateway) == (503, "draining\n")
        assert (await gateway.request("GET", "/livez")).status == 200
    finally:
        gateway.app.readiness.is_draining = False


async def test_metrics_on_the_main_port_are_for_admins(gateway: Gateway):
    told(await gateway.request("GET", "/metrics", key=None), 401)
    assert "sluice key new --scope admin" in told(await gateway.request("GET", "/metrics"), 403)
    response = await gateway.request("GET", "/metrics", key=gateway.keys.admin)
    assert response.status == 200


async def test_metrics_on_their_own_port_need_no_key_and_are_prometheus_format(gateway: Gateway):
    await gateway.request("POST", CHAT, json=ASK)
    response = await asgi_request(gateway.app.metrics_app, "GET", "/metrics")

    assert str(response.header("content-type")).startswith("text/plain; version=")
    names = {family.name for family in text_string_to_metric_families(response.body.decode())}
    assert {"sluice_calls", "sluice_worker_up", "sluice_overhead_seconds"} <= names


async def test_in_open_mode_nobody_is_an_admin(tmp_path: Path):
    async with serving(settings(tmp_path, "http://127.0.0.1:9", auth={"mode": "open"})) as gateway:
        told(await gateway.request("GET", "/metrics", key=None), 403)


@pytest.mark.parametrize("path", ["/", "/docs", "/v1/models", CHAT])
async def test_the_metrics_port_has_nothing_else(gateway: Gateway, path: str):
    response = await asgi_request(gateway.app.metrics_app, "GET", path)
    assert response.status == 404
    assert response.json()["error"]["message"] == f"There is no GET {path} here."


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/metrics", "/docs", "/openapi.json"])
async def test_another_method_is_a_405(gateway: Gateway, path: str):
    response = await gateway.request("POST", path, body=b"")
    told(response, 405)
    assert response.header("allow") == "GET"
