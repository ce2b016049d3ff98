"""What clients do wrong, out of clumsiness or malice: each gets a clear error or is cut off, and nobody else notices.

After each test the same process answers a good request, and nothing is held: no bytes, no slot on a worker, no pump.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import pytest_asyncio

from tests.support import scripts
from tests.support.patient_loop import PatientLoop
from tests.support.raw_http import RawClient, chunked, event_data, request_bytes
from tests.support.scripted_worker import ScriptedWorker
from tests.unit.in_process import ASK, CHAT, JSON, STREAM, Gateway, serving, settings, told

pytestmark = pytest.mark.asyncio(loop_scope="module")
on_one_loop = pytest.mark.asyncio(loop_scope="module", loop_factories=["uvloop"])  # what the loop has no part in
by_a_patient_clock = pytest.mark.asyncio(loop_scope="module", loop_factories=["asyncio"])  # what the transport has no part in

LIMIT_BYTES = 100_000
BODY = b'{"model":"smollm2","messages":[{"role":"user","content":"Say hi"}]}'
NO_HTTP = "The request is not valid HTTP."
NEXT = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\n\r\n"  # what a smuggler hides behind its request


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[tuple[Gateway, ScriptedWorker]]:
    async with ScriptedWorker() as worker:
        asked = settings(tmp_path_factory.mktemp("gateway"), worker, server={"body_limit_bytes": LIMIT_BYTES})
        async with serving(asked) as gateway:
            yield gateway, worker


@pytest_asyncio.fixture(loop_scope="module")
async def worker(shared: tuple[Gateway, ScriptedWorker]) -> ScriptedWorker:
    shared[1].forget()
    return shared[1]


@pytest_asyncio.fixture(loop_scope="module")
async def gateway(shared: tuple[Gateway, ScriptedWorker], worker: ScriptedWorker) -> AsyncIterator[Gateway]:
    yield shared[0]
    worker.forget_scripts()
    await shared[0].still_serves()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared_hasty(
    tmp_path_factory: pytest.TempPathFactory, shared: tuple[Gateway, ScriptedWorker]
) -> AsyncIterator[Gateway]:
    by_the_wall = 1.0 if isinstance(asyncio.get_running_loop(), PatientLoop) else 5.0
    hurry = {"header_s": 0.12, "body_s": 0.3, "body_idle_s": 0.12, "write_stall_s": 0.15}
    hurry = {name: seconds * by_the_wall for name, seconds in hurry.items()}
    async with serving(settings(tmp_path_factory.mktemp("hasty"), shared[1], client_timeouts=hurry)) as gateway:
        yield gateway


@pytest_asyncio.fixture(loop_scope="module")
async def hasty(shared_hasty: Gateway, worker: ScriptedWorker) -> AsyncIterator[Gateway]:
    """A gateway that waits for nobody."""
    await shared_hasty.until(lambda: not shared_hasty.connections)
    yield shared_hasty
    worker.forget_scripts()
    await shared_hasty.still_serves()


@asynccontextmanager
async def trickling(client: RawClient, drop: bytes) -> AsyncIterator[None]:
    """The client sends drop after drop, for as long as it can."""
    trickle = asyncio.create_task(client.send_slowly(drop * 1000, piece_bytes=len(drop), pause_s=0.02))
    yield
    trickle.cancel()
    await asyncio.gather(trickle, return_exceptions=True)


def deep(levels: int) -> bytes:
    return BODY[:-1] + b',"metadata":' + b"[" * levels + b"]" * levels + b"}"


# Bodies


@on_one_loop
@pytest.mark.parametrize(
    ("body", "param"),
    [
        pytest.param(b"", None, id="empty"),
        pytest.param(b'{"model": "smollm2", "messages": [', None, id="cut off"),
        pytest.param(BODY + b"}", None, id="one brace too many"),
        pytest.param(BODY + BODY, None, id="two objects"),
        pytest.param(b"[" + BODY + b"]", None, id="an array"),
        pytest.param(b'"smollm2"', None, id="a string"),
        pytest.param(b"null", None, id="null"),
        pytest.param(b"model=smollm2&messages=hi", None, id="a form"),
        pytest.param(BODY.replace(b'"Say hi"', b"NaN"), None, id="NaN"),
        pytest.param(BODY.replace(b'"Say hi"', b"-Infinity"), None, id="Infinity"),
        pytest.param(BODY.replace(b'"Say hi"', b"1" * 6000), None, id="an integer of 6,000 digits"),
        pytest.param(BODY.replace(b"Say hi", b"\xff\xfe"), None, id="invalid UTF-8"),
        pytest.param(BODY.replace(b"Say hi", b"\xed\xa0\x80"), None, id="a surrogate in UTF-8"),
        pytest.param(BODY.replace(b"Say hi", b"\\ud800"), None, id="a lone surrogate"),
        pytest.param(BODY.decode().encode("utf-16"), None, id="UTF-16"),
        pytest.param(deep(100_000)[:LIMIT_BYTES], None, id="nested 100,000 deep, and cut off"),
        pytest.param(deep(40_000), None, id="nested 40,000 deep"),
        pytest.param(BODY.replace(b'"model"', b'"model":"other","model"'), "model", id="two models"),
        pytest.param(BODY.replace(b'"model"', b'"mod\\u0065l":"other","model"'), "model", id="two models, one escaped"),
        pytest.param(b'{"messages":[]}', "model", id="no model"),
        pytest.param(b'{"model":null,"messages":[]}', "model", id="a null model"),
        pytest.param(b'{"model":7,"messages":[]}', "model", id="a number as model"),
        pytest.param(b'{"model":"","messages":[]}', "model", id="an empty model"),
        pytest.param(b'{"model":"smollm2"}', "messages", id="no messages"),
        pytest.param(b'{"model":"smollm2","messages":"hi"}', "messages", id="a string as messages"),
        pytest.param(BODY.replace(b'"model"', b'"stream":"yes","model"'), "stream", id="a string as stream"),
        pytest.param(BODY.replace(b'"model"', b'"n":"3","model"'), "n", id="a string as n"),
        pytest.param(BODY.replace(b'"model"', b'"max_tokens":[],"model"'), "max_tokens", id="an array as max_tokens"),
    ],
)
async def test_a_body_that_is_no_such_request_is_a_400(
    gateway: Gateway, worker: ScriptedWorker, body: bytes, param: str | None
):
    response = await gateway.request("POST", CHAT, body=body, headers=[JSON])

    assert told(response, 400, param=param)
    assert not worker.calls()


@on_one_loop
async def test_nesting_a_hundred_deep_is_nothing_special(gateway: Gateway, worker: ScriptedWorker):
    response = await gateway.request("POST", CHAT, body=deep(100), headers=[JSON])

    assert response.status == 200
    assert worker.calls()[0].body == deep(100)


@on_one_loop
async def test_a_model_that_nobody_has_is_a_404(gateway: Gateway, worker: ScriptedWorker):
    told(await gateway.request("POST", CHAT, json=ASK | {"model": "gpt-9"}), 404, "model_not_found", param="model")
    assert not worker.calls()


@on_one_loop
@pytest.mark.parametrize(
    "content_type", ["", "text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"]
)
async def test_another_content_type_is_a_415_that_names_the_right_one(
    gateway: Gateway, worker: ScriptedWorker, content_type: str
):
    headers = [("content-type", content_type)] if content_type else []
    assert "application/json" in told(await gateway.request("POST", CHAT, body=BODY, headers=headers), 415)
    assert not worker.calls()


@on_one_loop
@pytest.mark.parametrize("content_type", ["application/json; charset=utf-8", "Application/JSON", "application/json ;x=y"])
async def test_json_may_be_spelled_in_all_its_ways(gateway: Gateway, content_type: str):
    assert (await gateway.request("POST", CHAT, body=BODY, headers=[("content-type", content_type)])).status == 200


# Bodies that are too large


async def test_a_body_of_the_limit_passes_and_one_byte_more_does_not(gateway: Gateway, worker: ScriptedWorker):
    exact = BODY + b" " * (LIMIT_BYTES - len(BODY))
    assert (await gateway.request("POST", CHAT, body=exact, headers=[JSON])).status == 200
    told(await gateway.request("POST", CHAT, body=exact + b" ", headers=[JSON]), 413)
    told(
        await gateway.request("POST", CHAT, body=chunked([exact, b" "]), headers=[JSON, ("transfer-encoding", "chunked")]), 400
    )
    assert len(worker.calls()) == 1


@pytest.mark.parametrize("length", [LIMIT_BYTES + 1, 10 * 2**30, 10**14, 10**18])
async def test_a_body_announced_as_too_large_is_refused_before_it_comes(gateway: Gateway, length: int):
    async with gateway.connect() as client:
        await client.send(gateway.bytes("POST", CHAT, headers=[JSON, ("content-length", str(length))]))
        response = await client.read_response()
        told(response, 413)
        assert response.header("connection") == "close"
        assert await client.read_rest() == b""


async def test_a_chunked_body_is_cut_at_the_limit_and_the_client_that_goes_on_sending_reads_why(gateway: Gateway):
    async with gateway.connect() as client:
        head = gateway.bytes("POST", CHAT, headers=[JSON, ("transfer-encoding", "chunked")])
        await client.send(head + chunked([BODY + b" " * LIMIT_BYTES]).removesuffix(b"0\r\n\r\n"))
        told(await client.read_response(), 413)
        await client.send(chunked([b" " * 2**20]))  # it has not noticed yet: this is passed over, not reset
        assert await client.read_rest() == b""


# Heads


@on_one_loop
@pytest.mark.parametrize("name", ["host", "content-type", "authorization", "x-api-key"])
@pytest.mark.parametrize("path", [CHAT, "/v1/models"])
async def test_a_header_that_matters_may_occur_once(gateway: Gateway, worker: ScriptedWorker, name: str, path: str):
    method = "POST" if path == CHAT else "GET"
    body = {"json": ASK} if method == "POST" else {}
    twice = [(name, "one"), (name, "application/json"), *([] if name == "host" else [("x", "y")])]
    response = await gateway.request(method, path, headers=twice, **body)

    assert name in told(response, 400)
    assert not worker.calls()


async def test_any_other_header_may_be_repeated(gateway: Gateway):
    assert (await gateway.request("POST", CHAT, json=ASK, headers=[("accept", "a"), ("accept", "b")])).status == 200


LARGE_HEADS = [
    pytest.param([("x-large", "x" * 70_000)], "", id="one large header"),
    pytest.param([(f"x-{number}", "x") for number in range(9000)], "", id="too many headers"),
    pytest.param([], "?" + "x" * 70_000, id="a long URL"),
]


@pytest.mark.parametrize(("headers", "query"), LARGE_HEADS)
@pytest.mark.parametrize("piece_bytes", [300_000, 20_000])
async def test_a_head_that_is_too_large_is_a_431_however_it_comes(
    gateway: Gateway, worker: ScriptedWorker, headers: list[tuple[str, str]], query: str, piece_bytes: int
):
    data = gateway.bytes("POST", CHAT + query, json=ASK, headers=headers)
    async with gateway.connect() as client:
        for start in range(0, len(data), piece_bytes):
            await client.send(data[start : start + piece_bytes])
            await asyncio.sleep(0)
        response = await client.read_response()
        told(response, 431)
        assert response.header("connection") == "close"
        assert await client.read_rest() == b""
    assert not worker.calls()


async def test_a_large_head_within_the_bounds_passes(gateway: Gateway):
    headers = [(f"x-{number}", "x" * 100) for number in range(500)]
    body = BODY + b" " * 90_000
    assert (await gateway.request("POST", CHAT, body=body, headers=[JSON, *headers])).status == 200


@by_a_patient_clock
@pytest.mark.parametrize(
    "begun",
    [
        pytest.param(b"", id="never come"),
        pytest.param(b"POST /v1/chat", id="stop in the request line"),
        pytest.param(b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nx-a", id="stop in a header"),
        pytest.param(b"\r\n\r\n", id="begin with empty lines and stop"),
    ],
)
async def test_a_head_that_stalls_is_cut_off(hasty: Gateway, begun: bytes):
    async with hasty.connect() as client:
        await client.send(begun)
        assert await client.read_rest() == b""


@pytest.mark.parametrize("drops", [b"x-a: b\r\n", b"\r\n"])
async def test_a_head_that_trickles_is_cut_off_also_on_a_kept_connection(hasty: Gateway, drops: bytes):
    async with hasty.connect() as client:
        await client.send(hasty.bytes("GET", "/livez"))
        assert (await client.read_response()).status == 200
        if drops.strip():
            await client.send(b"GET /livez HTTP/1.1\r\nhost: x\r\n")
        async with trickling(client, drops):
            assert await client.read_rest() == b""


@by_a_patient_clock
async def test_a_kept_connection_that_is_idle_is_not_held_to_the_time_of_a_head(hasty: Gateway):
    async with hasty.connect() as client:
        await client.send(hasty.bytes("GET", "/livez"))
        await client.read_response()
        (protocol,) = hasty.connections
        assert not protocol._read_timer.is_set
        assert protocol._idle_timer.is_set


# Bodies that stall


@by_a_patient_clock
@pytest.mark.parametrize(
    "begun",
    [
        pytest.param([("content-length", "80")], id="no body"),
        pytest.param([("transfer-encoding", "chunked")], id="no chunk"),
    ],
)
@pytest.mark.parametrize("some", [b"", b'4\r\n{"mo'])
async def test_a_body_that_stalls_is_a_408(hasty: Gateway, begun: list[tuple[str, str]], some: bytes):
    async with hasty.connect() as client:
        await client.send(hasty.bytes("POST", CHAT, headers=[JSON, *begun]) + some)
        response = await client.read_response()
        told(response, 408)
        assert response.header("x-should-retry") == "true"
        assert await client.read_rest() == b""


async def test_a_body_that_trickles_is_a_408_after_the_time_of_a_whole_body(hasty: Gateway):
    async with hasty.connect() as client:
        await client.send(hasty.bytes("POST", CHAT, headers=[JSON, ("content-length", "5000")]))
        async with trickling(client, b" "):
            told(await client.read_response(), 408)
            assert await client.read_rest() == b""
            await hasty.until(lambda: not hasty.connections)  # also with a client that goes on


@by_a_patient_clock
@pytest.mark.parametrize("kept", [True, False])
async def test_what_needs_no_body_does_not_wait_for_one_and_keeps_no_connection_for_it(hasty: Gateway, kept: bool):
    headers = [("transfer-encoding", "chunked"), *([] if kept else [("connection", "close")])]
    async with hasty.connect() as client:
        await client.send(hasty.bytes("GET", "/livez", headers=headers) + b"5\r\nhello\r\n")
        assert (await client.read_response()).status == 200
        async with trickling(client, b"1\r\nx\r\n"):
            assert await client.read_rest() == b""
            await hasty.until(lambda: not hasty.connections)


async def test_trailers_are_no_headers(gateway: Gateway, worker: ScriptedWorker):
    head = request_bytes("POST", CHAT, headers=[JSON, ("transfer-encoding", "chunked")])
    trailer = f"authorization: Bearer {gateway.keys.acme}\r\n\r\n".encode()
    async with gateway.connect() as client:
        await client.send(head + chunked([BODY]).removesuffix(b"\r\n") + trailer)
        told(await client.read_response(), 401)
    assert not worker.calls()


@pytest.mark.parametrize("line", [b"x-a: b\r\n", b"y"])
async def test_trailers_without_an_end_are_refused(gateway: Gateway, worker: ScriptedWorker, line: bytes):
    head = gateway.bytes("POST", CHAT, headers=[JSON, ("transfer-encoding", "chunked")])
    async with gateway.connect() as client:
        await client.send(head + chunked([BODY]).removesuffix(b"\r\n") + b"x: ")
        for _ in range(10):
            await client.send(line * (20_000 // len(line)))
            await asyncio.sleep(0)
        told(await client.read_response(), 431)
        assert await client.read_rest() == b""
    assert not worker.calls()


# Where a message ends: requests that two servers could read in two ways

CL, TE = b"content-length: %d\r\n" % len(BODY), b"transfer-encoding: chunked\r\n"
CHUNKS = chunked([BODY])


@pytest.mark.parametrize(
    ("framing", "body"),
    [
        pytest.param(CL + TE, CHUNKS, id="length and chunked"),
        pytest.param(TE + CL, CHUNKS, id="chunked and length"),
        pytest.param(CL + CL, BODY, id="the same length twice"),
        pytest.param(b"content-length: 3\r\n" + CL, BODY, id="two lengths"),
        pytest.param(b"content-length: 66, 66\r\n", BODY, id="a list of lengths"),
        pytest.param(b"content-length: -1\r\n", BODY, id="a negative length"),
        pytest.param(b"content-length: +66\r\n", BODY, id="a signed length"),
        pytest.param(b"content-length: 0x42\r\n", BODY, id="a hexadecimal length"),
        pytest.param(b"content-length: 6_6\r\n", BODY, id="a length with an underscore"),
        pytest.param(b"content-length: %d\r\n" % 10**22, BODY, id="an absurd length"),
        pytest.param(b"content-length:\r\n", BODY, id="an empty length"),
        pytest.param(b"content-length : 66\r\n", BODY, id="a space before the colon"),
        pytest.param(TE + TE, CHUNKS, id="chunked twice"),
        pytest.param(b"transfer-encoding: xchunked\r\n", CHUNKS, id="no coding at all"),
        pytest.param(b"transfer-encoding: identity\r\n", CHUNKS, id="identity"),
        pytest.param(b"transfer-encoding: chunked, gzip\r\n", CHUNKS, id="chunked, but not last"),
        pytest.param(b"transfer-encoding : chunked\r\n", CHUNKS, id="chunked, and a space before the colon"),
        pytest.param(b"transfer-encoding: \x0bchunked\r\n", CHUNKS, id="chunked behind a vertical tab"),
        pytest.param(b"transfer-encoding:\r\n chunked\r\n", CHUNKS, id="chunked on a line of its own"),
        pytest.param(b"x-a: b\r\n c\r\n" + CL, BODY, id="a folded header"),
        pytest.param(b"x-a: b\rc\r\n" + CL, BODY, id="a bare CR"),
        pytest.param(b"x-a: b\x00c\r\n" + CL, BODY, id="a NUL"),
        pytest.param(b"x-a: b\n" + CL, BODY, id="a bare LF"),
        pytest.param(b"x-a\r\n" + CL, BODY, id="no colon"),
        pytest.param(b": b\r\n" + CL, BODY, id="no name"),
        pytest.param(TE, b"zz\r\n" + BODY + b"\r\n0\r\n\r\n", id="a chunk size that is none"),
        pytest.param(TE, b"-1\r\n" + BODY + b"\r\n0\r\n\r\n", id="a negative chunk size"),
        pytest.param(TE, b"F" * 17 + b"\r\n" + BODY + b"\r\n0\r\n\r\n", id="an absurd chunk size"),
        pytest.param(TE, b"%x\r\n%bXX0\r\n\r\n" % (len(BODY), BODY), id="a chunk without its end"),
        pytest.param(TE, b"%x\n%b\n0\n\n" % (len(BODY), BODY), id="chunks with bare LFs"),
    ],
)
async def test_a_request_whose_end_is_in_doubt_is_refused_with_all_that_follows(
    gateway: Gateway, worker: ScriptedWorker, framing: bytes, body: bytes
):
    key = f"authorization: Bearer {gateway.keys.acme}\r\ncontent-type: application/json\r\n".encode()
    async with gateway.connect() as client:
        await client.send(b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\n" + key + framing + b"\r\n" + body + NEXT)
        assert told(await client.read_response(), 400) == NO_HTTP
        assert await client.read_rest() == b""
    assert not worker.calls()


async def test_a_coding_that_we_do_not_undo_is_refused(gateway: Gateway, worker: ScriptedWorker):
    coding = [JSON, ("transfer-encoding", "gzip, chunked")]
    async with gateway.connect() as client:
        await client.send(gateway.bytes("POST", CHAT, headers=coding) + chunked([BODY]))
        assert "chunked" in told(await client.read_response(), 400)
    assert not worker.calls()


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", id="TLS"),
        pytest.param(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", id="HTTP/2"),
        pytest.param(b"GET /livez HTTP/1.2\r\nhost: x\r\n\r\n", id="HTTP/1.2"),
        pytest.param(b"get /livez HTTP/1.1\r\nhost: x\r\n\r\n", id="a method in small letters"),
        pytest.param(b"BREW /livez HTTP/1.1\r\nhost: x\r\n\r\n", id="a method that nobody knows"),
        pytest.param(b"CONNECT example.org:443 HTTP/1.1\r\nhost: x\r\n\r\n", id="CONNECT"),
        pytest.param(b"GET http://example.org HTTP/1.1\r\nhost: x\r\n\r\n", id="a URL without a path"),
        pytest.param(b"GET /v1/mod\x00els HTTP/1.1\r\nhost: x\r\n\r\n", id="a NUL in the path"),
        pytest.param("GET /v1/modèles HTTP/1.1\r\nhost: x\r\n\r\n".encode(), id="a path that is not ASCII"),
        pytest.param(b"nonsense\r\n\r\n", id="nonsense"),
    ],
)
async def test_what_is_no_request_gets_a_400_and_the_end(gateway: Gateway, data: bytes):
    async with gateway.connect() as client:
        await client.send(data)
        assert told(await client.read_response(), 400) == NO_HTTP
        assert await client.read_rest() == b""


# Paths


async def test_an_absolute_url_means_its_path(gateway: Gateway):
    assert (await gateway.request("POST", f"http://example.org{CHAT}", json=ASK)).status == 200


@on_one_loop
@pytest.mark.parametrize(
    "path", ["/v1/%zz", "/v1/chat%00", "/%ff%fe", "/v1/../livez/..", "/%", "*", "//", "/v1/%2e%2e/metrics"]
)
async def test_an_odd_path_is_an_unknown_path(gateway: Gateway, worker: ScriptedWorker, path: str):
    told(await gateway.request("GET", path), 404)
    assert not worker.calls()


@on_one_loop
@pytest.mark.parametrize("path", ["/v1/models/%zz", "/v1/models/%00", "/v1/models/%ff", "/v1/models/%e2%80%ae"])
async def test_an_odd_model_is_an_unknown_model(gateway: Gateway, path: str):
    told(await gateway.request("GET", path), 404, "model_not_found", param="model")


# Pipelining


async def test_pipelined_requests_are_answered_in_their_order(gateway: Gateway, worker: ScriptedWorker):
    async with gateway.connect() as client:
        asked = [ASK, STREAM, ASK | {"model": "gpt-9"}, STREAM, ASK]
        await client.send(b"".join(gateway.bytes("POST", CHAT, json=body) for body in asked) + gateway.bytes("GET", "/livez"))
        answers = [await client.read_response() for _ in range(6)]

    assert [answer.status for answer in answers] == [200, 200, 404, 200, 200, 200]
    assert [event_data(answers[position].body)[-1] for position in (1, 3)] == ["[DONE]"] * 2
    assert answers[-1].body == b"ok\n"
    assert len(worker.calls()) == 4


async def test_a_request_behind_a_stream_waits_for_its_end(gateway: Gateway, worker: ScriptedWorker):
    gate = asyncio.Event()
    worker.on(CHAT, scripts.chat_stream(gates={2: gate}), None)
    async with gateway.connect() as client:
        await client.send(gateway.bytes("POST", CHAT, json=STREAM))
        await client.read_until(b"Hello")
        await client.send(gateway.bytes("POST", CHAT, json=ASK) + gateway.bytes("GET", "/livez"))
        await gateway.until(lambda: all(protocol.pipeline for protocol in gateway.connections))
        assert len(worker.calls()) == 1
        gate.set()
        await client.read_until(b"data: [DONE]\n\n\r\n0\r\n\r\n")
        assert (await client.read_response()).json()["object"] == "chat.completion"
        assert (await client.read_response()).body == b"ok\n"


async def test_nothing_behind_a_connection_close_is_a_request(gateway: Gateway, worker: ScriptedWorker):
    async with gateway.connect() as client:
        last = gateway.bytes("POST", CHAT, json=ASK, headers=[("connection", "close")])
        await client.send(last + gateway.bytes("POST", CHAT, json=ASK))
        response = await client.read_response()
        assert (response.status, response.header("connection")) == (200, "close")
        assert await client.read_rest() == b""
    assert len(worker.calls()) == 1


async def test_what_came_before_garbage_is_answered_first_and_the_garbage_not_at_all(gateway: Gateway, worker: ScriptedWorker):
    async with gateway.connect() as client:
        await client.send(gateway.bytes("POST", CHAT, json=ASK) + gateway.bytes("POST", CHAT, json=STREAM) + b"\x00garbage\r\n")
        assert (await client.read_response()).json()["object"] == "chat.completion"
        streamed = await client.read_response()
        assert event_data(streamed.body)[-1] == "[DONE]"
        assert streamed.header("connection") == "close"
        assert await client.read_rest() == b""
    assert len(worker.calls()) == 2


@by_a_patient_clock
async def test_half_a_head_behind_a_stream_does_not_cut_the_stream(hasty: Gateway, worker: ScriptedWorker):
    gate = asyncio.Event()
    worker.on(CHAT, scripts.chat_stream(gates={2: gate}))
    async with hasty.connect() as client:
        await client.send(hasty.bytes("POST", CHAT, json=STREAM) + b"POST /v1")
        await client.read_until(b"Hello")
        (protocol,) = hasty.connections
        await hasty.until(lambda: protocol._is_deaf)  # the time of a head is over
        gate.set()
        await client.read_until(b"data: [DONE]\n\n\r\n0\r\n\r\n")
        assert await client.read_rest() == b""


async def test_the_beginning_of_a_head_behind_a_large_body_is_not_taken_for_a_large_head(
    gateway: Gateway, worker: ScriptedWorker
):
    following = gateway.bytes("POST", CHAT, json=ASK)
    async with gateway.connect() as client:
        await client.send(gateway.bytes("POST", CHAT, json=ASK | {"user": "x" * 90_000}) + following[:30])
        assert (await client.read_response()).status == 200
        await client.send(following[30:])
        assert (await client.read_response()).status == 200
    assert len(worker.calls()) == 2


async def test_more_requests_at_once_than_anybody_pipelines_are_not_all_taken(gateway: Gateway):
    async with gateway.connect() as client:
        await client.send(gateway.bytes("GET", "/livez") * 2000)
        answers = (await client.read_rest()).count(b"HTTP/1.1 200 OK")
    assert 100 <= answers < 200


# Expect, chunks, old clients


async def test_expect_100_continue_is_answered_once_the_body_is_wanted(gateway: Gateway):
    async with gateway.connect() as client:
        headers = [JSON, ("content-length", str(len(BODY))), ("expect", "100-continue")]
        await client.send(gateway.bytes("POST", CHAT, headers=headers))
        assert (await client.read_head()).status == 100
        await client.send(BODY)
        assert (await client.read_response()).status == 200


@pytest.mark.parametrize(
    ("status", "key", "path", "headers"),
    [
        (401, "sk-wrong", CHAT, [JSON, ("content-length", "60")]),
        (413, "", CHAT, [JSON, ("content-length", "10000000")]),
        (415, "", CHAT, [("content-type", "text/plain"), ("content-length", "60")]),
        (404, "", "/v1/nothing", [JSON, ("content-length", "60")]),
    ],
)
async def test_a_client_that_asks_before_it_sends_is_refused_before_it_does(
    gateway: Gateway, status: int, key: str, path: str, headers: list[tuple[str, str]]
):
    async with gateway.connect() as client:
        await client.send(gateway.bytes("POST", path, key=key, headers=[*headers, ("expect", "100-continue")]))
        told(await client.read_response(), status, "invalid_api_key" if status == 401 else None)
        assert await client.read_rest() == b""


@pytest.mark.parametrize("size", [1, 7, 10_000])
async def test_a_chunked_body_goes_up_whole(gateway: Gateway, worker: ScriptedWorker, size: int):
    body = BODY + b" " * 500
    pieces = [body[start : start + size] for start in range(0, len(body), size)]
    async with gateway.connect() as client:
        await client.send(gateway.bytes("POST", CHAT, headers=[JSON, ("transfer-encoding", "chunked")]))
        for piece in pieces:
            await client.send(b"%x;name=value\r\n%b\r\n" % (len(piece), piece))
        await client.send(b"0\r\nx-trailer: yes\r\n\r\n")
        assert (await client.read_response()).status == 200
        await client.send(gateway.bytes("GET", "/livez"))
        assert (await client.read_response()).status == 200
    (call,) = worker.calls()
    assert call.body == body
    assert call.header("content-length") == str(len(body)) and call.header("transfer-encoding") is None


@pytest.mark.parametrize("headers", [b"", b"connection: keep-alive\r\n"])
async def test_a_client_of_http_1_0_gets_a_stream_that_ends_with_the_connection(gateway: Gateway, headers: bytes):
    data = gateway.bytes("POST", CHAT, json=STREAM).replace(b"HTTP/1.1\r\n", b"HTTP/1.0\r\n" + headers, 1)
    async with gateway.connect() as client:
        await client.send(data)
        head = await client.read_head()
        body = await client.read_rest()

    assert (head.status, head.header("connection")) == (200, "close")
    assert head.header("transfer-encoding") is None and head.header("content-length") is None
    assert body.startswith(b"data: {") and body.endswith(b"data: [DONE]\n\n")


# Upgrades


UPGRADES = [
    pytest.param([("connection", "Upgrade, HTTP2-Settings"), ("upgrade", "h2c"), ("http2-settings", "AAMAAABk")], id="h2c"),
    pytest.param([("connection", "upgrade"), ("upgrade", "websocket"), ("sec-websocket-version", "13")], id="websocket"),
]


@pytest.mark.parametrize("headers", UPGRADES)
async def test_an_upgrade_is_declined_by_an_answer_and_the_body_is_not_lost(
    gateway: Gateway, worker: ScriptedWorker, headers: list[tuple[str, str]]
):
    """Java's HttpClient asks for one with its first request, whatever that is."""
    async with gateway.connect() as client:
        await client.send(
            gateway.bytes("POST", CHAT, json=ASK, headers=headers) + gateway.bytes("GET", "/livez", headers=headers)
        )
        assert (await client.read_response()).json()["object"] == "chat.completion"
        assert (await client.read_response()).body == b"ok\n"
    (call,) = worker.calls()
    assert call.json() == ASK


async def test_the_body_of_an_upgrade_is_no_second_request(gateway: Gateway, worker: ScriptedWorker):
    hidden = gateway.bytes("POST", CHAT, json=ASK)
    upgrade = [("connection", "upgrade"), ("upgrade", "h2c"), JSON, ("content-length", str(len(hidden)))]
    async with gateway.connect() as client:
        await client.send(gateway.bytes("POST", CHAT, headers=upgrade))
        await gateway.until(lambda: any(protocol.cycle for protocol in gateway.connections))
        await client.send(hidden)
        told(await client.read_response(), 400)
        await client.send(gateway.bytes("GET", "/livez"))
        assert (await client.read_response()).body == b"ok\n"
    assert not worker.calls()


# Clients that leave


@pytest.mark.parametrize("how", ["leave", "reset", "half_close"])
async def test_a_client_that_leaves_while_it_sends_is_forgotten(gateway: Gateway, worker: ScriptedWorker, how: str):
    for begun in (b"POST /v1/chat", gateway.bytes("POST", CHAT, headers=[JSON, ("content-length", "60")]) + b'{"mo'):
        async with gateway.connect() as client:
            await client.send(begun)
            await gateway.until(lambda: bool(gateway.connections))
            await getattr(client, how)()
            await gateway.until(lambda: not gateway.connections)
    assert not worker.calls()


@pytest.mark.parametrize("how", ["leave", "reset", "half_close"])
@pytest.mark.parametrize("body", [ASK, STREAM, STREAM | {"user": "x" * 90_000}], ids=["whole", "stream", "large"])
async def test_a_client_that_leaves_while_the_worker_works_frees_it(
    gateway: Gateway, worker: ScriptedWorker, how: str, body: dict[str, object]
):
    worker.on(CHAT, scripts.never_answers())
    async with gateway.connect() as client:
        await client.send(gateway.bytes("POST", CHAT, json=body))
        await worker.wait_calls(1)
        await getattr(client, how)()
        await worker.wait_aborted(1)
    await gateway.holds_nothing()


# Clients that do not read


async def slow_reader(gateway: Gateway, body: dict[str, object]) -> RawClient:
    client = gateway.connect(receive_buffer_bytes=4096)
    await client.__aenter__()
    client.stop_reading()
    await client.send(gateway.bytes("POST", CHAT, json=body))
    return client


async def test_a_client_that_never_reads_its_stream_is_cut_off_and_its_worker_freed(hasty: Gateway, worker: ScriptedWorker):
    num_written = 0

    async def endless(request: object, connection: scripts.Connection) -> None:
        nonlocal num_written
        await connection.send(scripts.head(200, scripts.STREAM_HEADERS))
        event = scripts.chunk(b'data: {"choices":[{"delta":{"content":"%b"}}]}\n\n' % (b"x" * 10_000))
        while not connection.gone.is_set():
            await connection.send(event)
            num_written += len(event)

    worker.on(CHAT, endless)
    client = await slow_reader(hasty, STREAM)
    peak_bytes = 0

    def is_cut_off() -> bool:
        nonlocal peak_bytes
        peak_bytes = max(peak_bytes, *(one.transport.get_write_buffer_size() for one in hasty.connections), 0)
        return worker.num_aborted == 1 and not hasty.connections

    await hasty.until(is_cut_off)
    await client.leave()

    assert 0 < peak_bytes < 1_000_000, "one read beyond the mark at which the worker is paused"
    assert num_written < 30_000_000, "what the kernel takes on two sockets, and little more"


async def test_an_answer_that_is_too_large_to_send_and_is_never_read_is_cut_off_too(hasty: Gateway, worker: ScriptedWorker):
    worker.on(CHAT, scripts.reply(200, {"choices": [], "filler": "x" * 8_000_000}))
    client = await slow_reader(hasty, ASK)
    await worker.wait_calls(1)
    await hasty.holds_nothing()  # the call itself is over as soon as its answer is written
    assert hasty.connections
    await hasty.until(lambda: not hasty.connections)
    await client.leave()


async def test_who_does_not_read_gets_no_further_answer(hasty: Gateway, worker: ScriptedWorker):
    worker.on(CHAT, scripts.reply(200, {"choices": [], "filler": "x" * 8_000_000}), None)
    client = await slow_reader(hasty, ASK)
    await client.send(hasty.bytes("POST", CHAT, json=ASK) * 5)
    await worker.wait_calls(1)
    await hasty.until(lambda: not hasty.connections)
    await client.leave()

    assert len(worker.calls()) == 1


async def test_who_reads_late_but_reads_gets_all_answers_in_their_order(gateway: Gateway, worker: ScriptedWorker):
    worker.on(CHAT, scripts.reply(200, {"choices": [], "filler": "x" * 2_000_000}))
    async with gateway.connect(receive_buffer_bytes=4096) as client:
        client.stop_reading()
        await client.send(gateway.bytes("POST", CHAT, json=ASK) * 6 + gateway.bytes("GET", "/livez"))
        await gateway.until(lambda: any(protocol._is_held for protocol in gateway.connections))
        client._writer.transport.resume_reading()  # type: ignore[attr-defined]
        answers = [await client.read_response() for _ in range(7)]

    assert {answer.status for answer in answers} == {200}
    assert [len(answer.body) > 2_000_000 for answer in answers] == [True] * 6 + [False]
    assert len({answer.header("x-request-id") for answer in answers}) == 7
