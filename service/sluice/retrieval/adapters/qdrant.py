"""A Qdrant collection over its REST API: vectors, and the words of texts as a sparse vector beside them.

    POST /collections/{collection}/points/query {prefetch, query, using, filter, limit, with_payload}

A point's payload has `tenant_id`, `vector_store_id`, `file_id`, `chunk_id`, `filename`, `title`, `text`, `attributes`. The
tenant is a condition of every query, added here; index `tenant_id` as a keyword with `is_tenant`. The words are those of
`retrieval.tokens`, so that Chinese is found; each is the CRC of its letters, and the collection's modifier `idf` weighs them.

Tested against a server with the recorded shapes of Qdrant 1.15's API, not against a live one.
"""

from __future__ import annotations

import re
import uuid
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from zlib import crc32

from sluice.errors import BadRequest, RetrievalTimeout, RetrievalUnavailable
from sluice.http_json import HttpJson, HttpJsonError
from sluice.retrieval.adapters.http import MAX_REPLY_BYTES, MAX_TEXT_CHARS, attributes_of
from sluice.retrieval.base import (
    Comparison,
    Failure,
    Filter,
    Health,
    Mode,
    Passage,
    QueryVectors,
    Search,
    SearchResult,
    StoreRef,
    Weights,
)
from sluice.retrieval.fusion import DEPTH, fuse
from sluice.retrieval.tokens import Analyzer
from sluice.types import Tenant

KEY = re.compile(r"[A-Za-z0-9_-]{1,64}")  # anything else would be a path of Qdrant's
NAMESPACE = uuid.UUID("6f1de8f4-6c2b-4b0e-9d5c-0d8f5d0f9a11")
UPSERT_TIMEOUT_S = 30.0
Json = dict[str, Any]


class QdrantRetriever:
    """One collection. `vector` is the name of its dense vector where it has several, `text_vector` of the sparse one."""

    def __init__(
        self,
        name: str,
        url: str,
        http: HttpJson,
        *,
        collection: str,
        vector: str | None,
        text_vector: str | None,
        embedding_model: str | None,
        api_key: str | None,
        ca_file: Path | None,
        clock: Callable[[], float],
    ) -> None:
        self.name = name
        self.capabilities = frozenset({"dense", "filters", "write", *(("lexical", "hybrid") if text_vector else ())})
        self._url = f"{url.rstrip('/')}/collections/{collection}"
        self._http = http
        self._vector = vector
        self._text_vector = text_vector
        self._embedding_model = embedding_model
        self._headers = {"api-key": api_key} if api_key else {}
        self._ca_file = ca_file
        self._clock = clock
        self._analyzer = Analyzer()

    async def search(self, search: Search) -> SearchResult:
        """Each ranking is asked for by itself and fused here, so that weights and several queries mean the same everywhere."""
        search.check_model(self._embedding_model)
        weights = search.weights or Weights()
        stores = [one.id for one in search.stores]
        must = [_match("tenant_id", search.tenant.name), {"key": "vector_store_id", "match": {"any": stores}}]
        if search.filters is not None:
            must.append(condition(search.filters))
        asked: list[tuple[Json, float]] = []
        if search.vectors is not None and search.mode != "lexical":
            asked += [(self._dense(row), weights.embedding) for row in search.vectors.rows]
        if self._text_vector is not None and search.mode != "dense":
            asked += [(self._sparse(query), weights.text) for query in search.queries]
        if not asked:
            return SearchResult((), tuple(Failure(one.id, "no_embeddings") for one in search.stores))
        rankings: list[tuple[list[tuple[str, str]], float]] = []
        known: dict[tuple[str, str], Passage] = {}
        for query, weight in asked:
            found = await self._query(query | {"filter": {"must": must}, "limit": DEPTH, "with_payload": True}, search.deadline)
            is_dense = query.get("using") != self._text_vector
            passages = [one for point in found if (one := _passage(point, search.tenant, is_dense=is_dense)) is not None]
            rankings.append(([(one.vector_store_id, one.chunk_id) for one in passages], weight))
            known |= {key: one for one in passages if (key := (one.vector_store_id, one.chunk_id)) not in known}
        ranked = fuse(rankings)[: search.limit]
        done: Mode = search.mode if self._text_vector or search.mode == "lexical" else "dense"
        if search.vectors is None:
            done = "lexical"
        return SearchResult(tuple(replace(known[key], score=score) for key, score in ranked), mode=done)

    async def health(self) -> Health:
        try:
            await self._http.get_json(self._url, headers=self._headers, timeout_s=2, ca_file=self._ca_file)
        except HttpJsonError as exc:
            return Health(is_up=False, reason=str(exc))
        return Health(is_up=True)

    async def upsert(
        self, *, tenant: Tenant, store: StoreRef, passages: Sequence[Passage], vectors: QueryVectors | None
    ) -> int:
        points = []
        for i, passage in enumerate(passages):
            found: Json = {} if self._text_vector is None else {self._text_vector: self._words(passage.text)}
            if vectors is not None:
                found[self._vector or ""] = list(vectors.rows[i])
            payload = {
                **{"tenant_id": tenant.name, "vector_store_id": store.id, "file_id": passage.file_id},
                **{"chunk_id": passage.chunk_id, "filename": passage.filename, "title": passage.title},
                **{"text": passage.text, "attributes": dict(passage.attributes)},
            }
            # A tenant's own id for each: nobody writes over another's point.
            id = str(uuid.uuid5(NAMESPACE, f"{tenant.name}\0{store.id}\0{passage.chunk_id}"))
            points.append({"id": id, "vector": found, "payload": payload})
        await self._post("/points/batch?wait=true", {"operations": [{"upsert": {"points": points}}]}, UPSERT_TIMEOUT_S)
        return len(points)

    async def delete(self, *, tenant: Tenant, store: StoreRef, file_id: str | None) -> int:
        must = [_match("tenant_id", tenant.name), _match("vector_store_id", store.id)]
        must += [] if file_id is None else [_match("file_id", file_id)]
        counted = await self._post("/points/count", {"filter": {"must": must}, "exact": True}, UPSERT_TIMEOUT_S)
        await self._post("/points/delete?wait=true", {"filter": {"must": must}}, UPSERT_TIMEOUT_S)
        return int(counted.get("count", 0)) if isinstance(counted, dict) else 0

    def _dense(self, row: Sequence[float]) -> Json:
        return {"query": list(row)} | ({"using": self._vector} if self._vector else {})

    def _sparse(self, query: str) -> Json:
        words = dict.fromkeys(crc32(word.encode()) for word, _ in self._analyzer.query(query)[:64])
        return {"query": {"indices": list(words), "values": [1.0] * len(words)}, "using": self._text_vector}

    def _words(self, text: str) -> Json:
        counts = Counter(crc32(word.encode()) for word in self._analyzer.words(text))
        total = sum(counts.values()) or 1
        # BM25's saturation for a passage of usual length; how rare a word is the collection knows.
        values = [2.2 * count / (count + 1.2 * (0.25 + 0.75 * total / 400)) for count in counts.values()]
        return {"indices": list(counts), "values": values}

    async def _query(self, asked: Json, deadline: float) -> list[Any]:
        result = await self._post("/points/query", asked, max(0.001, deadline - self._clock()))
        points = result.get("points") if isinstance(result, dict) else None
        if not isinstance(points, list):
            raise RetrievalUnavailable("A retriever answered with something else than was asked.", retry_after_s=2)
        return points

    async def _post(self, path: str, body: Json, timeout_s: float) -> Any:
        try:
            reply = await self._http.post_json(
                self._url + path,
                body,
                headers=self._headers,
                timeout_s=timeout_s,
                limit_bytes=MAX_REPLY_BYTES,
                ca_file=self._ca_file,
            )
        except HttpJsonError as exc:
            if exc.kind == "timeout":
                raise RetrievalTimeout("A retriever did not answer in time.") from exc
            raise RetrievalUnavailable("A retriever does not answer.", retry_after_s=2) from exc
        return reply.get("result") if isinstance(reply, dict) else None


def condition(found: Filter) -> Json:
    """The filter as Qdrant's condition. Raises `BadRequest` for what it cannot say."""
    if not isinstance(found, Comparison):
        return {"must" if found.operator == "and" else "should": [condition(one) for one in found.filters]}
    if KEY.fullmatch(found.key) is None:
        raise BadRequest("`filters`: this store's keys are letters, digits, - and _.", param="filters")
    key = f"attributes.{found.key}"
    if found.operator in ("gt", "gte", "lt", "lte"):
        if not isinstance(found.value, float):
            raise BadRequest("`filters`: this store compares numbers alone by size.", param="filters")
        return {"key": key, "range": {found.operator: found.value}}
    values = found.value if isinstance(found.value, tuple) else (found.value,)
    tests = [_match(key, value) for value in values]
    return {"must_not": tests} if found.operator in ("ne", "nin") else {"should": tests}


def _match(key: str, value: object) -> Json:
    if isinstance(value, float):
        return {"key": key, "range": {"gte": value, "lte": value}}
    return {"key": key, "match": {"value": value}}


def _passage(point: Any, tenant: Tenant, *, is_dense: bool) -> Passage | None:
    """A point as a passage; None where it is none, or, whatever the server may think, another tenant's."""
    payload = point.get("payload") if isinstance(point, Mapping) else None
    if not isinstance(payload, dict) or payload.get("tenant_id") != tenant.name:
        return None
    text, score, given = payload.get("text"), point.get("score"), payload.get("attributes")
    if not isinstance(text, str):
        return None
    said: Callable[[str], str] = lambda name: str(payload.get(name) or "")[:512]  # noqa: E731
    return Passage(
        chunk_id=said("chunk_id") or str(point.get("id")),
        file_id=said("file_id"),
        filename=said("filename"),
        text=text[:MAX_TEXT_CHARS],
        score=0.0,
        vector_store_id=said("vector_store_id"),
        attributes=attributes_of(given if isinstance(given, dict) else {}),
        similarity=float(score) if is_dense and isinstance(score, int | float) else None,
        char_end=len(text),
        title=said("title"),
    )
