"""Any search with the contract of Dify's external knowledge: `POST {url}` {knowledge_id, query, retrieval_setting, ...}.

The tenant goes along as a header, `X-Sluice-Tenant`, since the contract has no place for it: a service that holds several
tenants' texts must go by that. Who may ask for which knowledge at all is the configuration's. The service may be slow, absent,
lying or hostile: its answer is bounded and read by shape, a record that is none is left out, and none of its words are repeated
in an error.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from sluice.errors import BadRequest, StoreNotFound
from sluice.http_json import HttpJson, HttpJsonError
from sluice.retrieval.base import (
    Attributes,
    Comparison,
    Compound,
    Failure,
    Filter,
    Health,
    Passage,
    Search,
    SearchResult,
    StoreRef,
)
from sluice.retrieval.fusion import fuse

MAX_REPLY_BYTES = 4_194_304
MAX_TEXT_CHARS = 20_000  # of one passage
MAX_ATTRIBUTES = 16
NOT_FOUND = 2001  # Dify's code for a knowledge that does not exist

OPERATORS = {"eq": "=", "ne": "≠", "gt": ">", "gte": "≥", "lt": "<", "lte": "≤"}


class HttpRetriever:
    """Asks one URL. Each store is a `knowledge_id` there."""

    capabilities = frozenset({"filters"})  # it embeds by itself, and takes no vectors

    def __init__(
        self, name: str, url: str, http: HttpJson, *, api_key: str | None, ca_file: Path | None, clock: Callable[[], float]
    ) -> None:
        self.name = name
        self._url = url
        self._http = http
        self._headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
        self._ca_file = ca_file
        self._clock = clock

    async def search(self, search: Search) -> SearchResult:
        """The protocol's search; the service ranks as it pleases, so `vectors`, `mode` and `weights` are not sent."""
        condition = None if search.filters is None else metadata_condition(search.filters)
        asked = [(store, query) for store in search.stores for query in search.queries]
        found = await asyncio.gather(*(self._ask(search, *one, condition) for one in asked))
        failures = {store.id: one for (store, _), one in zip(asked, found, strict=True) if isinstance(one, str)}
        lists = [one for one in found if not isinstance(one, str)]
        known = {(one.vector_store_id, one.chunk_id): one for passages in lists for one in passages}
        ranked = fuse([([(one.vector_store_id, one.chunk_id) for one in passages], 1.0) for passages in lists])
        passages = tuple(known[key] for key, _ in ranked)[: search.limit]
        return SearchResult(passages, tuple(Failure(id, code) for id, code in failures.items()), search.mode)

    async def health(self) -> Health:
        """Not asked: the contract has no question for it, and a search would cost. Searches say how it is."""
        return Health(is_up=True)

    async def _ask(
        self, search: Search, store: StoreRef, query: str, condition: Mapping[str, Any] | None
    ) -> list[Passage] | str:
        """The passages, or the code of the failure."""
        setting = {"top_k": search.limit, "score_threshold": 0.0}
        asked = {"knowledge_id": store.id, "query": query, "retrieval_setting": setting}
        if condition is not None:
            asked["metadata_condition"] = condition
        try:
            reply = await self._http.post_json(
                self._url,
                asked,
                headers={**self._headers, "x-sluice-tenant": quote(search.tenant.name)},
                timeout_s=max(0.001, search.deadline - self._clock()),
                limit_bytes=MAX_REPLY_BYTES,
                ca_file=self._ca_file,
            )
        except HttpJsonError as exc:
            if exc.status == 404 or _code(exc.body) == NOT_FOUND:
                raise StoreNotFound(store.id) from exc
            return "timeout" if exc.kind == "timeout" else "unavailable"
        records = reply.get("records") if isinstance(reply, dict) else None
        if not isinstance(records, list):
            return "unavailable"
        return [one for record in records[: search.limit] if (one := passage_of(record, store.id)) is not None]


def passage_of(record: Any, store_id: str) -> Passage | None:
    """A record as a passage; None where it holds no text."""
    if not isinstance(record, dict) or not isinstance(text := record.get("content"), str) or not text.strip():
        return None
    given = record.get("metadata")
    attributes = attributes_of(given if isinstance(given, dict) else {})
    title = record.get("title")
    title = title[:512] if isinstance(title, str) else ""
    score = record.get("score")
    text = text[:MAX_TEXT_CHARS]
    digest = hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()
    is_score = isinstance(score, int | float) and not isinstance(score, bool) and math.isfinite(score)
    return Passage(
        chunk_id=f"c_{digest[:16]}",
        file_id=str(attributes.get("document_id") or f"ext-{digest[:24]}"),
        filename=title or store_id,
        text=text,
        score=min(1.0, max(0.0, float(score))) if is_score else 0.0,  # type: ignore[arg-type]
        vector_store_id=store_id,
        attributes=attributes,
        similarity=float(score) if is_score else None,  # type: ignore[arg-type]
        char_end=len(text),
        title=title,
    )


def attributes_of(given: Mapping[str, Any]) -> Attributes:
    """What of foreign metadata is an attribute, bounded as OpenAI's are."""
    kept = {
        str(key)[:64]: value[:512] if isinstance(value, str) else value
        for key, value in given.items()
        if isinstance(value, str | bool) or (isinstance(value, int | float) and math.isfinite(value))
    }
    return dict(list(kept.items())[:MAX_ATTRIBUTES])


def metadata_condition(filters: Filter) -> dict[str, Any]:
    """The filter in Dify's words, which know one level. Raises `BadRequest` for what they cannot say."""
    if isinstance(filters, Comparison):
        return {"logical_operator": "and", "conditions": [_condition(filters)]}
    if any(isinstance(one, Compound) for one in filters.filters):
        raise BadRequest("`filters`: this store takes one `and` or `or` of comparisons, not nested ones.", param="filters")
    conditions = [_condition(one) for one in filters.filters if isinstance(one, Comparison)]
    return {"logical_operator": filters.operator, "conditions": conditions}


def _condition(one: Comparison) -> dict[str, Any]:
    if isinstance(one.value, tuple):
        word = "in" if one.operator == "in" else "not in"
        return {"name": [one.key], "comparison_operator": word, "value": list(one.value)}
    word = OPERATORS[one.operator]
    if isinstance(one.value, str):
        word = {"=": "is", "≠": "is not"}.get(word, word)
    return {"name": [one.key], "comparison_operator": word, "value": one.value}


def _code(body: bytes) -> int | None:
    """Dify's `error_code`, searched for and not parsed: this is an error's body, of whatever shape."""
    at = body.find(b'"error_code"')
    digits = bytes(one for one in body[at + 12 : at + 24] if 0x30 <= one <= 0x39) if at >= 0 else b""
    return int(digits) if digits else None
