"""Calls that the gateway makes on behalf of a client's call: embeddings, reranking, rewriting, counting tokens.

They go the same way as every call, with the caller's tenant: limited, admitted, retried and counted alike. Whatever goes wrong
with one is a `GatewayError`; an answer of a shape that nobody expects is `RetrievalUnavailable`, and its text is not repeated.
"""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import orjson

from sluice.config import Embedding
from sluice.errors import GatewayError, RetrievalUnavailable
from sluice.gateway import Gateway, Served
from sluice.retrieval.base import Weights
from sluice.types import Call, Endpoint, Outcome, Tenant
from sluice.wire.prompt_size import size_of
from sluice.wire.sources import Ask

COUNT_TIMEOUT_S = 0.25
MAX_EMBEDDED_TEXTS = 64
PASSED_ON = ("messages", "tools", "chat_template_kwargs", "add_generation_prompt", "continue_final_message")
OUTPUTS = {Endpoint.CHAT: 1}

Told = Callable[[Call, Outcome], None]


class Children:
    """Makes child calls. `told` hears how each ended, for the ledger and the metrics."""

    def __init__(self, gateway: Gateway, routes: Mapping[str, Served], clock: Callable[[], float], told: Told) -> None:
        self._gateway = gateway
        self._routes = routes
        self._clock = clock
        self._told = told
        self._prefix = f"child-{os.urandom(6).hex()}-"
        self._numbers = itertools.count(1)

    async def ask(
        self,
        endpoint: Endpoint,
        payload: Mapping[str, Any],
        *,
        route: str,
        tenant: Tenant,
        deadline: float,
        max_tokens: int = 0,
    ) -> dict[str, Any]:
        """The worker's JSON answer. Raises `GatewayError`, also where the deadline is over."""
        call = self._call(endpoint, payload, route, tenant, deadline, max_tokens)
        exchanging = self._gateway.exchange(call)
        error: GatewayError | None = None
        try:
            async with asyncio.timeout(deadline - self._clock()), exchanging as exchange:
                reply = orjson.loads(exchange.body)
        except TimeoutError as exc:
            error = RetrievalUnavailable(f"The route {route} did not answer in time.")
            raise error from exc
        except orjson.JSONDecodeError as exc:
            error = _strange(route)
            raise error from exc
        except GatewayError as exc:
            error = exc
            raise
        finally:
            self._told(call, self._outcome(call, exchanging, error))
        if not isinstance(reply, dict):
            raise _strange(route)
        return reply

    def _call(
        self, endpoint: Endpoint, payload: Mapping[str, Any], route: str, tenant: Tenant, deadline: float, max_tokens: int
    ) -> Call:
        served = self._routes[route]
        asked = {"model": served.settings.served_model or route, **payload}
        size = size_of(endpoint, asked)
        return Call(
            id=f"{self._prefix}{next(self._numbers):x}",
            tenant=tenant,
            route=route,
            endpoint=endpoint,
            path=endpoint,
            body=orjson.dumps(asked),
            size=size,
            prompt_tokens=served.estimate.prompt_tokens(size),
            max_tokens=max_tokens or None,
            num_choices=OUTPUTS.get(endpoint, 0),
            output_tokens=max_tokens,
            is_child=True,
            started_at=self._clock(),
            deadline=deadline,
        )

    def _outcome(self, call: Call, exchanging: Any, error: GatewayError | None) -> Outcome:
        return Outcome(
            status=200 if error is None else error.status,
            source=None if error is None else error.source,
            code=None if error is None else error.code,
            worker=exchanging.worker.url if exchanging.worker else None,
            usage=exchanging.usage,
            gpu_ms=exchanging.gpu_ms,
            gpu_exact=exchanging.usage.step_ms > 0,
            attempts=exchanging.attempts,
            duration_s=self._clock() - call.started_at,
        )


class RouteEmbedder:
    """`retrieval.base.Embedder` over a route of the gateway."""

    def __init__(self, children: Children, route: str, settings: Embedding) -> None:
        self._children = children
        self._route = route
        self._prefixes = {"query": settings.query_prefix, "passage": settings.passage_prefix}
        self.model_id = route
        self.weights = Weights(settings.text_weight, settings.vector_weight)

    async def embed(
        self, texts: Sequence[str], *, tenant: Tenant, kind: Literal["query", "passage"], deadline: float
    ) -> list[list[float]]:
        vectors: list[list[float]] = []
        for at in range(0, len(texts), MAX_EMBEDDED_TEXTS):
            part = [self._prefixes[kind] + text for text in texts[at : at + MAX_EMBEDDED_TEXTS]]
            asked = {"input": part, "truncate_prompt_tokens": -1}  # a passage may be longer than the model's context
            reply = await self._children.ask(Endpoint.EMBEDDINGS, asked, route=self._route, tenant=tenant, deadline=deadline)
            vectors += _embeddings(reply, len(part), self._route)
        if len({len(vector) for vector in vectors}) > 1:
            raise _strange(self._route)
        return vectors


class RouteReranker:
    """`retrieval.base.Reranker` over a route of the gateway."""

    def __init__(self, children: Children, route: str) -> None:
        self._children = children
        self._route = route

    async def rerank(
        self, query: str, texts: Sequence[str], *, tenant: Tenant, top_n: int, deadline: float
    ) -> list[tuple[int, float]]:
        asked = {"query": query, "documents": list(texts), "top_n": top_n}
        reply = await self._children.ask(Endpoint.RERANK, asked, route=self._route, tenant=tenant, deadline=deadline)
        try:
            ranked = {int(one["index"]): float(one["relevance_score"]) for one in reply["results"]}
        except (KeyError, TypeError, ValueError) as exc:
            raise _strange(self._route) from exc
        found = [(i, score) for i, score in ranked.items() if 0 <= i < len(texts)]
        return sorted(found, key=lambda pair: -pair[1])[:top_n]


class RouteRewriter:
    """`retrieval.rewriting.Rewriter` over a route of the gateway."""

    def __init__(self, children: Children, route: str) -> None:
        self._children = children
        self._route = route

    async def complete(self, prompt: str, *, tenant: Tenant, max_tokens: int, deadline: float) -> str:
        asked = {"messages": [{"role": "user", "content": prompt}], "max_tokens": max_tokens, "temperature": 0}
        reply = await self._children.ask(
            Endpoint.CHAT, asked, route=self._route, tenant=tenant, deadline=deadline, max_tokens=max_tokens
        )
        try:
            return str(reply["choices"][0]["message"]["content"] or "")
        except (KeyError, TypeError, IndexError) as exc:
            raise _strange(self._route) from exc


class RouteCounter:
    """`retrieval.fitting.TokenCounter` by the `/tokenize` of a call's own workers."""

    def __init__(self, children: Children, clock: Callable[[], float]) -> None:
        self._children = children
        self._clock = clock

    async def of_prompt(self, call: Call, ask: Ask) -> int | None:
        if not isinstance(call.body, bytes):
            return None  # a large one: to parse it would hold up streams
        members = orjson.loads(call.body.replace(ask.slot, b""))
        if call.endpoint is Endpoint.RESPONSES:
            messages = _messages(members)
            return None if messages is None else await self._count(call, {"messages": messages})
        return await self._count(call, {name: members[name] for name in PASSED_ON if name in members})

    async def of_text(self, call: Call, text: str) -> int | None:
        return await self._count(call, {"prompt": text, "add_special_tokens": False})

    async def _count(self, call: Call, payload: Mapping[str, Any]) -> int | None:
        deadline = min(call.deadline, self._clock() + COUNT_TIMEOUT_S)
        try:
            reply = await self._children.ask(
                Endpoint.TOKENIZE, payload, route=call.route, tenant=call.tenant, deadline=deadline
            )
        except GatewayError:
            return None
        count = reply.get("count")
        return count if type(count) is int and count >= 0 else None


def _embeddings(reply: Mapping[str, Any], num: int, route: str) -> list[list[float]]:
    try:
        found = {int(one["index"]): [float(value) for value in one["embedding"]] for one in reply["data"]}
        return [found[i] for i in range(num)]
    except (KeyError, TypeError, ValueError) as exc:
        raise _strange(route) from exc


def _messages(members: Mapping[str, Any]) -> list[dict[str, Any]] | None:
    """A Responses request as the messages that it is rendered as; None where it holds more than texts."""
    asked = members["input"]
    items = [{"role": "user", "content": asked}] if isinstance(asked, str) else asked
    messages = [{"role": "system", "content": members["instructions"]}] if members.get("instructions") else []
    for item in items:
        content = item.get("content") if isinstance(item, dict) else None
        if isinstance(content, list):
            texts = [part["text"] for part in content if isinstance(part, dict) and isinstance(part.get("text"), str)]
            content = "\n".join(texts) if len(texts) == len(content) else None
        if not isinstance(content, str):
            return None
        messages.append({"role": item.get("role", "user"), "content": content})
    return messages


def _strange(route: str) -> RetrievalUnavailable:
    return RetrievalUnavailable(f"The route {route} answered with something else than was asked.", retry_after_s=2)
