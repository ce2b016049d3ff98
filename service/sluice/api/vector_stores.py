"""OpenAI's files and vector stores at the gateway: whose request it is, and on to the retrieval process, as it came.

Bodies pass through in pieces, both ways. A search alone is made here: its question is embedded by a route of this gateway.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import orjson
from fastapi import APIRouter, Request, Response
from fastapi.responses import StreamingResponse
from starlette.requests import ClientDisconnect

from sluice.api.access import tenant_of
from sluice.api.bodies import BodyReader, Buffers
from sluice.asgi import Receive, Scope, Send
from sluice.errors import BadRequest, RequestTimeout, RetrievalUnavailable
from sluice.http_json import HttpJsonError, HttpStream
from sluice.keys import Door
from sluice.metrics import RetrievalMetrics
from sluice.retrieval import wire
from sluice.retrieval.base import MAX_QUERIES, MAX_QUERY_CHARS, MAX_RESULTS, Passage
from sluice.retrieval.filters import parse_filter
from sluice.retrieval.hook import Hook
from sluice.retrieval.process import Process
from sluice.retrieval.wish import MODES, RANKERS, Wish
from sluice.types import Tenant
from sluice.wire.json_body import object_of

IDLE_S = 60.0  # of the retrieval process: deleting from a large store takes a while
CLIENT_LEFT = 499
COMES_DOWN = frozenset(
    (b"content-type", b"content-length", b"content-disposition", b"content-security-policy", b"x-content-type-options")
    + (b"x-should-retry", b"retry-after", b"retry-after-ms", b"allow")
)
SEARCH_MEMBERS = frozenset({"query", "max_num_results", "filters", "ranking_options", "rewrite_query", "mode"})
STORE, FILE, BATCH = "/v1/vector_stores/{store_id}", "/{file_id}", "/{batch_id}"

# Method, path, what it does. This is all that is relayed.
RELAYED = (
    ("POST", "/v1/files", "Upload a file"),
    ("GET", "/v1/files", "Your files"),
    ("GET", f"/v1/files{FILE}", "One file"),
    ("DELETE", f"/v1/files{FILE}", "Delete a file, in every store too"),
    ("GET", f"/v1/files{FILE}/content", "A file as it was uploaded"),
    ("POST", "/v1/vector_stores", "Make a vector store"),
    ("GET", "/v1/vector_stores", "Your vector stores"),
    ("GET", STORE, "One vector store"),
    ("POST", STORE, "Change its name, metadata or expiry"),
    ("DELETE", STORE, "Delete a vector store"),
    ("POST", f"{STORE}/files", "Put a file into a store"),
    ("GET", f"{STORE}/files", "The files of a store"),
    ("GET", f"{STORE}/files{FILE}", "One of them: how far it is, or why it failed"),
    ("POST", f"{STORE}/files{FILE}", "Change its attributes"),
    ("DELETE", f"{STORE}/files{FILE}", "Take a file out of a store"),
    ("GET", f"{STORE}/files{FILE}/content", "Its text, as it is searched"),
    ("POST", f"{STORE}/file_batches", "Put several files into a store"),
    ("GET", f"{STORE}/file_batches{BATCH}", "How far a batch is"),
    ("POST", f"{STORE}/file_batches{BATCH}/cancel", "Cancel what of a batch is not begun"),
    ("GET", f"{STORE}/file_batches{BATCH}/files", "The files of a batch"),
)
SEARCH = f"{STORE}/search"
PARAMETER = re.compile(r"{(\w+)}")


@dataclass(frozen=True, slots=True)
class Relaying:
    """What it takes to relay."""

    door: Door
    process: Process
    embedding_model: str | None
    idle_s: float  # of a client that sends
    metrics: RetrievalMetrics

    async def relay(self, request: Request) -> Response:
        tenant = tenant_of(request.scope["visit"], self.door)
        try:
            answer = await self._relay(request, tenant)
        except ClientDisconnect:
            answer = Response(status_code=CLIENT_LEFT)
        self.metrics.store_request(request.method, answer.status_code)
        return answer

    async def _relay(self, request: Request, tenant: Tenant) -> Response:
        reach = await self.process.reach()
        headers = {**reach.headers, wire.TENANT_HEADER: quote(tenant.name, safe="")}
        if self.embedding_model is not None:
            headers[wire.MODEL_HEADER] = quote(self.embedding_model, safe="")
        has_body = request.method == "POST"
        if has_body:
            headers |= {name: value for name in ("content-type", "content-length") if (value := request.headers.get(name))}
        path = request.scope["path"]
        target = quote(path if path.startswith("/v1/") else f"/v1{path}", safe="/")
        if query := request.scope.get("query_string", b""):
            target += "?" + quote(query.decode("latin-1"), safe="=&%+[]*'(),:;@!$?/-._~")
        content = _pieces(request, self.idle_s) if has_body else None
        stack = AsyncExitStack()
        try:
            sending = reach.http.stream(request.method, f"{reach.url}{target}", headers=headers, content=content, idle_s=IDLE_S)
            answer = await stack.enter_async_context(sending)
        except HttpJsonError as exc:
            raise RetrievalUnavailable("The retrieval process cannot be reached; try again in a moment.") from exc
        down = {name.decode(): value.decode("latin-1") for name, value in answer.headers if name.lower() in COMES_DOWN}
        return Passing(stack, answer, down)


async def _pieces(request: Request, idle_s: float) -> AsyncIterator[bytes]:
    """The body as the client sends it; `RequestTimeout` where it pauses for too long."""
    chunks = request.stream()
    while True:
        try:
            async with asyncio.timeout(idle_s):
                chunk = await anext(chunks)
        except StopAsyncIteration:
            return
        except TimeoutError as exc:
            raise RequestTimeout("The request body did not arrive in time.") from exc
        if chunk:
            yield chunk


class Passing(StreamingResponse):
    """The process's answer, passed down in its pieces; what it came by is let go in any case."""

    def __init__(self, stack: AsyncExitStack, answer: HttpStream, headers: dict[str, str]) -> None:
        super().__init__(answer.body, answer.status, headers)
        self._stack = stack

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self._stack:
            await super().__call__(scope, receive, send)


def router(relaying: Relaying, hook: Hook, reader: BodyReader, buffers: Buffers) -> APIRouter:
    api = APIRouter(tags=["files and vector stores"])
    for method, path, summary in RELAYED:
        # The process reads the path's parameters; here they are only shown.
        names = PARAMETER.findall(path)
        shown = {"parameters": [{"name": one, "in": "path", "required": True, "schema": {"type": "string"}} for one in names]}
        about: dict[str, Any] = {"summary": summary, "openapi_extra": shown if names else None}
        api.add_api_route(path, relaying.relay, methods=[method], response_class=Response, **about)
        short = path.removeprefix("/v1")
        api.add_api_route(short, relaying.relay, methods=[method], include_in_schema=False, response_class=Response)

    @api.post(SEARCH, summary="Search a vector store")
    @api.post(SEARCH.removeprefix("/v1"), include_in_schema=False)
    async def search(store_id: str, request: Request) -> Response:
        visit = request.scope["visit"]
        tenant = tenant_of(visit, relaying.door)
        with buffers.hold() as held:
            body = await reader.read(visit, request.receive, held)
            asked = object_of(body, SEARCH_MEMBERS)
        queries, found = await hook.search(tenant, _wish(store_id, asked), _queries(asked))
        relaying.metrics.store_request("POST", 200)
        page = {
            "object": "vector_store.search_results.page",
            "search_query": list(queries),
            "data": [_result(passage) for passage in found.passages],
            "has_more": False,
            "next_page": None,
            "mode": found.mode,  # ours: what was really done
            "notes": list(found.notes),
        }
        return Response(orjson.dumps(page), media_type="application/json")

    return api


def _queries(asked: dict[str, Any]) -> list[str]:
    query = asked.get("query")
    queries = [query] if isinstance(query, str) else query
    if not isinstance(queries, list) or not 0 < len(queries) <= MAX_QUERIES:
        raise BadRequest(f"`query` is a text, or a list of 1 to {MAX_QUERIES} texts.", param="query")
    if not all(isinstance(one, str) and one.strip() for one in queries):
        raise BadRequest("`query` must not be empty.", param="query")
    if asked.get("rewrite_query") is True and len(queries) > 1:
        raise BadRequest("`rewrite_query` is for one query; these are several.", param="rewrite_query")
    return [one[:MAX_QUERY_CHARS] for one in queries]


def _wish(store_id: str, asked: dict[str, Any]) -> Wish:
    number, mode, options = asked.get("max_num_results"), asked.get("mode", "hybrid"), asked.get("ranking_options") or {}
    if number is None:
        number = 10
    if type(number) is not int or not 1 <= number <= MAX_RESULTS:
        raise BadRequest(f"`max_num_results` is an integer from 1 to {MAX_RESULTS}.", param="max_num_results")
    if mode not in MODES:
        raise BadRequest(f"`mode` is one of {', '.join(MODES)}.", param="mode")
    if not isinstance(options, dict) or options.keys() - {"ranker", "score_threshold"}:
        raise BadRequest("`ranking_options` is an object of ranker and score_threshold.", param="ranking_options")
    ranker, threshold = options.get("ranker") or "auto", options.get("score_threshold") or 0.0
    if ranker not in RANKERS:
        raise BadRequest(f"`ranker` is one of {', '.join(RANKERS)}.", param="ranking_options")
    if type(threshold) not in (int, float) or not 0 <= threshold <= 1:
        raise BadRequest("`score_threshold` is a number from 0 to 1.", param="ranking_options")
    if asked.get("rewrite_query") not in (None, True, False):
        raise BadRequest("`rewrite_query` is true or false.", param="rewrite_query")
    return Wish(
        (store_id,),
        mode=mode,
        max_num_results=number,
        score_threshold=float(threshold),
        reranks=ranker != "none",
        rewrite="fusion" if asked.get("rewrite_query") else "none",
        filters=parse_filter(asked.get("filters")),
    )


def _result(passage: Passage) -> dict[str, Any]:
    return {
        "file_id": passage.file_id,
        "filename": passage.filename,
        "score": passage.score,
        "attributes": dict(passage.attributes),
        "content": [{"type": "text", "text": passage.text}],
    }
