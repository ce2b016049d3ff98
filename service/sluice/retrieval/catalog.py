"""What there is: files, vector stores, which file is in which store and how far it got, batches. One SQLite file.

Every question takes the tenant, and every statement that a client can cause has it in its WHERE: what is another tenant's is
not there (`StoreNotFound`, the same for both). The rows are what survives a `kill -9`: a step that was answered is on the disk.
One thread uses it; the methods block for a few milliseconds.

What is still to be done with the files is asked of `work`.
"""

from __future__ import annotations

import json
import secrets
import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sluice.errors import BadRequest, StoreExpired, StoreNotFound
from sluice.retrieval.passages import connect, transaction
from sluice.retrieval.worklist import WorkList

MAX_FILES = 10_000  # in one store
MAX_STORES = 1_000  # of one tenant
VISIBLE = "status != 'deleting'"
SCHEMA = """
CREATE TABLE IF NOT EXISTS files (
    seq INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, tenant TEXT NOT NULL, filename TEXT NOT NULL,
    bytes INTEGER NOT NULL, purpose TEXT NOT NULL, sha256 TEXT NOT NULL, created_at INTEGER NOT NULL, expires_at INTEGER
);
CREATE INDEX IF NOT EXISTS files_of_tenant ON files (tenant, seq);
CREATE TABLE IF NOT EXISTS stores (
    seq INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, tenant TEXT NOT NULL, name TEXT NOT NULL,
    description TEXT, metadata TEXT NOT NULL, created_at INTEGER NOT NULL, last_active_at INTEGER NOT NULL,
    expires_days INTEGER, embedding_model TEXT
);
CREATE INDEX IF NOT EXISTS stores_of_tenant ON stores (tenant, seq);
CREATE TABLE IF NOT EXISTS store_files (
    seq INTEGER PRIMARY KEY AUTOINCREMENT, store_id TEXT NOT NULL, id TEXT NOT NULL, tenant TEXT NOT NULL,
    status TEXT NOT NULL, parsed INTEGER NOT NULL DEFAULT 0, error_code TEXT, error_message TEXT,
    attributes TEXT NOT NULL, max_tokens INTEGER NOT NULL, overlap_tokens INTEGER NOT NULL, batch_id TEXT,
    usage_bytes INTEGER NOT NULL DEFAULT 0, created_at INTEGER NOT NULL, UNIQUE (store_id, id)
);
CREATE INDEX IF NOT EXISTS store_files_by_status ON store_files (store_id, status);
CREATE INDEX IF NOT EXISTS store_files_to_do ON store_files (status, parsed) WHERE status IN ('in_progress', 'deleting');
CREATE INDEX IF NOT EXISTS store_files_of_file ON store_files (id);
CREATE TABLE IF NOT EXISTS batches (
    seq INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, store_id TEXT NOT NULL, tenant TEXT NOT NULL,
    created_at INTEGER NOT NULL, cancelled INTEGER NOT NULL DEFAULT 0
);
CREATE INDEX IF NOT EXISTS store_files_of_batch ON store_files (batch_id) WHERE batch_id IS NOT NULL;
"""
Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Page:
    """Which part of a list is asked for."""

    limit: int = 20
    order: str = "desc"
    after: str | None = None
    before: str | None = None


@dataclass(frozen=True, slots=True)
class Attachment:
    """A file that shall be in a store, and how it is to be cut."""

    file_id: str
    attributes: dict[str, str | float | bool]
    max_tokens: int
    overlap_tokens: int


def new_id(prefix: str) -> str:
    """128 random bits: nobody guesses one."""
    return prefix + secrets.token_hex(16)


class Catalog:
    """Used by `with`. `wall_clock` is Unix time."""

    def __init__(self, path: Path, wall_clock: Callable[[], float]) -> None:
        self._wall_clock = wall_clock
        self._db = connect(path, is_writer=True)
        self._db.row_factory = sqlite3.Row
        self.work = WorkList(self._db, self.now)
        with transaction(self._db):
            for statement in SCHEMA.split(";\n"):
                self._db.execute(statement)

    def __enter__(self) -> Catalog:
        return self

    def __exit__(self, *exc: object) -> None:
        self._db.close()

    def now(self) -> int:
        return int(self._wall_clock())

    # Files

    def add_file(
        self, tenant: str, *, id: str, filename: str, bytes: int, purpose: str, sha256: str, expires_s: int | None
    ) -> Row:
        now = self.now()
        expires_at = None if expires_s is None else now + expires_s
        self._db.execute(
            "INSERT INTO files (id, tenant, filename, bytes, purpose, sha256, created_at, expires_at) "
            "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            [id, tenant, filename, bytes, purpose, sha256, now, expires_at],
        )
        return self.file(tenant, id)

    def file(self, tenant: str, file_id: str) -> Row:
        return self._one("SELECT * FROM files WHERE id = ? AND tenant = ?", [file_id, tenant], file_id, "file")

    def files(self, tenant: str, page: Page, purpose: str | None = None) -> tuple[list[Row], bool]:
        where, parameters = "tenant = ?", [tenant]
        if purpose is not None:
            where, parameters = f"{where} AND purpose = ?", [*parameters, purpose]
        return self._page("files", where, parameters, page)

    def bytes_of(self, tenant: str) -> int:
        [(total,)] = self._db.execute("SELECT coalesce(sum(bytes), 0) FROM files WHERE tenant = ?", [tenant])
        return int(total)

    def stores_with(self, tenant: str, file_id: str) -> list[str]:
        rows = self._db.execute("SELECT store_id FROM store_files WHERE id = ? AND tenant = ?", [file_id, tenant])
        return [store_id for (store_id,) in rows]

    def forget_file(self, tenant: str, file_id: str) -> None:
        self._db.execute("DELETE FROM files WHERE id = ? AND tenant = ?", [file_id, tenant])

    # Stores

    def add_store(
        self,
        tenant: str,
        *,
        name: str,
        description: str | None,
        metadata: dict[str, str],
        expires_days: int | None,
        embedding_model: str | None,
        attachments: Sequence[Attachment] = (),
    ) -> Row:
        """The store, with these files to come; raises `StoreNotFound` for a file that the tenant does not have."""
        store_id, now = new_id("vs_"), self.now()
        with transaction(self._db):
            [(count,)] = self._db.execute("SELECT count(*) FROM stores WHERE tenant = ?", [tenant])
            if count >= MAX_STORES:
                raise BadRequest(f"There are {MAX_STORES} vector stores already; delete one that is not needed.")
            self._db.execute(
                "INSERT INTO stores (id, tenant, name, description, metadata, created_at, last_active_at, expires_days, "
                "embedding_model) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                [store_id, tenant, name, description, json.dumps(metadata), now, now, expires_days, embedding_model],
            )
            self._attach(tenant, store_id, attachments, None)
        return self.store(tenant, store_id)

    def store(self, tenant: str, store_id: str) -> Row:
        row = self._one("SELECT * FROM stores WHERE id = ? AND tenant = ?", [store_id, tenant], store_id, "vector store")
        return self._with_counts(row)

    def stores(self, tenant: str, page: Page) -> tuple[list[Row], bool]:
        rows, has_more = self._page("stores", "tenant = ?", [tenant], page)
        return [self._with_counts(row) for row in rows], has_more

    def change_store(self, tenant: str, store_id: str, changes: dict[str, Any]) -> Row:
        """`changes` are columns of ours by name."""
        with transaction(self._db):
            self.store(tenant, store_id)
            for column, value in changes.items():
                sql = f"UPDATE stores SET {column} = ? WHERE id = ? AND tenant = ?"
                self._db.execute(sql, [value, store_id, tenant])
            self._touch(tenant, store_id)
        return self.store(tenant, store_id)

    def to_search(self, tenant: str, store_ids: Sequence[str]) -> dict[str, str | None]:
        """Stores that are about to be searched, with their embedding models; they live longer for it, to a minute.

        Raises `StoreNotFound` and `StoreExpired`.
        """
        found, now = {}, self.now()
        for id in store_ids:
            row = self._one("SELECT * FROM stores WHERE id = ? AND tenant = ?", [id, tenant], id, "vector store")
            days, used_at = row["expires_days"], row["last_active_at"]
            if days is not None and used_at + 86_400 * days <= now:
                raise StoreExpired(f"The vector store {id} has expired.")
            if now - used_at >= 60:
                self._touch(tenant, id)
            found[id] = row["embedding_model"]
        return found

    def forget_store(self, tenant: str, store_id: str) -> None:
        with transaction(self._db):
            self.store(tenant, store_id)
            for sql in (
                "DELETE FROM stores WHERE id = ? AND tenant = ?",
                "DELETE FROM store_files WHERE store_id = ? AND tenant = ?",
                "DELETE FROM batches WHERE store_id = ? AND tenant = ?",
            ):
                self._db.execute(sql, [store_id, tenant])

    # Files of a store

    def attach(self, tenant: str, store_id: str, attachment: Attachment) -> Row:
        """The file in the store; one that is there already stays as it is, unless it had failed or was cancelled."""
        with transaction(self._db):
            self.store(tenant, store_id)
            self._attach(tenant, store_id, [attachment], None)
            self._touch(tenant, store_id)
        return self.store_file(tenant, store_id, attachment.file_id)

    def store_file(self, tenant: str, store_id: str, file_id: str) -> Row:
        sql = f"SELECT * FROM store_files WHERE store_id = ? AND id = ? AND tenant = ? AND {VISIBLE}"
        return self._one(sql, [store_id, file_id, tenant], file_id, "file")

    def store_files(
        self, tenant: str, store_id: str, page: Page, *, status: str | None = None, batch_id: str | None = None
    ) -> tuple[list[Row], bool]:
        self.store(tenant, store_id)
        where, parameters = f"store_id = ? AND tenant = ? AND {VISIBLE}", [store_id, tenant]
        for column, value in (("status", status), ("batch_id", batch_id)):
            if value is not None:
                where, parameters = f"{where} AND {column} = ?", [*parameters, value]
        return self._page("store_files", where, parameters, page)

    def set_attributes(self, tenant: str, store_id: str, file_id: str, attributes: dict[str, Any]) -> Row:
        self.store_file(tenant, store_id, file_id)
        sql = "UPDATE store_files SET attributes = ? WHERE store_id = ? AND id = ? AND tenant = ?"
        self._db.execute(sql, [json.dumps(attributes), store_id, file_id, tenant])
        return self.store_file(tenant, store_id, file_id)

    def mark_deleting(self, tenant: str, store_id: str, file_id: str) -> None:
        self.store_file(tenant, store_id, file_id)
        sql = "UPDATE store_files SET status = 'deleting' WHERE store_id = ? AND id = ? AND tenant = ?"
        self._db.execute(sql, [store_id, file_id, tenant])

    def forget_store_file(self, tenant: str, store_id: str, file_id: str) -> None:
        sql = "DELETE FROM store_files WHERE store_id = ? AND id = ? AND tenant = ? AND status = 'deleting'"
        self._db.execute(sql, [store_id, file_id, tenant])

    # Batches

    def add_batch(self, tenant: str, store_id: str, attachments: Sequence[Attachment]) -> Row:
        batch_id = new_id("vsfb_")
        with transaction(self._db):
            self.store(tenant, store_id)
            sql = "INSERT INTO batches (id, store_id, tenant, created_at) VALUES (?, ?, ?, ?)"
            self._db.execute(sql, [batch_id, store_id, tenant, self.now()])
            self._attach(tenant, store_id, attachments, batch_id)
            self._touch(tenant, store_id)
        return self.batch(tenant, store_id, batch_id)

    def batch(self, tenant: str, store_id: str, batch_id: str) -> Row:
        sql = "SELECT * FROM batches WHERE id = ? AND store_id = ? AND tenant = ?"
        row = self._one(sql, [batch_id, store_id, tenant], batch_id, "file batch")
        return row | {"counts": self._counts("batch_id = ?", batch_id)}

    def cancel_batch(self, tenant: str, store_id: str, batch_id: str) -> Row:
        """What is not done yet is not begun; what is begun is finished and stays."""
        with transaction(self._db):
            self.batch(tenant, store_id, batch_id)
            self._db.execute("UPDATE batches SET cancelled = 1 WHERE id = ?", [batch_id])
            sql = "UPDATE store_files SET status = 'cancelled' WHERE batch_id = ? AND status = 'in_progress' AND NOT parsed"
            self._db.execute(sql, [batch_id])
        return self.batch(tenant, store_id, batch_id)

    # Within

    def _attach(self, tenant: str, store_id: str, attachments: Sequence[Attachment], batch_id: str | None) -> None:
        for one in attachments:
            self.file(tenant, one.file_id)
            self._db.execute(
                "INSERT INTO store_files (store_id, id, tenant, status, attributes, max_tokens, overlap_tokens, batch_id, "
                "created_at) VALUES (?, ?, ?, 'in_progress', ?, ?, ?, ?, ?) ON CONFLICT (store_id, id) DO UPDATE SET "
                "status = iif(status IN ('failed', 'cancelled'), 'in_progress', status), batch_id = excluded.batch_id, "
                "parsed = iif(status IN ('failed', 'cancelled'), 0, parsed), error_code = NULL, error_message = NULL",
                [
                    *(store_id, one.file_id, tenant, json.dumps(one.attributes)),
                    *(one.max_tokens, one.overlap_tokens, batch_id, self.now()),
                ],
            )
        [(count,)] = self._db.execute("SELECT count(*) FROM store_files WHERE store_id = ?", [store_id])
        if count > MAX_FILES:
            raise BadRequest(f"A vector store holds at most {MAX_FILES} files.")

    def _touch(self, tenant: str, store_id: str) -> None:
        sql = "UPDATE stores SET last_active_at = ? WHERE id = ? AND tenant = ?"
        self._db.execute(sql, [self.now(), store_id, tenant])

    def _with_counts(self, row: Row) -> Row:
        sql = "SELECT coalesce(sum(usage_bytes), 0) FROM store_files WHERE store_id = ?"
        [(usage,)] = self._db.execute(sql, [row["id"]])
        return row | {"counts": self._counts("store_id = ?", row["id"]), "usage_bytes": int(usage)}

    def _counts(self, where: str, value: str) -> dict[str, int]:
        counts = dict.fromkeys(("in_progress", "completed", "failed", "cancelled"), 0)
        sql = f"SELECT status, count(*) FROM store_files WHERE {where} AND {VISIBLE} GROUP BY status"
        counts |= {status: count for status, count in self._db.execute(sql, [value])}
        return counts | {"total": sum(counts.values())}

    def _one(self, sql: str, parameters: list[Any], id: str, kind: str) -> Row:
        row = self._db.execute(sql, parameters).fetchone()
        if row is None:
            raise StoreNotFound(id, kind)
        return dict(row)

    def _page(self, table: str, where: str, parameters: list[Any], page: Page) -> tuple[list[Row], bool]:
        """Rows in the order that they were made, and whether there are more. A cursor that is not there is a 404."""
        descends = page.order == "desc"
        sql, bound = f"SELECT * FROM {table} WHERE {where}", list(parameters)
        for cursor, is_after in ((page.after, True), (page.before, False)):
            if cursor is not None:
                seek = f"SELECT seq FROM {table} WHERE {where} AND id = ?"
                seq = self._one(seek, [*parameters, cursor], cursor, "object")["seq"]
                sql += f" AND seq {'<' if descends == is_after else '>'} ?"
                bound.append(seq)
        # Those before a cursor are the nearest to it.
        backwards = page.before is not None and page.after is None
        sql += f" ORDER BY seq {'DESC' if descends != backwards else 'ASC'} LIMIT ?"
        rows = [dict(row) for row in self._db.execute(sql, [*bound, page.limit + 1])]
        has_more = len(rows) > page.limit
        rows = rows[: page.limit]
        return (rows[::-1] if backwards else rows), has_more
