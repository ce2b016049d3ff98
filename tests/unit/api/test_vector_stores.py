"""Files and vector stores through a whole gateway: the stock SDK, keys, tenants, and a process that is down."""

import asyncio
from pathlib import Path
from typing import Any

import openai
import pytest

from sluice.retrieval.process import ChildProcess
from tests.support.scripted_worker import ScriptedWorker
from tests.unit.in_process import Gateway, serving, settings, told

LIMITS = {"read_memory_bytes": 400_000_000, "upload_bytes": 100_000}
MINILM = {"minilm": {"workers": {"static": ["http://127.0.0.1:9"]}}}
GUIDE = "# Gateway\n\nThe gateway listens on port 8443.\n\n## 中文\n\n网关在端口 8443 监听。"


def sdk(gateway: Gateway, key: str = "") -> openai.AsyncOpenAI:
    key = key or gateway.keys.acme
    return openai.AsyncOpenAI(
        api_key=key, base_url=f"{gateway.url}/v1", max_retries=0, timeout=60, _strict_response_validation=True
    )


async def filled(client: openai.AsyncOpenAI, text: str = GUIDE, **more: Any) -> tuple[str, str]:
    """A store, and the file in it, which is done."""
    file = await client.files.create(file=("guide.md", text.encode()), purpose="assistants")
    store = await client.vector_stores.create(name="docs")
    done = await client.vector_stores.files.create_and_poll(file.id, vector_store_id=store.id, poll_interval_ms=20, **more)
    assert done.status == "completed", done.last_error
    return store.id, file.id


async def test_the_stock_sdk_uploads_searches_asks_and_deletes(tmp_path: Path):
    async with ScriptedWorker() as worker, serving(settings(tmp_path, worker, retrieval={"limits": LIMITS})) as gateway:
        process = gateway.app.retrieving.process
        assert isinstance(process, ChildProcess)
        await gateway.still_serves()
        assert process.pid is None and not (tmp_path / "data").exists()  # who does not use it pays nothing
        async with sdk(gateway) as client:
            store, file = await filled(client, attributes={"lang": "zh"})
            page = await client.vector_stores.search(store, query=["端口", "port"], max_num_results=3)
            [found] = page.data
            assert (found.file_id, found.filename, found.attributes) == (file, "guide.md", {"lang": "zh"})
            assert found.content[0].text == GUIDE and 0 < found.score <= 1
            en: Any = {"type": "eq", "key": "lang", "value": "en"}
            assert (await client.vector_stores.search(store, query="port", filters=en)).data == []
            answer = await client.chat.completions.create(
                model="smollm2",
                messages=[{"role": "user", "content": "Which port?"}],
                extra_body={"retrieval": {"vector_store_ids": [store]}},
            )
            [cited] = answer.choices[0].message.context["citations"]
            assert cited["file_id"] == file and b"8443" in worker.requests[-1].body
            assert (await client.files.content(file)).content == GUIDE.encode()
            assert (await client.files.delete(file)).deleted
            assert (await client.vector_stores.search(store, query="port")).data == []
            assert (await client.vector_stores.delete(store)).deleted
            with pytest.raises(openai.NotFoundError):
                await client.vector_stores.search(store, query="port")
        pid = process.pid
        assert gateway.metric('sluice_store_requests_total{method="DELETE",status="200"}') == 2
        await gateway.holds_nothing()
    assert pid is not None and process.pid is None


async def test_whose_a_thing_is_not_finds_nothing_and_who_has_no_key_is_told_so(tmp_path: Path):
    async with ScriptedWorker() as worker, serving(settings(tmp_path, worker, retrieval={"limits": LIMITS})) as gateway:
        async with sdk(gateway) as client:
            store, file = await filled(client)
        forged = [("x-sluice-tenant", "acme"), ("x-sluice-embedding-model", "m")]
        for method, path, body in (
            ("GET", f"/v1/files/{file}", None),
            ("GET", f"/v1/files/{file}/content", None),
            ("DELETE", f"/v1/files/{file}", None),
            ("GET", f"/v1/vector_stores/{store}", None),
            ("POST", f"/v1/vector_stores/{store}", {}),
            ("DELETE", f"/v1/vector_stores/{store}", None),
            ("POST", f"/v1/vector_stores/{store}/search", {"query": "port"}),
            ("POST", f"/v1/vector_stores/{store}/files", {"file_id": file}),
            ("GET", f"/v1/vector_stores/{store}/files", None),
            ("GET", f"/v1/vector_stores/{store}/files/{file}/content", None),
            ("POST", f"/v1/vector_stores/{store}/file_batches", {"file_ids": [file]}),
        ):
            body_given = {} if body is None else {"json": body}
            of_foreign = await gateway.request(method, path, key=gateway.keys.globex, headers=forged, **body_given)
            unknown = path.replace(store, "vs_0").replace(file, "file-0")
            of_nothing = await gateway.request(method, unknown, key=gateway.keys.globex, **body_given)
            said = told(of_foreign, 404).replace(store, "vs_0").replace(file, "file-0")
            assert said == told(of_nothing, 404), path
            assert (await gateway.request(method, path, key=None, **body_given)).status == 401
        assert (await gateway.request("GET", f"/files/{file}")).json()["id"] == file  # and it is still there


@pytest.mark.parametrize(
    "body, param",
    [
        (b"{", None),
        (b"[]", None),
        ({}, "query"),
        ({"query": ""}, "query"),
        ({"query": ["a"] * 6}, "query"),
        ({"query": [1]}, "query"),
        ({"query": "a", "max_num_results": 51}, "max_num_results"),
        ({"query": "a", "mode": "fast"}, "mode"),
        ({"query": "a", "limit": 1}, "limit"),
        ({"query": "a", "ranking_options": {"x": 1}}, "ranking_options"),
        ({"query": "a", "ranking_options": {"ranker": "mine"}}, "ranking_options"),
        ({"query": "a", "ranking_options": {"score_threshold": 2}}, "ranking_options"),
        ({"query": "a", "filters": {"type": "like"}}, "filters"),
        ({"query": "a", "rewrite_query": "yes"}, "rewrite_query"),
        ({"query": ["a", "b"], "rewrite_query": True}, "rewrite_query"),
    ],
)
async def test_a_bad_search_names_what_is_wrong(tmp_path: Path, body: Any, param: str | None):
    async with serving(settings(tmp_path, "http://127.0.0.1:9")) as gateway:
        given = {"body": body, "headers": [("content-type", "application/json")]} if isinstance(body, bytes) else {"json": body}
        told(await gateway.request("POST", "/v1/vector_stores/vs_0/search", **given), 400, param=param)


async def test_the_first_search_after_a_restart_waits_for_the_process(tmp_path: Path):
    quick = settings(tmp_path, "http://127.0.0.1:9", retrieval={"limits": LIMITS, "on_call": {"search_timeout_s": 0.3}})
    async with serving(quick) as gateway, sdk(gateway) as client:
        store, _ = await filled(client)
    async with serving(quick) as gateway, sdk(gateway) as client:
        assert len((await client.vector_stores.search(store, query="port")).data) == 1


async def test_a_search_that_wants_its_query_rewritten_is_told_where_nobody_can(tmp_path: Path):
    async with serving(settings(tmp_path, "http://127.0.0.1:9")) as gateway:
        asked = {"query": "a", "rewrite_query": True}
        answer = await gateway.request("POST", "/v1/vector_stores/vs_0/search", json=asked)

    assert "rewrite_route" in told(answer, 400, param="rewrite_query")


async def test_a_process_that_is_down_is_a_503_and_calls_go_on(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("TOKEN_OF_RETRIEVAL", "secret")
    shared = {"url": "http://127.0.0.1:9", "token_env": "TOKEN_OF_RETRIEVAL"}
    async with ScriptedWorker() as worker, serving(settings(tmp_path, worker, retrieval=shared)) as gateway:
        told(await gateway.request("GET", "/v1/files"), 503, "retrieval_unavailable")
        told(await gateway.request("POST", "/v1/vector_stores/vs_0/search", json={"query": "x"}), 503, "retrieval_unavailable")
        await gateway.still_serves()
        assert (await gateway.request("GET", "/readyz", key=None)).status == 200


async def test_what_is_switched_off_is_not_there(tmp_path: Path):
    async with serving(settings(tmp_path, "http://127.0.0.1:9", retrieval={"store": None})) as gateway:
        told(await gateway.request("GET", "/v1/files"), 404)
        told(await gateway.request("POST", "/v1/vector_stores/vs_0/search", json={"query": "x"}), 404)


async def test_a_client_that_stalls_or_leaves_in_an_upload_leaves_nothing(tmp_path: Path):
    asked = settings(
        tmp_path, "http://127.0.0.1:9", retrieval={"limits": LIMITS}, client_timeouts={"body_idle_s": 0.3, "body_s": 5}
    )
    async with serving(asked) as gateway:
        assert (await gateway.request("GET", "/v1/files")).status == 200
        head = [("content-type", "multipart/form-data; boundary=b"), ("content-length", "5000")]
        whole = gateway.bytes("POST", "/v1/files", headers=head, body=b"")
        begin = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.md"\r\n\r\nhalf'
        async with gateway.connect() as client:
            await client.send(whole.replace(b"content-length: 0\r\n", b"") + begin)
            told(await client.read_response(), 408)
        async with gateway.connect() as client:
            await client.send(whole.replace(b"content-length: 0\r\n", b"") + begin)
        await gateway.holds_nothing()
        async with asyncio.timeout(60):
            while list((tmp_path / "data" / "files").iterdir()):  # noqa: ASYNC110  of another process
                await asyncio.sleep(0.01)
        assert (await gateway.request("GET", "/v1/files")).json()["data"] == []


async def test_passages_are_embedded_by_a_route_and_a_store_of_another_model_is_told(tmp_path: Path):
    async with ScriptedWorker(model="minilm") as embedder, ScriptedWorker() as worker:
        routes = {"minilm": {"workers": {"static": [embedder.url]}}}
        options = {"limits": LIMITS, "embedding_route": "minilm"}
        async with serving(settings(tmp_path, worker, routes=routes, retrieval=options)) as gateway, sdk(gateway) as client:
            store, _ = await filled(client)
            assert (await client.vector_stores.retrieve(store)).embedding_model == "minilm"
            found = await gateway.request("POST", f"/v1/vector_stores/{store}/search", json={"query": "port", "mode": "dense"})
            assert found.json()["mode"] == "dense" and len(found.json()["data"]) == 1
            worker_saw = [request.json() for request in embedder.requests if request.path == "/v1/embeddings"]
            assert worker_saw[0]["input"] == [f"Gateway\n{GUIDE}"] and worker_saw[0]["truncate_prompt_tokens"] == -1
            await embedder.stop()
            page = (await gateway.request("POST", f"/v1/vector_stores/{store}/search", json={"query": "port"})).json()
            assert page["mode"] == "lexical" and page["notes"] == ["embedder_unavailable"] and len(page["data"]) == 1

    async with ScriptedWorker(model="other") as embedder, ScriptedWorker() as worker:
        routes = {"other": {"workers": {"static": [embedder.url]}}}
        options = {"limits": LIMITS, "embedding_route": "other"}
        async with serving(settings(tmp_path, worker, routes=routes, retrieval=options)) as gateway:
            await gateway.app.retrieving.process.reach()  # it starts beside the gateway
            for mode, status in (("hybrid", 409), ("lexical", 200)):
                answer = await gateway.request(
                    "POST", f"/v1/vector_stores/{store}/search", json={"query": "port", "mode": mode}
                )
                assert answer.status == status, answer
