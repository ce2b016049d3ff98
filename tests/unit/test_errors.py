"""The error tree: what a client is told, and that the drawing of the tree is true."""

import inspect
import re

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sluice import errors
from sluice.errors import (
    BadRequest,
    BodyTooLarge,
    BudgetSpent,
    ContextTooLong,
    EmbeddingMismatch,
    Forbidden,
    GatewayError,
    HeadTooLarge,
    InternalError,
    LimitsAway,
    MethodNotAllowed,
    ModelNotFound,
    NotFound,
    Overloaded,
    RateLimited,
    RequestTimeout,
    RetrievalTimeout,
    RetrievalUnavailable,
    StoreExpired,
    StoreNotFound,
    Unauthenticated,
    Unsupported,
    UnsupportedMediaType,
    UpstreamError,
    WorkerFull,
    WorkerRefused,
    WorkerRejected,
    WorkerTimeout,
    WorkerUnavailable,
)
from sluice.types import Source

DRAWN = re.compile(r"^ {4}(?P<stem>[ │├└─]*)(?P<name>\w+) +(?P<status>\d{3}) +(?P<code>\S+) +(?P<source>\w+) +(?P<retry>\w+)")

EACH = [
    *(kind("why") for kind in (BadRequest, ContextTooLong, NotFound, RequestTimeout, BodyTooLarge)),
    *(kind("why") for kind in (Unsupported, UnsupportedMediaType, HeadTooLarge, Forbidden, RateLimited, Overloaded)),
    *(kind("why") for kind in (UpstreamError, WorkerRefused, WorkerFull, WorkerUnavailable, WorkerTimeout)),
    *(kind("why") for kind in (EmbeddingMismatch, StoreExpired, RetrievalUnavailable, RetrievalTimeout)),
    *(kind("why", headers=[(b"x-ratelimit-remaining-requests", b"0")]) for kind in (BudgetSpent, LimitsAway)),
    Unauthenticated("why", key_was_sent=True),
    ModelNotFound("gpt-9"),
    StoreNotFound("vs_1"),
    MethodNotAllowed("POST"),
    InternalError(),
]
ALL = [*EACH, Unauthenticated("why", key_was_sent=False), *(WorkerRejected(s, "no") for s in (400, 401, 404, 429, 503))]


def drawn() -> dict[str, tuple[str | None, re.Match[str]]]:
    """Each class of the drawing that has a status of its own, with the class that it hangs on."""
    rows: dict[str, tuple[str | None, re.Match[str]]] = {}
    above: list[str] = ["GatewayError"]
    for line in (errors.__doc__ or "").splitlines():
        if row := DRAWN.match(line):
            depth = len(row["stem"]) // 4
            above[depth:] = [row["name"]]
            rows[row["name"]] = (above[depth - 1], row)
    return rows


def test_every_class_is_drawn():
    classes = {name for name, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, GatewayError)}

    assert classes == set(drawn()) | {"GatewayError", "WorkerRejected"}
    assert classes == {type(error).__name__ for error in ALL} | {"GatewayError"}


@pytest.mark.parametrize("error", EACH, ids=lambda error: type(error).__name__)
def test_the_drawing_tells_what_a_class_is(error):
    parent, row = drawn()[type(error).__name__]

    assert type(error).__base__.__name__ == parent
    assert (str(error.status), error.code or "-") == (row["status"], row["code"])
    assert (error.source, error.retryable) == (Source(row["source"]), row["retry"] == "yes")


@pytest.mark.parametrize("error", ALL, ids=lambda error: f"{type(error).__name__}-{error.status}")
def test_the_body_is_openais_envelope_with_all_four_members(error):
    body = orjson.loads(error.body())

    assert list(body) == ["error"]
    assert list(body["error"]) == ["message", "type", "param", "code"]
    assert body["error"]["message"] == error.message == str(error) != ""
    assert isinstance(body["error"]["type"], str)
    assert body["error"]["code"] is None or isinstance(body["error"]["code"], str)


def test_anthropics_sdks_find_the_outer_type():
    assert orjson.loads(BadRequest("why").body(is_anthropic=True)) == {
        "type": "error",
        "error": {"message": "why", "type": "invalid_request_error", "param": None, "code": None},
    }


@pytest.mark.parametrize("error", ALL, ids=lambda error: f"{type(error).__name__}-{error.status}")
def test_every_error_says_whether_to_retry_and_overload_says_when(error):
    headers = dict(error.headers())

    assert headers["content-type"] == "application/json"
    assert headers["x-should-retry"] == ("true" if error.retryable else "false")
    assert ("retry-after" in headers) == ("retry-after-ms" in headers) == (error.status in (429, 503))


@pytest.mark.parametrize(
    "wait_s, seconds, milliseconds",
    [(None, "1", "1000"), (0, "1", "1"), (-5, "1", "1"), (0.2, "1", "200"), (1.5, "2", "1500"), (3600, "60", "60000")],
)
def test_the_wait_is_told_in_seconds_and_milliseconds_within_bounds(wait_s, seconds, milliseconds):
    headers = dict(RateLimited("wait", retry_after_s=wait_s).headers())

    assert (headers["retry-after"], headers["retry-after-ms"]) == (seconds, milliseconds)


def test_a_refusal_by_limits_tells_what_is_left():
    assert ("x-ratelimit-remaining-requests", "0") in BudgetSpent(
        "w", headers=[(b"x-ratelimit-remaining-requests", b"0")]
    ).headers()


def test_a_missing_key_has_no_code_and_a_bad_one_has():
    assert Unauthenticated("why", key_was_sent=False).code is None
    assert Unauthenticated("why", key_was_sent=True).code == "invalid_api_key"
    assert ("www-authenticate", "Bearer") in Unauthenticated("why", key_was_sent=True).headers()


def test_a_wrong_method_is_told_the_right_one():
    error = MethodNotAllowed("GET, HEAD")

    assert ("allow", "GET, HEAD") in error.headers()
    assert "use GET, HEAD" in error.message


def test_an_unknown_model_is_named_but_not_at_any_length():
    assert ModelNotFound("gpt-9").message.startswith("The model `gpt-9` does not exist")
    assert ModelNotFound("gpt-9").param == "model"
    assert "`" + "x" * 80 + "...`" in ModelNotFound("x" * 10_000).message


@pytest.mark.parametrize(
    "status, type_, source, retryable",
    [
        (400, "invalid_request_error", Source.DOWNSTREAM, False),
        (404, "invalid_request_error", Source.DOWNSTREAM, False),
        (403, "permission_error", Source.DOWNSTREAM, False),
        (429, "rate_limit_error", Source.UPSTREAM, True),
        (500, "server_error", Source.UPSTREAM, False),
        (503, "server_error", Source.UPSTREAM, True),
    ],
)
def test_a_workers_own_error_keeps_its_status(status, type_, source, retryable):
    error = WorkerRejected(status, "no", param="n", code="c")

    assert (error.status, error.type, error.source, error.retryable) == (status, type_, source, retryable)
    assert (error.param, error.code) == ("n", "c")


def test_an_internal_error_tells_nothing_of_its_cause():
    try:
        raise InternalError from ValueError("secret")
    except InternalError as error:
        assert b"secret" not in error.body()


@given(st.text(), st.none() | st.text())
def test_any_message_makes_a_body(message, param):
    assert orjson.loads(BadRequest(message, param=param).body())["error"]["message"] == message
