"""A peer on loopback for the tests of the benchmark: one coroutine a connection, nothing left open at the end."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Protocol

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Closable(Protocol):
    transport: asyncio.Transport


def patience() -> asyncio.Timeout:
    """What waits for bytes that never come fails, and does not hang."""
    return asyncio.timeout(60)


@asynccontextmanager
async def peer(serve: Serve) -> AsyncIterator[int]:
    """Yields its port; what `serve` raises when the other side leaves is no failure, anything else is."""
    serving: list[asyncio.Task[None]] = []

    async def serve_and_close(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await serve(reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.transport.abort()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        serving.append(asyncio.ensure_future(serve_and_close(reader, writer)))

    async with patience(), await asyncio.start_server(accept, "127.0.0.1", 0) as server:
        yield server.sockets[0].getsockname()[1]
        await asyncio.gather(*serving)
    await asyncio.sleep(0)  # what was closed is gone after one turn of the loop


async def close_all(connections: Iterable[Closable]) -> None:
    for connection in list(connections):
        connection.transport.abort()
    await asyncio.sleep(0)
