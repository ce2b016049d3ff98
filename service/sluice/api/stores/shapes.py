"""Rows of the catalogue as OpenAI's objects. The stock SDKs' strict validation takes each of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import orjson

Row = dict[str, Any]


def file_object(row: Row) -> Row:
    return {
        "id": row["id"],
        "object": "file",
        "bytes": row["bytes"],
        "created_at": row["created_at"],
        "expires_at": row["expires_at"],
        "filename": row["filename"],
        "purpose": row["purpose"],
        "status": "processed",
        "status_details": None,
    }


def expires_at(row: Row) -> int | None:
    """When a store's life is over, unless it is used before."""
    return None if row["expires_days"] is None else row["last_active_at"] + 86_400 * row["expires_days"]


def store_object(row: Row, now: int) -> Row:
    ends = expires_at(row)
    is_expired = ends is not None and ends <= now
    status = "expired" if is_expired else "in_progress" if row["counts"]["in_progress"] else "completed"
    days = row["expires_days"]
    return {
        "id": row["id"],
        "object": "vector_store",
        "created_at": row["created_at"],
        "name": row["name"],
        "description": row["description"],
        "usage_bytes": 0 if is_expired else row["usage_bytes"],
        "file_counts": row["counts"],
        "status": status,
        "expires_after": None if days is None else {"anchor": "last_active_at", "days": days},
        "expires_at": ends,
        "last_active_at": row["last_active_at"],
        "metadata": orjson.loads(row["metadata"]),
        "embedding_model": row["embedding_model"],  # ours: null where search is lexical
    }


def store_file_object(row: Row) -> Row:
    error = None if row["error_code"] is None else {"code": row["error_code"], "message": row["error_message"]}
    return {
        "id": row["id"],
        "object": "vector_store.file",
        "created_at": row["created_at"],
        "vector_store_id": row["store_id"],
        "usage_bytes": row["usage_bytes"],
        "status": row["status"],
        "last_error": error,
        "attributes": orjson.loads(row["attributes"]),
        "chunking_strategy": {
            "type": "static",
            "static": {"max_chunk_size_tokens": row["max_tokens"], "chunk_overlap_tokens": row["overlap_tokens"]},
        },
    }


def batch_object(row: Row) -> Row:
    status = "cancelled" if row["cancelled"] else "in_progress" if row["counts"]["in_progress"] else "completed"
    return {
        "id": row["id"],
        "object": "vector_store.files_batch",
        "created_at": row["created_at"],
        "vector_store_id": row["store_id"],
        "status": status,
        "file_counts": row["counts"],
    }


def deleted(id: str, kind: str) -> Row:
    return {"id": id, "object": kind, "deleted": True}


def listed(rows: list[Row], has_more: bool, shape: Callable[[Row], Row]) -> Row:
    data = [shape(row) for row in rows]
    ends = {"first_id": data[0]["id"], "last_id": data[-1]["id"]} if data else {"first_id": None, "last_id": None}
    return {"object": "list", "data": data, **ends, "has_more": has_more}
