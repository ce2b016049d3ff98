"""What gateways ask for themselves: searches with vectors that they made, texts to embed, and whether we are up."""

from __future__ import annotations

from typing import TypeVar

import msgspec
import numpy as np
from fastapi import APIRouter, Request, Response

from sluice.api.stores.trust import Trust
from sluice.errors import BadRequest, EmbeddingMismatch
from sluice.ingest.vectors import VectorWork
from sluice.retrieval import wire
from sluice.retrieval.base import MAX_QUERIES, MAX_RESULTS, MAX_STORES, SearchResult, Weights
from sluice.retrieval.catalog import Catalog
from sluice.retrieval.embedded import Asked
from sluice.retrieval.filters import parse_filter
from sluice.retrieval.storage import Storage

Kind = TypeVar("Kind")

MAX_WAIT_S = 30.0
MAX_SEARCH_S = 60.0


def router(storage: Storage, trust: Trust, work: VectorWork) -> APIRouter:
    api = APIRouter()

    @api.post(wire.SEARCH_PATH)
    async def search(request: Request) -> Response:
        tenant = trust.tenant(request)
        asked = _decoded(await request.body(), wire.SearchBody)
        result = await _searched(storage, tenant, asked)
        return Response(wire.encode_result(result), media_type="application/json")

    @api.post(wire.TAKE_PATH)
    async def take(request: Request) -> Response:
        trust.check(request)
        asked = _decoded(await request.body(), wire.TakeBody)
        batch = await work.take(asked.model, wait_s=min(asked.wait_s, MAX_WAIT_S))
        if batch is not None and await request.is_disconnected():
            work.give_back(batch)
            batch = None
        if batch is None:
            return Response(b"null", media_type="application/json")
        found = wire.TakenBody(batch.store_id, batch.tenant, batch.ids, batch.texts)
        return Response(msgspec.json.encode(found), media_type="application/json")

    @api.post(wire.PUT_PATH)
    async def put(request: Request) -> Response:
        trust.check(request)
        given = _decoded(await request.body(), wire.PutBody)
        try:
            vectors = np.frombuffer(given.vectors, "<f4").reshape(len(given.ids), -1)
            await work.put(given.store_id, given.ids, vectors)
        except ValueError as exc:
            raise BadRequest(f"The vectors cannot be kept: {exc}.") from exc
        return Response(b"{}", media_type="application/json")

    @api.post(wire.FAIL_PATH)
    async def fail(request: Request) -> Response:
        trust.check(request)
        given = _decoded(await request.body(), wire.PutBody)
        await work.fail(given.store_id, given.ids)
        return Response(b"{}", media_type="application/json")

    @api.get(wire.HEALTH_PATH)
    async def health(request: Request) -> Response:
        trust.check(request)
        return Response(b"{}", media_type="application/json")

    return api


async def _searched(storage: Storage, tenant: str, asked: wire.SearchBody) -> SearchResult:
    """The search, of stores that are all this tenant's."""
    if not (0 < len(asked.stores) <= MAX_STORES and 0 < len(asked.queries) <= MAX_QUERIES and 0 < asked.limit <= MAX_RESULTS):
        raise BadRequest("Too many stores, queries or results.")
    models = await storage.ask(Catalog.to_search, tenant, asked.stores)
    has_vectors = set()
    for id, model in models.items():
        if asked.vectors is not None and model is not None:
            if model != asked.embedding_model:
                said = f"The vector store {id} was embedded by {model}, which is not in use now."
                raise EmbeddingMismatch(f"{said} Make a new store of its files, or search with mode lexical.")
            has_vectors.add(id)
    if asked.mode == "dense" and not has_vectors:
        raise BadRequest("These vector stores have no embeddings; search with mode lexical.", param="mode")
    vectors = None if asked.vectors is None else _unit(asked.vectors, len(asked.queries))
    search = Asked(
        stores=asked.stores,
        queries=asked.queries,
        vectors=vectors if asked.mode != "lexical" else None,
        has_vectors=frozenset(has_vectors),
        filters=parse_filter(asked.filters),
        limit=asked.limit,
        mode=asked.mode,
        weights=Weights(asked.text_weight, asked.embedding_weight),
    )
    return await storage.engine.search(search, timeout_s=min(asked.timeout_s, MAX_SEARCH_S))


def _unit(rows: tuple[tuple[float, ...], ...], num_queries: int) -> np.ndarray:
    try:
        vectors = np.array(rows, np.float32)
    except ValueError as exc:
        raise BadRequest("The query's vectors differ in length.") from exc
    if vectors.ndim != 2 or len(vectors) != num_queries or not vectors.size or not np.isfinite(vectors).all():
        raise BadRequest("Each query needs one vector, of finite numbers.")
    unit: np.ndarray = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    return unit


def _decoded(data: bytes, kind: type[Kind]) -> Kind:
    try:
        return msgspec.json.decode(data, type=kind)
    except msgspec.MsgspecError as exc:
        raise BadRequest(f"Not what a gateway of this version sends: {exc}.") from exc
