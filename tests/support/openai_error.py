"""OpenAI's error envelope, as every error of the gateway must have it."""

from typing import Any

from tests.support.raw_http import Response


def assert_error(response: Response, status: int, code: str | None | Any = any, *, param: Any = any) -> dict[str, Any]:
    """OpenAI's envelope with all four members, JSON, a request id, and no trace of what is inside."""
    assert response.status == status, (response.status, response.body[:500])
    assert (response.header("content-type") or "").split(";")[0] == "application/json"
    assert response.header("x-request-id")
    body = response.json()
    assert body.keys() - {"type"} == {"error"}
    error: dict[str, Any] = body["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert isinstance(error["message"], str) and error["message"] and isinstance(error["type"], str)
    assert error["param"] is None or isinstance(error["param"], str)
    assert error["code"] is None or isinstance(error["code"], str)
    assert b"Traceback" not in response.body and b"<html" not in response.body.lower()
    assert b"127.0.0.1" not in response.body, "a worker's address"
    if code is not any:
        assert error["code"] == code, error
    if param is not any:
        assert error["param"] == param, error
    if status in (429, 503):
        assert 1 <= int(response.header("retry-after") or 0) <= 60
    return error
