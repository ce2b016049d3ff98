"""Whatever the framework or an endpoint raises leaves as OpenAI's error object."""

from collections.abc import Callable
from typing import Annotated

import pytest
from fastapi import FastAPI, HTTPException, Query

from sluice.api import errors
from sluice.errors import GatewayError, Overloaded, Unauthenticated
from tests.support.asgi_client import AsgiCall, asgi_request


@pytest.fixture
def app() -> FastAPI:
    built = FastAPI(openapi_url=None, redirect_slashes=False)
    errors.install(built)

    @built.get("/typed")
    async def typed(count: Annotated[int, Query(ge=1)]) -> int:
        return count

    return built


def raising(app: FastAPI, build: Callable[[], Exception]) -> None:
    @app.get("/raises")
    async def raises() -> None:
        raise build()


def error_of(call: AsgiCall) -> dict[str, str | None]:
    assert call.header("content-type") == "application/json"
    body = call.json()
    assert body.keys() == {"error"}
    error: dict[str, str | None] = body["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    return error


@pytest.mark.parametrize(
    "error", [Overloaded("Full.", retry_after_s=2), Unauthenticated("No.", key_was_sent=True), GatewayError("Odd.")]
)
async def test_an_error_of_ours_comes_with_its_own_status_and_headers(app: FastAPI, error: GatewayError):
    raising(app, lambda: error)
    call = await asgi_request(app, "GET", "/raises")

    assert call.status == error.status
    assert error_of(call) == error.envelope()["error"]
    assert set(error.headers()) <= set(call.headers)


async def test_an_unknown_path_is_a_404_that_repeats_it_in_part(app: FastAPI):
    error = error_of(call := await asgi_request(app, "GET", "/" + "x" * 500))
    assert call.status == 404
    assert error["message"] == f"There is no GET /{'x' * 199} here."


async def test_a_host_header_that_is_none_changes_nothing(app: FastAPI):
    call = await asgi_request(app, "GET", "/nothing", headers=[("host", "[")])
    assert (call.status, error_of(call)["message"]) == (404, "There is no GET /nothing here.")


async def test_a_wrong_method_is_a_405_that_names_the_right_ones(app: FastAPI):
    call = await asgi_request(app, "POST", "/typed")
    assert (call.status, call.header("allow")) == (405, "GET")
    assert error_of(call)["message"] == "Method not allowed here; use GET."


async def test_a_parameter_of_the_wrong_type_is_a_400_that_names_it(app: FastAPI):
    call = await asgi_request(app, "GET", "/typed", query="count=0")
    assert call.status == 400
    assert error_of(call)["param"] == "count"


async def test_anything_else_that_the_framework_refuses_is_a_400(app: FastAPI):
    raising(app, lambda: HTTPException(418, "I am a teapot."))
    call = await asgi_request(app, "GET", "/raises")
    assert (call.status, error_of(call)["message"]) == (400, "I am a teapot.")


async def test_a_bug_is_a_500_that_says_nothing_of_it_and_is_raised_for_whoever_logs_it(app: FastAPI):
    raising(app, lambda: ValueError("secret"))
    call = AsgiCall(app, "GET", "/raises")
    with pytest.raises(ValueError, match="secret"):
        async with call:
            await call.finished()

    assert call.status == 500 and b"secret" not in call.body
    assert error_of(call)["code"] == "internal_error"
