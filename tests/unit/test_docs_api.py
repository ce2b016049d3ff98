"""docs/api.md says of every endpoint, error and header what the code does, and of nothing else."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from sluice import errors
from sluice.api.docs import DOCUMENTED
from sluice.errors import GatewayError, Unauthenticated
from sluice.middleware import EXPOSED, PREFLIGHT
from sluice.server import protocol
from sluice.types import Endpoint
from sluice.wire.members import BOUNDED, DROPPED, REFUSED
from tests.support import scripts
from tests.support.scripted_worker import ScriptedWorker
from tests.unit.in_process import ASK, CHAT, STREAM, Gateway, serving, settings

DOC = (Path(__file__).parents[2] / "docs" / "api.md").read_text(encoding="utf-8")
CELL = re.compile(r"`([^`]+)`")


def section(title: str) -> str:
    found = re.search(rf"^## {title}\n(.*?)(?=^## |\Z)", DOC, re.MULTILINE | re.DOTALL)
    assert found, title
    return found[1]


def rows(title: str, number: int = 0) -> list[list[str]]:
    """The cells of the section's tables, or of one of them."""
    tables = re.findall(r"^\|.*\n\|[-|]+\n((?:\|.*\n)+)", section(title), re.MULTILINE)
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in tables[number].splitlines()]


def documented_headers() -> set[str]:
    return {name for row in rows("Headers of answers") for name in CELL.findall(row[0])}


def families(root: type[GatewayError] = GatewayError) -> Iterator[type[GatewayError]]:
    for child in root.__subclasses__():
        yield child
        yield from families(child)


# Endpoints


async def test_every_endpoint_is_there_and_what_is_said_of_its_key_is_true(tmp_path: Path):
    told = {tuple(CELL.findall(row[0])[0].split(" ")): row[1] for row in rows("Endpoints")}
    async with serving(settings(tmp_path, "http://127.0.0.1:9")) as gateway:
        api = (await gateway.request("GET", "/openapi.json", key=None)).json()["paths"]
        served = {(method.upper(), path) for path, methods in api.items() for method in methods}
        assert told.keys() == served | {("GET", "/docs"), ("GET", "/openapi.json")}
        for (method, path), key in told.items():
            target = re.sub("{.*?}", "x", path)
            body = {"body": b""} if method == "POST" else {}
            without = (await gateway.request(method, target, key=None, **body)).status
            assert (without == 401) == (key != "no"), path
            assert ((await gateway.request(method, target, **body)).status == 403) == (key == "admin"), path
    assert DOCUMENTED.keys() == set(Endpoint)


def test_what_a_route_must_open_is_said_with_the_word_for_it():
    for name in ("tokenize", "detokenize", "transcriptions"):
        assert f"opens `{name}`" in section("Endpoints")


# Requests


def test_every_member_that_does_not_go_up_as_it_is_is_there():
    told = {frozenset(CELL.findall(row[0])): row[1] for row in rows("Requests", 0)}
    assert told[frozenset(DROPPED)].startswith("Taken out")
    assert told[frozenset(REFUSED)].startswith("Refused with a 400")
    assert "400" in told[frozenset(BOUNDED)]


def test_the_bounds_that_no_setting_has_are_those_of_the_code():
    text = section("Requests")
    assert f"headers over {protocol.MAX_HEAD_BYTES // 1024} KiB" in text
    assert f"up to {protocol.MAX_PIPELINED} at once" in text


def test_the_settings_that_it_names_exist():
    configuration = (Path(__file__).parents[2] / "docs" / "configuration.md").read_text(encoding="utf-8")
    names = {name for row in rows("Requests", 1) for name in CELL.findall(row[0])}
    names |= {"keep_alive_s", "responses_store", "media_hosts", "cors_origins", "open", "bounds"}
    for name in names:
        assert f"| `{name}`" in configuration or f"`routes.NAME.{name}`" in configuration, name


# Errors


def test_every_error_is_there_with_status_code_type_and_retry():
    told = {(row[0], row[1].strip("`"), row[2].strip("`"), row[3]) for row in rows("Errors")}
    made = set()
    for family in families():
        if family is errors.WorkerRejected or family.status == 500 and family is not errors.InternalError:
            continue
        codes = [None, "invalid_api_key"] if family is Unauthenticated else [family.code]
        retry = "yes" if family.retryable else "no"
        made |= {(str(family.status), code or "null", family.type, retry) for code in codes}
    assert told == made


def test_what_it_says_of_retries_is_what_is_sent():
    for family in families():
        if family not in (errors.WorkerRejected, errors.MethodNotAllowed, errors.Unauthenticated, errors.InternalError):
            error = family("x")
            headers = dict(error.headers())
            assert headers["x-should-retry"] == ("true" if family.retryable else "false")
            is_for_later = family.retryable or family is errors.BudgetSpent
            assert ("retry-after" in headers) == (is_for_later and family.status in (429, 503))


# Headers


async def answers(gateway: Gateway, worker: ScriptedWorker) -> set[str]:
    """The names of all headers on one answer of each kind."""
    listed, key = ("origin", "null"), gateway.keys.acme
    seen = set()
    for method, path, options in (
        ("POST", CHAT, {"json": ASK, "headers": [listed]}),
        ("POST", CHAT, {"json": STREAM}),
        ("POST", CHAT, {"json": ASK, "key": None}),
        ("GET", CHAT, {"key": key}),
        ("POST", CHAT, {"json": ASK | {"retrieval": {}}, "headers": [("x-retrieval", "off")]}),
        ("GET", "/docs", {}),
        ("POST", CHAT, {"body": b"", "headers": [("connection", "close")]}),
        ("OPTIONS", CHAT, {"headers": [listed, ("access-control-request-method", "POST")]}),
    ):
        seen |= {name for name, _ in (await gateway.request(method, path, **options)).headers}
    seen |= await headers_of_waiting(gateway, worker)
    await worker.stop()
    seen |= {name for name, _ in (await gateway.request("POST", CHAT, json=ASK)).headers}
    await gateway.until(lambda: gateway.pools[0].workers[0].is_healthy is False)
    return seen | {name for name, _ in (await gateway.request("POST", CHAT, json=ASK)).headers}


async def headers_of_waiting(gateway: Gateway, worker: ScriptedWorker) -> set[str]:
    """Those of a stream that waits, once it is known how fast the queue drains."""
    drain = gateway.app.routes["smollm2"].admission._drain
    drain.begin(0.0)
    drain.started(1000, 10.0)
    drain.end()
    num_calls = len(worker.calls(CHAT))
    worker.on(CHAT, scripts.never_answers())
    async with gateway.connect() as first, gateway.connect() as second:
        await first.send(gateway.bytes("POST", CHAT, json=STREAM))
        await worker.wait_calls(num_calls + 1, CHAT)
        await second.send(gateway.bytes("POST", CHAT, json=STREAM))
        return {name for name, _ in (await second.read_head()).headers}


async def test_every_header_of_an_answer_is_there_and_no_other(tmp_path: Path):
    async with ScriptedWorker() as worker:
        worker.on(CHAT, scripts.reply(200, {"choices": []}, headers=[("x-worker", "7"), ("set-cookie", "a=b")]), None)
        route = {"queue": {"max_in_flight": 1, "comments_s": 1}, "explain": {"headers": True}}
        server, probes = {"cors_origins": ["null"]}, {"health_interval_s": 0.02}
        limits = {"store": "redis://127.0.0.1:1/0", "fail": "local", "default": {"rpm": 1000, "tpm": 1_000_000}}
        asked = settings(tmp_path, worker, server=server, probes=probes, route=route, limits=limits)
        async with serving(asked) as gateway:
            assert await answers(gateway, worker) == documented_headers()


# CORS


def test_the_headers_that_pages_may_read_and_send_are_those_of_the_code():
    text = section("CORS")
    readable = text[text.index("Pages may read") :]
    assert CELL.findall(readable) == EXPOSED.decode().split(", ")
    preflight = dict(PREFLIGHT)
    assert f"`{preflight[b'access-control-allow-methods'].decode()}`" in text
    assert preflight[b"access-control-max-age"] == b"86400" and "for a day" in text


@pytest.mark.parametrize("origin", ["https://web.chatboxai.app", "capacitor://localhost", "null", "*"])
def test_the_origins_that_it_shows_are_possible(origin: str):
    assert f"`{origin}`" in section("CORS")
