"""`GET /v1/retrieval/{call id}`: what a call was given. `POST /retrieval`: Dify's external-knowledge contract, over stores."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson
from fastapi import APIRouter, Request, Response

from sluice.api.access import tenant_of
from sluice.api.bodies import BodyReader, Buffers
from sluice.errors import BadRequest, Forbidden, GatewayError, NotFound, StoreNotFound, Unauthenticated
from sluice.keys import Door
from sluice.retrieval.base import MAX_QUERY_CHARS, MAX_RESULTS, Filter, Passage
from sluice.retrieval.filters import parse_filter
from sluice.retrieval.hook import Hook
from sluice.retrieval.wish import Wish
from sluice.types import Tenant
from sluice.wire.json_body import object_of

# Dify's words for a condition, and OpenAI's; what has no word there is refused.
COMPARED = {"is": "eq", "=": "eq", "is not": "ne", "≠": "ne", ">": "gt", "≥": "gte", "<": "lt", "≤": "lte"}
COMPARED |= {"in": "in", "not in": "nin"}


def router(hook: Hook | None, door: Door, reader: BodyReader, buffers: Buffers) -> APIRouter:
    api = APIRouter(tags=["retrieval"])

    @api.get("/v1/retrieval/{call_id}", summary="What retrieval gave to one of your calls, word for word")
    @api.get("/retrieval/{call_id}", include_in_schema=False)
    async def given(call_id: str, request: Request) -> dict[str, Any]:
        tenant = tenant_of(request.scope["visit"], door)
        found = hook.records.get(tenant.name, call_id) if hook is not None else None
        if found is None:
            raise NotFound(f"No retrieval of a call {call_id[:80]!r} is kept here.")
        return found

    @api.post("/v1/retrieval", summary="Search one store, by the contract of Dify's external knowledge")
    @api.post("/retrieval", include_in_schema=False)
    async def retrieval(request: Request) -> Response:
        try:
            tenant = tenant_of(request.scope["visit"], door)
            with buffers.hold() as held:
                body = await reader.read(request.scope["visit"], request.receive, held)
                asked = object_of(body)
            return _json(200, {"records": await _records(hook, tenant, asked)})
        except GatewayError as exc:
            return _json(exc.status, {"error_code": _code(exc), "error_msg": _message(exc)}, exc)

    return api


async def _records(hook: Hook | None, tenant: Tenant, asked: Mapping[str, Any]) -> list[dict[str, Any]]:
    if hook is None:
        raise BadRequest("Retrieval is not configured on this gateway.")
    wish, query = _wish(asked)
    _, found = await hook.search(tenant, wish, [query])
    return [_record(passage) for passage in found.passages]


def _wish(asked: Mapping[str, Any]) -> tuple[Wish, str]:
    """The search that is asked for. Raises `BadRequest`."""
    knowledge_id, query, setting = (asked.get(name) for name in ("knowledge_id", "query", "retrieval_setting"))
    if not isinstance(knowledge_id, str) or not 0 < len(knowledge_id) <= 128:
        raise BadRequest("`knowledge_id` must be the id of a store.")
    if not isinstance(query, str) or not query.strip():
        raise BadRequest("`query` must be a text.")
    if not isinstance(setting, dict):
        raise BadRequest("`retrieval_setting` must be an object of top_k and score_threshold.")
    top_k, threshold = setting.get("top_k"), setting.get("score_threshold") or 0.0
    if type(top_k) is not int or not 1 <= top_k <= MAX_RESULTS:
        raise BadRequest(f"`top_k` must be an integer from 1 to {MAX_RESULTS}.")
    if type(threshold) not in (int, float) or not 0 <= threshold <= 1:
        raise BadRequest("`score_threshold` must be a number from 0 to 1.")
    condition = _filter(asked.get("metadata_condition"))
    wish = Wish((knowledge_id,), max_num_results=top_k, score_threshold=float(threshold), filters=condition)
    return wish, query[:MAX_QUERY_CHARS]


def _filter(condition: Any) -> Filter | None:
    """Dify's condition as a filter."""
    if condition is None:
        return None
    conditions = condition.get("conditions") if isinstance(condition, dict) else None
    if not isinstance(conditions, list) or not all(isinstance(one, dict) for one in conditions):
        raise BadRequest("`metadata_condition` must be an object of logical_operator and conditions.")
    if not conditions:
        return None
    filters = []
    for one in conditions:
        names, word = one.get("name"), one.get("comparison_operator")
        if not isinstance(word, str) or word not in COMPARED:
            raise BadRequest(f"`metadata_condition`: the operators are {', '.join(COMPARED)}.")
        names = names if isinstance(names, list) and names else [names]
        each = [{"type": COMPARED[word], "key": name, "value": one.get("value")} for name in names]
        filters.append(each[0] if len(each) == 1 else {"type": "or", "filters": each})
    joined = {"type": condition.get("logical_operator") or "and", "filters": filters}
    return parse_filter(joined, param="metadata_condition")


def _record(passage: Passage) -> dict[str, Any]:
    score = passage.score if passage.similarity is None else passage.similarity
    metadata = {"document_id": passage.file_id, "chunk_id": passage.chunk_id, **passage.attributes}
    title = passage.title or passage.filename
    return {"content": passage.text, "score": round(score, 6), "title": title, "metadata": metadata}


def _code(error: GatewayError) -> int:
    if isinstance(error, StoreNotFound):
        return 2001
    return 1002 if isinstance(error, Unauthenticated | Forbidden) else error.status


def _message(error: GatewayError) -> str:
    return "The knowledge does not exist." if isinstance(error, StoreNotFound) else error.message


def _json(status: int, body: Mapping[str, Any], error: GatewayError | None = None) -> Response:
    headers = dict(error.headers()) if error is not None else None
    return Response(orjson.dumps(body), status, headers, media_type="application/json")
