"""The retrievers that a configuration can name."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping

from sluice.config import RetrieverSettings
from sluice.http_json import HttpJson
from sluice.retrieval.adapters.http import HttpRetriever
from sluice.retrieval.adapters.web import WebRetriever
from sluice.retrieval.base import Retriever, StoreRef
from sluice.retrieval.search import External


def retriever_of(name: str, settings: RetrieverSettings, http: HttpJson, clock: Callable[[], float]) -> Retriever:
    """The retriever of a section `retrieval.retrievers.NAME`."""
    api_key = os.environ.get(settings.api_key_env) if settings.api_key_env else None
    made = WebRetriever if settings.type == "web" else HttpRetriever
    return made(name, settings.url, http, api_key=api_key, ca_file=settings.ca_file, clock=clock)


def external_stores(retrievers: Mapping[str, RetrieverSettings]) -> dict[str, External]:
    """The stores that these retrievers have, by the id that calls use."""
    return {
        id: External(StoreRef(id, name), None if settings.tenants is None else frozenset(settings.tenants))
        for name, settings in retrievers.items()
        for id in settings.stores or (name,)
    }
