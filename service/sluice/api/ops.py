"""For operators and their machines: alive, ready, metrics."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

from sluice.api import errors
from sluice.api.access import admin_of
from sluice.keys import Door


class Readiness:
    """Whether new calls should come here: not while draining, nor while no route has a healthy worker."""

    def __init__(self, has_workers: Callable[[], bool]) -> None:
        self._has_workers = has_workers
        self.is_draining = False

    def reason_against(self) -> str | None:
        if self.is_draining:
            return "draining"
        return None if self._has_workers() else "no route has a healthy worker"


def router(readiness: Readiness, registry: CollectorRegistry, door: Door) -> APIRouter:
    """The main port: `/metrics` names tenants and workers, so it needs an admin's key here."""
    api = _probes(readiness)

    summary = "Prometheus metrics; needs a key with the scope admin on this port"

    @api.get("/metrics", summary=summary, response_class=PlainTextResponse)
    async def metrics(request: Request) -> Response:
        admin_of(request.scope["visit"], door)
        return await run_in_threadpool(_exposition, registry)

    return api


def metrics_app(readiness: Readiness, registry: CollectorRegistry) -> FastAPI:
    """The metrics port, for Prometheus and the kubelet: no keys, so it must not be reachable from outside."""
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None, redirect_slashes=False)
    errors.install(app)
    api = _probes(readiness)

    @api.get("/metrics")
    async def metrics() -> Response:
        return await run_in_threadpool(_exposition, registry)

    app.include_router(api)
    return app


def _probes(readiness: Readiness) -> APIRouter:
    api = APIRouter(tags=["operations"])

    @api.get("/livez", summary="200 while the process runs its event loop", response_class=PlainTextResponse)
    async def livez() -> Response:
        return PlainTextResponse("ok\n")

    refused: dict[int | str, dict[str, Any]] = {503: {"description": "Draining, or no route has a healthy worker"}}

    @api.get(
        "/readyz",
        summary="200 while new calls are welcome, else 503 with the reason",
        response_class=PlainTextResponse,
        responses=refused,
    )
    async def readyz() -> Response:
        against = readiness.reason_against()
        return PlainTextResponse(f"{against or 'ok'}\n", status_code=503 if against else 200)

    return api


def _exposition(registry: CollectorRegistry) -> Response:
    return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)
