"""Puts retrieval together: the hook on calls, the process of files and vector stores, the models of this gateway they use."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from typing import Self

from sluice.children import Children, RouteCounter, RouteEmbedder, RouteReranker, RouteRewriter
from sluice.config import Settings
from sluice.errors import RetrievalUnavailable
from sluice.gateway import Gateway, Served
from sluice.http_json import HttpJson
from sluice.metrics import Metrics
from sluice.retrieval.adapters.table import external_stores, retriever_of
from sluice.retrieval.base import Embedder, Retriever, Weights
from sluice.retrieval.hook import Hook
from sluice.retrieval.process import Process, process_of
from sluice.retrieval.records import Records
from sluice.retrieval.remote import RemoteRetriever
from sluice.retrieval.search import EMBEDDED, Searcher
from sluice.retrieval.supply import VectorSupply
from sluice.types import Call, Outcome
from sluice.usage import Ledger


@dataclass(frozen=True, slots=True)
class Retrieving:
    """What a gateway has of retrieval. None: not configured."""

    hook: Hook | None
    process: Process | None
    supply: VectorSupply | None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        if self.process is not None:
            await self.process.__aexit__(*exc)

    async def run(self) -> None:
        """Beside the requests: go on with what was left half done, and bring vectors. Until cancelled."""
        if self.process is not None and self.process.has_data():
            with suppress(RetrievalUnavailable):  # the next request tries again
                await self.process.reach()
        if self.supply is not None:
            await self.supply.run()


def retrieving(
    settings: Settings,
    *,
    gateway: Gateway,
    routes: Mapping[str, Served],
    http: HttpJson,
    resources: AsyncExitStack,
    metrics: Metrics,
    clock: Callable[[], float],
    ledger: Ledger | None = None,
) -> Retrieving:
    """All of it; `resources` closes what the retrievers hold."""
    retrieval = settings.retrieval

    def told(call: Call, outcome: Outcome) -> None:
        metrics.call_ended(call.route, call.endpoint, outcome, call.tenant.name)
        if ledger is not None:
            ledger.call_ended(call, outcome)

    children = Children(gateway, routes, clock, told)
    route = retrieval.embedding_route
    embedder = RouteEmbedder(children, route, retrieval.embedding) if route else None
    weights = Weights(retrieval.embedding.text_weight, retrieval.embedding.vector_weight)
    token = os.environ.get(retrieval.token_env) if retrieval.token_env else None
    process = process_of(retrieval, token, clock) if retrieval.store is not None else None
    embedded = RemoteRetriever(process, weights=weights, clock=clock) if process is not None else None
    hook = _hook(settings, children, embedder, embedded, routes, http, resources, metrics, clock)
    supply = None
    if process is not None and embedder is not None:
        supply = VectorSupply(process, embedder, timeout_s=retrieval.embedding.batch_timeout_s, clock=clock)
    return Retrieving(hook, process, supply)


def _hook(
    settings: Settings,
    children: Children,
    embedder: Embedder | None,
    embedded: RemoteRetriever | None,
    routes: Mapping[str, Served],
    http: HttpJson,
    resources: AsyncExitStack,
    metrics: Metrics,
    clock: Callable[[], float],
) -> Hook | None:
    """The hook; None where nothing is configured that could be searched."""
    retrieval = settings.retrieval
    retrievers: dict[str, Retriever] = {
        name: retriever_of(name, one, http=http, resources=resources, clock=clock) for name, one in retrieval.retrievers.items()
    }
    if embedded is not None:
        retrievers[EMBEDDED] = embedded
    if not retrievers:
        return None
    on_call = retrieval.on_call
    searcher = Searcher(
        retrievers=retrievers,
        external=external_stores(retrieval.retrievers),
        ready=embedded.ready if embedded is not None else None,
        embedder=embedder,
        reranker=RouteReranker(children, on_call.rerank_route) if on_call.rerank_route else None,
        settings=on_call,
        clock=clock,
    )
    return Hook(
        searcher=searcher,
        counter=RouteCounter(children, clock),
        rewriter=RouteRewriter(children, on_call.rewrite_route) if on_call.rewrite_route else None,
        records=Records(clock),
        contexts=lambda call: _context(routes, call),
        defaults={name: route.retrieval for name, route in settings.routes.items()},
        settings=on_call,
        metrics=metrics.retrieval,
        clock=clock,
        wall_clock=time.time,
    )


def _context(routes: Mapping[str, Served], call: Call) -> int | None:
    """The context of the call's model, as its workers have told."""
    served = routes[call.route]
    known = served.pool.models().get(call.adapter or served.settings.served_model or call.route)
    return known.max_model_len if known is not None else None
