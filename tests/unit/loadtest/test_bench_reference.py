"""The reference proxy relays: what goes in on one side comes out on the other, byte for byte."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from loadtest.bench.processes import free_port
from loadtest.bench.reference import Proxy
from tests.unit.loadtest.bench_peer import Serve, close_all, patience, peer

REPLY = b"HTTP/1.1 200 OK\r\nX-Odd:  kept \r\nContent-Length: 5\r\n\r\nhello"
STREAM = (
    b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
    b'11\r\ndata: {"a": "b"}\n\r\n1\r\n\n\r\ne\r\ndata: [DONE]\n\n\r\n0\r\n\r\n'
)


@asynccontextmanager
async def relayed_to(serve: Serve) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter, Proxy]]:
    """A client's connection to a proxy before that upstream, and the proxy."""

    async with peer(serve) as upstream_port:
        proxy = Proxy("127.0.0.1", upstream_port)
        async with await proxy.serve(0) as downstream:
            reader, writer = await asyncio.open_connection(*downstream.sockets[0].getsockname()[:2])
            try:
                yield reader, writer, proxy
            finally:
                writer.transport.abort()
                await close_all(proxy.open)


def request(body: bytes = b"") -> bytes:
    return b"POST /x HTTP/1.1\r\nHost: here\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)


async def test_requests_on_one_connection_reach_one_upstream_connection_unchanged() -> None:
    seen: list[list[bytes]] = []

    async def upstream(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append([])
        while True:
            seen[-1].append(await reader.readexactly(len(request(b"one"))))
            writer.write(REPLY)

    async with relayed_to(upstream) as (reader, writer, _):
        for body in (b"one", b"two", b"six"):
            writer.write(request(body))
            assert await reader.readexactly(len(REPLY)) == REPLY

    assert seen == [[request(b"one"), request(b"two"), request(b"six")]]


@pytest.mark.parametrize("piece_bytes", [1, 7, 1000])
async def test_a_stream_arrives_byte_for_byte_and_the_connection_lives_on(piece_bytes: int) -> None:
    async def upstream(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await reader.readexactly(len(request()))
            for at in range(0, len(STREAM), piece_bytes):
                writer.write(STREAM[at : at + piece_bytes])
                await asyncio.sleep(0)

    async with relayed_to(upstream) as (reader, writer, _):
        for _ in range(2):
            writer.write(request())
            assert await reader.readexactly(len(STREAM)) == STREAM


async def test_each_piece_goes_on_before_the_next_one_is_there() -> None:
    async def upstream(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(STREAM[:60])
        await reader.readexactly(1 + len(request()))  # the client writes one byte too many once it has seen the piece
        writer.write(STREAM[60:])

    async with relayed_to(upstream) as (reader, writer, _):
        writer.write(request(b"12")[:-1])
        assert await reader.readexactly(60) == STREAM[:60]
        writer.write(b"2")
        assert await reader.readexactly(len(STREAM) - 60) == STREAM[60:]


async def test_a_body_in_pieces_arrives_whole() -> None:
    async def upstream(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        whole = await reader.readexactly(len(request(b"x" * 3_000_000)))
        assert whole == request(b"x" * 3_000_000)
        writer.write(REPLY)
        await reader.read()

    async with relayed_to(upstream) as (reader, writer, _):
        writer.write(request(b"x" * 3_000_000))
        assert await reader.readexactly(len(REPLY)) == REPLY


async def test_an_upstream_that_breaks_closes_the_clients_connection() -> None:
    async def upstream(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(len(request()))
        writer.write(STREAM[:70])

    async with relayed_to(upstream) as (reader, writer, _):
        writer.write(request())
        assert await reader.read() == STREAM[:70]


async def test_a_client_that_leaves_closes_the_upstream_connection() -> None:
    left: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def upstream(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(len(request()))
        writer.write(STREAM[:70])
        try:
            await reader.read()
        except ConnectionResetError:
            pass
        left.set_result(None)

    async with relayed_to(upstream) as (reader, writer, _):
        writer.write(request())
        await reader.readexactly(70)
        writer.close()
        await asyncio.wait_for(left, 60)


async def test_an_upstream_that_cannot_be_reached_is_a_502() -> None:
    proxy = Proxy("127.0.0.1", free_port())
    async with patience(), await proxy.serve(0) as downstream:
        reader, writer = await asyncio.open_connection(*downstream.sockets[0].getsockname()[:2])
        writer.write(request())
        answer = await reader.read()
        writer.close()
        await close_all(proxy.open)

    assert answer.startswith(b"HTTP/1.1 502 ")


async def test_a_client_that_does_not_read_stops_the_upstream_and_loses_nothing() -> None:
    size = 32 * 1024 * 1024

    async def upstream(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(len(request()))
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
        writer.write(b"x" * size)
        await reader.read()

    async with relayed_to(upstream) as (reader, writer, proxy):
        writer.transport.pause_reading()
        writer.write(request())
        async with asyncio.timeout(60):
            while all(side.transport.is_reading() for side in proxy.open):  # noqa: ASYNC110 - nobody tells
                await asyncio.sleep(0)
        writer.transport.resume_reading()
        await reader.readuntil(b"\r\n\r\n")
        assert await reader.readexactly(size) == b"x" * size
