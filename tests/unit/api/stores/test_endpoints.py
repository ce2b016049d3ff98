"""OpenAI's files and vector stores as the stock SDK speaks to them, its strict validation on."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import pytest_asyncio

from sluice.config import Stores
from sluice.retrieval_app import running
from tests.unit.ingest.documents import pdf
from tests.unit.stores import on_disk

CHINESE = "# 网关手册\n\n网关在端口 8443 监听。\n\n## 指标\n\n指标在端口 8001。"
TOKEN = "a-secret-of-gateways"


class Here:
    """The process's app, and clients of it as a gateway would send them on."""

    def __init__(self, app: Any, folder: Path) -> None:
        self.folder = folder
        self._transport = httpx.ASGITransport(app)

    def http(self, tenant: str | None = "acme", token: str = TOKEN) -> httpx.AsyncClient:
        headers = {"authorization": f"Bearer {token}"} | ({"x-sluice-tenant": tenant} if tenant else {})
        return httpx.AsyncClient(transport=self._transport, base_url="http://retrieval", headers=headers)

    def sdk(self, tenant: str = "acme") -> openai.AsyncOpenAI:
        return openai.AsyncOpenAI(
            api_key=TOKEN,
            base_url="http://retrieval/v1",
            http_client=self.http(tenant),
            max_retries=0,
            _strict_response_validation=True,
        )


@pytest_asyncio.fixture
async def here(tmp_path: Path) -> AsyncIterator[Here]:
    limits = {"upload_bytes": 20_000, "tenant_bytes": 30_000, "text_bytes": 4096, "read_memory_bytes": 400_000_000}
    settings = Stores.model_validate({"path": tmp_path / "data", "limits": limits})
    async with running(settings, TOKEN) as (app, _):
        yield Here(app, tmp_path / "data")


async def uploaded(client: openai.AsyncOpenAI, content: str | bytes = CHINESE, name: str = "手册.md") -> str:
    data = content.encode() if isinstance(content, str) else content
    return (await client.files.create(file=(name, data), purpose="assistants")).id


async def done(client: openai.AsyncOpenAI, store_id: str) -> Any:
    async with asyncio.timeout(60):
        while (store := await client.vector_stores.retrieve(store_id)).status == "in_progress":  # noqa: ASYNC110  a process
            await asyncio.sleep(0.01)
    return store


async def test_the_stock_sdk_keeps_files(here: Here):
    async with here.sdk() as client:
        file = await client.files.create(
            file=("../../手册.md", CHINESE.encode()),
            purpose="assistants",
            expires_after={"anchor": "created_at", "seconds": 3600},
        )
        assert (file.filename, file.bytes, file.purpose, file.status) == (
            "手册.md",
            len(CHINESE.encode()),
            "assistants",
            "processed",
        )
        assert file.expires_at == file.created_at + 3600 and len(file.id) == len("file-") + 32
        assert await client.files.retrieve(file.id) == file
        assert (await client.files.content(file.id)).content == CHINESE.encode()
        others = [await uploaded(client, f"text {number}") for number in range(4)]

        assert [one.id async for one in client.files.list(limit=2)] == [*others[::-1], file.id]
        assert [one.id async for one in client.files.list(limit=3, order="asc")] == [file.id, *others]
        assert (await client.files.list(purpose="batch")).data == []
        assert (await client.files.delete(file.id)).deleted
        with pytest.raises(openai.NotFoundError):
            await client.files.retrieve(file.id)
        with pytest.raises(openai.NotFoundError):
            await client.files.content(file.id)
    assert on_disk(here.folder, "网关") == []


async def test_the_stock_sdk_keeps_vector_stores(here: Here):
    async with here.sdk() as client:
        files = [await uploaded(client), await uploaded(client, pdf("The gateway listens on 8443"), "guide.pdf")]
        store = await client.vector_stores.create(
            name="docs", file_ids=files, metadata={"team": "x"}, expires_after={"anchor": "last_active_at", "days": 7}
        )
        assert store.status == "in_progress" and store.file_counts.total == 2
        store = await done(client, store.id)
        assert (
            store.file_counts.completed == 2
            and store.usage_bytes > 60
            and store.expires_at == store.last_active_at + 7 * 86_400
        )
        assert store.expires_after and store.expires_after.days == 7

        changed = await client.vector_stores.update(store.id, name="new", metadata={"a": "b"}, expires_after=None)
        assert (changed.name, changed.metadata, changed.expires_at) == ("new", {"a": "b"}, None)
        second = await client.vector_stores.create()
        assert [one.id async for one in client.vector_stores.list(limit=1)] == [second.id, store.id]
        assert [one.id async for one in client.vector_stores.list(before=store.id)] == [second.id]

        listed = [one async for one in client.vector_stores.files.list(store.id, limit=1, order="asc", filter="completed")]
        assert [one.id for one in listed] == files and listed[0].last_error is None
        assert listed[0].chunking_strategy.static.max_chunk_size_tokens == 400
        content = [one.text async for one in client.vector_stores.files.content(files[0], vector_store_id=store.id)]
        assert "".join(content) == CHINESE

        attributes = {"lang": "zh", "year": 2026.0, "draft": False}
        one = await client.vector_stores.files.update(files[0], vector_store_id=store.id, attributes=attributes)
        assert one.attributes == attributes
        assert (await client.vector_stores.files.retrieve(files[0], vector_store_id=store.id)) == one
        assert (await client.vector_stores.files.delete(files[0], vector_store_id=store.id)).deleted
        assert (await client.vector_stores.retrieve(store.id)).file_counts.total == 1
        assert (await client.files.retrieve(files[0])).id == files[0]
        assert (await client.vector_stores.delete(store.id)).deleted
        with pytest.raises(openai.NotFoundError):
            await client.vector_stores.retrieve(store.id)


async def test_the_stock_sdk_adds_files_one_by_one_and_in_batches(here: Here):
    static: Any = {"type": "static", "static": {"max_chunk_size_tokens": 100, "chunk_overlap_tokens": 50}}
    async with here.sdk() as client:
        store = (await client.vector_stores.create(name="docs")).id
        one = await client.vector_stores.files.create_and_poll(
            await uploaded(client), vector_store_id=store, poll_interval_ms=20, attributes={"a": 1}, chunking_strategy=static
        )
        assert one.status == "completed" and one.attributes == {"a": 1.0}
        assert one.chunking_strategy.static.chunk_overlap_tokens == 50
        good, bad = await uploaded(client, "x"), await uploaded(client, b"\x7fELF\0", "a.pdf")
        batch = await client.vector_stores.file_batches.create_and_poll(store, file_ids=[good, bad, good], poll_interval_ms=20)
        assert (batch.status, batch.file_counts.completed, batch.file_counts.failed) == ("completed", 1, 1)
        failed = [
            one async for one in client.vector_stores.file_batches.list_files(batch.id, vector_store_id=store, filter="failed")
        ]
        assert [one.id for one in failed] == [bad] and failed[0].last_error.code == "unsupported_file"
        assert (await client.vector_stores.file_batches.retrieve(batch.id, vector_store_id=store)) == batch
        each: Any = [{"file_id": good, "attributes": {"n": 1}}]
        other = await client.vector_stores.file_batches.create(store, files=each)
        assert (await client.vector_stores.file_batches.cancel(other.id, vector_store_id=store)).status == "cancelled"


@pytest.mark.parametrize(
    "method, path, body, param",
    [
        ("POST", "/v1/vector_stores", {"nmae": "x"}, "nmae"),
        ("POST", "/v1/vector_stores", {"name": "x" * 257}, "name"),
        ("POST", "/v1/vector_stores", {"metadata": {"k": 1}}, "metadata"),
        ("POST", "/v1/vector_stores", {"metadata": {str(n): "" for n in range(17)}}, "metadata"),
        ("POST", "/v1/vector_stores", {"expires_after": {"anchor": "created_at", "days": 1}}, "expires_after"),
        ("POST", "/v1/vector_stores", {"expires_after": {"anchor": "last_active_at", "days": True}}, "expires_after"),
        ("POST", "/v1/vector_stores", {"file_ids": "file-1"}, "file_ids"),
        ("POST", "/v1/vector_stores", {"file_ids": [1]}, "file_ids"),
        ("POST", "/v1/vector_stores", {"file_ids": [], "files": []}, "file_ids"),
        ("POST", "/v1/vector_stores", {"chunking_strategy": {"type": "static", "static": {}}}, None),
        ("POST", "/v1/vector_stores/{store}", {"file_ids": []}, "file_ids"),
        ("POST", "/v1/vector_stores/{store}/files", {}, "file_id"),
        ("POST", "/v1/vector_stores/{store}/files", {"file_id": "f", "attributes": {"k": None}}, "attributes"),
        ("POST", "/v1/vector_stores/{store}/files", {"file_id": "f", "attributes": {"k" * 65: 1}}, "attributes"),
        ("POST", "/v1/vector_stores/{store}/file_batches", {}, "file_ids"),
        ("POST", "/v1/vector_stores/{store}/file_batches", {"files": [1]}, "files"),
        ("GET", "/v1/vector_stores?limit=0", None, "limit"),
        ("GET", "/v1/vector_stores?limit=101", None, "limit"),
        ("GET", "/v1/vector_stores?order=up", None, "order"),
        ("GET", "/v1/vector_stores/{store}/files?filter=done", None, "filter"),
    ],
)
async def test_a_bad_request_names_what_is_wrong(here: Here, method, path, body, param):
    async with here.http() as http:
        store = (await http.post("/v1/vector_stores")).json()["id"]
        # `file_ids` are only read where there are any
        if param is None:
            body = {**body, "file_ids": ["f"]}

        answer = await http.request(method, path.format(store=store), json=body)

    error = answer.json()["error"]
    assert answer.status_code == 400 and error["type"] == "invalid_request_error"
    assert error["param"] == (param or "chunking_strategy") and error["message"].endswith(".")


@pytest.mark.parametrize("body", [b"{", b"[]", b"\xff"])
async def test_a_body_that_is_no_object_is_refused(here: Here, body):
    async with here.http() as http:
        assert (await http.post("/v1/vector_stores", content=body)).status_code == 400
        assert (await http.post("/v1/vector_stores", content=b" " * 1_048_577)).status_code == 413


@pytest.mark.parametrize(
    "parts, status, param",
    [
        ({"files": {"file": ("a.md", b"x")}}, 400, "purpose"),
        ({"files": {"file": ("a.md", b"x")}, "data": {"purpose": "theft"}}, 400, "purpose"),
        ({"files": {"other": ("a.md", b"x")}, "data": {"purpose": "assistants"}}, 400, "file"),
        ({"files": [("file", ("a", b"x")), ("file", ("b", b"y"))], "data": {"purpose": "assistants"}}, 400, "file"),
        ({"files": {"file": ("a.md", b"x" * 20_001)}, "data": {"purpose": "assistants"}}, 413, "file"),
        ({"files": {"file": ("a.md", b"x")}, "data": {"purpose": "a" * 5_000}}, 400, None),
        ({"files": {"file": ("a.md", b"x")}, "data": {str(n): "" for n in range(17)}}, 400, None),
        ({"files": {"purpose": (None, b"assistants")}}, 400, "file"),
        ({"json": {"purpose": "assistants"}}, 415, None),
        ({"content": b"nothing", "headers": {"content-type": "multipart/form-data; boundary=x"}}, 400, None),
        ({"content": b"--x\r\nA: b\r\n\r\nc", "headers": {"content-type": "multipart/form-data; boundary=x"}}, 400, None),
        (
            {
                "files": {"file": ("a.md", b"x")},
                "data": {"purpose": "assistants", "expires_after[anchor]": "created_at", "expires_after[seconds]": "1"},
            },
            400,
            "expires_after",
        ),
    ],
)
async def test_an_upload_that_is_none_leaves_nothing(here: Here, parts, status, param):
    async with here.http() as http:
        answer = await http.post("/v1/files", **parts)

        assert (answer.status_code, answer.json()["error"]["param"]) == (status, param)
        assert (await http.get("/v1/files")).json()["data"] == []
    assert list((here.folder / "files").iterdir()) == []


async def test_one_tenants_files_have_a_bound(here: Here):
    async with here.sdk() as client, here.sdk("globex") as other:
        await uploaded(client, "x" * 18_000)
        with pytest.raises(openai.APIStatusError) as caught:
            await uploaded(client, "x" * 18_000)
        assert caught.value.status_code == 413
        await uploaded(client, "x" * 12_000)
        with pytest.raises(openai.APIStatusError, match="delete some"):
            await uploaded(client, "x")
        await uploaded(other, "x" * 18_000)


@pytest.mark.parametrize("headers", [{}, {"authorization": "Bearer wrong"}, {"authorization": f"Bearer {TOKEN}"}])
async def test_only_gateways_are_served(here: Here, headers):
    transport = here._transport
    async with httpx.AsyncClient(transport=transport, base_url="http://retrieval", headers=headers) as http:
        for method, path in (("GET", "/v1/files"), ("POST", "/v1/vector_stores"), ("POST", "/internal/search")):
            answer = await http.request(method, path)
            assert answer.status_code == 403 and answer.json()["error"]["type"] == "permission_error"
