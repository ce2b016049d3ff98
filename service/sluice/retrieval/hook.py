"""Retrieval on a call: from what was asked to the sources that go into its prompt.

It runs after the call's limits are reserved and before it waits for a worker, so that nothing waits for a store while holding a
slot, and every failure is still a real status. What was given is kept for its owner to look at (`records`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import orjson

from sluice.config import DefaultRetrieval, OnCall
from sluice.errors import BadRequest, Overloaded, RetrievalTimeout, StoreNotFound
from sluice.metrics import RetrievalMetrics
from sluice.retrieval.base import Failure, SearchResult
from sluice.retrieval.chat_reply import ChatEditor, whole_chat
from sluice.retrieval.cleaning import Cleaner
from sluice.retrieval.fitting import Fit, TokenCounter, fitted
from sluice.retrieval.given import Given
from sluice.retrieval.records import Records
from sluice.retrieval.refusal import refusal
from sluice.retrieval.responses_reply import ResponsesEditor, whole_response
from sluice.retrieval.rewriting import NO_REWRITER, Rewriter, rewritten
from sluice.retrieval.search import Searcher
from sluice.retrieval.wish import Wish
from sluice.types import Call, Editor, Endpoint, Tenant
from sluice.wire.sources import Ask


@dataclass(frozen=True, slots=True)
class Grounded:
    """`types.Grounding`: the answer of a call with what it was given."""

    given: Given
    endpoint: Endpoint
    reply: tuple[str, bytes] | None = None

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        return self.given.headers

    def whole(self, body: bytes) -> bytes:
        if self.given.is_skipped or self.reply is not None:
            return body
        try:
            return (whole_response if self.endpoint is Endpoint.RESPONSES else whole_chat)(body, self.given)
        except orjson.JSONDecodeError:
            return body  # whatever it is, it is what the worker said

    def editor(self) -> Editor:
        if self.given.is_skipped:
            return Untouched()
        return ResponsesEditor(self.given) if self.endpoint is Endpoint.RESPONSES else ChatEditor(self.given)


class Untouched:
    """The stream of a call that was given nothing to show."""

    def feed(self, events: bytes) -> bytes:
        return events


class Hook:
    """What a gateway with retrieval does on its calls. `defaults` has the routes that retrieve without being asked."""

    def __init__(
        self,
        *,
        searcher: Searcher,
        counter: TokenCounter,
        rewriter: Rewriter | None,
        records: Records,
        contexts: Callable[[Call], int | None],
        defaults: Mapping[str, DefaultRetrieval],
        settings: OnCall,
        metrics: RetrievalMetrics,
        clock: Callable[[], float],
        wall_clock: Callable[[], float],
    ) -> None:
        self.records = records
        self._searcher = searcher
        self._counter = counter
        self._rewriter = rewriter
        self._contexts = contexts
        self._defaults = {route: wish for route, one in defaults.items() if (wish := _default(one)).stores}
        self._settings = settings
        self._metrics = metrics
        self._clock = clock
        self._wall_clock = wall_clock
        self._cleaner = Cleaner(settings.control_tokens)
        self._searching: dict[str, int] = {}  # calls of a tenant; only `_turn` changes it

    def __repr__(self) -> str:
        return f"<Hook {sum(self._searching.values())} searching, {self.records!r}>"

    def default(self, route: str, tenant: Tenant) -> Wish | None:
        """What a call gets that asks for nothing: its key's stores, else its route's."""
        wish = self._defaults.get(route)
        if tenant.vector_store_ids:
            return Wish(tenant.vector_store_ids, fails_open=True)
        return wish

    def grounded(self, call: Call, given: Given, wish: Wish) -> Grounded:
        """What of it the answer shows, and the answer itself where none is wanted without sources."""
        is_refused = wish.refuses_when_empty and not given.sources
        reply = refusal(call, given, created_at=self._wall_clock()) if is_refused else None
        return Grounded(given, call.endpoint, reply)

    async def ground(self, call: Call, ask: Ask, wish: Wish) -> Given:
        """What the call is given. Raises what a client that asked must be told (retrieval.md, failures)."""
        began_at = self._clock()
        with self._turn(call.tenant):
            try:
                given = await self._given(call, ask, wish, began_at)
            except Exception:
                self._metrics.ended("error", wish.mode, self._clock() - began_at)
                raise
        self.records.keep(call.tenant.name, given, created_at=self._wall_clock())
        self._metrics.ended(given.status, given.mode, given.latency_s, len(given.sources), given.tokens)
        for failure in given.failures:
            self._metrics.failed(failure.code)
        return given

    async def search(self, tenant: Tenant, wish: Wish, queries: Sequence[str]) -> tuple[Sequence[str], SearchResult]:
        """A search that belongs to no call, counted among the tenant's; first what was searched for.

        A wish to rewrite is for one query. Raises `BadRequest` for one where no route is there to write queries.
        """
        with self._turn(tenant):
            notes: tuple[str, ...] = ()
            if wish.rewrite != "none" and self._rewriter is None:
                raise BadRequest(f"`rewrite_query`: {NO_REWRITER}", param="rewrite_query")
            if wish.rewrite != "none":
                queries, notes = await self._queries(Ask(None, None, question=queries[0]), wish, tenant)
            found = await self._searcher.search(tenant, wish, queries)
        return queries, replace(found, notes=notes + found.notes)

    async def _queries(self, ask: Ask, wish: Wish, tenant: Tenant) -> tuple[list[str], tuple[str, ...]]:
        timeout_s, now = self._settings.rewrite_timeout_s, self._clock()
        return await rewritten(ask, wish, tenant, rewriter=self._rewriter, timeout_s=timeout_s, now=now)

    async def _given(self, call: Call, ask: Ask, wish: Wish, began_at: float) -> Given:
        queries, notes = await self._queries(ask, wish, call.tenant)
        found = await self._found(call, ask, wish, queries)
        if self._clock() >= call.deadline:
            raise RetrievalTimeout("The call's own time was over before its sources were found.")
        fit = Fit((), "", 0, is_truncated=False)
        if found.passages:
            context = self._contexts(call)
            fit = await fitted(found.passages, wish, ask, call, context=context, counter=self._counter, cleaner=self._cleaner)
        notes += found.notes
        if found.passages and not fit.sources:
            notes += ("no_room",)
        return Given(
            id=call.id,
            sources=fit.sources,
            prompt=fit.prompt,
            queries=tuple(queries),
            mode=found.mode,
            num_results=len(found.passages),
            tokens=fit.tokens,
            latency_s=self._clock() - began_at,
            failures=found.failures,
            notes=notes,
            is_degraded=found.is_degraded or "no_room" in notes or "rewrite_skipped" in notes,
            is_truncated=fit.is_truncated,
            shows_citations=wish.citations,
            shows_content=wish.include_content,
            shows_results=ask.include_results,
            public_url=self._settings.public_url or "",
            store_ids=wish.stores,
        )

    async def _found(self, call: Call, ask: Ask, wish: Wish, queries: list[str]) -> SearchResult:
        if not queries[0]:
            if ask.is_explicit:
                raise BadRequest("There is no text in the last user turn to search for; `retrieval.query` could name one.")
            return SearchResult(())
        try:
            return await self._searcher.search(call.tenant, wish, queries)
        except StoreNotFound:
            if ask.is_explicit:
                raise
            # The default of a site that is not this tenant's is no mistake of the call's.
            return SearchResult((), tuple(Failure(id, "not_found") for id in wish.stores))

    @contextmanager
    def _turn(self, tenant: Tenant) -> Iterator[None]:
        """One of the tenant's searches at a time; raises `Overloaded` beyond what one tenant may have."""
        searching = self._searching.get(tenant.name, 0)
        if searching >= self._settings.max_concurrent_searches:
            raise Overloaded("Too many searches of this tenant are running; try again in a moment.", retry_after_s=1)
        self._searching[tenant.name] = searching + 1
        try:
            yield
        finally:
            self._searching[tenant.name] -= 1
            if not self._searching[tenant.name]:
                del self._searching[tenant.name]


def _default(given: DefaultRetrieval) -> Wish:
    return Wish(
        stores=given.vector_store_ids,
        mode=given.mode,
        max_num_results=given.max_num_results,
        max_context_tokens=given.max_context_tokens,
        fails_open=given.on_error == "open",
        refuses_when_empty=given.on_empty == "refuse",
    )
