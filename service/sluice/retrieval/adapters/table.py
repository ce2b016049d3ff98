"""The retrievers that a configuration can name."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack

from sluice.config import ConfigError, RetrieverSettings
from sluice.http_json import HttpJson
from sluice.loading import load
from sluice.retrieval.adapters.http import HttpRetriever
from sluice.retrieval.adapters.qdrant import QdrantRetriever
from sluice.retrieval.adapters.web import WebRetriever
from sluice.retrieval.base import Retriever, StoreRef
from sluice.retrieval.search import External

PGVECTOR = "sluice.retrieval.adapters.pgvector:PgvectorRetriever"  # its driver is an extra


def retriever_of(
    name: str, settings: RetrieverSettings, *, http: HttpJson, resources: AsyncExitStack, clock: Callable[[], float]
) -> Retriever:
    """The retriever of a section `retrieval.retrievers.NAME`; what it holds open is closed with `resources`."""
    api_key = os.environ.get(settings.api_key_env) if settings.api_key_env else None
    if settings.type == "pgvector":
        try:
            kind = load(PGVECTOR)
        except ConfigError as exc:
            raise ConfigError(f"retrieval.retrievers.{name}: pgvector needs psycopg: install sluice[pgvector]") from exc
        made: Retriever = kind(
            name,
            settings.url,
            collection=settings.collection,
            embedding_model=settings.embedding_model,
            password=api_key,
            clock=clock,
        )
        resources.push_async_callback(made.close)  # type: ignore[attr-defined]
        return made
    if settings.type == "qdrant":
        return QdrantRetriever(
            name,
            settings.url,
            http,
            collection=settings.collection,
            vector=settings.vector,
            text_vector=settings.text_vector,
            embedding_model=settings.embedding_model,
            api_key=api_key,
            ca_file=settings.ca_file,
            clock=clock,
        )
    simple = WebRetriever if settings.type == "web" else HttpRetriever
    return simple(name, settings.url, http, api_key=api_key, ca_file=settings.ca_file, clock=clock)


def external_stores(retrievers: Mapping[str, RetrieverSettings]) -> dict[str, External]:
    """The stores that these retrievers have, by the id that calls use."""
    return {
        id: External(StoreRef(id, name), None if settings.tenants is None else frozenset(settings.tenants))
        for name, settings in retrievers.items()
        for id in settings.stores or (name,)
    }
