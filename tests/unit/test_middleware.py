"""The edge: an id for every request, CORS, and one access line each, which has no secret in it."""

import re
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sluice.middleware import EXPOSED, Edge, Visit, plain_path
from tests.support import scripts
from tests.support.asgi_client import AsgiCall, asgi_request
from tests.support.scripted_worker import ScriptedWorker
from tests.unit.in_process import ASK, CHAT, STREAM, serving, settings

ORIGINS = ("https://web.chatboxai.app", "capacitor://localhost", "null")
App = Callable[[Any, Any, Any], Awaitable[None]]


class Lines(list[dict[str, Any]]):
    """An access log that a test can read."""

    def write(self, line: dict[str, Any]) -> None:
        self.append(line)


class NoHotPath:
    def find(self, path: str) -> None:
        return None

    async def serve(self, visit: Visit, found: Any, receive: Any, send: Any) -> None:
        raise AssertionError("nothing was found")


async def greeting(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"hi"})


def edge(rest: App = greeting, *, origins: tuple[str, ...] = (), log: Lines | None = None) -> Edge:
    times = iter(range(1000))
    return Edge(
        NoHotPath(),
        rest,
        origins=origins,
        log=log,  # type: ignore[arg-type]
        clock=lambda: next(times) / 8,
        wall_clock=lambda: 1_700_000_000.1239,
    )


def vary(call: AsgiCall) -> str | None:
    return call.header("vary")


# Ids


async def test_every_request_has_an_id_of_its_own_that_no_other_process_gives():
    one, other = edge(), edge()
    ids = [str((await asgi_request(app, "GET", "/")).header("x-request-id")) for app in (one, one, other)]

    assert len(set(ids)) == 3
    assert all(re.fullmatch(r"req-[0-9a-f]{12}-[12]", id) for id in ids)
    assert ids[0][:-1] == ids[1][:-1] != ids[2][:-1]


@pytest.mark.parametrize("theirs", ["7", "a b"[0] * 128, "!~", '"<script>"'])
async def test_a_clients_own_id_is_echoed_and_logged_beside_ours(theirs: str):
    lines = Lines()
    call = await asgi_request(edge(log=lines), "GET", "/", headers=[("x-request-id", theirs)])

    assert call.header("x-request-id") == theirs
    assert lines[0]["client_id"] == theirs and lines[0]["id"].startswith("req-")


@pytest.mark.parametrize("theirs", ["", "x" * 129, "a b", "é", "a\x00b", "\x7f"])
async def test_an_id_that_would_not_fit_a_log_is_not_echoed(theirs: str):
    lines = Lines()
    call = await asgi_request(edge(log=lines), "GET", "/", headers=[("x-request-id", theirs)])

    assert str(call.header("x-request-id")).startswith("req-")
    assert "client_id" not in lines[0]


# CORS


async def test_without_origins_nothing_is_said_of_them():
    call = await asgi_request(edge(), "GET", "/", headers=[("origin", ORIGINS[0])])
    assert {name for name, _ in call.headers} == {"content-length", "x-request-id"}


@pytest.mark.parametrize("origin", ORIGINS)
async def test_a_listed_origin_may_read_the_answer_and_the_headers_that_clients_need(origin: str):
    call = await asgi_request(edge(origins=ORIGINS), "GET", "/", headers=[("origin", origin)])

    assert call.header("access-control-allow-origin") == origin
    assert call.header("access-control-expose-headers") == EXPOSED.decode()
    assert vary(call) == "origin"


@pytest.mark.parametrize(
    "origin", ["https://evil.example", "http://web.chatboxai.app", "https://web.chatboxai.app.evil.example", None]
)
async def test_another_origin_may_not_and_caches_are_told_that_it_depends(origin: str | None):
    headers = [("origin", origin)] if origin else []
    call = await asgi_request(edge(origins=ORIGINS), "GET", "/", headers=headers)

    assert (call.status, call.header("access-control-allow-origin"), vary(call)) == (200, None, "origin")


async def test_a_star_is_for_everybody_and_depends_on_nothing():
    for headers in ([("origin", "https://any.example")], []):
        call = await asgi_request(edge(origins=("*",)), "GET", "/", headers=headers)
        assert (call.header("access-control-allow-origin"), vary(call)) == ("*", None)


@pytest.mark.parametrize("path", [CHAT, "/v1/models", "/nowhere"])
async def test_a_preflight_is_answered_without_a_key_and_logged(path: str):
    asked = "authorization,content-type,x-stainless-os,user-agent"
    lines = Lines()
    call = await asgi_request(
        edge(origins=ORIGINS, log=lines),
        "OPTIONS",
        path,
        headers=[
            ("origin", ORIGINS[0]),
            ("access-control-request-method", "POST"),
            ("access-control-request-headers", asked),
        ],
    )

    assert (call.status, call.body) == (204, b"")
    assert call.header("access-control-allow-origin") == ORIGINS[0]
    assert call.header("access-control-allow-headers") == asked
    assert "POST" in str(call.header("access-control-allow-methods"))
    assert call.header("access-control-max-age") == "86400"
    assert call.header("content-length") is None, "RFC 9110: none with a 204"
    assert call.header("x-request-id")
    assert [(line["method"], line["status"]) for line in lines] == [("OPTIONS", 204)]


async def test_a_preflight_from_elsewhere_is_told_nothing_that_a_browser_would_take_for_leave():
    headers = [("origin", "https://evil.example"), ("access-control-request-method", "POST")]
    call = await asgi_request(edge(origins=ORIGINS), "OPTIONS", CHAT, headers=headers)
    assert call.header("access-control-allow-origin") is None


async def test_options_that_are_no_preflight_are_a_request_like_others():
    assert (await asgi_request(edge(origins=ORIGINS), "OPTIONS", "/", headers=[("origin", ORIGINS[0])])).body == b"hi"
    headers = [("origin", ORIGINS[0]), ("access-control-request-method", "GET")]
    assert (await asgi_request(edge(), "OPTIONS", "/", headers=headers)).body == b"hi"


async def test_errors_and_streams_carry_the_same_headers(tmp_path: Path):
    async with ScriptedWorker() as worker:
        async with serving(settings(tmp_path, worker, server={"cors_origins": ["*"]})) as gateway:
            wanted = [("POST", CHAT, {"json": ASK}, 200), ("POST", CHAT, {"json": STREAM}, 200)]
            wanted += [("POST", CHAT, {"json": {}}, 400), ("GET", "/nowhere", {}, 404), ("GET", CHAT, {}, 405)]
            for method, path, options, status in wanted:
                headers = [("origin", "null")]
                response = await gateway.request(method, path, headers=headers, **options)
                assert (response.status, response.header("access-control-allow-origin")) == (status, "*")
            response = await gateway.request(
                "OPTIONS", CHAT, key=None, headers=[("origin", "null"), ("access-control-request-method", "POST")]
            )
            assert (response.status, response.header("transfer-encoding")) == (204, None)


# What the framework serves


async def test_what_fails_in_the_framework_is_logged_under_the_requests_id(caplog: pytest.LogCaptureFixture):
    async def failing(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 500, "headers": []})
        await send({"type": "http.response.body", "body": b"{}"})
        raise ValueError("a bug")

    lines = Lines()
    call = await asgi_request(edge(failing, log=lines), "GET", "/")

    assert lines[0]["status"] == 500
    (record,) = caplog.records
    assert call.header("x-request-id") in record.getMessage() and record.exc_info


async def test_the_framework_sees_the_plain_path_and_the_log_what_was_asked():
    seen = []

    async def rest(scope: Any, receive: Any, send: Any) -> None:
        seen.append((scope["path"], scope["visit"].id, "extensions" in scope))
        await greeting(scope, receive, send)

    lines = Lines()
    await asgi_request(edge(rest, log=lines), "GET", "//v1/v1/models/")

    assert seen == [("/v1/models", lines[0]["id"], False)]
    assert lines[0]["path"] == "//v1/v1/models/"


async def test_what_is_no_request_is_the_frameworks():
    seen = []

    async def rest(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope["type"])

    lines = Lines()
    await edge(rest, log=lines)({"type": "websocket"}, None, None)  # type: ignore[arg-type]
    assert (seen, lines) == (["websocket"], [])


@pytest.mark.parametrize(
    ("path", "plain"),
    [
        ("/", "/"),
        ("", "/"),
        ("/v1/models", "/v1/models"),
        ("//v1//models//", "/v1/models"),
        ("/v1/v1/v1/a", "/v1/a"),
        ("/v1/v1", "/v1/v1"),
    ],
)
def test_a_path_is_made_plain(path: str, plain: str):
    assert plain_path(path) == plain


@given(st.text("/v1ab.", max_size=20))
def test_a_plain_path_stays_as_it_is(path: str):
    plain = plain_path(path)
    assert plain_path(plain) == plain
    assert plain.startswith("/") and "//" not in plain


# Access lines


async def test_the_line_of_a_request_that_is_no_call():
    lines = Lines()
    await asgi_request(edge(log=lines), "GET", "/" + "x" * 500, client=("10.1.2.3", 7))

    line = lines[0]
    assert re.fullmatch(r"req-[0-9a-f]{12}-1", line.pop("id"))
    assert line == {
        "time": 1_700_000_000.124,
        "method": "GET",
        "path": "/" + "x" * 255,
        "address": "10.1.2.3",
        "status": 200,
        "duration_ms": 125.0,
    }


async def test_a_request_from_a_unix_socket_has_no_address():
    lines = Lines()
    await asgi_request(edge(log=lines), "GET", "/", client=None)
    assert lines[0]["address"] == ""


async def test_every_request_has_one_line_that_says_who_asked_what_and_how_it_ended(tmp_path: Path):
    async with ScriptedWorker() as worker:
        async with serving(settings(tmp_path, worker)) as gateway:
            await gateway.request("POST", CHAT + "?secret=1", json=ASK)
            await gateway.request("POST", CHAT, json=STREAM, headers=[("x-request-id", "mine")])
            await gateway.request("POST", CHAT, json=ASK | {"model": "gpt-9"})
            await gateway.request("POST", CHAT, key="sk-wrong", json=ASK)
            await gateway.request("GET", "/v1/models")
            await gateway.request("GET", "/nowhere", key=None)
            worker.on(CHAT, scripts.vllm_error(400, "too hot"))
            await gateway.request("POST", CHAT, json=ASK)
            worker.on(CHAT, scripts.never_answers())
            async with gateway.connect() as client:
                await client.send(gateway.bytes("POST", CHAT, json=STREAM))
                await worker.wait_calls(4)
            await gateway.holds_nothing()
            async with gateway.connect() as client:
                await client.send(
                    gateway.bytes("POST", CHAT, headers=[("content-type", "application/json"), ("content-length", "9")])
                )
                await gateway.until(lambda: bool(gateway.server.server_state.tasks))
            await gateway.holds_nothing()
    lines = gateway.lines()

    assert [line["status"] for line in lines] == [200, 200, 404, 401, 200, 404, 400, 499, 499]
    call, stream, unknown, refused, models, nowhere, rejected, left, early = lines
    common = {"time", "id", "method", "path", "address", "status", "duration_ms"}
    who, which = {"tenant", "key"}, {"route", "stream"}
    used = {"worker", "attempts", "prompt_tokens", "completion_tokens", "cached_tokens", "exact"}
    failed = {"source", "code"}
    assert call.keys() == common | who | which | used
    assert stream.keys() == common | who | which | used | {"client_id", "first_event_ms"}
    assert unknown.keys() == common | who | failed
    assert refused.keys() == common | failed
    assert models.keys() == common | who
    assert nowhere.keys() == common
    assert rejected.keys() == common | who | which | used | failed
    assert early.keys() == common | who
    assert (call["tenant"], call["route"], call["stream"], call["worker"]) == ("acme", "smollm2", False, worker.url)
    assert (call["prompt_tokens"], call["completion_tokens"], call["exact"]) == (2, 6, True)
    assert call["path"] == CHAT, "the query may hold secrets"
    assert (stream["client_id"], stream["stream"]) == ("mine", True)
    assert 0 < stream["first_event_ms"] <= stream["duration_ms"]
    assert (unknown["source"], unknown["code"]) == ("downstream", "model_not_found")
    assert (refused["code"], rejected["source"], left["code"]) == ("invalid_api_key", "downstream", "client_left")
    assert len({line["id"] for line in lines}) == len(lines)


async def test_no_line_has_a_key_a_prompt_or_an_answer(tmp_path: Path):
    async with ScriptedWorker() as worker:
        async with serving(settings(tmp_path, worker)) as gateway:
            secret = {"messages": [{"role": "user", "content": "my secret"}], "user": "me-secret"}
            await gateway.request("POST", CHAT, json=ASK | secret)
            await gateway.request("POST", CHAT, json=STREAM | secret, headers=[("cookie", "secret=1"), ("referer", "/secret")])
            await gateway.request("POST", CHAT, key="sk-secret", json=ASK | secret)
            await gateway.request("POST", CHAT, json=ASK | secret | {"model": "secret"})
    text = gateway.log_path.read_text()

    assert text.count("\n") == 4
    for word in ("secret", "Hello", "scripted", gateway.keys.acme):
        assert word not in text


async def test_the_log_can_be_switched_off(tmp_path: Path):
    async with ScriptedWorker() as worker, serving(settings(tmp_path, worker, server={"access_log": False})) as gateway:
        assert (await gateway.request("POST", CHAT, json=ASK)).status == 200
    assert gateway.lines() == []
