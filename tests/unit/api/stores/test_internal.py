"""What gateways ask of the retrieval process: searches with vectors, texts to embed; and the command that runs a shared one."""

import asyncio
import base64
import os
import signal
import socket
import sys
import time
from array import array
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio
import yaml

from sluice import retrieval_app
from sluice.cli import Exit, main
from sluice.config import ConfigError, Stores
from sluice.errors import RetrievalUnavailable
from sluice.retrieval.base import Search, StoreRef, Weights
from sluice.retrieval.process import SharedProcess
from sluice.retrieval.remote import RemoteRetriever
from sluice.retrieval_app import running
from sluice.types import Tenant

LIMITS = {"read_memory_bytes": 400_000_000}
SEARCH = {"queries": ["alpha"], "limit": 5, "mode": "hybrid", "timeout_s": 5, "text_weight": 1, "embedding_weight": 1}


@pytest_asyncio.fixture
async def http(tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    settings = Stores.model_validate({"path": tmp_path / "data", "limits": LIMITS})
    async with running(settings, None) as (app, _):
        headers = {"x-sluice-tenant": "acme", "x-sluice-embedding-model": "mini%2Flm"}
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://p", headers=headers) as client:
            yield client


async def store_of(http: httpx.AsyncClient, text: str) -> str:
    file = {"file": ("a.md", text.encode())}
    id = (await http.post("/v1/files", files=file, data={"purpose": "assistants"})).json()["id"]
    store: str = (await http.post("/v1/vector_stores", json={"file_ids": [id]})).json()["id"]
    return store


async def taken(http: httpx.AsyncClient) -> Any:
    return (await http.post("/internal/embeddings/take", json={"model": "mini/lm", "wait_s": 5})).json()


def vectors_of(*rows: list[float]) -> str:
    return base64.b64encode(array("f", [value for row in rows for value in row]).tobytes()).decode()


async def searched(http: httpx.AsyncClient, store: str, **more: Any) -> httpx.Response:
    return await http.post("/internal/search", json={**SEARCH, "stores": [store], **more})


async def test_texts_are_fetched_and_searched_by_the_vectors_that_were_brought(http):
    assert (await http.get("/internal/health")).json() == {}
    store = await store_of(http, "# Title\n\nalpha")
    batch = await taken(http)
    assert (batch["store_id"], batch["tenant"], batch["texts"]) == (store, "acme", ["Title\n# Title\n\nalpha"])
    put = {"store_id": store, "ids": batch["ids"], "vectors": vectors_of([3.0, 0.0])}
    assert (await http.post("/internal/embeddings/put", json=put)).status_code == 200
    assert (await http.get(f"/v1/vector_stores/{store}")).json()["file_counts"]["completed"] == 1

    found = (await searched(http, store, embedding_model="mini/lm", vectors=[[0.0, 1.0]])).json()
    assert found["mode"] == "hybrid" and found["passages"][0]["similarity"] == 0.0
    dense = {"embedding_model": "mini/lm", "vectors": [[1.0, 0.0]], "mode": "dense"}
    assert (await searched(http, store, **dense)).json()["passages"][0]["similarity"] == pytest.approx(1.0)
    lexical = await searched(http, store, mode="lexical", embedding_model="mini/lm", vectors=[[1.0, 0.0]])
    assert lexical.json()["mode"] == "lexical"
    assert (await http.post("/internal/embeddings/take", json={"model": "mini/lm", "wait_s": 0.01})).json() is None


async def test_vectors_that_cannot_be_are_refused_and_a_text_can_be_given_up(http):
    store = await store_of(http, "alpha")
    batch = await taken(http)
    for vectors in ("", vectors_of([float("nan")]), base64.b64encode(b"abc").decode()):
        put = {"store_id": store, "ids": batch["ids"], "vectors": vectors}
        assert (await http.post("/internal/embeddings/put", json=put)).status_code == 400
    given_up = {"store_id": store, "ids": batch["ids"]}
    assert (await http.post("/internal/embeddings/fail", json=given_up)).status_code == 200
    [file] = (await http.get(f"/v1/vector_stores/{store}/files")).json()["data"]
    assert file["status"] == "failed" and file["last_error"]["code"] == "server_error"


@pytest.mark.parametrize(
    "more, status",
    [
        ({"stores": []}, 400),
        ({"stores": ["vs_0"] * 9}, 400),
        ({"stores": ["vs_0"]}, 404),
        ({"queries": []}, 400),
        ({"limit": 51}, 400),
        ({"mode": "fast"}, 400),
        ({"unknown": 1}, 400),
        ({"mode": "dense"}, 400),
        ({"filters": {"type": "like"}}, 400),
        ({"embedding_model": "other", "vectors": [[1.0]]}, 409),
        ({"embedding_model": "mini/lm", "vectors": [[1.0], [2.0]]}, 400),
        ({"embedding_model": "mini/lm", "vectors": [[]]}, 400),
    ],
)
async def test_a_search_that_cannot_be_is_refused(http, more, status):
    store = await store_of(http, "alpha")

    assert (await searched(http, **{"store": store, **more})).status_code == status


# The command


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def config_of(tmp_path: Path, **retrieval: Any) -> Path:
    routes = {"smollm2": {"workers": {"static": ["http://127.0.0.1:9"]}}}
    path = tmp_path / "sluice.yaml"
    path.write_text(yaml.safe_dump({"routes": routes, "retrieval": retrieval}))
    return path


async def test_one_process_serves_several_gateways_by_url_and_secret(tmp_path: Path):
    port = free_port()
    config = config_of(tmp_path, token_env="SLUICE_TEST_TOKEN", port=port, limits=LIMITS)
    command = [sys.executable, "-m", "sluice", "retrieval", "--config", str(config)]
    environment = os.environ | {"SLUICE_TEST_TOKEN": "secret"}
    process = await asyncio.create_subprocess_exec(*command, env=environment, stderr=asyncio.subprocess.PIPE)
    try:
        assert process.stderr is not None
        async with asyncio.timeout(60):
            assert f"ready on http://127.0.0.1:{port}" in (await process.stderr.readline()).decode()
        url = f"http://127.0.0.1:{port}"
        async with SharedProcess(url, "secret") as one, SharedProcess(url, "secret") as two, SharedProcess(url, "wrong") as no:
            reach = await one.reach()
            headers = {**reach.headers, "x-sluice-tenant": "acme"}
            async with reach.http.stream("POST", f"{url}/v1/vector_stores", headers=headers, idle_s=10) as answer:
                store = yaml.safe_load(b"".join([chunk async for chunk in answer.body]))["id"]
            for shared, is_let_in in ((two, True), (no, False)):
                retriever = RemoteRetriever(shared, weights=Weights(), clock=time.monotonic)
                assert (await retriever.health()).is_up == is_let_in
                asked: dict[str, Any] = {"queries": ["x"], "vectors": None, "filters": None, "limit": 1, "mode": "lexical"}
                search = retriever.search(
                    Search(tenant=Tenant("acme", "k"), stores=[StoreRef(store)], deadline=time.monotonic() + 60, **asked)
                )
                if is_let_in:
                    assert (await search).passages == ()
                else:
                    with pytest.raises(RetrievalUnavailable):
                        await search
        with pytest.raises(ConfigError, match="another process"):
            await asyncio.to_thread(retrieval_app.run, Stores(path=tmp_path / "data", port=0), "secret")
        process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(60):
            assert await process.wait() == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


def test_the_command_says_what_it_lacks(tmp_path: Path, capsys, monkeypatch):
    def run(**retrieval: Any) -> tuple[int, str]:
        code = main(["retrieval", "--config", str(config_of(tmp_path, **retrieval))], run_server=None)  # type: ignore[arg-type]
        return code, capsys.readouterr().err

    code, said = run()
    assert code == Exit.NEVER_STARTS and "retrieval.token_env: name the variable with the secret" in said
    monkeypatch.setenv("SLUICE_TEST_TOKEN", "secret")
    with socket.socket() as taken_port:
        taken_port.bind(("127.0.0.1", 0))
        port = taken_port.getsockname()[1]
        code, said = run(token_env="SLUICE_TEST_TOKEN", port=port)
    assert code == Exit.NEVER_STARTS and f"cannot listen on 127.0.0.1:{port}" in said
