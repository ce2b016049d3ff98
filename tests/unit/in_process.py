"""The whole gateway in this process: built from settings as `run_server` builds it, on a free loopback port.

    async with serving(settings(tmp_path, worker)) as gateway:
        response = await gateway.request("POST", CHAT, json=ASK)
        await gateway.still_serves()

Only uvicorn's main loop is left out: it wakes every 0.1 s to look at the clock, and tests would wait for it.
"""

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson
import yaml
from prometheus_client import CollectorRegistry, generate_latest

from sluice.access_log import AccessLog
from sluice.app import App, background, build
from sluice.config import Settings
from sluice.keys_file import new_key
from sluice.metrics import Metrics
from sluice.pool import Pool
from sluice.server.http_server import HttpServer, bind, make_server
from sluice.usage import Ledger
from tests.support import raw_http
from tests.support.asgi_client import AsgiCall
from tests.support.raw_http import RawClient, Response
from tests.support.scripted_worker import ScriptedWorker

PATIENCE_S = 60.0
CHAT = "/v1/chat/completions"
ASK: dict[str, Any] = {"model": "smollm2", "messages": [{"role": "user", "content": "Say hi"}]}
STREAM = ASK | {"stream": True}
JSON = ("content-type", "application/json")


def settings(folder: Path, worker: ScriptedWorker | str, **sections: Any) -> Settings:
    """Keys in `folder`, one route `smollm2` to the worker; `sections` add to those of the file, `route` to the route."""
    url = worker if isinstance(worker, str) else worker.url
    route = {"workers": {"static": [url]}} | sections.pop("route", {})
    asked: dict[str, Any] = {
        "server": {"port": 0, "metrics_port": None},
        "auth": {"mode": "keys", "keys_file": "keys.yaml", "max_failures_per_minute": 100_000},
        "routes": {"smollm2": route} | sections.pop("routes", {}),
        "probes": {"health_interval_s": 1, "timeout_s": 10, "load_interval_s": None},  # also on a machine that is busy
    }
    for name, section in sections.items():
        asked[name] = asked.get(name, {}) | section if isinstance(section, Mapping) else section
    return Settings.model_validate(asked, context={"environment": os.environ}).resolved(folder)


@dataclass(frozen=True)
class Keys:
    """Keys of the tenants acme and globex, one of acme for the route smollm2 alone, and an admin's."""

    acme: str
    globex: str
    limited: str
    admin: str


def write_keys(folder: Path) -> Keys:
    now = datetime.now(UTC)
    tenants = ("acme", {}), ("globex", {}), ("acme", {"routes": ["smollm2"]}), ("ops", {"scopes": ["admin"]})
    made = [new_key(tenant, now=now, **more) for tenant, more in tenants]
    entries = [entry.model_dump(mode="json", exclude_defaults=True) for _, entry in made]
    (folder / "keys.yaml").write_text(yaml.safe_dump(entries))
    return Keys(*(key for key, _ in made))


def told(response: Response, status: int, code: str | None = None, *, param: str | None = None) -> str:
    """The message of an error as every one of ours must be."""
    assert response.status == status, response
    assert response.header("content-type") == "application/json"
    assert response.header("x-request-id")
    assert response.header("content-length") == str(len(response.body))
    body = response.json()
    assert body.keys() - {"type"} == {"error"}, body
    error = body["error"]
    assert error.keys() == {"message", "type", "param", "code"}, error
    assert (error["code"], error["param"]) == (code, param), error
    assert response.header("x-should-retry") in ("true", "false")
    if status in (429, 503):
        assert 1 <= int(response.header("retry-after") or 0) <= 60
        assert 1 <= int(response.header("retry-after-ms") or 0) <= 60_000
    assert "Traceback" not in error["message"] and "127.0.0.1" not in error["message"], error
    message: str = error["message"]
    return message


@dataclass
class Gateway:
    """A gateway that serves, and what a test may look at."""

    url: str
    app: App
    server: HttpServer
    keys: Keys
    metrics: Metrics
    log_path: Path

    def connect(self, **options: Any) -> RawClient:
        return RawClient(self.url, **options)

    def headers(self, key: str | None = "") -> list[tuple[str, str]]:
        return [] if key is None else [("authorization", f"Bearer {key or self.keys.acme}")]

    def bytes(self, method: str, target: str, *, key: str | None = "", **options: Any) -> bytes:
        """A request with acme's key, another one, or (None) without any."""
        headers = [*self.headers(key), *options.pop("headers", ())]
        return raw_http.request_bytes(method, target, headers=headers, **options)

    async def request(self, method: str, target: str, **options: Any) -> Response:
        async with self.connect() as client:
            await client.send(self.bytes(method, target, **options))
            return await client.read_response(method=method)

    def asgi(self, method: str, path: str, *, key: str | None = "", **options: Any) -> AsgiCall:
        """The same app without our server: answers go down by `AsgiDownstream`."""
        return AsgiCall(self.app.edge, method, path, headers=[*self.headers(key), *options.pop("headers", ())], **options)

    @property
    def connections(self) -> Any:
        return self.server.server_state.connections

    @property
    def pools(self) -> list[Pool]:
        return [served.pool for served in self.app.routes.values()]

    @property
    def held(self) -> tuple[int, int, int]:
        """Bytes of bodies, slots on workers, open pumps."""
        in_flight = sum(pool.in_flight for pool in self.pools)
        return self.app.buffers.held_bytes, in_flight, sum(protocol.pump is not None for protocol in self.connections)

    async def until(self, condition: Callable[[], bool]) -> None:
        """Let the loop turn until it is so; for what no event of a client or worker tells."""
        now = asyncio.get_running_loop().time
        ends_at = now() + PATIENCE_S
        while not condition():
            assert now() < ends_at, f"never: {self.held}, {self.connections}"
            await asyncio.sleep(0)

    async def holds_nothing(self) -> None:
        await self.until(lambda: self.held == (0, 0, 0) and not self.server.server_state.tasks)

    async def still_serves(self) -> None:
        """Nothing is held, and the next client is answered."""
        await self.holds_nothing()
        response = await self.request("POST", CHAT, json=ASK)
        assert response.status == 200, response
        await self.holds_nothing()

    def lines(self) -> list[dict[str, Any]]:
        """The access lines, once the gateway has ended."""
        return [orjson.loads(line) for line in self.log_path.read_bytes().splitlines()]

    def metric(self, begin: str) -> float:
        """The sum of the exposition's lines that begin so."""
        lines = generate_latest(self.metrics.registry).decode().splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(begin))


@asynccontextmanager
async def serving(asked: Settings, ledger: Ledger | None = None) -> AsyncIterator[Gateway]:
    """Serve until the block ends, with a keys file of its own beside the access log."""
    folder = asked.auth.keys_file.parent
    keys = write_keys(folder)
    metrics = Metrics(CollectorRegistry())
    log_path = folder / "access.log"
    with log_path.open("wb") as out, AccessLog(out.fileno(), metrics.access_lines_dropped) as log:
        app = build(
            asked,
            clock=asyncio.get_running_loop().time,
            log=log if asked.server.access_log else None,
            metrics=metrics,
            ledger=ledger,
        )
        server = make_server(app.edge, asked.server, asked.client_timeouts, port=0, drain_timeout_s=asked.drain_timeout_s)
        async with background(app, asked), listening(server) as url:
            yield Gateway(url, app, server, keys, metrics, log_path)


@asynccontextmanager
async def listening(server: HttpServer) -> AsyncIterator[str]:
    """The server on a free port, without uvicorn's main loop; at the end its clients are cut off."""
    server.config.load()
    server.lifespan = server.config.lifespan_class(server.config)
    with bind("127.0.0.1", 0) as listener:
        await server.startup(sockets=[listener])
        await server.on_tick(0)
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            for one in server.servers:
                one.close()
            state = server.server_state
            async with asyncio.timeout(PATIENCE_S):
                while state.connections or state.tasks:
                    for connection in list(state.connections):
                        connection.transport.abort()
                    await asyncio.sleep(0)
