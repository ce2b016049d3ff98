"""The edge, pure ASGI: a request's id and clock, CORS, and its one access line. Nothing here runs per event."""

from __future__ import annotations

import itertools
import logging
import os
import re
from collections.abc import Callable
from typing import Any, Protocol

from sluice.access_log import AccessLog
from sluice.asgi import App, Headers, Message, Receive, Scope, Send
from sluice.tracing.base import Trace
from sluice.types import Call, Outcome, Tenant

CLIENT_ID = re.compile(rb"[\x21-\x7e]{1,128}")
EXPOSED = (
    b"x-request-id, retry-after, retry-after-ms, x-should-retry, x-ratelimit-limit-requests, x-ratelimit-limit-tokens, "
    b"x-ratelimit-remaining-requests, x-ratelimit-remaining-tokens, x-ratelimit-reset-requests, x-ratelimit-reset-tokens, "
    b"x-retrieval-status, x-retrieval-count, x-retrieval-ms"
)
PREFLIGHT: Headers = [
    (b"access-control-allow-methods", b"GET, POST, DELETE, OPTIONS"),
    (b"access-control-max-age", b"86400"),
]

logger = logging.getLogger("sluice.middleware")


class Visit:
    """One HTTP request from its first byte to its access line; what is learnt of it on the way is noted here."""

    __slots__ = ("call", "client_id", "extra", "headers", "id", "outcome", "scope", "started_at", "status", "tenant", "trace")

    def __init__(self, scope: Scope, id: str, started_at: float) -> None:
        self.scope = scope
        self.id = id
        self.started_at = started_at
        self.headers: dict[bytes, bytes] = dict(scope["headers"])
        self.client_id = self._client_id()
        # Every answer carries these
        self.extra: Headers = [(b"x-request-id", self.client_id or id.encode())]
        # Learnt on the way
        self.tenant: Tenant | None = None
        self.call: Call | None = None
        self.outcome: Outcome | None = None
        self.status = 0
        self.trace: Trace | None = None  # of a call that is sampled

    @property
    def address(self) -> str:
        client = self.scope.get("client")
        return client[0] if client else ""

    def _client_id(self) -> bytes | None:
        """The client's own id is echoed and logged, never used: nothing keeps clients from repeating one."""
        theirs = self.headers.get(b"x-request-id")
        return theirs if theirs and CLIENT_ID.fullmatch(theirs) else None


class HotPath(Protocol):
    """Endpoints that are served before the framework's router."""

    def find(self, path: str) -> Any | None:
        """What `serve` does for this path; None where the framework serves it."""

    async def serve(self, visit: Visit, found: Any, receive: Receive, send: Send) -> None: ...


class Edge:
    """The outermost ASGI app: calls to workers go to `hot`, everything else to `rest`."""

    def __init__(
        self,
        hot: HotPath,
        rest: App,
        *,
        origins: tuple[str, ...],
        log: AccessLog | None,
        clock: Callable[[], float],
        wall_clock: Callable[[], float],
    ) -> None:
        self._hot = hot
        self._rest = rest
        self._origins = frozenset(origin.encode() for origin in origins)
        self._log = log
        self._clock = clock
        self._wall_clock = wall_clock
        self._prefix = f"req-{os.urandom(6).hex()}-"
        self._numbers = itertools.count(1)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._rest(scope, receive, send)
            return
        visit = Visit(scope, f"{self._prefix}{next(self._numbers):x}", self._clock())
        if self._origins:
            self._allow_origin(visit)
        try:
            if self._origins and _is_preflight(visit):
                await self._preflight(visit, send)
            elif (found := self._hot.find(scope["path"])) is not None:
                await self._hot.serve(visit, found, receive, send)
            else:
                await self._serve_rest(visit, receive, send)
        finally:
            if self._log is not None:
                self._log.write(self._line(visit))

    async def _serve_rest(self, visit: Visit, receive: Receive, send: Send) -> None:
        scope = visit.scope
        scope.pop("extensions", None)  # nobody takes the pump, which would hold the scope that holds it

        async def send_with_extra(message: Message) -> None:
            if message["type"] == "http.response.start":
                visit.status = message["status"]
                message["headers"] = [*message.get("headers", ()), *visit.extra]
            await send(message)

        try:
            await self._rest({**scope, "path": plain_path(scope["path"]), "visit": visit}, receive, send_with_extra)
        except Exception:  # it has been answered, by the framework's handler for what nobody expects
            logger.exception("request %s failed inside the gateway", visit.id)

    def _allow_origin(self, visit: Visit) -> None:
        origin = visit.headers.get(b"origin")
        if b"*" in self._origins:
            visit.extra.append((b"access-control-allow-origin", b"*"))
        else:
            visit.extra.append((b"vary", b"origin"))
            if origin is None or origin not in self._origins:
                return
            visit.extra.append((b"access-control-allow-origin", origin))
        visit.extra.append((b"access-control-expose-headers", EXPOSED))

    async def _preflight(self, visit: Visit, send: Send) -> None:
        """A browser's question, which carries no key: answered without one, whatever the path."""
        visit.status = 204
        asked = visit.headers.get(b"access-control-request-headers", b"authorization, content-type")
        headers = [*PREFLIGHT, (b"access-control-allow-headers", asked), *visit.extra]
        await send({"type": "http.response.start", "status": 204, "headers": headers})
        await send({"type": "http.response.body", "body": b""})

    def _line(self, visit: Visit) -> dict[str, Any]:
        """Never the key, the prompt or the answer."""
        line: dict[str, Any] = {
            "time": _rounded(self._wall_clock()),
            "id": visit.id,
            "method": visit.scope["method"],
            "path": visit.scope["path"][:256],
            "address": visit.address,
            "status": visit.status,
        }
        if visit.client_id is not None:
            line["client_id"] = visit.client_id.decode()
        if visit.tenant is not None:
            line["tenant"], line["key"] = visit.tenant.name, visit.tenant.key_id
        if visit.call is not None:
            line["route"], line["stream"] = visit.call.route, visit.call.stream
        if visit.trace is not None:
            line["trace"] = visit.trace.id
        outcome = visit.outcome
        if outcome is None:
            line["duration_ms"] = _rounded((self._clock() - visit.started_at) * 1000)
            return line
        line["status"] = outcome.status
        line["duration_ms"] = _rounded(outcome.duration_s * 1000)
        if outcome.source is not None:
            line["source"], line["code"] = outcome.source, outcome.code
        if outcome.worker is not None:
            usage = outcome.usage
            line["worker"], line["attempts"] = outcome.worker, outcome.attempts
            if outcome.reason:
                line["route_reason"] = outcome.reason
            line["prompt_tokens"], line["completion_tokens"] = usage.prompt_tokens, usage.completion_tokens
            line["cached_tokens"], line["exact"] = usage.cached_tokens, usage.exact
        if outcome.queued_s:
            line["queued_ms"] = _rounded(outcome.queued_s * 1000)
        if outcome.first_event_s is not None:
            line["first_event_ms"] = _rounded(outcome.first_event_s * 1000)
        return line


def plain_path(path: str) -> str:
    """The path as it is documented: without empty segments, a slash at its end, or a `/v1` twice."""
    path = "/" + "/".join(part for part in path.split("/") if part)
    while path.startswith("/v1/v1/"):
        path = path[3:]
    return path


def _rounded(value: float) -> float:
    """To three digits behind the point; `round` does it by way of a string, at ten times the cost."""
    return int(value * 1000 + 0.5) / 1000


def _is_preflight(visit: Visit) -> bool:
    return visit.scope["method"] == "OPTIONS" and b"access-control-request-method" in visit.headers
