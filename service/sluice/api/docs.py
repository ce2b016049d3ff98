"""`/openapi.json` and `/docs`: the framework's endpoints and those that are served ahead of it, in one document."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.resources import files
from typing import Any

from fastapi import FastAPI, Response
from fastapi.openapi.utils import get_openapi
from fastapi.responses import HTMLResponse

from sluice import __version__
from sluice.api.vector_stores import RELAYED, SEARCH
from sluice.types import Endpoint

ANY: dict[str, Any] = {}
TEXT = {"type": "string"}
MODEL = {"type": "string", "description": "A name of GET /v1/models"}
STREAM = {"type": "boolean", "default": False, "description": "Answer with server-sent events"}

# What each endpoint is for, and the members that must be there. Everything else that vLLM knows is passed on unchanged.
DOCUMENTED: dict[Endpoint, tuple[str, dict[str, Any], list[str]]] = {
    Endpoint.CHAT: ("Chat completion", {"messages": {"type": "array", "items": ANY}, "stream": STREAM}, ["messages"]),
    Endpoint.COMPLETIONS: ("Text completion", {"prompt": ANY, "stream": STREAM}, ["prompt"]),
    Endpoint.EMBEDDINGS: ("Embeddings", {"input": ANY}, ["input"]),
    Endpoint.RESPONSES: ("Response", {"input": ANY, "stream": STREAM}, ["input"]),
    Endpoint.MESSAGES: (
        "Message in Anthropic's format",
        {"messages": {"type": "array", "items": ANY}, "max_tokens": {"type": "integer"}, "stream": STREAM},
        ["messages", "max_tokens"],
    ),
    Endpoint.COUNT_TOKENS: ("Count a message's tokens", {"messages": {"type": "array", "items": ANY}}, ["messages"]),
    Endpoint.RERANK: ("Rerank documents", {"query": ANY, "documents": ANY}, ["query", "documents"]),
    Endpoint.SCORE: ("Score pairs of texts", {"queries": ANY, "documents": ANY}, []),
    Endpoint.TRANSCRIPTIONS: (
        "Transcribe audio, where the route opens it",
        {"file": {"type": "string", "format": "binary"}, "stream": STREAM},
        ["file"],
    ),
    Endpoint.TOKENIZE: ("Tokenize, where the route opens it", {"prompt": TEXT, "messages": ANY}, []),
    Endpoint.DETOKENIZE: ("Detokenize, where the route opens it", {"tokens": ANY}, ["tokens"]),
}
ERRORS = {
    "400": "The request is wrong",
    "401": "No key, or one that is not known",
    "403": "The key lacks the scope",
    "404": "No such model, or nothing of this name, for this key",
    "408": "The request did not arrive in time",
    "413": "The body is too large",
    "415": "Another content type is needed",
    "429": "Limit reached or overloaded; see retry-after",
    "500": "The gateway failed",
    "502": "The worker failed",
    "503": "No worker can take the call",
    "504": "The worker was silent",
}
# Of the endpoints that the framework serves. Where 401 is not among them, no key is needed.
FAILURES = {
    "/v1/models": ("401", "429"),
    "/v1/models/{model}": ("401", "404", "429"),
    "/v1/queue": ("401", "403", "429"),
    "/v1/workers/drain": ("400", "401", "403", "404", "408", "413", "415", "429"),
    "/v1/usage": ("400", "401", "404", "429", "500"),
    "/metrics": ("401", "403", "429"),
}
FAILURES |= {"/v1/retrieval/{call_id}": ("401", "404", "429"), "/v1/retrieval": ("400", "401", "404", "429", "503", "504")}
STORE_FAILURES = ("400", "401", "404", "408", "413", "415", "429", "503", "504")
FAILURES |= dict.fromkeys([*(path for _, path, _ in RELAYED), SEARCH], STORE_FAILURES)
FOR_ADMINS = frozenset({"403"})
PAGE_POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; connect-src 'self'"
ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": TEXT,
                "type": TEXT,
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}


def install(app: FastAPI) -> None:
    document = _document(app)
    page = files("sluice").joinpath("web/docs.html").read_text(encoding="utf-8")

    @app.get("/openapi.json", include_in_schema=False)
    async def openapi() -> dict[str, Any]:
        return document

    @app.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        return HTMLResponse(page, headers={"content-security-policy": PAGE_POLICY})


def _document(app: FastAPI) -> dict[str, Any]:
    document = get_openapi(
        title="Sluice", version=__version__, description="OpenAI-compatible gateway for vLLM.", routes=app.routes
    )
    paths = document["paths"]
    for path, methods in paths.items():
        for operation in methods.values():
            operation["responses"].pop("422", None)  # the framework's; our endpoints have nothing that it validates
            operation["responses"] |= _failures(FAILURES.get(path, ()))
            if path not in FAILURES:
                operation["security"] = []
    for endpoint, (summary, members, required) in DOCUMENTED.items():
        paths[endpoint.value] = {"post": _operation(endpoint, summary, members, required)}
    stored = [{"name": "response_id", "in": "path", "required": True, "schema": TEXT}]
    paths["/v1/responses/{response_id}"] = {"get": _answers("Get a stored response", parameters=stored)}
    paths["/v1/responses/{response_id}/cancel"] = {"post": _answers("Cancel a response in the background", parameters=stored)}
    document["components"] = {
        "schemas": {"Error": ERROR},
        "securitySchemes": {
            "bearer": {"type": "http", "scheme": "bearer"},
            "x_api_key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
        },
    }
    document["security"] = [{"bearer": []}, {"x_api_key": []}]
    return document


def _operation(endpoint: Endpoint, summary: str, members: dict[str, Any], required: list[str]) -> dict[str, Any]:
    media = "multipart/form-data" if endpoint is Endpoint.TRANSCRIPTIONS else "application/json"
    schema = {
        "type": "object",
        "required": ["model", *required],
        "properties": {"model": MODEL} | members,
        "additionalProperties": True,
    }
    return _answers(summary, requestBody={"required": True, "content": {media: {"schema": schema}}})


def _answers(summary: str, **more: Any) -> dict[str, Any]:
    failures = _failures(status for status in ERRORS if status not in FOR_ADMINS)
    return {"tags": ["workers"], "summary": summary, "responses": {"200": {"description": "The answer"}} | failures} | more


def _failures(statuses: Iterable[str]) -> dict[str, Any]:
    content = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    return {status: {"description": ERRORS[status], "content": content} for status in statuses}
