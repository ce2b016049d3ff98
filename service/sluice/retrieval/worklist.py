"""What is to be done with the files of stores, of all tenants, and how far each got: the part of the catalogue for ingestion.

A file in a store is in_progress until its passages are written (`parsed`) and, where the store has an embedding model, all
have vectors; then it is completed. `deleting` is shown to nobody, and finished at the next start if need be. A change of state
names the state that it expects: what was deleted or cancelled meanwhile stays so.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from typing import Any


class WorkList:
    """Over the catalogue's connection, for its thread."""

    def __init__(self, db: sqlite3.Connection, now: Callable[[], int]) -> None:
        self._db = db
        self._now = now

    def next_to_parse(self, after_tenant: str, but: tuple[str, str]) -> dict[str, Any] | None:
        """A file of the next tenant in turn, its oldest one; with its name and the embedding model of its store.

        `but` is the store and id of a file that is in work already.
        """
        row = self._db.execute(
            "SELECT f.*, g.filename, s.embedding_model FROM store_files f JOIN files g ON g.id = f.id "
            "JOIN stores s ON s.id = f.store_id WHERE f.status = 'in_progress' AND NOT f.parsed "
            "AND (f.store_id, f.id) != (?, ?) ORDER BY f.tenant <= ?, f.tenant, f.seq LIMIT 1",
            [*but, after_tenant],
        ).fetchone()
        return None if row is None else dict(row)

    def set_parsed(self, store_id: str, file_id: str, *, usage_bytes: int, is_completed: bool) -> str | None:
        """Returns the attributes that the file has by now; None where it is no longer wanted in the store."""
        status = ", status = 'completed'" if is_completed else ""
        sql = (
            f"UPDATE store_files SET parsed = 1, usage_bytes = ?{status} "
            "WHERE store_id = ? AND id = ? AND status = 'in_progress'"
        )
        if not self._db.execute(sql, [usage_bytes, store_id, file_id]).rowcount:
            return None
        sql = "SELECT attributes FROM store_files WHERE store_id = ? AND id = ?"
        [(attributes,)] = self._db.execute(sql, [store_id, file_id])
        return str(attributes)

    def set_completed(self, store_id: str, file_id: str) -> None:
        sql = "UPDATE store_files SET status = 'completed' WHERE store_id = ? AND id = ? AND status = 'in_progress' AND parsed"
        self._db.execute(sql, [store_id, file_id])

    def set_failed(self, store_id: str, file_id: str, code: str, message: str) -> None:
        sql = (
            "UPDATE store_files SET status = 'failed', error_code = ?, error_message = ? "
            "WHERE store_id = ? AND id = ? AND status = 'in_progress'"
        )
        self._db.execute(sql, [code, message, store_id, file_id])

    def stores_awaiting(self, model: str) -> list[tuple[str, str]]:
        """Stores and their tenants where parsed files wait for vectors of this model, the longest first."""
        rows = self._db.execute(
            "SELECT f.store_id, f.tenant, min(f.seq) AS first FROM store_files f JOIN stores s ON s.id = f.store_id "
            "WHERE f.status = 'in_progress' AND f.parsed AND s.embedding_model = ? GROUP BY f.store_id ORDER BY first",
            [model],
        )
        return [(store_id, tenant) for store_id, tenant, _ in rows]

    def unfinished_deletions(self) -> list[tuple[str, str, str]]:
        rows = self._db.execute("SELECT tenant, store_id, id FROM store_files WHERE status = 'deleting'")
        return [tuple(row) for row in rows]

    def expired(self) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
        """Tenant and id of files, and of stores, whose time is over."""
        now = self._now()
        files = self._db.execute("SELECT tenant, id FROM files WHERE expires_at <= ?", [now])
        stores = self._db.execute("SELECT tenant, id FROM stores WHERE last_active_at + 86400 * expires_days <= ?", [now])
        return [tuple(row) for row in files], [tuple(row) for row in stores]

    def known_ids(self) -> tuple[set[str], set[str]]:
        """The ids of all files and of all stores."""
        files = {id for (id,) in self._db.execute("SELECT id FROM files")}
        return files, {id for (id,) in self._db.execute("SELECT id FROM stores")}

    def files_of(self, store_id: str) -> set[str]:
        """The files that may have passages in the store."""
        sql = "SELECT id FROM store_files WHERE store_id = ? AND parsed"
        return {id for (id,) in self._db.execute(sql, [store_id])}

    def parsed_unfinished(self, store_id: str) -> list[str]:
        sql = "SELECT id FROM store_files WHERE store_id = ? AND status = 'in_progress' AND parsed"
        return [id for (id,) in self._db.execute(sql, [store_id])]

    def last_used(self, limit: int) -> list[str]:
        """The stores that were used last."""
        return [id for (id,) in self._db.execute("SELECT id FROM stores ORDER BY last_active_at DESC LIMIT ?", [limit])]
