"""One call's search: all its stores at once, within one deadline, whoever has them; fused, deduplicated, reranked, cut.

A store that is not the caller's, an expired one, a bad filter are the call's own mistakes and end it. A retriever that is down,
slow or broken is a failure of its stores: told to a client that wants to know, and the end of a call that wants all or nothing.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from sluice.config import OnCall
from sluice.errors import BadRequest, GatewayError, RetrievalTimeout, RetrievalUnavailable, StoreNotFound
from sluice.retrieval.base import (
    MAX_RESULTS,
    Embedder,
    Failure,
    Mode,
    Passage,
    QueryVectors,
    Reranker,
    Retriever,
    Search,
    SearchResult,
    StoreRef,
)
from sluice.retrieval.breaker import Breaker
from sluice.retrieval.fusion import fuse
from sluice.retrieval.wish import Wish
from sluice.types import Tenant

EMBEDDED = "embedded"
START_S = 10.0  # what a search waits for a retriever that is being started
# Whoever is asked keeps to the deadline. Who does not is cancelled a little later, so that nobody is cancelled twice at once:
# what closes a connection would be interrupted.
GRACE_S = 0.2

logger = logging.getLogger("sluice.retrieval")


@dataclass(frozen=True, slots=True)
class External:
    """A store of a configured retriever, and who may search it; `tenants` None: everybody."""

    ref: StoreRef
    tenants: frozenset[str] | None


class Searcher:
    """Finds the passages of a call. `external` has the stores that are not the embedded engine's, by the id that calls use.

    `ready` waits for the embedded engine's start, which is no part of a search's time.
    """

    def __init__(
        self,
        *,
        retrievers: Mapping[str, Retriever],
        external: Mapping[str, External],
        ready: Callable[[], Awaitable[None]] | None,
        embedder: Embedder | None,
        reranker: Reranker | None,
        settings: OnCall,
        clock: Callable[[], float],
    ) -> None:
        self._retrievers = retrievers
        self._external = external
        self._ready = ready
        self._embedder = embedder
        self._reranker = reranker
        self._settings = settings
        self._clock = clock
        self._breakers = {name: Breaker(clock) for name in retrievers}

    async def search(self, tenant: Tenant, wish: Wish, queries: Sequence[str]) -> SearchResult:
        """The passages, the best first. Raises `StoreNotFound`, `StoreExpired`, `EmbeddingMismatch`, `BadRequest`; where the
        wish does not fail open, `RetrievalUnavailable` and `RetrievalTimeout` too.
        """
        by_retriever = self._grouped(tenant, wish)
        if EMBEDDED in by_retriever and self._ready is not None:
            with suppress(TimeoutError, RetrievalUnavailable):  # the search itself says so
                async with asyncio.timeout(START_S):
                    await self._ready()
        mode, vectors, notes = await self._vectors(tenant, wish, queries, by_retriever)
        asked = Search(
            tenant,
            (),
            queries,
            limit=MAX_RESULTS if self._reranker is not None and wish.reranks else wish.max_num_results,
            mode=mode,
            deadline=self._clock() + self._settings.search_timeout_s,
            vectors=vectors,
            filters=wish.filters,
            weights=wish.weights,
        )
        results = await _all([self._one(name, replace(asked, stores=refs)) for name, refs in by_retriever.items()])
        failures = tuple(failure for result in results for failure in result.failures)
        if failures and not wish.fails_open:
            raise _failure_of(failures)
        passages = _unique(_merged(results))
        notes += tuple(note for result in results for note in result.notes if note not in notes)
        passages, reranked, skipped = await self._reranked(tenant, wish, queries[0], passages)
        passages = _over_threshold(passages, wish.score_threshold)[: wish.max_num_results]
        done: Mode = next((result.mode for result in results if result.mode != "lexical"), "lexical")
        return SearchResult(tuple(passages), failures, done, tuple(dict.fromkeys((*notes, *skipped))), reranked)

    def _grouped(self, tenant: Tenant, wish: Wish) -> dict[str, list[StoreRef]]:
        grouped: dict[str, list[StoreRef]] = {}
        for id in wish.stores:
            found = self._external.get(id)
            if found is not None and found.tenants is not None and tenant.name not in found.tenants:
                found = None
            elif found is None and EMBEDDED in self._retrievers:
                found = External(StoreRef(id), None)  # the engine knows whose it is
            if found is None:
                raise StoreNotFound(id)
            grouped.setdefault(found.ref.retriever, []).append(found.ref)
        return grouped

    async def _vectors(
        self, tenant: Tenant, wish: Wish, queries: Sequence[str], by_retriever: Mapping[str, object]
    ) -> tuple[Mode, QueryVectors | None, tuple[str, ...]]:
        """The queries' vectors, made once for all stores that take them; without an embedder a hybrid search is lexical."""
        takes_vectors = any("dense" in self._retrievers[name].capabilities for name in by_retriever)
        if wish.mode == "lexical" or not takes_vectors:
            return wish.mode, None, ()
        if self._embedder is None:
            if wish.mode == "dense":
                raise BadRequest("`retrieval.mode` dense needs an embedder, and none is configured.", param="retrieval")
            return "hybrid", None, ("no_embeddings",)
        deadline = self._clock() + self._settings.embed_timeout_s
        try:
            async with asyncio.timeout(self._settings.embed_timeout_s + GRACE_S):
                rows = await self._embedder.embed(queries, tenant=tenant, kind="query", deadline=deadline)
        except (TimeoutError, GatewayError) as exc:
            if wish.mode == "dense":
                raise RetrievalUnavailable(
                    "The embedder does not answer, and a dense search needs it.", retry_after_s=2
                ) from exc
            return "lexical", None, ("embedder_unavailable",)
        return wish.mode, QueryVectors(self._embedder.model_id, rows), ()

    async def _one(self, name: str, search: Search) -> SearchResult:
        """The result of one retriever; its own failure is one of all its stores."""
        breaker = self._breakers[name]
        if breaker.is_open:
            return _failed(search.stores, "unavailable")
        try:
            async with asyncio.timeout(search.deadline - self._clock() + GRACE_S):
                result = await self._retrievers[name].search(search)
        except (TimeoutError, RetrievalTimeout):
            breaker.failed()
            return _failed(search.stores, "timeout")
        except GatewayError as exc:
            if exc.status < 500:  # the call's own mistake
                breaker.succeeded()
                raise
            breaker.failed()
            return _failed(search.stores, "unavailable")
        except Exception:
            logger.exception("the retriever %s failed inside the gateway", name)
            breaker.failed()
            return _failed(search.stores, "failed")
        if result.failures and not result.passages:
            breaker.failed()
        else:
            breaker.succeeded()
        return result

    async def _reranked(
        self, tenant: Tenant, wish: Wish, query: str, passages: list[Passage]
    ) -> tuple[list[Passage], bool, tuple[str, ...]]:
        """The first passages in the reranker's order; in their own, with a note, where it does not answer in time."""
        if self._reranker is None or not wish.reranks or not passages:
            return passages, False, ()
        head = passages[:MAX_RESULTS]
        timeout_s = self._settings.rerank_timeout_s
        texts = [passage.text for passage in head]
        try:
            async with asyncio.timeout(timeout_s + GRACE_S):
                ranked = await self._reranker.rerank(
                    query, texts, tenant=tenant, top_n=len(head), deadline=self._clock() + timeout_s
                )
        except (TimeoutError, GatewayError):
            return passages, False, ("rerank_skipped",)
        return [replace(head[i], score=score, similarity=score) for i, score in ranked if 0 <= i < len(head)], True, ()


async def _all(searches: Sequence[Coroutine[Any, Any, SearchResult]]) -> list[SearchResult]:
    """All of them at once; the first mistake ends the others."""
    tasks = [asyncio.create_task(search) for search in searches]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _failed(refs: Sequence[StoreRef], code: str) -> SearchResult:
    return SearchResult((), tuple(Failure(ref.id, code) for ref in refs))


def _failure_of(failures: Sequence[Failure]) -> GatewayError:
    if all(failure.code == "timeout" for failure in failures):
        return RetrievalTimeout("The search did not end in time; `retrieval.on_error` open would answer without it.")
    return RetrievalUnavailable(
        "Sources cannot be searched now; `retrieval.on_error` open would answer without.", retry_after_s=2
    )


def _merged(results: Sequence[SearchResult]) -> list[Passage]:
    """The passages of all retrievers: in the order of the only one that found some, else fused by rank."""
    found = [result.passages for result in results if result.passages]
    if len(found) < 2:
        return list(found[0]) if found else []
    known = {(one.vector_store_id, one.chunk_id): one for passages in found for one in passages}
    ranked = fuse([([(one.vector_store_id, one.chunk_id) for one in passages], 1.0) for passages in found])
    return [replace(known[key], score=score) for key, score in ranked]


def _unique(passages: Sequence[Passage]) -> list[Passage]:
    """Each text once: the same file in two stores is one source."""
    seen: set[str] = set()
    out = []
    for passage in passages:
        text = " ".join(passage.text.split())
        if text and text not in seen:
            seen.add(text)
            out.append(passage)
    return out


def _over_threshold(passages: list[Passage], threshold: float) -> list[Passage]:
    """Held against what is comparable across searches: a cosine or a reranker's score. Fused ranks are not."""
    if not threshold or not passages:
        return passages
    if all(passage.similarity is None for passage in passages):
        raise BadRequest(
            "`score_threshold` needs embeddings or a reranker to be held against, and this search had neither.",
            param="retrieval",
        )
    return [passage for passage in passages if passage.similarity is not None and passage.similarity >= threshold]
