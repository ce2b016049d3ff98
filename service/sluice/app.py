"""The composition root: builds everything from the settings, starts it, serves, drains and lets go."""

from __future__ import annotations

import asyncio
import gc
import os
import resource
import secrets
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from fastapi import FastAPI

from sluice.access_log import AccessLog
from sluice.admission.replicas import ReplicaCount
from sluice.admission.route import Admission
from sluice.api import admin, docs, errors, models, ops, retrieval, usage, vector_stores
from sluice.api.bodies import BodyReader, Buffers
from sluice.api.calls import CallMaker
from sluice.api.openai import HotEndpoints
from sluice.api.steering import Steering
from sluice.bulk import BulkReader
from sluice.config import ConfigError, Route, Settings
from sluice.directory import Directory
from sluice.fleet import Fleet
from sluice.gateway import Gateway, Served
from sluice.hedge import Hedging
from sluice.http_json import HttpJson
from sluice.keys import Door, door
from sluice.limiting import ledger_of, limiter_of, sharing_of
from sluice.limits.limiter import Limiter
from sluice.loading import load
from sluice.metrics import Metrics
from sluice.middleware import Edge
from sluice.pool import Pool
from sluice.response_ids import ResponseIds
from sluice.retrieving import Retrieving, retrieving
from sluice.server.http_server import HttpServer, bind, make_server, stopping_on_signals
from sluice.sharing import Sharing
from sluice.tracing.base import Tracing
from sluice.usage import Ledger

KEYS_WATCH_S = 1.0


@dataclass(frozen=True, slots=True)
class App:
    """A built gateway: two ASGI apps, and what its background loops need."""

    edge: Edge
    metrics_app: FastAPI
    readiness: ops.Readiness
    routes: Mapping[str, Served]
    fleet: Fleet
    door: Door
    buffers: Buffers
    bulk: BulkReader
    replicas: ReplicaCount
    http: HttpJson
    resources: AsyncExitStack  # what else is open, and is closed with the background
    retrieving: Retrieving
    limiter: Limiter
    sharing: Sharing | None


def build(
    settings: Settings,
    *,
    clock: Callable[[], float],
    log: AccessLog | None,
    metrics: Metrics,
    tracing: Tracing | None = None,
    ledger: Ledger | None = None,
) -> App:
    """Everything that handles requests. Raises `ConfigError` where the settings name what is not there."""
    fleet = Fleet(settings, clock)
    replicas = ReplicaCount(settings.replicas)
    routes = {name: _served(route, fleet.memberships[name].pool, clock, replicas) for name, route in settings.routes.items()}
    directory = Directory(settings.routes)
    for pool in (served.pool for served in routes.values() if served.settings.adapters == "discover"):
        pool.watch(partial(_follow_adapters, directory, pool))
    keys = door(settings.auth)
    secret = _secret(settings)
    readiness = ops.Readiness(lambda: any(served.pool.is_ready for served in routes.values()))
    buffers = Buffers(settings.server.max_buffered_bytes)
    reader = BodyReader(settings.server.body_limit_bytes, settings.client_timeouts, clock)
    bulk = BulkReader()
    limiter = limiter_of(settings.limits, settings.replicas.count, metrics, clock)
    sharing = sharing_of(settings.limits, fleet.pools, metrics, clock) if settings.replicas.share_placements else None
    metrics.watch_queues(lambda: {name: served.admission.state() for name, served in routes.items()})
    metrics.watch_fleet(fleet.worker_rows, fleet.pool_rows)
    gateway, http, resources = Gateway(routes, clock, limiter.reservation), HttpJson(), AsyncExitStack()
    sources = retrieving(
        settings, gateway=gateway, routes=routes, http=http, resources=resources, metrics=metrics, clock=clock, ledger=ledger
    )
    hot = HotEndpoints(
        gateway=gateway,
        routes=routes,
        calls=CallMaker(
            routes=routes,
            directory=directory,
            ids=ResponseIds(secret),
            bulk=bulk,
            hook=sources.hook,
            steering=Steering(secret, clock, time.time),
        ),
        door=keys,
        reader=reader,
        buffers=buffers,
        metrics=metrics,
        clock=clock,
        tracing=tracing,
        ledger=ledger,
    )
    rest = FastAPI(title="Sluice", openapi_url=None, docs_url=None, redoc_url=None, redirect_slashes=False)
    errors.install(rest)
    rest.include_router(models.router(directory, routes, keys))
    rest.include_router(retrieval.router(sources.hook, keys, reader, buffers))
    if sources.process is not None and sources.hook is not None:
        relaying = vector_stores.Relaying(
            door=keys,
            process=sources.process,
            embedding_model=settings.retrieval.embedding_route,
            idle_s=settings.client_timeouts.body_idle_s,
            metrics=metrics.retrieval,
        )
        rest.include_router(vector_stores.router(relaying, sources.hook, reader, buffers))
    rest.include_router(admin.router(routes, replicas, keys, reader, buffers))
    rest.include_router(usage.router(settings.ledger.folder, keys, time.time))
    rest.include_router(ops.router(readiness, metrics.registry, keys))
    docs.install(rest)
    edge = Edge(hot, rest, origins=settings.server.cors_origins, log=log, clock=clock, wall_clock=time.time)
    probes_and_metrics = ops.metrics_app(readiness, metrics.registry)
    return App(
        edge=edge,
        metrics_app=probes_and_metrics,
        readiness=readiness,
        routes=routes,
        fleet=fleet,
        door=keys,
        buffers=buffers,
        bulk=bulk,
        replicas=replicas,
        http=http,
        resources=resources,
        retrieving=sources,
        limiter=limiter,
        sharing=sharing,
    )


async def run_server(settings: Settings, *, on_ready: Callable[[], None] | None = None) -> None:
    """Serve until SIGTERM or SIGINT, then drain; a second signal, or cancellation, ends it at once.

    `on_ready` is called once the port answers. Raises `ConfigError` before anything is served, for a port that is taken too.
    """
    loop = asyncio.get_running_loop()
    metrics = Metrics.of_process()
    async with AsyncExitStack() as stack:
        log = stack.enter_context(AccessLog(sys.stdout.fileno(), metrics.access_lines_dropped))
        app = build(
            settings,
            clock=time.monotonic,
            log=log if settings.server.access_log else None,
            metrics=metrics,
            tracing=_tracing(stack, settings),
            ledger=ledger_of(stack, settings.ledger, metrics),
        )
        servers = [_server(stack, app.edge, settings, settings.server.port, settings.drain_timeout_s, on_ready)]
        if settings.server.metrics_port is not None:
            servers.append(_server(stack, app.metrics_app, settings, settings.server.metrics_port, 1))
        await stack.enter_async_context(background(app, settings))
        _tame_collector()
        _allow_many_files()
        stack.enter_context(stopping_on_signals(loop, lambda: _stop(app, servers[0][0], settings.drain_grace_s)))
        await _serve(*servers)


@asynccontextmanager
async def background(app: App, settings: Settings) -> AsyncIterator[None]:
    """The loops that run beside the requests: workers and their probes, queues, and the keys file. They end with the block."""
    async with app.bulk, app.http, app.resources, _closing(app.fleet), app.retrieving, asyncio.TaskGroup() as tasks:
        running = [tasks.create_task(app.door.watch(KEYS_WATCH_S)), tasks.create_task(app.replicas.watch())]
        running += [tasks.create_task(membership.run()) for membership in app.fleet.memberships.values()]
        running.append(tasks.create_task(app.limiter.store.run()))
        if app.sharing is not None:
            running.append(tasks.create_task(app.sharing.run()))
        running += [tasks.create_task(served.admission.run()) for served in app.routes.values()]
        running.append(tasks.create_task(app.retrieving.run()))
        try:
            yield
        finally:
            for task in running:
                task.cancel()


@asynccontextmanager
async def _closing(fleet: Fleet) -> AsyncIterator[None]:
    try:
        yield
    finally:
        fleet.close()


def _served(route: Route, pool: Pool, clock: Callable[[], float], replicas: ReplicaCount) -> Served:
    admission = Admission(pool, route.queue, clock, lambda: replicas.share)
    return Served(route, pool, admission, hedging=Hedging(route.hedge) if route.hedge.enabled else None)


def _follow_adapters(directory: Directory, pool: Pool) -> None:
    directory.discover(pool.route, pool.adapters())


def _tracing(stack: AsyncExitStack, settings: Settings) -> Tracing | None:
    """OpenTelemetry is loaded only where it is asked for: it takes a third of a second and 20 MB."""
    if settings.tracing.endpoint is None:
        return None
    tracing: Tracing = load("sluice.tracing.otlp:OtlpTracing", setting="tracing.endpoint")(settings.tracing)
    stack.callback(tracing.close)
    return tracing


def _secret(settings: Settings) -> bytes:
    """What signs ids of stored responses. Without a configured one, they end with this process."""
    if settings.server.secret_env:
        return os.environ[settings.server.secret_env].encode()
    return secrets.token_bytes(32)


def _server(
    stack: AsyncExitStack,
    app: Any,
    settings: Settings,
    port: int,
    drain_timeout_s: float,
    on_started: Callable[[], None] | None = None,
) -> tuple[HttpServer, socket.socket]:
    try:
        listener = stack.enter_context(bind(settings.server.host, port))
    except OSError as exc:
        where = f"{settings.server.host}:{port}"
        raise ConfigError(f"cannot listen on {where}: {exc.strerror}; choose another port or stop who has it") from exc
    server = make_server(
        app,
        settings.server,
        settings.client_timeouts,
        port=port,
        drain_timeout_s=drain_timeout_s,
        on_started=on_started,
    )
    return server, listener


async def _serve(main: tuple[HttpServer, socket.socket], *others: tuple[HttpServer, socket.socket]) -> None:
    """Run the main server to its end, and the others as long: a drain is watched on the metrics port."""
    async with asyncio.TaskGroup() as tasks:
        for server, listener in others:
            tasks.create_task(server.serve(sockets=[listener]))
        await main[0].serve(sockets=[main[1]])
        for server, _ in others:
            server.stop()


def _tame_collector() -> None:
    """A call leaves no cycles behind, so the collector has little to do, and must not walk all modules to find that out."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)


def _allow_many_files() -> None:
    """Each stream holds two connections, and the 1,024 files of a shell are soon all in use."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _stop(app: App, server: HttpServer, grace_s: float) -> None:
    """First signal: drain. Second one: leave at once."""
    app.readiness.is_draining = True
    server.stop(grace_s)
