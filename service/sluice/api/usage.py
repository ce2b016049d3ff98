"""`GET /v1/usage`: what was used, from the ledger. An admin sees everybody's, a tenant its own."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request
from fastapi.concurrency import run_in_threadpool

from sluice.api.access import tenant_of
from sluice.errors import BadRequest, InternalError, NotFound
from sluice.keys import Door
from sluice.ledger_file import GROUPS, report

DEFAULT_DAYS = 30


def router(folder: Path | None, door: Door, wall_clock: Callable[[], float]) -> APIRouter:
    api = APIRouter(tags=["operations"])

    @api.get("/v1/usage", summary="Calls, tokens and GPU-seconds by tenant, key, user, route, worker or day")
    @api.get("/usage", include_in_schema=False)
    async def usage(request: Request, by: str = "tenant,day", since: str = "", until: str = "") -> dict[str, Any]:
        tenant = tenant_of(request.scope["visit"], door)
        if folder is None:
            raise NotFound("This gateway keeps no ledger; `ledger.folder` would name its place.")
        groups = [name.strip() for name in by.split(",") if name.strip()]
        if not set(groups) <= set(GROUPS):
            raise BadRequest(f"`by` is a list of {', '.join(GROUPS)}, with commas between them.", param="by")
        today = datetime.fromtimestamp(wall_clock(), UTC).date()
        last = _day(until, "until", today)
        first = _day(since, "since", last - timedelta(days=DEFAULT_DAYS - 1))
        only = None if "admin" in tenant.scopes else tenant.name
        try:
            found = await run_in_threadpool(report, folder, by=groups, since=first, until=last, tenant=only)
        except sqlite3.Error as exc:
            raise InternalError from exc
        period = {"since": first.isoformat(), "until": last.isoformat()}
        return {"object": "list", "replicas": found.replicas, **period, "data": found.rows}

    return api


def _day(text: str, name: str, default: date) -> date:
    try:
        return date.fromisoformat(text) if text else default
    except ValueError as exc:
        raise BadRequest(f"`{name}` is a day such as 2026-11-25.", param=name) from exc
