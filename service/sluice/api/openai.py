"""The endpoints that reach workers: from a client's request to a `Call`, and from there by `Relay` to its answer.

They are served ahead of the framework's router (architecture.md 5); this table is the whole list of what is open. Each is also
answered without `/v1`, for clients that put their own path before it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping

from sluice.api.access import tenant_of
from sluice.api.bodies import BodyReader, Buffers, ClientLeft, Held
from sluice.api.calls import CallMaker, Stored
from sluice.api.captured import Captured
from sluice.asgi import PUMP, Receive, Send
from sluice.errors import GatewayError, InternalError, MethodNotAllowed, Unauthenticated, UnsupportedMediaType
from sluice.gateway import Gateway, Served
from sluice.keys import Door
from sluice.metrics import Metrics
from sluice.middleware import Visit, plain_path
from sluice.relay import CLIENT_LEFT, AsgiDownstream, Downstream, Relay, refuse
from sluice.tracing.base import Tracing
from sluice.types import Call, Endpoint, Outcome
from sluice.usage import Ledger

logger = logging.getLogger("sluice.api")


def _spellings() -> dict[str, Endpoint]:
    table = {}
    for endpoint in Endpoint:
        short = endpoint.value.removeprefix("/v1")
        table[short] = table["/v1" + short] = endpoint
    return table


class HotEndpoints:
    """All POST endpoints of workers, and the stored responses."""

    def __init__(
        self,
        *,
        gateway: Gateway,
        routes: Mapping[str, Served],
        calls: CallMaker,
        door: Door,
        reader: BodyReader,
        buffers: Buffers,
        metrics: Metrics,
        clock: Callable[[], float],
        tracing: Tracing | None = None,
        ledger: Ledger | None = None,
    ) -> None:
        self._gateway = gateway
        self._routes = routes
        self._calls = calls
        self._door = door
        self._reader = reader
        self._buffers = buffers
        self._metrics = metrics
        self._clock = clock
        self._tracing = tracing
        self._ledger = ledger
        self._table = _spellings()

    async def serve(self, visit: Visit, found: Endpoint | Stored, receive: Receive, send: Send) -> None:
        """Answer the request, whatever happens. Nothing is held when this returns."""
        endpoint = found if isinstance(found, Endpoint) else Endpoint.RESPONSES
        pump = visit.scope.get("extensions", {}).get(PUMP)
        if self._tracing is not None:
            visit.trace = self._tracing.begin(visit.scope["method"], plain_path(visit.scope["path"]), visit.headers)
        way_down = pump.bind(visit.extra) if pump else AsgiDownstream(receive, send, visit.extra)
        with self._buffers.hold() as held:
            try:
                call = await self._call(visit, receive, held, found, pump.whole_body() if pump else None)
            except ClientLeft:
                visit.status = CLIENT_LEFT
                return
            except GatewayError as exc:
                await self._refuse(visit, way_down, exc, endpoint)
                return
            except Exception:
                logger.exception("request %s failed inside the gateway", visit.id)
                await self._refuse(visit, way_down, InternalError(), endpoint)
                return
            visit.call = call
            captured = None
            if visit.trace is not None and visit.trace.captures:
                way_down = captured = Captured(way_down)
            settings = self._routes[call.route].settings
            relay = Relay(
                self._gateway,
                call,
                self._clock,
                early_s=settings.keep_alive_before_first_event_s,
                place_s=settings.queue.comments_s,
            )
            async with way_down as downstream:
                visit.outcome = await relay.run(downstream)
        self._metrics.call_ended(call.route, endpoint, visit.outcome, call.tenant.name)
        if self._ledger is not None:
            self._ledger.call_ended(call, visit.outcome)
        if visit.trace is not None:
            visit.trace.end(call, visit.outcome, captured.answer if captured is not None else "")

    def find(self, path: str) -> Endpoint | Stored | None:
        found = self._table.get(path)
        if found is not None:
            return found
        path = plain_path(path)
        if (found := self._table.get(path)) is not None:
            return found
        head, _, rest = path.removeprefix("/v1").partition("/responses/")
        if head or not rest:
            return None
        response_id, _, action = rest.partition("/")
        return Stored(response_id, action) if action in ("", "cancel") else None

    async def _refuse(self, visit: Visit, way_down: Downstream, error: GatewayError, endpoint: Endpoint) -> None:
        if isinstance(error, Unauthenticated):
            self._metrics.authentication_failed()
        async with way_down as downstream:
            refuse(downstream, error, endpoint)
        now = self._clock()
        visit.outcome = Outcome(error.status, error.source, error.code, duration_s=now - visit.started_at)
        self._metrics.call_ended("", endpoint, visit.outcome)
        if visit.trace is not None:
            visit.trace.end(None, visit.outcome)

    async def _call(self, visit: Visit, receive: Receive, held: Held, found: Endpoint | Stored, whole: bytes | None) -> Call:
        """The request as a call: key first, from the headers alone; then the body; then the route."""
        tenant = tenant_of(visit, self._door)
        if isinstance(found, Stored):
            return self._calls.stored(visit, tenant, found)
        if visit.scope["method"] != "POST":
            raise MethodNotAllowed("POST")
        content_type = visit.headers.get(b"content-type", b"").decode("latin-1")
        wanted = "multipart/form-data" if found is Endpoint.TRANSCRIPTIONS else "application/json"
        if content_type.partition(";")[0].strip().lower() != wanted:
            raise UnsupportedMediaType(f"Send this request with content-type {wanted}.")
        body = await self._reader.read(visit, receive, held, whole)
        return await self._calls.call(visit, tenant, found, body, content_type)
