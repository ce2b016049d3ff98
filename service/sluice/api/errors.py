"""The one handler that turns what the framework and our endpoints raise into OpenAI's error object."""

from __future__ import annotations

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from sluice.errors import BadRequest, GatewayError, InternalError, MethodNotAllowed, NotFound


def install(app: FastAPI) -> None:
    """From here on FastAPI's `{"detail": ...}` and its 422 cannot leak."""
    app.add_exception_handler(GatewayError, _ours)
    app.add_exception_handler(HTTPException, _frameworks)
    app.add_exception_handler(RequestValidationError, _validation)
    app.add_exception_handler(Exception, _unexpected)


async def _ours(request: Request, exc: Exception) -> Response:
    assert isinstance(exc, GatewayError)
    return Response(exc.body(), status_code=exc.status, headers=dict(exc.headers()))


async def _frameworks(request: Request, exc: Exception) -> Response:
    assert isinstance(exc, HTTPException)
    if exc.status_code == 405:
        return await _ours(request, MethodNotAllowed((exc.headers or {}).get("Allow", "GET")))
    if exc.status_code == 404:
        return await _ours(request, NotFound(f"There is no {request.method} {request.scope['path'][:200]} here."))
    return await _ours(request, BadRequest(str(exc.detail)))


async def _validation(request: Request, exc: Exception) -> Response:
    assert isinstance(exc, RequestValidationError)
    first = exc.errors()[0]
    return await _ours(request, BadRequest(first["msg"], param=str(first["loc"][-1])))


async def _unexpected(request: Request, exc: Exception) -> Response:
    """Our bug; the framework raises it again once this has gone out, and whoever called it logs it."""
    return await _ours(request, InternalError())
