"""Workers that are the pods behind a Service: its EndpointSlices, listed once and then watched.

A watch goes on from the version that the last event or bookmark told, ends after `WATCH_S` and is taken up again. A version
that is too old (410 Gone) lists anew. An API server that is away, refuses us or talks nonsense keeps the last set; it is
asked again after a pause that grows and differs from gateway to gateway. The token is read again for each question: it is
replaced every hour.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from typing import Any
from urllib.parse import quote, urlencode

import orjson

from sluice.config import ConfigError, Kubernetes
from sluice.config.workers import SERVICE_ACCOUNT
from sluice.discovery.base import Discovery, Found
from sluice.discovery.endpoint_slices import merged
from sluice.errors import GatewayError
from sluice.upstream.connection import Answer
from sluice.upstream.connections import Connections, Sending

WATCH_S = 120.0
ASK_S = 10.0  # for a page of a list, and for the head of a watch
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 30.0
PAGE = 500
MAX_PAGE_BYTES = 67_108_864
MAX_EVENT_BYTES = 8_388_608


class Gone(Exception):
    """The version that we know is too old to go on from: list anew."""


class Unreachable(Exception):
    """The API server cannot be asked; the message says why in a line."""


class KubernetesDiscovery(Discovery):
    def __init__(
        self,
        name: str,
        settings: Kubernetes,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[Any]] = asyncio.sleep,
        watch_s: float = WATCH_S,
    ) -> None:
        super().__init__(name, clock)
        self._settings = settings
        self._sleep = sleep
        self._watch_s = watch_s
        self._server = settings.api_server or _own_server(name, os.environ)
        namespace = settings.namespace or _own_namespace(name)
        self._path = f"/apis/discovery.k8s.io/v1/namespaces/{quote(namespace)}/endpointslices"
        self._selector = f"kubernetes.io/service-name={settings.service}"
        # The slices as the API server last told them, and up to which version.
        self._slices: dict[str, Mapping[str, Any]] = {}
        self._version = ""

    async def watch(self) -> AsyncGenerator[frozenset[Found], None]:
        pause_s = FIRST_PAUSE_S
        while True:
            try:
                # Made anew after every failure: the authority's certificate may have been replaced.
                connections = Connections(self._server, ca_file=self._settings.ca_file)
            except ConfigError as exc:
                connections = None
                self.failed(str(exc))
            try:
                while connections is not None:
                    if not self._version:
                        await self._list(connections)
                        pause_s = FIRST_PAUSE_S
                        yield merged(self._slices.values(), self._settings)
                    async for _ in self._changes(connections):
                        yield merged(self._slices.values(), self._settings)
                    pause_s = FIRST_PAUSE_S
                    await self._sleep(random.uniform(0, 1))
            except Gone:
                self._version = ""
            except (Unreachable, GatewayError, TimeoutError, OSError) as exc:
                self.failed(f"{self._server}: {str(exc).replace('worker', 'API server') or 'no answer in time'}")
            finally:
                if connections is not None:
                    connections.close()
            await self._sleep(pause_s * random.uniform(0.5, 1))
            pause_s = min(LONGEST_PAUSE_S, 2 * pause_s)

    async def _list(self, connections: Connections) -> None:
        """All slices, page by page. They replace the known ones only when the last page is there."""
        slices: dict[str, Mapping[str, Any]] = {}
        more = ""
        while True:
            async with asyncio.timeout(ASK_S), self._asking(connections, {"limit": PAGE, "continue": more}) as sending:
                page = _json(await (await _good(sending)).read(MAX_PAGE_BYTES))
            items = page.get("items") or []
            if not isinstance(items, list):
                raise Unreachable("the API server's list is none")
            slices.update({_name(item): item for item in items if isinstance(item, dict)})
            more = str(_about(page).get("continue") or "")
            if not more:
                break
        self._slices, self._version = slices, str(_about(page).get("resourceVersion") or "")
        self.confirmed()

    async def _changes(self, connections: Connections) -> AsyncIterator[None]:
        """Follow the slices; yields after each change of them, until the watch ends."""
        timeout_s = self._watch_s * random.uniform(0.8, 1.2)
        query = {"watch": "true", "allowWatchBookmarks": "true", "resourceVersion": self._version}
        ends_at = asyncio.get_running_loop().time() + timeout_s + ASK_S
        async with self._asking(connections, {**query, "timeoutSeconds": max(1, round(timeout_s))}) as sending:
            async with asyncio.timeout(ASK_S):
                answer = await _good(sending)
            self.confirmed()
            rest = b""
            while True:
                async with asyncio.timeout_at(ends_at):
                    data = await answer.some()
                if not data:
                    return
                *lines, rest = (rest + data).split(b"\n")
                if len(rest) > MAX_EVENT_BYTES:
                    raise Unreachable("the API server's event has no end")
                if any([self._take(_json(line)) for line in lines if line]):
                    yield

    def _take(self, event: Mapping[str, Any]) -> bool:
        """One event; True where it changes a slice."""
        kind, item = event.get("type"), event.get("object")
        if not isinstance(item, dict):
            raise Unreachable("the API server's event is none")
        if kind == "ERROR":
            if item.get("code") == 410:
                raise Gone
            raise Unreachable(f"the API server ended the watch: {str(item.get('message'))[:200]}")
        self._version = str(_about(item).get("resourceVersion") or self._version)
        self.confirmed()
        if kind in ("ADDED", "MODIFIED"):
            self._slices[_name(item)] = item
        elif kind == "DELETED":
            self._slices.pop(_name(item), None)
        return kind != "BOOKMARK"

    def _asking(self, connections: Connections, query: Mapping[str, object]) -> Sending:
        asked = {"labelSelector": self._selector} | {name: value for name, value in query.items() if value != ""}
        try:
            token = self._settings.token_file.read_text(encoding="ascii").strip()
        except (OSError, UnicodeError) as exc:
            raise Unreachable(f"{self._settings.token_file}: cannot be read: {exc}") from exc
        if not token.isprintable():
            raise Unreachable(f"{self._settings.token_file}: is not a token")
        head = connections.head(
            "GET",
            f"{self._path}?{urlencode(asked)}",
            content_type="application/json",
            length=0,
            request_id="discovery",
            headers=(("authorization", f"Bearer {token}"), ("accept", "application/json"), ("user-agent", "sluice")),
        )
        return connections.send(head, b"")


async def _good(sending: Sending) -> Answer:
    answer = await sending.head()
    if answer.status == 410:
        raise Gone
    if answer.status in (401, 403):
        raise Unreachable(
            f"the API server says {answer.status}: the service account may not list and watch endpointslices here"
        )
    if answer.status != 200:
        raise Unreachable(f"the API server says {answer.status}")
    return answer


def _json(text: bytes) -> dict[str, Any]:
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError as exc:
        raise Unreachable("the API server's answer is not JSON") from exc
    if not isinstance(value, dict):
        raise Unreachable("the API server's answer is no object")
    return value


def _name(item: Mapping[str, Any]) -> str:
    return str(_about(item).get("name"))


def _about(item: Mapping[str, Any]) -> Mapping[str, Any]:
    about = item.get("metadata")
    return about if isinstance(about, dict) else {}


def _own_server(name: str, environment: Mapping[str, str]) -> str:
    host, port = environment.get("KUBERNETES_SERVICE_HOST"), environment.get("KUBERNETES_SERVICE_PORT", "443")
    if not host:
        raise ConfigError(f"{name}.kubernetes: this is not a pod (no KUBERNETES_SERVICE_HOST); set api_server to run outside")
    return f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}"


def _own_namespace(name: str) -> str:
    try:
        return (SERVICE_ACCOUNT / "namespace").read_text(encoding="ascii").strip()
    except (OSError, UnicodeError) as exc:
        raise ConfigError(f"{name}.kubernetes.namespace: this is not a pod of a service account: name it here") from exc
