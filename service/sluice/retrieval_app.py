"""The retrieval process: storage, ingestion and their endpoints, built and run. As a gateway's child, or `sluice retrieval`."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial

from fastapi import FastAPI

from sluice.api import errors
from sluice.api.stores import endpoints, internal
from sluice.api.stores.trust import Trust
from sluice.config import ClientTimeouts, ConfigError, Server, Stores
from sluice.ingest.base import Limits
from sluice.ingest.pipeline import Ingestion
from sluice.ingest.vectors import VectorWork
from sluice.ingest.worker import FileReader
from sluice.retrieval.process import socket_path
from sluice.retrieval.storage import Storage, Taken
from sluice.server.http_server import HttpServer, bind, make_server, stopping_on_signals

NICENESS = 5  # streams go before searches
DRAIN_S = 5.0
WARM_S = 5.0  # of a start, at most, for what the first searches would wait for


def build(storage: Storage, ingestion: Ingestion, work: VectorWork, settings: Stores, token: str | None) -> FastAPI:
    """The endpoints over a storage that is open."""
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None, redirect_slashes=False)
    errors.install(app)
    trust = Trust(token)
    limits = settings.limits
    app.include_router(endpoints.Files(storage, trust, limits.upload_bytes, limits.tenant_bytes).router())
    app.include_router(endpoints.VectorStores(storage, trust, ingestion.wake, lambda: int(time.time())).router())
    app.include_router(endpoints.StoreFiles(storage, trust, ingestion.wake).router())
    app.include_router(internal.router(storage, trust, work))
    return app


@asynccontextmanager
async def running(settings: Stores, token: str | None) -> AsyncIterator[tuple[FastAPI, VectorWork]]:
    """The app with its loops beside it, and what must be closed for it to end. Raises `Taken` where another has the folder."""
    limits = settings.limits
    read = Limits(limits.text_bytes, limits.read_timeout_s, limits.read_memory_bytes)
    storage = Storage(settings.path, wall_clock=time.time, memory_bytes=limits.memory_bytes)
    with storage:
        await storage.tidy()
        work = VectorWork(storage, time.monotonic)
        async with FileReader(read) as reader, asyncio.TaskGroup() as tasks:
            ingestion = Ingestion(storage, reader, on_parsed=work.wake)
            beside = (storage.warm(), ingestion.run(), ingestion.run_expiry())
            loops = [tasks.create_task(one) for one in beside]
            await asyncio.wait(loops[:1], timeout=WARM_S)
            try:
                yield build(storage, ingestion, work, settings, token), work
            finally:
                for loop in loops:
                    loop.cancel()


def main_child() -> None:
    """A gateway's child: settings come as the first line of its input, and the end of the input ends it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C is for the gateway, whose end is ours
    os.nice(NICENESS)
    settings = Stores.model_validate_json(sys.stdin.readline())
    folder = os.open(settings.path, os.O_DIRECTORY | os.O_CLOEXEC)
    with socket.socket(socket.AF_UNIX) as listener, suppress(Taken):
        asyncio.run(_serve_child(settings, listener, folder))


async def _serve_child(settings: Stores, listener: socket.socket, folder: int) -> None:
    async with running(settings, None) as (app, work):
        path = socket_path(folder)
        with suppress(FileNotFoundError):
            os.unlink(path)  # of a process that was killed: the lock is ours now
        os.umask(0o077)
        listener.bind(path)
        listener.setblocking(False)
        server = make_server(app, Server(access_log=False), ClientTimeouts(), port=0, drain_timeout_s=DRAIN_S)
        loop, stop = asyncio.get_running_loop(), partial(_stop, server, work)
        loop.add_signal_handler(signal.SIGTERM, stop)
        loop.add_reader(sys.stdin.fileno(), _input_ended, loop, stop)
        await server.serve(sockets=[listener])
        os.unlink(path)


def _stop(server: HttpServer, work: VectorWork) -> None:
    work.close()
    server.stop()


def _input_ended(loop: asyncio.AbstractEventLoop, stop: Callable[[], None]) -> None:
    if not os.read(sys.stdin.fileno(), 1):
        loop.remove_reader(sys.stdin.fileno())
        stop()


def run(settings: Stores, token: str) -> None:
    """One for several gateways, on a port, until SIGTERM. Raises `ConfigError` where it cannot start."""
    try:
        listener = bind(settings.host, settings.port)
    except OSError as exc:
        raise ConfigError(f"retrieval: cannot listen on {settings.host}:{settings.port}: {exc.strerror}") from exc
    with listener:
        try:
            asyncio.run(_serve_shared(settings, listener, token))
        except Taken:
            raise ConfigError(f"retrieval.path: {settings.path} belongs to another process that runs") from None


async def _serve_shared(settings: Stores, listener: socket.socket, token: str) -> None:
    async with running(settings, token) as (app, work):
        server = make_server(app, Server(access_log=False), ClientTimeouts(), port=0, drain_timeout_s=DRAIN_S)
        with stopping_on_signals(asyncio.get_running_loop(), partial(_stop, server, work)):
            where = listener.getsockname()
            print(f"sluice retrieval: ready on http://{where[0]}:{where[1]}", file=sys.stderr, flush=True)
            await server.serve(sockets=[listener])
