"""A table of a PostgreSQL with the extension `vector`: cosines, words in a tsvector, and SQL that holds no text of a client.

    CREATE TABLE passages (
        tenant text NOT NULL, store text NOT NULL, chunk_id text NOT NULL, file_id text NOT NULL, filename text NOT NULL,
        title text NOT NULL DEFAULT '', content text NOT NULL, attributes jsonb NOT NULL DEFAULT '{}',
        embedding vector(384), words tsvector NOT NULL, PRIMARY KEY (tenant, store, chunk_id));
    CREATE INDEX ON passages USING gin (words);  CREATE INDEX ON passages USING hnsw (embedding vector_cosine_ops);

The tenant is a condition of every statement, added here, and besides the setting `sluice.tenant` of each transaction, for a
policy of row level security. Words are those of `retrieval.tokens`, so that Chinese is found. A server that is slow is left at
the deadline, its statement cancelled; one that fails has its connections thrown away.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from typing import Any, LiteralString

import psycopg
from psycopg import conninfo, sql
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb

from sluice.errors import BadRequest, EmbeddingMismatch, RetrievalTimeout, RetrievalUnavailable
from sluice.retrieval.base import (
    Comparison,
    Filter,
    Health,
    Mode,
    Passage,
    QueryVectors,
    Scalar,
    Search,
    SearchResult,
    StoreRef,
    Vector,
    Weights,
)
from sluice.retrieval.fusion import DEPTH, fuse
from sluice.retrieval.tokens import Analyzer
from sluice.types import Tenant

MAX_CONNECTIONS = 8
MAX_QUERY_WORDS = 64
DIFFERENT_LENGTHS = "22000"  # pgvector's word for vectors that cannot be compared
ORDERINGS: dict[str, LiteralString] = {"gt": ">", "gte": ">=", "lt": "<", "lte": "<="}
COLUMNS: LiteralString = "chunk_id, file_id, filename, title, content, attributes, store"
Parameters = dict[str, Any]
Connection = psycopg.AsyncConnection[dict[str, Any]]


class PgvectorRetriever:
    """One table."""

    capabilities = frozenset({"lexical", "dense", "hybrid", "filters", "write"})

    def __init__(
        self,
        name: str,
        url: str,
        *,
        collection: str,
        embedding_model: str | None,
        password: str | None,
        clock: Callable[[], float],
    ) -> None:
        self.name = name
        self._url = url
        self._table = sql.SQL(".").join(map(sql.Identifier, collection.split(".")))
        self._embedding_model = embedding_model
        self._password = password
        self._clock = clock
        self._analyzer = Analyzer()
        # Connections that wait for their next statement, and how many more there may be
        self._idle: list[Connection] = []
        self._slots = asyncio.Semaphore(MAX_CONNECTIONS)

    async def search(self, search: Search) -> SearchResult:
        search.check_model(self._embedding_model)
        weights = search.weights or Weights()
        given: Parameters = {"tenant": search.tenant.name, "stores": [one.id for one in search.stores], "depth": DEPTH}
        where: sql.Composable = sql.SQL("tenant = %(tenant)s AND store = ANY(%(stores)s)")
        if search.filters is not None:
            where = sql.SQL("{} AND {}").format(where, _condition(search.filters, given))
        rankings: list[tuple[list[tuple[str, str]], float]] = []
        known: dict[tuple[str, str], Passage] = {}
        async with self._transaction(search.tenant, search.deadline) as cursor:
            for row in search.vectors.rows if search.vectors is not None and search.mode != "lexical" else ():
                found = await self._ranked(cursor, _by_cosine(self._table, where), given | {"vector": _written(row)})
                rankings.append((_take(found, known), weights.embedding))
            for query in search.queries if search.mode != "dense" else ():
                words = self._tsquery(query)
                found = await self._ranked(cursor, _by_words(self._table, where), given | {"words": words}) if words else []
                rankings.append((_take(found, known), weights.text))
        ranked = fuse(rankings)[: search.limit]
        done: Mode = "lexical" if search.vectors is None else search.mode
        return SearchResult(tuple(replace(known[key], score=score) for key, score in ranked), mode=done)

    async def health(self) -> Health:
        try:
            async with self._transaction(Tenant("", ""), self._clock() + 2) as cursor:
                await cursor.execute("SELECT 1")
        except RetrievalUnavailable as exc:
            return Health(is_up=False, reason=exc.message)
        return Health(is_up=True)

    async def upsert(
        self, *, tenant: Tenant, store: StoreRef, passages: Sequence[Passage], vectors: QueryVectors | None
    ) -> int:
        insert = sql.SQL(
            "INSERT INTO {} (tenant, store, chunk_id, file_id, filename, title, content, attributes, embedding, words) "
            "VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s::vector, array_to_tsvector(%s)) "
            "ON CONFLICT (tenant, store, chunk_id) DO UPDATE SET file_id = excluded.file_id, filename = excluded.filename, "
            "title = excluded.title, content = excluded.content, attributes = excluded.attributes, "
            "embedding = excluded.embedding, words = excluded.words"
        ).format(self._table)
        rows = [
            (
                *(tenant.name, store.id, one.chunk_id, one.file_id, one.filename, one.title, one.text),
                *(Jsonb(dict(one.attributes)), None if vectors is None else _written(vectors.rows[i])),
                sorted(set(self._analyzer.words(one.text))),
            )
            for i, one in enumerate(passages)
        ]
        async with self._transaction(tenant, self._clock() + 60) as cursor:
            await cursor.executemany(insert, rows)
        return len(rows)

    async def delete(self, *, tenant: Tenant, store: StoreRef, file_id: str | None) -> int:
        statement = sql.SQL("DELETE FROM {} WHERE tenant = %s AND store = %s AND (%s::text IS NULL OR file_id = %s)").format(
            self._table
        )
        async with self._transaction(tenant, self._clock() + 60) as cursor:
            await cursor.execute(statement, (tenant.name, store.id, file_id, file_id))
            return cursor.rowcount

    async def close(self) -> None:
        while self._idle:
            await self._idle.pop().close()

    async def _ranked(self, cursor: Any, statement: sql.Composable, given: Parameters) -> list[dict[str, Any]]:
        await cursor.execute(statement, given)
        rows: list[dict[str, Any]] = await cursor.fetchall()
        return rows

    @asynccontextmanager
    async def _transaction(self, tenant: Tenant, deadline: float) -> AsyncIterator[psycopg.AsyncCursor[dict[str, Any]]]:
        """A cursor in a transaction of this tenant's. Foreign exceptions become ours here."""
        connection: Connection | None = None
        try:
            async with asyncio.timeout(max(0.001, deadline - self._clock())), self._slots:
                connection = self._idle.pop() if self._idle else await self._connect()
                async with connection.transaction(), connection.cursor() as cursor:
                    await cursor.execute("SELECT set_config('sluice.tenant', %s, true)", (tenant.name,))
                    yield cursor
                self._idle.append(connection)
                connection = None
        except TimeoutError as exc:
            raise RetrievalTimeout("A retriever did not answer in time.") from exc
        except psycopg.DataError as exc:
            if exc.sqlstate == DIFFERENT_LENGTHS:
                raise EmbeddingMismatch("The store was embedded by another model than the one in use.") from exc
            raise BadRequest("`filters` holds something that this store cannot compare.", param="filters") from exc
        except psycopg.Error as exc:
            raise RetrievalUnavailable("A retriever does not answer.", retry_after_s=2) from exc
        finally:
            if connection is not None:
                with suppress(psycopg.Error):
                    await connection.close()

    async def _connect(self) -> Connection:
        url = self._url if self._password is None else conninfo.make_conninfo(self._url, password=self._password)
        return await psycopg.AsyncConnection.connect(url, row_factory=dict_row)

    def _tsquery(self, text: str) -> str:
        """The words of a query as PostgreSQL's: quoted, any of them; they hold letters and digits alone."""
        words = self._analyzer.query(text)[:MAX_QUERY_WORDS]
        return " | ".join(
            "'" + word.replace("\\", "").replace("'", "") + "'" + (":*" if prefix else "") for word, prefix in words
        )


def _by_cosine(table: sql.Composable, where: sql.Composable) -> sql.Composable:
    return sql.SQL(
        "SELECT " + COLUMNS + ", 1 - (embedding <=> %(vector)s::vector) AS similarity FROM {} "
        "WHERE embedding IS NOT NULL AND {} ORDER BY embedding <=> %(vector)s::vector LIMIT %(depth)s"
    ).format(table, where)


def _by_words(table: sql.Composable, where: sql.Composable) -> sql.Composable:
    return sql.SQL(
        "SELECT " + COLUMNS + ", NULL AS similarity FROM {} WHERE words @@ %(words)s::tsquery AND {} "
        "ORDER BY ts_rank(words, %(words)s::tsquery) DESC, chunk_id LIMIT %(depth)s"
    ).format(table, where)


def _condition(found: Filter, given: Parameters) -> sql.Composable:
    """The filter as SQL; keys and values become parameters in `given`."""
    if not isinstance(found, Comparison):
        joined = sql.SQL(" AND " if found.operator == "and" else " OR ").join([_condition(one, given) for one in found.filters])
        return sql.SQL("({})").format(joined)
    values = found.value if isinstance(found.value, tuple) else (found.value,)
    tests = sql.SQL(" OR ").join([_test(found, value, given) for value in values])
    return sql.SQL("NOT ({})" if found.operator in ("ne", "nin") else "({})").format(tests)


def _test(found: Comparison, value: Scalar, given: Parameters) -> sql.Composable:
    key, name = f"k{len(given)}", f"v{len(given)}"
    given[key] = found.key
    slots = {"key": sql.Placeholder(key), "value": sql.Placeholder(name)}
    if found.operator not in ORDERINGS:
        given[name] = Jsonb(value)
        return sql.SQL("COALESCE(attributes -> {key}::text = {value}, false)").format(**slots)
    given[name] = value
    kind: LiteralString = "string" if isinstance(value, str) else "number"
    cast: LiteralString = 'text COLLATE "C"' if isinstance(value, str) else "numeric"
    return sql.SQL(
        "CASE WHEN jsonb_typeof(attributes -> {key}::text) = '" + kind + "' THEN "
        "(attributes ->> {key}::text)::" + cast + " " + ORDERINGS[found.operator] + " {value} ELSE false END"
    ).format(**slots)


def _take(rows: list[dict[str, Any]], known: dict[tuple[str, str], Passage]) -> list[tuple[str, str]]:
    keys = []
    for row in rows:
        key = (row["store"], row["chunk_id"])
        keys.append(key)
        if key not in known or row["similarity"] is not None:
            known[key] = Passage(
                chunk_id=row["chunk_id"],
                file_id=row["file_id"],
                filename=row["filename"],
                text=row["content"],
                score=0.0,
                vector_store_id=row["store"],
                attributes=row["attributes"],
                similarity=row["similarity"],
                char_end=len(row["content"]),
                title=row["title"],
            )
    return keys


def _written(row: Vector) -> str:
    return "[" + ",".join(f"{value:.8g}" for value in row) + "]"
