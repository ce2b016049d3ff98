"""A client of raw bytes over TCP: it sends what a test writes, at its own pace, and reads replies strictly."""

import asyncio
import socket
import ssl
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Self
from urllib.parse import urlsplit

import orjson

PATIENCE_S = 60.0


@dataclass(frozen=True)
class Response:
    """One reply as it came."""

    status: int
    headers: tuple[tuple[str, str], ...]  # names in lower case
    body: bytes

    def header(self, name: str) -> str | None:
        values = [value for key, value in self.headers if key == name]
        assert len(values) <= 1, f"{name} occurs {len(values)} times: {values}"
        return values[0] if values else None

    def json(self) -> Any:
        return orjson.loads(self.body)


def request_bytes(
    method: str,
    target: str,
    *,
    headers: Sequence[tuple[str, str]] = (),
    body: bytes | None = None,
    json: Any = None,
    host: str = "127.0.0.1",
) -> bytes:
    """A correct HTTP/1.1 request; a `json` body brings its content type, a body its length."""
    data = orjson.dumps(json) if json is not None else body
    lines = [f"{method} {target} HTTP/1.1", f"host: {host}"]
    if json is not None:
        lines.append("content-type: application/json")
    if data is not None:
        lines.append(f"content-length: {len(data)}")
    lines += [f"{name}: {value}" for name, value in headers]
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + (data or b"")


def chunked(pieces: Iterable[bytes]) -> bytes:
    """A body in the chunked transfer coding."""
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces if piece) + b"0\r\n\r\n"


class RawClient:
    """One connection. Every read is bounded: a server that says nothing fails the test after PATIENCE_S."""

    def __init__(self, url: str, *, tls: ssl.SSLContext | None = None, receive_buffer_bytes: int | None = None) -> None:
        parts = urlsplit(url)
        assert parts.hostname is not None and parts.port is not None, f"a host and a port: {url}"
        self._address = (parts.hostname, parts.port)
        self._tls = tls
        self._receive_buffer_bytes = receive_buffer_bytes
        self._reader: asyncio.StreamReader
        self._writer: asyncio.StreamWriter

    async def __aenter__(self) -> Self:
        sock = socket.socket()
        if self._receive_buffer_bytes is not None:  # before connecting: a client that does not read is soon full
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self._receive_buffer_bytes)
        sock.setblocking(False)
        try:
            await asyncio.get_running_loop().sock_connect(sock, self._address)
        except OSError:
            sock.close()
            raise
        hostname = self._address[0] if self._tls else None
        self._reader, self._writer = await asyncio.open_connection(
            sock=sock, ssl=self._tls, server_hostname=hostname, limit=2**16
        )
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self._writer.close()
        try:
            await self._writer.wait_closed()
        except ConnectionError:
            pass  # the server reset it: the test has seen what it came for

    async def send(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()

    async def send_slowly(self, data: bytes, *, piece_bytes: int, pause_s: float) -> None:
        """A trickle. It takes real time: only for the gateway's own time-outs, which the config makes short."""
        for start in range(0, len(data), piece_bytes):
            await self.send(data[start : start + piece_bytes])
            await asyncio.sleep(pause_s)

    async def half_close(self) -> None:
        """FIN of our side; the server may still write."""
        self._writer.write_eof()

    async def leave(self) -> None:
        """Close at once."""
        await self.__aexit__()

    async def reset(self) -> None:
        """RST."""
        sock = self._writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._writer.transport.abort()

    def stop_reading(self) -> None:
        """Let the kernel's buffer fill up, and then the server's."""
        self._writer.transport.pause_reading()  # type: ignore[attr-defined]

    async def read_head(self) -> Response:
        """Status and headers; the body is left to read. Interim replies (100) are returned too."""
        async with asyncio.timeout(PATIENCE_S):
            head = await self._reader.readuntil(b"\r\n\r\n")
        first, *lines = head[:-4].decode("latin-1").split("\r\n")
        version, status, _ = first.split(" ", 2)
        assert version == "HTTP/1.1", first
        headers = tuple((name.lower(), value.strip()) for name, _, value in (line.partition(":") for line in lines))
        return Response(int(status), headers, b"")

    async def read_response(self, *, method: str = "GET") -> Response:
        """One whole reply, by its length, its chunks or the end of the connection."""
        head = await self.read_head()
        if method == "HEAD" or head.status in (204, 304) or head.status < 200:
            return head
        length, coding = head.header("content-length"), head.header("transfer-encoding")
        async with asyncio.timeout(PATIENCE_S):
            if coding is not None:
                assert coding == "chunked" and length is None, head.headers
                body = b"".join([piece async for piece in self._chunks()])
            elif length is not None:
                body = await self._reader.readexactly(int(length))
            else:
                body = await self._reader.read()
        return Response(head.status, head.headers, body)

    async def read_chunk(self) -> bytes:
        """The next chunk of a chunked body, as it is framed on the wire; b"" is the last one."""
        async with asyncio.timeout(PATIENCE_S):
            size = int((await self._reader.readuntil(b"\r\n")).split(b";")[0], 16)
            data = await self._reader.readexactly(size)
            assert await self._reader.readexactly(2) == b"\r\n", "a chunk without its end"
            return data

    async def _chunks(self) -> Any:
        while piece := await self.read_chunk():
            yield piece

    async def read_until(self, marker: bytes) -> bytes:
        """Raw bytes up to and with `marker`."""
        async with asyncio.timeout(PATIENCE_S):
            return await self._reader.readuntil(marker)

    async def read_rest(self, *, within_s: float = PATIENCE_S) -> bytes:
        """Raw bytes until the server closes; fails if it does not. A reset ends it as well."""
        out = b""
        try:
            async with asyncio.timeout(within_s):
                while data := await self._reader.read(2**16):
                    out += data
        except ConnectionError:
            pass
        except TimeoutError:
            raise AssertionError(f"still open after {within_s} s; so far {out[:200]!r}") from None
        return out

    @property
    def local_port(self) -> int:
        port: int = self._writer.get_extra_info("sockname")[1]
        return port


async def request(url: str, method: str, target: str, *, tls: ssl.SSLContext | None = None, **options: Any) -> Response:
    """One request on a connection of its own."""
    async with RawClient(url, tls=tls) as client:
        headers = (*options.pop("headers", ()), ("connection", "close"))
        await client.send(request_bytes(method, target, headers=headers, **options))
        return await client.read_response(method=method)


def events(body: bytes) -> list[bytes]:
    """The events of an SSE body, each with its blank line. Fails on bytes after the last one."""
    assert body.endswith(b"\n\n"), f"the body ends within an event: {body[-200:]!r}"
    return [event + b"\n\n" for event in body.split(b"\n\n")[:-1]]


def event_data(body: bytes) -> list[Any]:
    """The JSON of every `data:` line; `[DONE]` stays a string, comments are left out."""
    lines = [line for line in body.splitlines() if line.startswith(b"data:")]
    texts = [line.removeprefix(b"data:").strip() for line in lines]
    return ["[DONE]" if text == b"[DONE]" else orjson.loads(text) for text in texts]
