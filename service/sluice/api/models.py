"""`GET /v1/models`: what this key may ask for, from memory (Open WebUI asks every second)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter, Request

from sluice.api.access import tenant_of
from sluice.directory import Directory, Target
from sluice.errors import ModelNotFound
from sluice.gateway import Served
from sluice.keys import Door
from sluice.types import Tenant


def router(directory: Directory, routes: Mapping[str, Served], door: Door) -> APIRouter:
    api = APIRouter(tags=["models"])

    def listed(tenant: Tenant) -> list[dict[str, Any]]:
        return [_entry(name, target, routes[target.route]) for name, target in directory.names(tenant).items()]

    @api.get("/v1/models", summary="The models that this key may use")
    @api.get("/models", include_in_schema=False)
    async def models(request: Request) -> dict[str, Any]:
        return {"object": "list", "data": listed(tenant_of(request.scope["visit"], door))}

    @api.get("/v1/models/{model:path}", summary="One model")
    @api.get("/models/{model:path}", include_in_schema=False)
    async def model(model: str, request: Request) -> dict[str, Any]:
        for entry in listed(tenant_of(request.scope["visit"], door)):
            if entry["id"] == model:
                return entry
        raise ModelNotFound(model)

    return api


def _entry(name: str, target: Target, served: Served) -> dict[str, Any]:
    """OpenAI's members, vLLM's `max_model_len`, and the members of OpenRouter that Chatbox reads."""
    known = served.pool.models().get(target.served_model)
    entry: dict[str, Any] = {
        "id": name,
        "object": "model",
        "created": known.created if known else 0,
        "owned_by": "sluice",
    }
    if known and known.max_model_len is not None:
        entry["max_model_len"] = entry["context_length"] = known.max_model_len
    if known and known.parent is not None:
        entry["parent"] = target.route
    if target.settings.input_modalities:
        entry["architecture"] = {"input_modalities": list(target.settings.input_modalities)}
    return entry
