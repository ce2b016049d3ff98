"""For admins: what waits, and for whom; and which workers get nothing new because an admin wants it so."""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite
from typing import Any, NamedTuple

from fastapi import APIRouter, Request

from sluice.admission.replicas import ReplicaCount
from sluice.api.access import admin_of
from sluice.api.bodies import BodyReader, Buffers
from sluice.errors import BadRequest, NotFound
from sluice.gateway import Served
from sluice.keys import Door
from sluice.types import Body
from sluice.wire.json_body import object_of


class Drain(NamedTuple):
    """What an admin asks for."""

    worker: str
    route: str | None = None  # None: all that have it
    draining: bool = True


def router(routes: Mapping[str, Served], replicas: ReplicaCount, door: Door, reader: BodyReader, buffers: Buffers) -> APIRouter:
    """It names tenants and workers, so it needs an admin's key."""
    api = APIRouter(tags=["operations"])

    @api.get("/v1/queue", summary="What waits for each route in this gateway; needs a key with the scope admin")
    async def queue(request: Request) -> dict[str, Any]:
        admin_of(request.scope["visit"], door)
        return {
            "object": "queue",
            "replicas": {"covered": 1, "of": replicas.number},  # each gateway has queues of its own
            "routes": {name: _shown(served) for name, served in routes.items()},
        }

    @api.post("/v1/workers/drain", summary="Send a worker nothing new, or send to it again; needs a key with the scope admin")
    async def drain(request: Request) -> dict[str, Any]:
        admin_of(request.scope["visit"], door)
        with buffers.hold() as held:
            body = await reader.read(request.scope["visit"], request.receive, held)
            asked = _asked(body)
        found = [
            (name, worker)
            for name, served in routes.items()
            for worker in served.pool.workers
            if asked.route in (None, name) and worker.url == asked.worker.rstrip("/")
        ]
        if not found:
            raise NotFound(f"No worker {asked.worker[:200]!r} is in {'any route' if asked.route is None else 'that route'}.")
        for _, worker in found:
            worker.mark_draining("admin", asked.draining)
        return {
            "object": "list",
            "replicas": {"covered": 1, "of": replicas.number},  # each gateway has to be told
            "data": [
                {"route": name, "worker": worker.url, "state": worker.state, "in_flight": worker.in_flight}
                for name, worker in found
            ],
        }

    return api


def _asked(body: Body) -> Drain:
    """Raises `BadRequest`."""
    asked = object_of(body, frozenset(Drain._fields))
    drain = Drain(**{"worker": None, **asked})
    if type(drain.worker) is not str or type(drain.draining) is not bool or type(drain.route) not in (str, type(None)):
        raise BadRequest("`worker` must be the URL of a worker, `route` the name of a route, and `draining` true or false.")
    return drain


def _shown(served: Served) -> dict[str, Any]:
    state = served.admission.state()
    return {
        "waiting": state.num_waiting,
        "waiting_tokens": int(state.waiting_tokens),
        "in_flight": state.in_flight,
        "in_flight_limit": _finite(state.limit),
        "tokens_per_s": _finite(state.tokens_per_s),
        "predicted_wait_s": _finite(state.predicted_wait_s),
        "shed": state.num_shed,
        "workers": [
            {
                "worker": worker.url,
                "state": worker.state,
                "in_flight": worker.in_flight,
                "in_flight_limit": _finite(worker.window),
                "engine_running": None if worker.load is None else worker.load.num_running,
                "engine_waiting": None if worker.load is None else worker.load.num_waiting,
            }
            for worker in served.pool.workers
        ],
        "tenants": [
            {
                "tenant": tenant.name,
                "weight": tenant.weight,
                "waiting": tenant.num_waiting,
                "waiting_tokens": int(tenant.waiting_cost),
                "in_flight": tenant.in_flight,
                "people_waiting": sum(1 for _ in tenant.waiting),
            }
            for tenant in sorted(served.admission.tenants(), key=lambda tenant: tenant.name)
        ],
    }


def _finite(value: float | None) -> float | None:
    """A number as JSON has them, null where there is no bound or nothing is known."""
    return round(value, 3) if value is not None and isfinite(value) else None
