"""The plain HTTP client for everything cold: checks, the workers of `sluice up`, adapters.

    async with HttpJson() as http:
        models = await http.get_json("http://127.0.0.1:8101/v1/models", timeout_s=2)

Whoever answers may be slow, absent, lying or hostile. A call ends within its time-out (of the whole call, not of one
read), reads at most `limit_bytes`, follows no redirect, keeps no cookie, unpacks no compression, obeys no proxy of the
environment, and fails only as `HttpJsonError`, whose text holds none of the headers that were sent.
"""

import asyncio
import os
import ssl
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import httpx
import orjson

Kind = Literal["refused", "timeout", "status", "garbage", "too_large"]

DEFAULT_LIMIT_BYTES = 1_048_576
# Below the 5 s after which vLLM closes an idle connection.
LIMITS = httpx.Limits(max_connections=256, max_keepalive_connections=64, keepalive_expiry=4.0)


class HttpJsonError(Exception):
    """Why there is no answer.

    refused    no connection, or one that was lost
    timeout    no whole answer in time
    status     an answer, but not a 2xx: `status` and `body` are what it was
    garbage    an answer that is not HTTP, or not JSON where JSON was asked for
    too_large  an answer over the limit
    """

    def __init__(self, kind: Kind, message: str, *, status: int | None = None, body: bytes = b"") -> None:
        super().__init__(message)
        self.kind: Kind = kind
        self.status = status
        self.body = body


@dataclass(frozen=True, slots=True)
class HttpStream:
    """An answer on its way, of whatever status; to iterate `body` raises `HttpJsonError`."""

    status: int
    headers: list[tuple[bytes, bytes]]
    body: AsyncIterator[bytes]


class HttpJson:
    """GET and POST to anywhere. One is enough for a process: it keeps connections apart by target and authority.

    With a unix socket, all of it goes there, whatever host the URLs name.
    """

    def __init__(self, *, unix_socket: str | None = None) -> None:
        self._unix_socket = unix_socket
        # A transport per CA file (None: the system's authorities), made when first asked for. The bare transport and
        # not httpx's client: that one keeps cookies, follows the environment and logs a line per request.
        self._transports: dict[Path | None, httpx.AsyncHTTPTransport] = {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None) -> None:
        while self._transports:
            _, transport = self._transports.popitem()
            await transport.aclose()

    async def get_json(
        self,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        timeout_s: float,
        limit_bytes: int = DEFAULT_LIMIT_BYTES,
        ca_file: Path | None = None,
    ) -> Any:
        return _decoded(url, await self._exchange("GET", url, None, headers, timeout_s, limit_bytes, ca_file))

    async def get_text(
        self,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        timeout_s: float,
        limit_bytes: int = DEFAULT_LIMIT_BYTES,
        ca_file: Path | None = None,
    ) -> str:
        body = await self._exchange("GET", url, None, headers, timeout_s, limit_bytes, ca_file)
        return body.decode("utf-8", errors="replace")

    async def post_json(
        self,
        url: str,
        payload: object,
        *,
        headers: Mapping[str, str] | None = None,
        timeout_s: float,
        limit_bytes: int = DEFAULT_LIMIT_BYTES,
        ca_file: Path | None = None,
    ) -> Any:
        content = orjson.dumps(payload)
        return _decoded(url, await self._exchange("POST", url, content, headers, timeout_s, limit_bytes, ca_file))

    @asynccontextmanager
    async def stream(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str],
        content: AsyncIterator[bytes] | bytes | None = None,
        idle_s: float,
        ca_file: Path | None = None,
    ) -> AsyncIterator[HttpStream]:
        """One request whose body and answer pass in pieces; nothing but silence of `idle_s` bounds how long it takes."""
        request = _request(method, url, content, headers)
        request.extensions["timeout"] = dict.fromkeys(("connect", "read", "write", "pool"), idle_s)
        transport = await self._transport(ca_file)
        with _mapped(url, idle_s):
            response = await transport.handle_async_request(request)
        try:
            yield HttpStream(response.status_code, response.headers.raw, _pieces(url, response, idle_s))
        finally:
            await response.aclose()

    async def _exchange(
        self,
        method: str,
        url: str,
        content: bytes | None,
        headers: Mapping[str, str] | None,
        timeout_s: float,
        limit_bytes: int,
        ca_file: Path | None,
    ) -> bytes:
        """The body of a 2xx answer; foreign exceptions become ours here and nowhere else."""
        request = _request(method, url, content, headers)
        transport = await self._transport(ca_file)
        with _mapped(url, timeout_s):
            async with asyncio.timeout(timeout_s):
                response = await transport.handle_async_request(request)
                try:
                    body = await _body(url, response, limit_bytes)
                finally:
                    await response.aclose()
        if not response.is_success:
            said = f"{url}: answered {response.status_code}"
            raise HttpJsonError("status", said, status=response.status_code, body=body)
        return body

    async def _transport(self, ca_file: Path | None) -> httpx.AsyncHTTPTransport:
        if ca_file not in self._transports:
            made = await asyncio.to_thread(_new_transport, ca_file, self._unix_socket)
            self._transports.setdefault(ca_file, made)  # another call may have been faster
        return self._transports[ca_file]


@contextmanager
def _mapped(url: str, timeout_s: float) -> Iterator[None]:
    """Foreign exceptions become ours here."""
    try:
        yield
    except (TimeoutError, httpx.TimeoutException) as exc:
        raise HttpJsonError("timeout", f"{url}: no answer within {timeout_s:g} s") from exc
    except httpx.LocalProtocolError:
        # Without its cause, whose text quotes the header: that may be a key.
        raise HttpJsonError("refused", f"{url}: a header that cannot be sent") from None
    except httpx.ProtocolError as exc:
        raise HttpJsonError("garbage", f"{url}: no HTTP answer: {str(exc)[:200]}") from exc
    except httpx.TransportError as exc:
        raise HttpJsonError("refused", f"{url}: no connection: {_reason(exc)}") from exc


async def _pieces(url: str, response: httpx.Response, idle_s: float) -> AsyncIterator[bytes]:
    with _mapped(url, idle_s):
        async for chunk in response.aiter_raw():
            yield chunk


def _new_transport(ca_file: Path | None, unix_socket: str | None) -> httpx.AsyncHTTPTransport:
    """Reading the certificates takes 0.1 s: not for the event loop."""
    if unix_socket is not None:
        return httpx.AsyncHTTPTransport(uds=unix_socket, verify=False, limits=LIMITS)
    try:
        context = ssl.create_default_context(cafile=ca_file)
    except OSError as exc:  # ssl.SSLError is one
        raise HttpJsonError("refused", f"{ca_file}: not a file of CA certificates: {exc.strerror}") from exc
    return httpx.AsyncHTTPTransport(verify=context, limits=LIMITS)


def _request(
    method: str, url: str, content: AsyncIterator[bytes] | bytes | None, headers: Mapping[str, str] | None
) -> httpx.Request:
    own = {"accept": "application/json, text/plain", "accept-encoding": "identity", "user-agent": "sluice"}
    if isinstance(content, bytes):
        own["content-type"] = "application/json"
    try:
        return httpx.Request(method, url, content=content, headers={**own, **(headers or {})})
    except (httpx.InvalidURL, UnicodeEncodeError) as exc:
        raise HttpJsonError("refused", f"{url}: cannot be asked: bad address or header") from exc


def _reason(exc: BaseException) -> str:
    """What the operating system said, of which the layers between only tell that there was something."""
    while True:
        deeper = exc.exceptions[0] if isinstance(exc, BaseExceptionGroup) else exc.__cause__ or exc.__context__
        if deeper is None:
            if isinstance(exc, OSError) and not isinstance(exc, ssl.SSLError) and (exc.errno or 0) > 0:
                return os.strerror(exc.errno or 0)
            return str(exc) or type(exc).__name__
        exc = deeper


async def _body(url: str, response: httpx.Response, limit_bytes: int) -> bytes:
    encoding = response.headers.get("content-encoding", "identity")
    if encoding != "identity":
        raise HttpJsonError("garbage", f"{url}: answered with {encoding[:20]!r} compression, which was not asked for")
    body = bytearray()
    async for chunk in response.aiter_raw():
        body += chunk
        if len(body) > limit_bytes:
            raise HttpJsonError("too_large", f"{url}: answered with more than {limit_bytes} bytes")
    return bytes(body)


def _decoded(url: str, body: bytes) -> Any:
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as exc:
        raise HttpJsonError("garbage", f"{url}: answered with something that is not JSON") from exc
