"""The sections of retrieval: what a call's search may take, and the retrievers that a site brings along."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from sluice.config.base import Positive, Seconds, Section
from sluice.config.stores import Stores
from sluice.yaml_lines import Mistake

StoreId = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.:-]{0,127}$")]


def _retriever_url(url: str) -> str:
    if not url.startswith(("http://", "https://", "postgresql://")) or len(url) > 2048 or not url.isascii() or " " in url:
        raise ValueError("a retriever is http://..., https://... or, for pgvector, postgresql://...")
    return url


def _public_url(url: str) -> str:
    if not url.startswith(("http://", "https://")) or "?" in url or "#" in url:
        raise ValueError("the address of the gateway as its clients know it, such as https://llm.example")
    return url.rstrip("/")


Identifier = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_.-]{0,127}$")]
RetrieverUrl = Annotated[str, AfterValidator(_retriever_url)]
PublicUrl = Annotated[str, AfterValidator(_public_url)]


class OnCall(Section):
    """What happens on a call that retrieves."""

    search_timeout_s: Seconds = 0.8
    embed_timeout_s: Seconds = 1
    rerank_route: str | None = None
    rerank_timeout_s: Seconds = 0.5
    rewrite_route: str | None = None
    rewrite_timeout_s: Seconds = 1.5
    max_concurrent_searches: Positive = 16  # of one tenant
    public_url: PublicUrl | None = None
    control_tokens: tuple[str, ...] = ()


class RetrieverSettings(Section):
    """A search of the site's own, behind the protocol of `retrieval.base`."""

    type: Literal["http", "qdrant", "pgvector", "web"]
    url: RetrieverUrl
    api_key_env: str | None = None
    ca_file: Path | None = None
    tenants: tuple[str, ...] | None = None  # who may search it; None: every tenant
    stores: tuple[StoreId, ...] = ()  # the ids that calls name it by; none: its own name
    collection: Identifier = "passages"
    vector: Identifier | None = None
    text_vector: Identifier | None = None
    embedding_model: str | None = None

    @model_validator(mode="after")
    def _fits_its_type(self) -> Self:
        if (self.type == "pgvector") != self.url.startswith("postgresql://"):
            raise Mistake(f"a {self.type} retriever has another kind of address", "url")
        if self.type == "web" and self.stores:
            raise Mistake("the web is one store, named as this retriever is", "stores")
        return self


class Retrieval(Stores):
    """Files, vector stores, and searches on calls."""

    embedding_route: str | None = None
    on_call: OnCall = OnCall()
    retrievers: dict[StoreId, RetrieverSettings] = {}

    def resolved(self, folder: Path) -> Retrieval:
        """The same with relative paths made absolute from `folder`."""
        retrievers = {
            name: one.model_copy(update={"ca_file": folder / one.ca_file if one.ca_file else None})
            for name, one in self.retrievers.items()
        }
        return self.model_copy(update={"retrievers": retrievers, "path": folder / self.path})

    @model_validator(mode="after")
    def _ids_are_unique(self) -> Self:
        owner: dict[str, str] = {}
        for name, retriever in self.retrievers.items():
            if name == "embedded" or name.startswith("vs_"):
                raise Mistake("this name is the embedded engine's; take another", "retrievers", name)
            for id in retriever.stores or (name,):
                if id in owner or id.startswith("vs_"):
                    raise Mistake(f"the store {id!r} is another's already", "retrievers", name)
                owner[id] = name
        return self
