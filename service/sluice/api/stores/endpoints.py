"""OpenAI's endpoints for files and vector stores: thin functions over `Storage`, in the retrieval process.

The tenant is the one that the gateway names: `Trust` lets nobody else in.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
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


def file_router(storage: Storage, trust: Trust, *, upload_limit_bytes: int, tenant_limit_bytes: int) -> APIRouter:
    api = APIRouter()

    @api.post("/v1/files")
    async def upload(request: Request) -> Response:
        tenant = trust.tenant(request)
        room = tenant_limit_bytes - await storage.ask(Catalog.bytes_of, tenant)
        limit = min(upload_limit_bytes, room)
        if limit <= 0:
            raise BodyTooLarge(f"Your files take {tenant_limit_bytes} bytes already; delete some that are not needed.")
        file_id = new_id("file-")
        path = storage.uploads / file_id
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
        row = await storage.ask(
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

    @api.get("/v1/files")
    async def files(request: Request) -> Response:
        tenant, page = trust.tenant(request), asked.page(request, max_limit=10_000, default=10_000)
        purpose = request.query_params.get("purpose")
        rows, has_more = await storage.ask(Catalog.files, tenant, page, purpose)
        return answer(shapes.listed(rows, has_more, shapes.file_object))

    @api.get("/v1/files/{file_id}")
    async def file(file_id: str, request: Request) -> Response:
        tenant = trust.tenant(request)
        return answer(shapes.file_object(await storage.ask(Catalog.file, tenant, file_id)))

    @api.delete("/v1/files/{file_id}")
    async def delete(file_id: str, request: Request) -> Response:
        await storage.delete_file(trust.tenant(request), file_id)
        return answer(shapes.deleted(file_id, "file"))

    @api.get("/v1/files/{file_id}/content")
    async def content(file_id: str, request: Request) -> Response:
        tenant = trust.tenant(request)
        row = await storage.ask(Catalog.file, tenant, file_id)
        path = storage.uploads / row["id"]
        if not path.is_file():
            raise StoreNotFound(file_id, "file")
        headers = {"x-content-type-options": "nosniff", "content-security-policy": "default-src 'none'; sandbox"}
        return FileResponse(path, filename=row["filename"], media_type="application/octet-stream", headers=headers)

    return api


def store_router(storage: Storage, trust: Trust, *, wake: Callable[[], None], now: Callable[[], int]) -> APIRouter:
    api = APIRouter()

    def shaped(row: dict[str, Any]) -> dict[str, Any]:
        return shapes.store_object(row, now())

    @api.post("/v1/vector_stores")
    async def create(request: Request) -> Response:
        tenant = trust.tenant(request)
        body = await asked.read_body(request, CREATE)
        row = await storage.ask(
            Catalog.add_store,
            tenant,
            name=asked.text(body, "name") or "",
            description=asked.text(body, "description", max_chars=512),
            metadata=asked.metadata(body),
            expires_days=asked.expires_days(body),
            embedding_model=unquote(request.headers.get(MODEL_HEADER, "")) or None,
            attachments=asked.attachments(body, is_required=False),
        )
        wake()
        return answer(shaped(row))

    @api.get("/v1/vector_stores")
    async def stores(request: Request) -> Response:
        tenant, page = trust.tenant(request), asked.page(request)
        rows, has_more = await storage.ask(Catalog.stores, tenant, page)
        return answer(shapes.listed(rows, has_more, shaped))

    @api.get("/v1/vector_stores/{store_id}")
    async def store(store_id: str, request: Request) -> Response:
        tenant = trust.tenant(request)
        return answer(shaped(await storage.ask(Catalog.store, tenant, store_id)))

    @api.post("/v1/vector_stores/{store_id}")
    async def change(store_id: str, request: Request) -> Response:
        tenant = trust.tenant(request)
        body = await asked.read_body(request, CHANGE)
        changes: dict[str, Any] = {}
        if body.get("name") is not None:
            changes["name"] = asked.text(body, "name")
        if "metadata" in body:
            changes["metadata"] = orjson.dumps(asked.metadata(body)).decode()
        if "expires_after" in body:
            changes["expires_days"] = asked.expires_days(body)
        return answer(shaped(await storage.ask(Catalog.change_store, tenant, store_id, changes)))

    @api.delete("/v1/vector_stores/{store_id}")
    async def delete(store_id: str, request: Request) -> Response:
        await storage.delete_store(trust.tenant(request), store_id)
        return answer(shapes.deleted(store_id, "vector_store.deleted"))

    return api


def store_file_router(storage: Storage, trust: Trust, *, wake: Callable[[], None]) -> APIRouter:
    api = APIRouter(prefix="/v1/vector_stores/{store_id}")

    @api.post("/files")
    async def attach(store_id: str, request: Request) -> Response:
        tenant = trust.tenant(request)
        attachment = asked.attachment(await asked.read_body(request, ATTACH))
        row = await storage.ask(Catalog.attach, tenant, store_id, attachment)
        wake()
        return answer(shapes.store_file_object(row))

    @api.get("/files")
    async def files(store_id: str, request: Request) -> Response:
        return await _listed(store_id, request, None)

    @api.get("/files/{file_id}")
    async def file(store_id: str, file_id: str, request: Request) -> Response:
        tenant = trust.tenant(request)
        row = await storage.ask(Catalog.store_file, tenant, store_id, file_id)
        return answer(shapes.store_file_object(row))

    @api.post("/files/{file_id}")
    async def change(store_id: str, file_id: str, request: Request) -> Response:
        tenant = trust.tenant(request)
        attributes = asked.attributes(await asked.read_body(request, frozenset({"attributes"})))
        await storage.set_attributes(tenant, store_id, file_id, attributes)
        row = await storage.ask(Catalog.store_file, tenant, store_id, file_id)
        return answer(shapes.store_file_object(row))

    @api.delete("/files/{file_id}")
    async def detach(store_id: str, file_id: str, request: Request) -> Response:
        await storage.detach(trust.tenant(request), store_id, file_id)
        return answer(shapes.deleted(file_id, "vector_store.file.deleted"))

    @api.get("/files/{file_id}/content")
    async def content(store_id: str, file_id: str, request: Request) -> Response:
        tenant = trust.tenant(request)
        await storage.ask(Catalog.store_file, tenant, store_id, file_id)
        texts = await storage.engine.texts(store_id, file_id)
        page = {"object": "vector_store.file_content.page", "has_more": False, "next_page": None}
        return answer(page | {"data": [{"type": "text", "text": text} for text in texts]})

    @api.post("/file_batches")
    async def add_batch(store_id: str, request: Request) -> Response:
        tenant = trust.tenant(request)
        attachments = asked.attachments(await asked.read_body(request, BATCH), is_required=True)
        row = await storage.ask(Catalog.add_batch, tenant, store_id, attachments)
        wake()
        return answer(shapes.batch_object(row))

    @api.get("/file_batches/{batch_id}")
    async def batch(store_id: str, batch_id: str, request: Request) -> Response:
        tenant = trust.tenant(request)
        return answer(shapes.batch_object(await storage.ask(Catalog.batch, tenant, store_id, batch_id)))

    @api.post("/file_batches/{batch_id}/cancel")
    async def cancel(store_id: str, batch_id: str, request: Request) -> Response:
        tenant = trust.tenant(request)
        row = await storage.ask(Catalog.cancel_batch, tenant, store_id, batch_id)
        return answer(shapes.batch_object(row))

    @api.get("/file_batches/{batch_id}/files")
    async def batch_files(store_id: str, batch_id: str, request: Request) -> Response:
        tenant = trust.tenant(request)
        await storage.ask(Catalog.batch, tenant, store_id, batch_id)
        return await _listed(store_id, request, batch_id)

    async def _listed(store_id: str, request: Request, batch_id: str | None) -> Response:
        tenant, page, status = trust.tenant(request), asked.page(request), asked.status_filter(request)
        rows, has_more = await storage.ask(Catalog.store_files, tenant, store_id, page, status=status, batch_id=batch_id)
        return answer(shapes.listed(rows, has_more, shapes.store_file_object))

    return api


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
