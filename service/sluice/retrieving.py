"""Puts the retrieval hook together: its retrievers, and the models of this gateway that it may use."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack

from sluice.children import Children, RouteCounter, RouteEmbedder, RouteReranker, RouteRewriter
from sluice.config import Settings
from sluice.gateway import Gateway, Served
from sluice.http_json import HttpJson
from sluice.metrics import Metrics
from sluice.retrieval.adapters.table import external_stores, retriever_of
from sluice.retrieval.base import Retriever
from sluice.retrieval.hook import Hook
from sluice.retrieval.records import Records
from sluice.retrieval.search import EMBEDDED, Searcher
from sluice.types import Call, Outcome


def hook_of(
    settings: Settings,
    *,
    gateway: Gateway,
    routes: Mapping[str, Served],
    embedded: Retriever | None,
    http: HttpJson,
    resources: AsyncExitStack,
    metrics: Metrics,
    clock: Callable[[], float],
) -> Hook | None:
    """The hook; None where nothing is configured that could be searched."""
    retrieval = settings.retrieval
    retrievers = {
        name: retriever_of(name, one, http=http, resources=resources, clock=clock) for name, one in retrieval.retrievers.items()
    }
    if embedded is not None:
        retrievers[EMBEDDED] = embedded
    if not retrievers:
        return None

    def told(call: Call, outcome: Outcome) -> None:
        metrics.call_ended(call.route, call.endpoint, outcome)

    on_call = retrieval.on_call
    children = Children(gateway, routes, clock, told)
    searcher = Searcher(
        retrievers=retrievers,
        external=external_stores(retrieval.retrievers),
        embedder=RouteEmbedder(children, retrieval.embedding_route) if retrieval.embedding_route else None,
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
