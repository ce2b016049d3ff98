"""Searches in the retrieval process, as a `Retriever`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import asdict
from typing import Any, NoReturn
from urllib.parse import quote

import msgspec
import orjson

from sluice.errors import (
    BadRequest,
    EmbeddingMismatch,
    GatewayError,
    RetrievalTimeout,
    RetrievalUnavailable,
    StoreExpired,
    StoreNotFound,
)
from sluice.http_json import HttpJsonError
from sluice.retrieval import wire
from sluice.retrieval.base import (
    MAX_QUERY_CHARS,
    Comparison,
    Filter,
    Health,
    Search,
    SearchResult,
    Weights,
)
from sluice.retrieval.process import Process
from sluice.types import Tenant

RESULT_LIMIT_BYTES = 16_777_216

FAILURES: dict[int, type[GatewayError]] = {
    400: BadRequest,
    409: EmbeddingMismatch,
    410: StoreExpired,
    504: RetrievalTimeout,
}


class RemoteRetriever:
    """The embedded engine, in its process. `weights` are used where a search brings none."""

    name = "embedded"
    capabilities = frozenset({"lexical", "dense", "hybrid", "filters", "write"})

    def __init__(self, process: Process, *, weights: Weights, clock: Callable[[], float]) -> None:
        self._process = process
        self._weights = weights
        self._clock = clock

    async def search(self, search: Search) -> SearchResult:
        timeout_s = search.deadline - self._clock()
        if timeout_s <= 0:
            raise RetrievalTimeout("The search did not begin within its deadline.")
        if not self._process.has_data():  # nobody has ever made a store: no process is started to say so
            raise StoreNotFound(search.stores[0].id)
        weights = search.weights or self._weights
        body = wire.SearchBody(
            stores=tuple(store.id for store in search.stores),
            queries=tuple(query[:MAX_QUERY_CHARS] for query in search.queries),
            limit=search.limit,
            mode=search.mode,
            timeout_s=timeout_s,
            text_weight=weights.text,
            embedding_weight=weights.embedding,
            filters=None if search.filters is None else as_json(search.filters),
            embedding_model=None if search.vectors is None else search.vectors.model_id,
            vectors=None if search.vectors is None else tuple(tuple(map(float, row)) for row in search.vectors.rows),
        )
        return await self._search(search.tenant, body, timeout_s)

    async def ready(self) -> None:
        """Wait for a process that is being started. Raises `RetrievalUnavailable` where there will be none."""
        if self._process.has_data():
            await self._process.reach()

    async def health(self) -> Health:
        try:
            reach = await self._process.reach()
            await reach.http.get_json(f"{reach.url}{wire.HEALTH_PATH}", headers=reach.headers, timeout_s=2)
        except (RetrievalUnavailable, HttpJsonError) as exc:
            return Health(False, str(exc))
        return Health(True)

    async def _search(self, tenant: Tenant, body: wire.SearchBody, timeout_s: float) -> SearchResult:
        reach = await self._process.reach()
        headers = {**reach.headers, wire.TENANT_HEADER: quote(tenant.name, safe="")}
        content = msgspec.json.encode(body)
        try:
            async with asyncio.timeout(timeout_s + 0.2):  # the process keeps to the deadline itself
                url = f"{reach.url}{wire.SEARCH_PATH}"
                async with reach.http.stream("POST", url, headers=headers, content=content, idle_s=timeout_s + 1) as answer:
                    data = await _read(answer.body)
        except TimeoutError as exc:
            raise RetrievalTimeout("The search did not end within its deadline.") from exc
        except HttpJsonError as exc:
            raise RetrievalUnavailable("The retrieval process cannot be reached.") from exc
        if answer.status != 200:
            _raise(answer.status, data)
        try:
            return wire.decode_result(data)
        except msgspec.MsgspecError as exc:
            raise RetrievalUnavailable("The retrieval process answered with something else than passages.") from exc


def as_json(filters: Filter) -> dict[str, Any]:
    """The filter as OpenAI spells it."""
    if isinstance(filters, Comparison):
        return {"type": filters.operator, "key": filters.key, "value": asdict(filters)["value"]}
    return {"type": filters.operator, "filters": [as_json(one) for one in filters.filters]}


async def _read(body: Any) -> bytes:
    data = bytearray()
    async for chunk in body:
        data += chunk
        if len(data) > RESULT_LIMIT_BYTES:
            raise RetrievalUnavailable("The retrieval process answered with too much.")
    return bytes(data)


def _raise(status: int, data: bytes) -> NoReturn:
    """The process's error as ours."""
    try:
        said = orjson.loads(data)["error"]
        message, param = str(said["message"]), said.get("param")
    except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError):
        message, param = "The retrieval process failed.", None
    if status == 404:
        error: GatewayError = StoreNotFound("")
        error.args, error.message, error.param = (message,), message, param
        raise error
    raise FAILURES.get(status, RetrievalUnavailable)(message, param=param)
