"""From what a client asks to a `Call`: its body is read, its route found, the request made ready for a worker."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from random import random
from typing import Any
from urllib.parse import parse_qs

from sluice.api import grounding
from sluice.api.steering import TIMEOUT_HEADER, Steering, timeout_ms
from sluice.bulk import BulkReader, BulkRequest
from sluice.config import Route
from sluice.directory import Directory, Target
from sluice.errors import ContextTooLong, MethodNotAllowed, NotFound
from sluice.gateway import Served
from sluice.middleware import Visit
from sluice.pool import Pool
from sluice.prefix import seed_of
from sluice.response_ids import ResponseIds, not_found, worker_mark
from sluice.retrieval.hook import Hook
from sluice.types import Body, Call, Endpoint, Tenant
from sluice.wire.members import OUTPUT_TOKENS
from sluice.wire.requests import Prepared, Request, parse

MAX_SESSION_BYTES = 256
GOES_UP = (b"traceparent", b"tracestate")
SWITCHED = {
    Endpoint.TOKENIZE: "tokenize",
    Endpoint.DETOKENIZE: "detokenize",
    Endpoint.TRANSCRIPTIONS: "transcriptions",
}
GENERATING = frozenset({*OUTPUT_TOKENS, Endpoint.TRANSCRIPTIONS})
USER_HEADER = b"x-openwebui-user-id"
MAX_USER_CHARACTERS = 128


@dataclass(frozen=True, slots=True)
class Stored:
    """What is asked of a stored response: to get it, or to cancel it."""

    response_id: str
    action: str


class Aim:
    """Where a request goes: its route, the one worker that can answer it, and the id that its response shall have."""

    __slots__ = ("deadline", "how", "pinned_worker", "response_id", "target")

    def __init__(
        self, target: Target, pinned_worker: str | None, response_id: str | None, deadline: float, how: dict[str, Any]
    ) -> None:
        self.target = target
        self.pinned_worker = pinned_worker
        self.response_id = response_id
        self.deadline = deadline
        self.how = how  # it is made ready for a worker: what `prepare` is given


class CallMaker:
    """Makes calls out of requests. A body in pieces is a large one, and is read in the process that is there for them."""

    def __init__(
        self,
        *,
        routes: Mapping[str, Served],
        directory: Directory,
        ids: ResponseIds,
        bulk: BulkReader,
        steering: Steering,
        hook: Hook | None = None,
    ) -> None:
        self._routes = routes
        self._directory = directory
        self._ids = ids
        self._bulk = bulk
        self._steering = steering
        self._hook = hook

    async def call(self, visit: Visit, tenant: Tenant, endpoint: Endpoint, body: Body, content_type: str) -> Call:
        """Raises what is wrong with the request: `BadRequest`, `ModelNotFound`, `NotFound`."""
        if isinstance(body, bytes):
            request = parse(endpoint, body, content_type)
            aim = self._aim(visit, endpoint, request, tenant)
            prepared = request.prepare(aim.target.rules, **aim.how)
            return self._made(visit, tenant, endpoint, request.model, aim, prepared, prepared.body)
        async with self._bulk.read(endpoint, body, content_type) as large:
            aim = self._aim(visit, endpoint, large, tenant)
            prepared, pieces = await large.prepare(aim.target.rules, **aim.how)
            return self._made(visit, tenant, endpoint, large.model, aim, prepared, pieces)

    def _aim(self, visit: Visit, endpoint: Endpoint, request: Request | BulkRequest, tenant: Tenant) -> Aim:
        target = self._directory.find(request.model, tenant)
        _check_open(endpoint, target)
        pinned, response_id = None, None
        if endpoint is Endpoint.RESPONSES and target.settings.responses_store:
            if request.previous_response_id is not None:
                mark = self._ids.worker_mark(request.previous_response_id, tenant.name)
                pinned = self._worker_of(mark, {target.route})[1]
            if request.store is not False:
                response_id = self._ids.placeholder
        settings, steering = target.settings, self._steering
        deadline = _deadline(visit, target, request.timeout_ms)
        salt = steering.salt(target.route, settings, tenant)
        how = {
            "model": target.served_model,
            "response_id": response_id,
            "prefix_seed": seed_of(target.served_model, salt) if self._routes[target.route].pool.reads_prefix else None,
            "retrieves": grounding.retrieves(self._hook, target.route, tenant),  # also where the client asks for no sources
            "steering": steering.members(endpoint, settings, tenant, salt, deadline),
        }
        return Aim(target, pinned, response_id, deadline, how)

    def _made(
        self, visit: Visit, tenant: Tenant, endpoint: Endpoint, model: str, aim: Aim, prepared: Prepared, body: Body
    ) -> Call:
        target = aim.target
        estimate = self._routes[target.route].estimate
        prompt_tokens = estimate.prompt_tokens(prepared.size)
        if (most := target.settings.bounds.max_prompt_tokens) is not None and prompt_tokens > most:
            raise ContextTooLong(f"This prompt has about {prompt_tokens} tokens; at most {most} are allowed for this model.")
        num_choices = prepared.num_prompts * prepared.num_choices if endpoint in GENERATING else 0
        context = _context(self._routes[target.route].pool, target.served_model)
        settings = target.settings
        call = Call(
            id=visit.id,
            tenant=tenant,
            route=target.route,
            endpoint=endpoint,
            path=endpoint,
            pinned_worker=aim.pinned_worker,
            model=model,
            body=body,
            content_type=prepared.content_type,
            headers=_trace_headers(visit),
            stream=prepared.stream,
            wants_usage=prepared.wants_usage,
            stamp=self._stamp(body, tenant) if aim.response_id else None,
            size=prepared.size,
            prompt_tokens=prompt_tokens,
            max_tokens=prepared.max_tokens,
            num_choices=num_choices,
            output_tokens=estimate.output_tokens(prepared.max_tokens, num_choices, prompt_tokens, context),
            user=_user(visit.headers, prepared.user) if tenant.names_users else "",
            prefix=prepared.prefix,
            adapter=target.adapter,
            session=_session(visit.headers, settings.session_header),
            explains=_explains(settings),
            started_at=visit.started_at,
            deadline=aim.deadline,
        )
        if prepared.ask is None:
            return call
        stamp = partial(self._stamp, tenant=tenant) if aim.response_id else None
        return grounding.bound(
            self._hook, call, prepared.ask, visit.headers, grounding.Binding(estimate, aim.how["prefix_seed"], stamp)
        )

    def stored(self, visit: Visit, tenant: Tenant, stored: Stored) -> Call:
        """`GET /v1/responses/{id}` and `POST .../cancel`: to the one worker that has it, if it is this tenant's."""
        method = "POST" if stored.action == "cancel" else "GET"
        if visit.scope["method"] != method:
            raise MethodNotAllowed(method)
        response_id = stored.response_id
        mark = self._ids.worker_mark(response_id, tenant.name)
        allowed = {name for name in self._routes if tenant.may_use(name)}
        route, url = self._worker_of(mark, allowed)
        target = self._directory.find(route, tenant)
        query, stream = _stored_query(visit.scope.get("query_string", b""))
        action = "/cancel" if stored.action else ""
        path = f"{Endpoint.RESPONSES.value}/{response_id}{action}{query if not action else ''}"
        is_stream = stream and not action
        return Call(
            id=visit.id,
            tenant=tenant,
            route=target.route,
            endpoint=Endpoint.RESPONSES,
            path=path,
            method=method,
            pinned_worker=url,
            headers=_trace_headers(visit),
            stream=is_stream,
            explains=_explains(target.settings),
            started_at=visit.started_at,
            deadline=_deadline(visit, target, None),
        )

    def _worker_of(self, mark: str, routes: set[str]) -> tuple[str, str]:
        """Route and URL of the worker with this mark; raises `NotFound` where it is gone."""
        for name in routes:
            for worker in self._routes[name].pool.workers:
                if self._routes[name].settings.responses_store and worker_mark(worker.url) == mark:
                    return name, worker.url
        raise not_found()

    def _stamp(self, body: Body, tenant: Tenant) -> Callable[[str], Body]:
        """The body for a worker that is yet to be picked: its id takes the place that was kept for it."""
        placeholder = self._ids.placeholder.encode()

        def stamp(worker_url: str) -> Body:
            response_id = self._ids.new(worker_url, tenant.name).encode()
            if isinstance(body, bytes):
                return body.replace(placeholder, response_id)
            # What we wrote ourselves is a piece of its own.
            return tuple(piece.replace(placeholder, response_id) if len(piece) < 1024 else piece for piece in body)

        return stamp


def _trace_headers(visit: Visit) -> tuple[tuple[str, str], ...]:
    """The only headers that go up (W3C Trace Context): ours where the call is sampled, else the client's."""
    if visit.trace is not None:
        return visit.trace.headers
    headers = visit.headers
    if b"traceparent" not in headers:
        return ()
    return tuple((name.decode(), headers[name].decode("latin-1")) for name in GOES_UP if name in headers)


def _explains(settings: Route) -> bool:
    """Whether why a call goes to its worker is to be noted."""
    return settings.explain.headers or (settings.explain.log_share > 0.0 and random() < settings.explain.log_share)


def _session(headers: Mapping[bytes, bytes], name: str | None) -> str:
    """What the route's session header says, cut to a bound; nothing where none is configured."""
    return "" if name is None else headers.get(name.encode(), b"")[:MAX_SESSION_BYTES].decode("latin-1")


def _user(headers: Mapping[bytes, bytes], in_body: str) -> str:
    """For whom a trusted key calls: the header wins, which the application's server sets, and not the application."""
    name = headers.get(USER_HEADER, b"").decode("latin-1") or in_body
    if len(name) <= MAX_USER_CHARACTERS and name.isprintable():
        return name
    return f"sha256:{sha256(name.encode(errors='replace')).hexdigest()}"


def _deadline(visit: Visit, target: Target, in_body_ms: int | None) -> float:
    """When the call must be done: by the route, or before that by the client."""
    given_ms = timeout_ms(visit.headers.get(TIMEOUT_HEADER), in_body_ms)
    total_s = target.settings.timeouts.total_s
    return visit.started_at + (total_s if given_ms is None else min(total_s, given_ms / 1000))


def _context(pool: Pool, model: str) -> int | None:
    """How many tokens prompt and answer may have together, as the first worker says that knows the model."""
    for worker in pool.workers:
        for known in worker.models:
            if known.id == model:
                return known.max_model_len
    return None


def _check_open(endpoint: Endpoint, target: Target) -> None:
    switch = SWITCHED.get(endpoint)
    if switch is not None and switch not in target.settings.open:
        raise NotFound(f"{endpoint.value} is not open for this model; `routes.{target.route}.open` would list it.")


def _stored_query(query: bytes) -> tuple[str, bool]:
    """The two parameters that vLLM knows here, rebuilt; anything else is left behind."""
    asked = parse_qs(query.decode("latin-1"))
    stream = asked.get("stream", ["false"])[-1].lower() == "true"
    after = asked.get("starting_after", [""])[-1]
    parts = ["stream=true"] if stream else []
    parts += [f"starting_after={after}"] if after.isdigit() else []
    return ("?" + "&".join(parts) if parts else ""), stream
