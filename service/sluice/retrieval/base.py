"""What a retriever is: the nouns of a search, and the protocols of those who take part in it.

    search = Search(tenant, [StoreRef("vs_1")], ["port of the gateway"], limit=8, mode="lexical", deadline=loop.time() + 0.8)
    result = await retriever.search(search)

The tenant is required everywhere and comes from the key, never from a request's body: there is no way to search
by a store's id alone, and an adapter adds the tenant's predicate itself. A store that is unknown and one of another tenant are
the same `StoreNotFound`. Whoever implements a protocol bounds what it reads, keeps to the deadline (event loop's clock), may
be cancelled at any await, and fails only with a `GatewayError` whose text holds nothing of another's answer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from typing import Literal, Protocol

from sluice.errors import EmbeddingMismatch
from sluice.types import Tenant

Mode = Literal["hybrid", "lexical", "dense"]
Operator = Literal["eq", "ne", "gt", "gte", "lt", "lte", "in", "nin"]
Scalar = str | float | bool
Attributes = Mapping[str, Scalar]
Vector = Sequence[float]

MAX_STORES = 8  # of one search
MAX_RESULTS = 50
MAX_QUERIES = 5
MAX_QUERY_CHARS = 2_000  # of one query; what is longer is cut


@dataclass(frozen=True, slots=True)
class StoreRef:
    """A vector store as a caller names it, and the retriever that has it (a name of the configuration)."""

    id: str
    retriever: str = "embedded"


@dataclass(frozen=True, slots=True)
class Passage:
    """A piece of a file. `score` orders the passages of one result (0 to 1) and means nothing across results.

    `similarity` is the cosine to the nearest query, or a reranker's score where `SearchResult.reranked`: what a threshold is
    held against. None where neither is known.
    """

    chunk_id: str
    file_id: str
    filename: str
    text: str
    score: float
    vector_store_id: str
    attributes: Attributes = field(default_factory=dict)
    similarity: float | None = None
    lex_rank: int | None = None
    dense_rank: int | None = None
    char_start: int = 0
    char_end: int = 0
    title: str = ""  # the headings above it


@dataclass(frozen=True, slots=True)
class Comparison:
    """One attribute against a value, or for `in` and `nin` against several. An absent attribute satisfies only `ne`, `nin`."""

    operator: Operator
    key: str
    value: Scalar | tuple[Scalar, ...]


@dataclass(frozen=True, slots=True)
class Compound:
    operator: Literal["and", "or"]
    filters: tuple[Filter, ...]


Filter = Comparison | Compound


@dataclass(frozen=True, slots=True)
class QueryVectors:
    """A vector for each query, all by one model."""

    model_id: str
    rows: Sequence[Vector]


@dataclass(frozen=True, slots=True)
class Weights:
    """How much each ranking counts in a hybrid search (OpenAI's `hybrid_search`); at least one is over 0."""

    text: float = 1.0
    embedding: float = 1.0


@dataclass(frozen=True, slots=True)
class Search:
    """What a retriever is asked. `weights` None: those of the retriever's embedder."""

    tenant: Tenant
    stores: Sequence[StoreRef]
    queries: Sequence[str]
    _: KW_ONLY
    limit: int
    mode: Mode
    deadline: float
    vectors: QueryVectors | None = None
    filters: Filter | None = None
    weights: Weights | None = None

    def check_model(self, model: str | None) -> None:
        """Raises `EmbeddingMismatch` for vectors of another model than the one that is known of the stores."""
        if self.vectors is not None and model not in (None, self.vectors.model_id):
            said = f"The store {self.stores[0].id} was embedded by another model than {self.vectors.model_id}."
            raise EmbeddingMismatch(said)


@dataclass(frozen=True, slots=True)
class Failure:
    """One store could not be searched: our own code for why, and no inner text."""

    vector_store_id: str
    code: str


@dataclass(frozen=True, slots=True)
class SearchResult:
    """The best passages first, without duplicates.

    `mode` is what was really done: a hybrid search is lexical where no store has vectors or the embedder is down. `notes` say
    what else was left out, from a fixed set: `embedder_unavailable`, `no_embeddings`, `rerank_skipped`, `rewrite_skipped`.
    """

    passages: tuple[Passage, ...]
    failures: tuple[Failure, ...] = ()
    mode: Mode = "lexical"
    notes: tuple[str, ...] = ()
    reranked: bool = False

    @property
    def is_degraded(self) -> bool:
        """Whether something that was asked for and exists did not work."""
        return bool(self.failures) or "embedder_unavailable" in self.notes or "rerank_skipped" in self.notes


@dataclass(frozen=True, slots=True)
class Health:
    is_up: bool
    reason: str = ""


class Retriever(Protocol):
    """Finds passages. `capabilities` are words of: lexical, dense, hybrid, filters, write."""

    name: str
    capabilities: frozenset[str]

    async def search(self, search: Search) -> SearchResult:
        """The passages of all these stores, fused over queries and modes (`retrieval.fusion`).

        Raises `StoreNotFound` where a store is not this tenant's,
        `StoreExpired`, `EmbeddingMismatch` for vectors of another model than the store's; `RetrievalUnavailable` and
        `RetrievalTimeout` where nothing can be said. A store that failed among others is in `failures`.
        """

    async def health(self) -> Health: ...


class WritableRetriever(Retriever, Protocol):
    async def upsert(
        self, *, tenant: Tenant, store: StoreRef, passages: Sequence[Passage], vectors: QueryVectors | None
    ) -> int:
        """Put passages, by `chunk_id`, with a vector for each where there are vectors. Returns how many."""

    async def delete(self, *, tenant: Tenant, store: StoreRef, file_id: str | None) -> int:
        """Take out a file's passages, or all of the store's. Returns how many; none is no error."""


class Embedder(Protocol):
    """Makes vectors. `weights` are those with which its rankings are fused unless a search says otherwise."""

    model_id: str
    weights: Weights

    async def embed(
        self, texts: Sequence[str], *, tenant: Tenant, kind: Literal["query", "passage"], deadline: float
    ) -> list[list[float]]:
        """A vector for each text, all of one length. Charged to the tenant. Raises `RetrievalUnavailable`."""


class Reranker(Protocol):
    async def rerank(
        self, query: str, texts: Sequence[str], *, tenant: Tenant, top_n: int, deadline: float
    ) -> list[tuple[int, float]]:
        """Positions in `texts` with their scores, the best first. Raises `RetrievalUnavailable`."""
