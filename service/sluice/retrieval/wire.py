"""How a search travels between a gateway and the retrieval process: JSON both ways, checked by the side that reads."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import msgspec

from sluice.retrieval.base import Failure, Mode, Passage, SearchResult

SEARCH_PATH = "/internal/search"
TAKE_PATH = "/internal/embeddings/take"
PUT_PATH = "/internal/embeddings/put"
FAIL_PATH = "/internal/embeddings/fail"
HEALTH_PATH = "/internal/health"
TENANT_HEADER = "x-sluice-tenant"
MODEL_HEADER = "x-sluice-embedding-model"


class SearchBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A search as it is asked for. `filters` is the client's own object, parsed once more by who reads it."""

    stores: tuple[str, ...]
    queries: tuple[str, ...]
    limit: int
    mode: Mode
    timeout_s: float
    text_weight: float
    embedding_weight: float
    filters: dict[str, Any] | None = None
    embedding_model: str | None = None
    vectors: tuple[tuple[float, ...], ...] | None = None


class TakeBody(msgspec.Struct, frozen=True):
    model: str
    wait_s: float


class TakenBody(msgspec.Struct, frozen=True):
    """Texts to embed; none where nothing waits."""

    store_id: str
    tenant: str
    ids: tuple[int, ...]
    texts: tuple[str, ...]


class PutBody(msgspec.Struct, frozen=True):
    store_id: str
    ids: tuple[int, ...]
    vectors: bytes = b""  # rows of little-endian float32, one after the other (base64 in the JSON)


class _Passage(msgspec.Struct, frozen=True):
    chunk_id: str
    file_id: str
    filename: str
    text: str
    score: float
    vector_store_id: str
    attributes: dict[str, str | float | bool]
    similarity: float | None
    lex_rank: int | None
    dense_rank: int | None
    char_start: int
    char_end: int
    title: str


class _Result(msgspec.Struct, frozen=True):
    passages: tuple[_Passage, ...]
    failures: tuple[tuple[str, str], ...]
    mode: Mode
    notes: tuple[str, ...]


def encode_result(result: SearchResult) -> bytes:
    return msgspec.json.encode(
        {
            "passages": [asdict(one) for one in result.passages],
            "failures": [(one.vector_store_id, one.code) for one in result.failures],
            "mode": result.mode,
            "notes": result.notes,
        }
    )


def decode_result(data: bytes) -> SearchResult:
    """Raises `msgspec.MsgspecError`."""
    found = msgspec.json.decode(data, type=_Result)
    passages = tuple(Passage(**msgspec.structs.asdict(one)) for one in found.passages)
    return SearchResult(passages, tuple(Failure(*one) for one in found.failures), found.mode, found.notes)
