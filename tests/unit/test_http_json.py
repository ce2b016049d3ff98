"""The plain client: good answers, and every bad one as an error of ours within its time and size."""

import asyncio
import ssl
from collections.abc import Callable
from pathlib import Path

import pytest
import trustme

from sluice.http_json import HttpJson, HttpJsonError
from tests.support import scripts
from tests.support.raw_server import Connection, RawServer, Request, Script

PATIENT_S = 10.0


class OneScript(RawServer):
    """Runs the same script for every request."""

    def __init__(self, script: Script, *, tls: ssl.SSLContext | None = None) -> None:
        super().__init__(tls=tls)
        self.script = script

    def script_for(self, request: Request) -> Script:
        return self.script


@pytest.fixture
async def http():
    async with HttpJson() as http:
        yield http


async def failure(http: HttpJson, script: Script, *, timeout_s: float = PATIENT_S, **options: int) -> HttpJsonError:
    async with OneScript(script) as server:
        with pytest.raises(HttpJsonError) as caught:
            await http.get_json(f"{server.url}/x", timeout_s=timeout_s, **options)
        assert [request.path for request in server.requests] == ["/x"]
        return caught.value


async def test_get_json_decodes_what_came(http):
    async with OneScript(scripts.reply(200, {"data": [1, "\u00e4"]})) as server:
        answer = await http.get_json(f"{server.url}/v1/models?x=1", headers={"x-a": "b"}, timeout_s=PATIENT_S)

    [request] = server.requests
    assert answer == {"data": [1, "\u00e4"]}
    assert (request.method, request.target, request.header("x-a")) == ("GET", "/v1/models?x=1", "b")
    assert request.header("accept-encoding") == "identity" and request.header("user-agent") == "sluice"


async def test_get_text_takes_any_text_and_none(http):
    async with OneScript(scripts.reply(200, b"up\xff", content_type="text/plain")) as server:
        assert await http.get_text(f"{server.url}/metrics", timeout_s=PATIENT_S) == "up\ufffd"
        server.script = scripts.empty(200)
        assert await http.get_text(f"{server.url}/health", timeout_s=PATIENT_S) == ""


async def test_post_json_sends_json(http):
    async with OneScript(scripts.reply(200, {"tokens": [1]})) as server:
        answer = await http.post_json(f"{server.url}/tokenize", {"prompt": "hi"}, timeout_s=PATIENT_S)

    assert [request.path for request in server.requests] == ["/tokenize"]
    [request] = server.requests
    assert answer == {"tokens": [1]}
    assert (request.method, request.json(), request.header("content-type")) == (
        "POST",
        {"prompt": "hi"},
        "application/json",
    )


async def test_connections_are_kept_for_the_next_call(http):
    async with OneScript(scripts.reply(200, {})) as server:
        for _ in range(3):
            await http.get_json(server.url, timeout_s=PATIENT_S)

    assert [request.nth_on_connection for request in server.requests] == [1, 2, 3]


async def test_first_calls_that_come_together_share_one_set_of_connections():
    async with HttpJson() as http, OneScript(scripts.never_answers()) as server:
        for num_requests in (4, 8):
            gate = asyncio.Event()
            server.script = scripts.reply(200, {}, gate=gate)
            calls = [asyncio.create_task(http.get_json(server.url, timeout_s=PATIENT_S)) for _ in range(4)]
            await server.wait_requests(num_requests)
            gate.set()
            assert await asyncio.gather(*calls) == [{}] * 4

    assert server.num_connections_made == 4


async def test_connections_end_with_the_block():
    async with OneScript(scripts.reply(200, {})) as server:
        async with HttpJson() as http:
            await http.get_json(server.url, timeout_s=PATIENT_S)
            assert len(server.connections) == 1
        await server.until(lambda: not server.connections)


async def test_nobody_there_is_refused(http):
    server = OneScript(scripts.empty(200))
    await server.start()
    await server.stop()

    with pytest.raises(HttpJsonError) as caught:
        await http.get_text(f"{server.url}/health", timeout_s=PATIENT_S)

    assert caught.value.kind == "refused"
    assert str(caught.value) == f"{server.url}/health: no connection: Connection refused"


async def test_a_connection_that_is_lost_is_refused(http):
    error = await failure(http, scripts.reset_before_any_byte())

    assert error.kind == "refused" and str(error).endswith("/x: no connection: Connection reset by peer")


async def test_a_host_that_has_several_addresses_and_listens_on_none_is_refused(http):
    server = OneScript(scripts.empty(200))
    await server.start()
    await server.stop()

    with pytest.raises(HttpJsonError, match="no connection: Connection refused"):
        await http.get_text(server.url.replace("127.0.0.1", "localhost"), timeout_s=PATIENT_S)


@pytest.mark.parametrize("url", ["http://[::1", "http://a:port", "ftp://127.0.0.1/x", "/health", "http://\ud800"])
async def test_an_address_that_cannot_be_asked_is_refused(http, url):
    with pytest.raises(HttpJsonError) as caught:
        await http.get_text(url, timeout_s=PATIENT_S)

    assert caught.value.kind == "refused"


@pytest.mark.parametrize("value", ["Bearer sk-1\r\nx: y", "Bearer sk-1\u00e4"])
async def test_a_header_that_cannot_be_sent_is_refused_and_not_repeated(http, value):
    async with OneScript(scripts.empty(200)) as server:
        with pytest.raises(HttpJsonError) as caught:
            await http.get_text(server.url, headers={"authorization": value}, timeout_s=PATIENT_S)

    assert not server.requests
    assert caught.value.kind == "refused"
    assert "sk-1" not in str(caught.value) and "sk-1" not in str(caught.value.__cause__)


@pytest.mark.parametrize("status", [301, 400, 401, 404, 500, 503])
async def test_a_status_that_is_no_2xx_comes_with_its_body(http, status):
    elsewhere = [("location", "http://127.0.0.1:9/elsewhere")]

    error = await failure(http, scripts.reply(status, b"why", headers=elsewhere))

    assert (error.kind, error.status, error.body) == ("status", status, b"why")
    assert str(error).endswith(f"/x: answered {status}")


@pytest.mark.parametrize(
    "script",
    [
        scripts.garbage(),
        scripts.raw(b"nonsense " * 5000 + b"\r\n\r\n"),
        scripts.half_head(),
        scripts.close_before_any_byte(),
        scripts.wrong_length({"a": 1}, by=5),
        scripts.reply(200, b"<html>"),
        scripts.reply(200, b""),
        scripts.reply(200, b'{"a": NaN}'),
        scripts.reply(200, b"{}", headers=[("content-encoding", "gzip")]),
        scripts.raw(b"HTTP/1.1 200 OK\r\nx: " + b"y" * 300_000),
        scripts.raw(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\n{}"),
    ],
)
async def test_what_is_not_http_or_not_json_is_garbage(http, script):
    error = await failure(http, script)

    assert error.kind == "garbage"
    assert "\n" not in str(error) and len(str(error)) < 300


async def test_an_answer_over_the_limit_is_not_read_to_its_end(http):
    async def endless(request: Request, connection: Connection) -> None:
        await connection.send(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
        while True:
            await connection.send(scripts.chunk(b"x" * 65_536))

    async with OneScript(endless) as server:
        with pytest.raises(HttpJsonError) as caught:
            await http.get_text(server.url, timeout_s=PATIENT_S, limit_bytes=100_000)
        await server.until(lambda: server.num_aborted == 1)

    assert (caught.value.kind, str(caught.value)) == (
        "too_large",
        f"{server.url}: answered with more than 100000 bytes",
    )


async def test_an_answer_of_exactly_the_limit_is_read(http):
    async with OneScript(scripts.reply(200, b"x" * 1000)) as server:
        assert len(await http.get_text(server.url, timeout_s=PATIENT_S, limit_bytes=1000)) == 1000
        with pytest.raises(HttpJsonError):
            await http.get_text(server.url, timeout_s=PATIENT_S, limit_bytes=999)


async def test_the_body_of_an_error_is_bounded_too(http):
    assert (await failure(http, scripts.reply(500, b"x" * 1000), limit_bytes=100)).kind == "too_large"


async def test_silence_ends_in_time(http):
    async with asyncio.timeout(60):
        error = await failure(http, scripts.never_answers(), timeout_s=0.05)

    assert (error.kind, str(error).endswith("/x: no answer within 0.05 s")) == ("timeout", True)


async def test_an_answer_that_trickles_ends_in_time(http):
    """The time-out is one of the whole call: a byte now and then does not prolong it."""

    async def trickle(request: Request, connection: Connection) -> None:
        await connection.send(b"HTTP/1.1 200 OK\r\ncontent-length: 1000000000\r\n\r\n")
        while True:
            await connection.send(b"x")
            await asyncio.sleep(0)

    async with asyncio.timeout(60):
        assert (await failure(http, trickle, timeout_s=0.05, limit_bytes=1_000_000_000)).kind == "timeout"


async def test_a_call_that_is_cancelled_leaves_no_connection_behind(http):
    async with OneScript(scripts.never_answers()) as server:
        call = asyncio.create_task(http.get_text(server.url, timeout_s=PATIENT_S))
        await server.until(lambda: len(server.requests) == 1)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        await server.until(lambda: not server.connections)


async def test_cookies_are_not_kept(http):
    async with OneScript(scripts.reply(200, {}, headers=[("set-cookie", "a=b; Path=/")])) as server:
        await http.get_json(server.url, timeout_s=PATIENT_S)
        await http.get_json(server.url, timeout_s=PATIENT_S)

    assert [request.header("cookie") for request in server.requests] == [None, None]


async def test_proxies_of_the_environment_are_not_used(http, monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    async with OneScript(scripts.reply(200, {})) as server:
        assert await http.get_json(server.url, timeout_s=PATIENT_S) == {}


@pytest.fixture
def authority(tmp_path: Path) -> Callable[[], tuple[ssl.SSLContext, Path]]:
    """Makes a certificate authority of its own, and a server certificate of it for 127.0.0.1."""

    def authority() -> tuple[ssl.SSLContext, Path]:
        made = trustme.CA(key_type=trustme.KeyType.ECDSA)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        made.issue_cert("127.0.0.1", key_type=trustme.KeyType.ECDSA).configure_cert(context)
        ca_file = tmp_path / f"ca-{len(list(tmp_path.iterdir()))}.pem"
        made.cert_pem.write_to_path(ca_file)
        return context, ca_file

    return authority


async def test_a_private_authority_is_trusted_where_it_is_named_and_nowhere_else(http, authority):
    (context, ca_file), (_, other_ca_file) = authority(), authority()
    async with OneScript(scripts.reply(200, {}), tls=context) as server:
        assert await http.get_json(server.url, timeout_s=PATIENT_S, ca_file=ca_file) == {}
        for wrong in (None, other_ca_file):
            with pytest.raises(HttpJsonError) as caught:
                await http.get_json(server.url, timeout_s=PATIENT_S, ca_file=wrong)
            assert caught.value.kind == "refused" and "CERTIFICATE_VERIFY_FAILED" in str(caught.value)


@pytest.mark.parametrize("content", [None, "no certificate\n"])
async def test_a_ca_file_that_is_none_is_refused(http, tmp_path, content):
    ca_file = tmp_path / "ca.pem"
    if content is not None:
        ca_file.write_text(content)

    with pytest.raises(HttpJsonError) as caught:
        await http.get_json("https://127.0.0.1:9", timeout_s=PATIENT_S, ca_file=ca_file)

    assert caught.value.kind == "refused" and "ca.pem: not a file of CA certificates" in str(caught.value)


# Streams


async def test_a_body_goes_out_and_an_answer_comes_in_pieces_whatever_its_status(http):
    async def pieces():
        for number in range(3):
            yield f"part {number};".encode()

    async with OneScript(scripts.reply(413, {"error": "too much"})) as server:
        headers = {"content-type": "text/plain"}
        async with http.stream("POST", f"{server.url}/x", headers=headers, content=pieces(), idle_s=PATIENT_S) as answer:
            data = b"".join([chunk async for chunk in answer.body])

    [request] = server.requests
    assert (answer.status, data) == (413, b'{"error":"too much"}')
    assert request.body == b"part 0;part 1;part 2;" and request.header("content-type") == "text/plain"
    assert (b"content-type", b"application/json") in answer.headers


async def test_a_stream_that_is_left_lets_go_of_its_connection(http):
    async with OneScript(scripts.reply(200, {})) as server:
        async with http.stream("GET", server.url, headers={}, idle_s=PATIENT_S):
            pass
        async with http.stream("GET", server.url, headers={}, idle_s=PATIENT_S) as answer:
            assert [chunk async for chunk in answer.body] == [b"{}"]


async def test_a_stream_ends_with_an_error_of_ours_before_and_after_its_head(http):
    for script, kind in (
        (scripts.never_answers(), "timeout"),
        (scripts.raw(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nab"), ""),
    ):
        async with OneScript(script) as server:
            with pytest.raises(HttpJsonError) as caught:
                async with http.stream("GET", server.url, headers={}, idle_s=0.2) as answer:
                    assert [chunk async for chunk in answer.body] == []
        assert not kind or caught.value.kind == kind


async def test_a_unix_socket_is_asked_whatever_the_url_says(tmp_path):
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"GET /x HTTP/1.1\r\nHost: nowhere")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}")
        await writer.drain()
        writer.close()

    path = str(tmp_path / "s")
    async with await asyncio.start_unix_server(serve, path), HttpJson(unix_socket=path) as http:
        assert await http.get_json("http://nowhere/x", timeout_s=PATIENT_S) == {}
