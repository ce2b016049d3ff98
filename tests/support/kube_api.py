"""An API server for EndpointSlices: list with pages, watch with bookmarks, 410 Gone, tokens; over TLS where it is given some.

    async with KubeApi(tls=...) as api:
        api.put("vllm-1", endpoints=[pod("10.0.0.1", "uid-1")])

A watch gets what came after the version it names and ends after `timeoutSeconds`, or when the test ends it. Who names a
version from before the last `compact` gets 410.
"""

import asyncio
import ssl
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import parse_qs

import orjson

from tests.support import scripts
from tests.support.raw_server import Connection, RawServer, Request, Script

Json = dict[str, Any]
PATH = "/apis/discovery.k8s.io/v1/namespaces/{namespace}/endpointslices"
CHUNKED = (("content-type", "application/json"), ("transfer-encoding", "chunked"))


def pod(address: str, uid: str, *, ready: bool | None = True, terminating: bool | None = None) -> Json:
    conditions = {"ready": ready, "serving": ready, "terminating": terminating}
    known = {name: value for name, value in conditions.items() if value is not None}
    return {"addresses": [address], "conditions": known, "targetRef": {"kind": "Pod", "name": f"pod-{uid}", "uid": uid}}


class KubeApi(RawServer):
    def __init__(
        self, *, namespace: str = "llm", service: str = "vllm", token: str = "token-1", tls: ssl.SSLContext | None = None
    ) -> None:
        super().__init__(tls=tls)
        self.token = token
        self.next: Script | None = None  # answers the next request, whatever it asks
        self.num_watches = 0  # that were opened, ever
        self._num_ends = 0  # counted up: every open watch ends
        self._path = PATH.format(namespace=namespace)
        self._service = service
        self._version = self._oldest = 100
        self._slices: dict[str, Json] = {}
        self._events: list[tuple[int, Json]] = []

    @property
    def lists(self) -> list[Request]:
        return [one for one in self.requests if "watch" not in parse_qs(one.target.partition("?")[2])]

    @property
    def watches(self) -> list[Request]:
        return [one for one in self.requests if "watch" in parse_qs(one.target.partition("?")[2])]

    # What the test does to the cluster

    def put(
        self, name: str, endpoints: Sequence[Json], *, port: int = 8000, ports: Sequence[Json] | None = None, **more: Any
    ) -> None:
        """Make or replace a slice."""
        kind = "MODIFIED" if name in self._slices else "ADDED"
        meant = ports or [{"name": "http", "port": port, "protocol": "TCP"}]
        self._slices[name] = {"addressType": "IPv4", "endpoints": list(endpoints), "ports": list(meant), **more}
        self._changed(kind, name, self._slices[name])

    def delete(self, name: str) -> None:
        self._changed("DELETED", name, self._slices.pop(name))

    def bookmark(self) -> None:
        """Others' objects have changed: watchers learn only the version."""
        self._version += 100
        about = {"resourceVersion": str(self._version)}
        self._tell({"type": "BOOKMARK", "object": {"kind": "EndpointSlice", "metadata": about}})

    def compact(self) -> None:
        """Nothing of the past is known any more."""
        self._version += 100
        self._oldest = self._version

    def tell(self, event: Json) -> None:
        """Any event, good or bad, to those who watch."""
        self._tell(event)

    def end_watches(self) -> None:
        self._num_ends += 1
        self.changed()

    def _changed(self, kind: str, name: str, one: Json) -> None:
        self._version += 1
        about = {"name": name, "resourceVersion": str(self._version), "labels": {"kubernetes.io/service-name": self._service}}
        one["metadata"] = about
        self._tell({"type": kind, "object": dict(one, metadata=dict(about))})

    def _tell(self, event: Json) -> None:
        self._events.append((self._version, event))
        self.changed()

    # What it answers

    def script_for(self, request: Request) -> Script:
        if self.next is not None:
            script, self.next = self.next, None
            return script
        if request.header("authorization") != f"Bearer {self.token}":
            return _status(401, "Unauthorized")
        if request.method != "GET" or request.path != self._path:
            return _status(404, "NotFound")
        query = {name: values[0] for name, values in parse_qs(request.target.partition("?")[2]).items()}
        if query.get("labelSelector") != f"kubernetes.io/service-name={self._service}":
            return scripts.reply(200, {"items": [], "metadata": {"resourceVersion": str(self._version)}})
        return self._watch(query) if query.get("watch") == "true" else self._list(query)

    def _list(self, query: Mapping[str, str]) -> Script:
        names = sorted(self._slices)
        first, limit = int(query.get("continue", "0")), int(query.get("limit", "500"))
        about = {"resourceVersion": str(self._version)}
        if first + limit < len(names):
            about["continue"] = str(first + limit)
        items = [self._slices[name] for name in names[first : first + limit]]
        return scripts.reply(200, {"kind": "EndpointSliceList", "metadata": about, "items": items})

    def _watch(self, query: Mapping[str, str]) -> Script:
        since = int(query["resourceVersion"])
        if since < self._oldest:
            return _status(410, "Expired")

        async def watch(request: Request, connection: Connection) -> None:
            generation = self._num_ends
            place = sum(version <= since for version, _ in self._events)
            await connection.send(scripts.head(200, CHUNKED))
            self.num_watches += 1
            self.changed()
            try:
                async with asyncio.timeout(float(query.get("timeoutSeconds", "3600"))):
                    while True:
                        for _, event in self._events[place:]:
                            if event["type"] != "BOOKMARK" or query.get("allowWatchBookmarks") == "true":
                                await connection.send(scripts.chunk(orjson.dumps(event) + b"\n"))
                        place = len(self._events)
                        if generation != self._num_ends:
                            break
                        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
                        self._waiters.append(waiter)
                        await waiter
            except TimeoutError:
                pass
            await connection.send(b"0\r\n\r\n", last=True)

        return watch


def _status(code: int, reason: str) -> Script:
    return scripts.reply(code, {"kind": "Status", "status": "Failure", "reason": reason, "code": code, "message": reason})
