"""The reference proxy: the least that a Python proxy can do, and the measure of everything else.

One raw `asyncio.Protocol` on each side, on uvloop; httptools only to find where messages end; bytes are handed to the
other side inside `data_received`. Keep-alive on both sides, a pool of idle upstream connections, one fixed upstream.
It costs what nginx costs. It checks nothing, so it is for the benchmark alone: no time-outs, no pipelining, no HEAD.

A client that leaves closes the upstream connection, an upstream that breaks closes the client's; one that cannot be
reached is a 502. A reader that is slow stops the writer on the other side.
"""

import argparse
import asyncio

import httptools
import uvloop

_BAD_GATEWAY = b"HTTP/1.1 502 Bad Gateway\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"


class Side(asyncio.Protocol):
    """What both sides share: each stops the other's reading while it cannot write."""

    transport: asyncio.Transport  # from `connection_made` on

    def __init__(self, proxy: "Proxy") -> None:
        self._proxy = proxy
        self.other: Side | None = None
        self.message_ended = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self.transport = transport
        self._proxy.open.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._proxy.open.discard(self)

    def on_message_complete(self) -> None:
        self.message_ended = True

    def pause_writing(self) -> None:
        if self.other is not None:
            self.other.transport.pause_reading()

    def resume_writing(self) -> None:
        if self.other is not None:
            self.other.transport.resume_reading()


class Upstream(Side):
    """One connection to the upstream: idle in the pool, or answering one client."""

    def __init__(self, proxy: "Proxy") -> None:
        super().__init__(proxy)
        self._parser = httptools.HttpResponseParser(self)
        self._is_kept = False

    def on_message_complete(self) -> None:
        self.message_ended = True
        self._is_kept = self._parser.should_keep_alive()  # the parser knows it only now

    def data_received(self, data: bytes) -> None:
        client = self.other
        if client is None:  # nobody asked: not a connection to keep
            self.transport.abort()
            return
        client.transport.write(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self.transport.abort()
            return
        if self.message_ended:
            self._release(client)

    def _release(self, client: Side) -> None:
        self.other = client.other = None
        if client.message_ended and self._is_kept:
            self.message_ended = client.message_ended = False
            self.transport.resume_reading()  # nobody is left to do it
            client.transport.resume_reading()
            self._proxy.idle.append(self)
        else:  # `Connection: close`, or answered before it had the whole request
            client.transport.close()
            self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if self.other is not None:
            self.other.other = None
            self.other.transport.close()
            self.other = None
        elif self in self._proxy.idle:
            self._proxy.idle.remove(self)


class Downstream(Side):
    """One client's connection: borrows an upstream connection for each request."""

    def __init__(self, proxy: "Proxy") -> None:
        super().__init__(proxy)
        self._parser = httptools.HttpRequestParser(self)
        self._unsent: list[bytes] = []  # what came while the upstream connection was being opened
        self._connecting: asyncio.Task[None] | None = None

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self.transport.abort()
            return
        if self.other is not None:
            self.other.transport.write(data)
        elif self._connecting is None and self._proxy.idle:
            upstream = self._proxy.idle.pop()
            self._borrow(upstream)
            upstream.transport.write(data)
        else:
            self._unsent.append(data)
            if self._connecting is None:
                self._connecting = asyncio.ensure_future(self._connect())

    def _borrow(self, upstream: Upstream) -> None:
        self.other = upstream
        upstream.other = self

    async def _connect(self) -> None:
        try:
            upstream = await self._proxy.connect()
        except OSError:
            self.transport.write(_BAD_GATEWAY)
            self.transport.close()
            return
        self._connecting = None
        self._borrow(upstream)
        upstream.transport.writelines(self._unsent)
        self._unsent.clear()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if self._connecting is not None:
            self._connecting.cancel()
        if self.other is not None:
            self.other.other = None
            self.other.transport.abort()
            self.other = None


class Proxy:
    """Where the upstream is, and the connections: those upstream that are idle (last in, first out), and all."""

    def __init__(self, host: str, port: int) -> None:
        self._host = host
        self._port = port
        self.idle: list[Upstream] = []
        self.open: set[Side] = set()

    async def connect(self) -> Upstream:
        loop = asyncio.get_running_loop()
        _, upstream = await loop.create_connection(lambda: Upstream(self), self._host, self._port)
        return upstream

    async def serve(self, port: int) -> asyncio.Server:
        loop = asyncio.get_running_loop()
        return await loop.create_server(lambda: Downstream(self), "127.0.0.1", port, backlog=4096)


async def _main(port: int, upstream_host: str, upstream_port: int) -> None:
    async with await Proxy(upstream_host, upstream_port).serve(port):
        await asyncio.Event().wait()  # until a signal ends the process


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m loadtest.bench.reference", description="The reference proxy.")
    parser.add_argument("--port", type=int, required=True, help="where to listen, on 127.0.0.1")
    parser.add_argument("--upstream", required=True, metavar="HOST:PORT")
    options = parser.parse_args()
    host, _, port = options.upstream.rpartition(":")
    uvloop.run(_main(options.port, host, int(port)))


if __name__ == "__main__":
    main()
