"""The retrieval process as a gateway has it: started when needed, shared, replaced when it dies, ended with its parent."""

import asyncio
import os
import signal
import time
from pathlib import Path

import orjson
import pytest

from sluice.config import Stores
from sluice.errors import EmbeddingMismatch, RetrievalTimeout, RetrievalUnavailable, StoreExpired, StoreNotFound
from sluice.retrieval.base import QueryVectors, Search, StoreRef, Weights
from sluice.retrieval.filters import parse_filter
from sluice.retrieval.process import ChildProcess, Process, SharedProcess, process_of
from sluice.retrieval.remote import RemoteRetriever
from sluice.types import Tenant

ACME, GLOBEX = Tenant("acme corp/ü", "key_1"), Tenant("globex", "key_2")
BOUNDARY = "multipart/form-data; boundary=b"


async def ask(
    process: Process, method: str, path: str, body: object = None, *, kind: str = "application/json"
) -> tuple[int, dict]:
    reach = await process.reach()
    headers = {**reach.headers, "x-sluice-tenant": "acme%20corp%2F%C3%BC", "content-type": kind}
    content = body if isinstance(body, bytes) else orjson.dumps(body) if body is not None else None
    async with reach.http.stream(method, f"{reach.url}{path}", headers=headers, content=content, idle_s=60) as answer:
        data = b"".join([chunk async for chunk in answer.body])
    return answer.status, orjson.loads(data)


async def store_of(process: Process, text: str) -> str:
    """A store with this text in it."""
    form = (
        '--b\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nassistants\r\n'
        f'--b\r\nContent-Disposition: form-data; name="file"; filename="a.md"\r\n\r\n{text}\r\n--b--\r\n'
    )
    _, file = await ask(process, "POST", "/v1/files", form.encode(), kind=BOUNDARY)
    _, store = await ask(process, "POST", "/v1/vector_stores", {"file_ids": [file["id"]]})
    async with asyncio.timeout(60):
        while (await ask(process, "GET", f"/v1/vector_stores/{store['id']}"))[1]["status"] != "completed":  # noqa: ASYNC110
            await asyncio.sleep(0.02)  # another process: there is no event to wait for
    return store["id"]


async def search(process: Process, store: str, tenant: Tenant = ACME, **more):
    asked = {"queries": ["port"], "vectors": None, "filters": None, "limit": 5, "mode": "hybrid"} | more
    retriever = RemoteRetriever(process, weights=Weights(), clock=time.monotonic)
    deadline = asked.pop("deadline", time.monotonic() + 60)
    return await retriever.search(Search(tenant=tenant, stores=[StoreRef(store)], deadline=deadline, **asked))


async def test_a_gateways_whole_way_through_its_process(tmp_path: Path):
    folder = tmp_path / ("deep" * 30) / "data"  # a socket's own path would be too long
    async with (
        process_of(Stores(path=folder), None, time.monotonic) as process,
        ChildProcess(Stores(path=folder), time.monotonic) as second,
    ):
        assert isinstance(process, ChildProcess) and process.pid is None and not process.has_data()
        store = await store_of(process, "The gateway listens on port 8443.")
        pid = process.pid

        result = await search(process, store, filters=parse_filter({"type": "nin", "key": "k", "value": [1]}))
        assert [one.text for one in result.passages] == ["The gateway listens on port 8443."] and result.mode == "lexical"
        assert process.has_data() and (folder.stat().st_mode & 0o777) == 0o700
        retriever = RemoteRetriever(process, weights=Weights(), clock=time.monotonic)
        assert (await retriever.health()).is_up

        # what is not the tenant's is not there; what cannot be is said
        for tenant, id in ((GLOBEX, store), (ACME, "vs_0")):
            with pytest.raises(StoreNotFound, match=f"No vector store found with id `{id}`"):
                await search(process, id, tenant)
        vectors = QueryVectors("m", [[1.0, 0.0]])
        assert (await search(process, store, vectors=vectors)).mode == "lexical"
        with pytest.raises(Exception, match="no embeddings"):
            await search(process, store, vectors=vectors, mode="dense")
        with pytest.raises(RetrievalTimeout):
            await search(process, store, deadline=time.monotonic() - 1)

        # another gateway on this machine shares it
        assert (await search(second, store)).passages and second.pid is None

        # a process that was killed is replaced, and nothing is lost
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        async with asyncio.timeout(60):
            while True:
                try:
                    assert (await search(process, store)).passages
                    break
                except RetrievalUnavailable:
                    await asyncio.sleep(0.05)  # until it has noticed, and may start another
        assert process.pid != pid
        pid = process.pid
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


async def test_whoever_gives_up_waiting_for_the_start_leaves_it_to_the_others(tmp_path: Path):
    async with ChildProcess(Stores(path=tmp_path / "data"), time.monotonic) as process:
        for _ in range(2):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.02):
                    await process.reach()
        await asyncio.gather(process.reach(), process.reach())
        pid = process.pid

        assert (await ask(process, "GET", "/v1/files"))[0] == 200
        assert process.pid == pid and process._starting is None

    async with ChildProcess(Stores(path=tmp_path / "data"), time.monotonic) as process:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await process.reach()
        pid = process.pid
    assert pid is not None
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


async def test_a_folder_that_cannot_be_used_is_said_and_nothing_hangs(tmp_path: Path, caplog):
    (tmp_path / "data").write_text("a file")
    async with ChildProcess(Stores(path=tmp_path / "data"), time.monotonic) as process:
        for _ in range(2):
            with pytest.raises(RetrievalUnavailable):
                await process.reach()
        retriever = RemoteRetriever(process, weights=Weights(), clock=time.monotonic)
        assert not (await retriever.health()).is_up
    assert "cannot be used" in caplog.text


@pytest.mark.parametrize(
    "status, body, error",
    [
        (404, {"error": {"message": "no such store", "param": "x"}}, StoreNotFound),
        (409, {"error": {"message": "no such store"}}, EmbeddingMismatch),
        (410, {"error": {"message": "no such store"}}, StoreExpired),
        (504, {"error": {"message": "no such store"}}, RetrievalTimeout),
        (500, {"error": {"message": "no such store"}}, RetrievalUnavailable),
        (418, "teapot", RetrievalUnavailable),
        (200, {"passages": "?"}, RetrievalUnavailable),
    ],
)
async def test_what_a_shared_process_says_becomes_an_error_of_ours(status, body, error):
    async with _answering(status, orjson.dumps(body)) as (url, heard):
        async with process_of(Stores(url=url, token_env="T"), "secret", time.monotonic) as process:
            assert isinstance(process, SharedProcess) and process.has_data()
            with pytest.raises(error) as caught:
                await search(process, "vs_1")
    assert "no such store" in str(caught.value) or status in (200, 418)
    assert b"authorization: Bearer secret" in heard[0] and b"x-sluice-tenant: acme%20corp%2F%C3%BC" in heard[0]


async def test_a_process_that_is_not_there_is_unavailable():
    async with SharedProcess("http://127.0.0.1:9", "secret") as process:
        with pytest.raises(RetrievalUnavailable):
            await search(process, "vs_1")
        assert not (await RemoteRetriever(process, weights=Weights(), clock=time.monotonic).health()).is_up


class _answering:
    """A server that gives every request this answer; what it heard is in `heard`."""

    def __init__(self, status: int, body: bytes) -> None:
        self._answer = b"HTTP/1.1 %d x\r\ncontent-length: %d\r\n\r\n%s" % (status, len(body), body)
        self._heard: list[bytes] = []

    async def __aenter__(self) -> tuple[str, list[bytes]]:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            self._heard.append(await reader.readuntil(b"\r\n\r\n"))
            writer.write(self._answer)
            await writer.drain()
            writer.close()

        self._server = await asyncio.start_server(serve, "127.0.0.1", 0)
        return f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}", self._heard

    async def __aexit__(self, *exc: object) -> None:
        self._server.close()
        await self._server.wait_closed()
