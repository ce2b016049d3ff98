"""OpenAI's endpoints for files and vector stores: thin functions over `Storage`, in the retrieval process.

The tenant is the one that the gateway names: `Trust` lets nobody else in.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

import orjson
from fastapi import APIRouter, Request, Response
from fastapi.responses import FileResponse
from starlette.requests import ClientDisconnect

from sluice.api.stores import asked, shapes
from sluice.api.stores.trust import Trust
from sluice.api.stores.uploads import receive
from sluice.errors import BadRequest, BodyTooLarge, StoreNotFound
from sluice.retrieval.catalog import Catalog, new_id
from sluice.retrieval.storage import Storage
from sluice.retrieval.wire import MODEL_HEADER

PURPOSES = ("assistants", "batch", "fine-tune", "vision", "user_data")
CREATE = frozenset({"name", "description", "metadata", "expires_after", "file_ids", "files", "chunking_strategy"})
CHANGE = frozenset({"name", "metadata", "expires_after"})
ATTACH = frozenset({"file_id", "attributes", "chunking_strategy"})
BATCH = frozenset({"file_ids", "files", "attributes", "chunking_strategy"})


def answer(value: Any) -> Response:
    return Response(orjson.dumps(value), media_type="application/json")


@dataclass(frozen=True, slots=True)
class Files:
    """Uploads."""

    storage: Storage
    trust: Trust
    upload_limit_bytes: int
    tenant_limit_bytes: int

    def router(self) -> APIRouter:
        api = APIRouter()
        for method, path, endpoint in (
            ("POST", "/v1/files", self.upload),
            ("GET", "/v1/files", self.files),
            ("GET", "/v1/files/{file_id}", self.file),
            ("DELETE", "/v1/files/{file_id}", self.delete),
            ("GET", "/v1/files/{file_id}/content", self.content),
        ):
            api.add_api_route(path, endpoint, methods=[method], response_class=Response)
        return api

    async def upload(self, request: Request) -> Response:
        tenant = self.trust.tenant(request)
        room = self.tenant_limit_bytes - await self.storage.ask(Catalog.bytes_of, tenant)
        limit = min(self.upload_limit_bytes, room)
        if limit <= 0:
            raise BodyTooLarge(f"Your files take {self.tenant_limit_bytes} bytes already; delete some that are not needed.")
        file_id = new_id("file-")
        path = self.storage.uploads / file_id
        content_type = request.headers.get("content-type", "")
        try:
            uploaded = await receive(_stream(request), content_type, path, limit_bytes=limit)
        except ClientDisconnect:
            return Response(status_code=499)  # nobody reads it, and nothing was kept
        try:
            purpose, expires_s = _purpose(uploaded.fields), _expires_s(uploaded.fields)
        except BadRequest:
            path.unlink()
            raise
        row = await self.storage.ask(
            Catalog.add_file,
            tenant,
            id=file_id,
            filename=uploaded.filename,
            bytes=uploaded.num_bytes,
            purpose=purpose,
            sha256=uploaded.sha256,
            expires_s=expires_s,
        )
        return answer(shapes.file_object(row))

    async def files(self, request: Request) -> Response:
        tenant, page = self.trust.tenant(request), asked.page(request, max_limit=10_000, default=10_000)
        purpose = request.query_params.get("purpose")
        rows, has_more = await self.storage.ask(Catalog.files, tenant, page, purpose)
        return answer(shapes.listed(rows, has_more, shapes.file_object))

    async def file(self, file_id: str, request: Request) -> Response:
        tenant = self.trust.tenant(request)
        return answer(shapes.file_object(await self.storage.ask(Catalog.file, tenant, file_id)))

    async def delete(self, file_id: str, request: Request) -> Response:
        await self.storage.delete_file(self.trust.tenant(request), file_id)
        return answer(shapes.deleted(file_id, "file"))

    async def content(self, file_id: str, request: Request) -> Response:
        tenant = self.trust.tenant(request)
        row = await self.storage.ask(Catalog.file, tenant, file_id)
        path = self.storage.uploads / row["id"]
        if not path.is_file():
            raise StoreNotFound(file_id, "file")
        headers = {"x-content-type-options": "nosniff", "content-security-policy": "default-src 'none'; sandbox"}
        return FileResponse(path, filename=row["filename"], media_type="application/octet-stream", headers=headers)


@dataclass(frozen=True, slots=True)
class VectorStores:
    """The stores themselves. `wake` says that there is more to read."""

    storage: Storage
    trust: Trust
    wake: Callable[[], None]
    now: Callable[[], int]

    def router(self) -> APIRouter:
        api = APIRouter()
        for method, path, endpoint in (
            ("POST", "/v1/vector_stores", self.create),
            ("GET", "/v1/vector_stores", self.stores),
            ("GET", "/v1/vector_stores/{store_id}", self.store),
            ("POST", "/v1/vector_stores/{store_id}", self.change),
            ("DELETE", "/v1/vector_stores/{store_id}", self.delete),
        ):
            api.add_api_route(path, endpoint, methods=[method], response_class=Response)
        return api

    async def create(self, request: Request) -> Response:
        tenant = self.trust.tenant(request)
        body = await asked.read_body(request, CREATE)
        row = await self.storage.ask(
            Catalog.add_store,
            tenant,
            name=asked.text(body, "name") or "",
            description=asked.text(body, "description", max_chars=512),
            metadata=asked.metadata(body),
            expires_days=asked.expires_days(body),
            embedding_model=unquote(request.headers.get(MODEL_HEADER, "")) or None,
            attachments=asked.attachments(body, is_required=False),
        )
        self.wake()
        return answer(self._shaped(row))

    async def stores(self, request: Request) -> Response:
        tenant, page = self.trust.tenant(request), asked.page(request)
        rows, has_more = await self.storage.ask(Catalog.stores, tenant, page)
        return answer(shapes.listed(rows, has_more, self._shaped))

    async def store(self, store_id: str, request: Request) -> Response:
        tenant = self.trust.tenant(request)
        return answer(self._shaped(await self.storage.ask(Catalog.store, tenant, store_id)))

    async def change(self, store_id: str, request: Request) -> Response:
        tenant = self.trust.tenant(request)
        body = await asked.read_body(request, CHANGE)
        changes: dict[str, Any] = {}
        if body.get("name") is not None:
            changes["name"] = asked.text(body, "name")
        if "metadata" in body:
            changes["metadata"] = orjson.dumps(asked.metadata(body)).decode()
        if "expires_after" in body:
            changes["expires_days"] = asked.expires_days(body)
        return answer(self._shaped(await self.storage.ask(Catalog.change_store, tenant, store_id, changes)))

    async def delete(self, store_id: str, request: Request) -> Response:
        await self.storage.delete_store(self.trust.tenant(request), store_id)
        return answer(shapes.deleted(store_id, "vector_store.deleted"))

    def _shaped(self, row: dict[str, Any]) -> dict[str, Any]:
        return shapes.store_object(row, self.now())


@dataclass(frozen=True, slots=True)
class StoreFiles:
    """What is in a store."""

    storage: Storage
    trust: Trust
    wake: Callable[[], None]

    def router(self) -> APIRouter:
        api = APIRouter(prefix="/v1/vector_stores/{store_id}")
        for method, path, endpoint in (
            ("POST", "/files", self.attach),
            ("GET", "/files", self.files),
            ("GET", "/files/{file_id}", self.file),
            ("POST", "/files/{file_id}", self.change),
            ("DELETE", "/files/{file_id}", self.detach),
            ("GET", "/files/{file_id}/content", self.content),
            ("POST", "/file_batches", self.add_batch),
            ("GET", "/file_batches/{batch_id}", self.batch),
            ("POST", "/file_batches/{batch_id}/cancel", self.cancel),
            ("GET", "/file_batches/{batch_id}/files", self.batch_files),
        ):
            api.add_api_route(path, endpoint, methods=[method], response_class=Response)
        return api

    async def attach(self, store_id: str, request: Request) -> Response:
        tenant = self.trust.tenant(request)
        attachment = asked.attachment(await asked.read_body(request, ATTACH))
        row = await self.storage.ask(Catalog.attach, tenant, store_id, attachment)
        self.wake()
        return answer(shapes.store_file_object(row))

    async def files(self, store_id: str, request: Request) -> Response:
        return await self._listed(store_id, request, None)

    async def file(self, store_id: str, file_id: str, request: Request) -> Response:
        tenant = self.trust.tenant(request)
        row = await self.storage.ask(Catalog.store_file, tenant, store_id, file_id)
        return answer(shapes.store_file_object(row))

    async def change(self, store_id: str, file_id: str, request: Request) -> Response:
        tenant = self.trust.tenant(request)
        attributes = asked.attributes(await asked.read_body(request, frozenset({"attributes"})))
        await self.storage.set_attributes(tenant, store_id, file_id, attributes)
        row = await self.storage.ask(Catalog.store_file, tenant, store_id, file_id)
        return answer(shapes.store_file_object(row))

    async def detach(self, store_id: str, file_id: str, request: Request) -> Response:
        await self.storage.detach(self.trust.tenant(request), store_id, file_id)
        return answer(shapes.deleted(file_id, "vector_store.file.deleted"))

    async def content(self, store_id: str, file_id: str, request: Request) -> Response:
        tenant = self.trust.tenant(request)
        await self.storage.ask(Catalog.store_file, tenant, store_id, file_id)
        texts = await self.storage.engine.texts(store_id, file_id)
        page = {"object": "vector_store.file_content.page", "has_more": False, "next_page": None}
        return answer(page | {"data": [{"type": "text", "text": text} for text in texts]})

    async def add_batch(self, store_id: str, request: Request) -> Response:
        tenant = self.trust.tenant(request)
        attachments = asked.attachments(await asked.read_body(request, BATCH), is_required=True)
        row = await self.storage.ask(Catalog.add_batch, tenant, store_id, attachments)
        self.wake()
        return answer(shapes.batch_object(row))

    async def batch(self, store_id: str, batch_id: str, request: Request) -> Response:
        tenant = self.trust.tenant(request)
        return answer(shapes.batch_object(await self.storage.ask(Catalog.batch, tenant, store_id, batch_id)))

    async def cancel(self, store_id: str, batch_id: str, request: Request) -> Response:
        tenant = self.trust.tenant(request)
        row = await self.storage.ask(Catalog.cancel_batch, tenant, store_id, batch_id)
        return answer(shapes.batch_object(row))

    async def batch_files(self, store_id: str, batch_id: str, request: Request) -> Response:
        tenant = self.trust.tenant(request)
        await self.storage.ask(Catalog.batch, tenant, store_id, batch_id)
        return await self._listed(store_id, request, batch_id)

    async def _listed(self, store_id: str, request: Request, batch_id: str | None) -> Response:
        tenant, page, status = self.trust.tenant(request), asked.page(request), asked.status_filter(request)
        rows, has_more = await self.storage.ask(Catalog.store_files, tenant, store_id, page, status=status, batch_id=batch_id)
        return answer(shapes.listed(rows, has_more, shapes.store_file_object))


async def _stream(request: Request) -> AsyncIterator[bytes]:
    async for chunk in request.stream():
        if chunk:
            yield chunk


def _purpose(fields: dict[str, str]) -> str:
    purpose = fields.get("purpose", "")
    if purpose not in PURPOSES:
        raise BadRequest(f"`purpose` must be one of {', '.join(PURPOSES)}.", param="purpose")
    return purpose


def _expires_s(fields: dict[str, str]) -> int | None:
    seconds = fields.get("expires_after[seconds]")
    if seconds is None:
        return None
    is_good = seconds.isascii() and seconds.isdigit() and 3_600 <= int(seconds[:9]) <= 2_592_000
    if not is_good or fields.get("expires_after[anchor]") != "created_at":
        raise BadRequest("`expires_after` has the anchor created_at and 3600 to 2592000 seconds.", param="expires_after")
    return int(seconds)
