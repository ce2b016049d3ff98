"""Queries that a model writes: one that stands alone, of a question in a conversation, or several whose results are fused.

One bounded call each, off unless the site names a route for it. Where it fails or answers nothing of use the plain question is
searched, and the answer says so.
"""

from __future__ import annotations

import asyncio
import re
from typing import Protocol

from sluice.errors import BadRequest, GatewayError
from sluice.retrieval.base import MAX_QUERIES, MAX_QUERY_CHARS
from sluice.retrieval.wish import Wish
from sluice.types import Tenant
from sluice.wire.sources import Ask

GRACE_S = 0.2  # the model's answer has until the deadline; this is for one that does not keep to it
MAX_TOKENS = 160
MAX_REWRITTEN_CHARS = 400  # of one query; a model that goes on has not understood
CONDENSE = "Rewrite the last question of this conversation as one search query that can be understood without it."
FUSE = "Write {n} different search queries that would find documents to answer the last question of this conversation."
FORM = "Keep its language. Answer with nothing but the {what}.\n\n{turns}user: {question}"
NO_REWRITER = "queries are not rewritten here, since no route is named for it (`retrieval.on_call.rewrite_route`)."
NUMBERED = re.compile(r"^\s*(?:[-*•]|\(?\d{1,2}[.):])?\s*")


class Rewriter(Protocol):
    async def complete(self, prompt: str, *, tenant: Tenant, max_tokens: int, deadline: float) -> str:
        """What the model says to this. Charged to the tenant. Raises `GatewayError`."""


async def rewritten(
    ask: Ask, wish: Wish, tenant: Tenant, *, rewriter: Rewriter | None, timeout_s: float, now: float
) -> tuple[list[str], tuple[str, ...]]:
    """The queries to search, the plain one first, and what to note. Raises `BadRequest` where nobody can rewrite."""
    plain = (wish.query or ask.question)[:MAX_QUERY_CHARS].strip()
    if wish.rewrite == "none":
        return [plain], ()
    if rewriter is None:
        raise BadRequest(f"`retrieval.rewrite`: {NO_REWRITER}", param="retrieval")
    num = 1 if wish.rewrite == "condense" else min(wish.num_queries, MAX_QUERIES) - 1
    try:
        async with asyncio.timeout(timeout_s + GRACE_S):
            said = await rewriter.complete(
                _prompt(ask, wish, plain, num), tenant=tenant, max_tokens=MAX_TOKENS, deadline=now + timeout_s
            )
    except (TimeoutError, GatewayError):
        return [plain], ("rewrite_skipped",)
    found = _queries(said)[:num]
    if not found:
        return [plain], ("rewrite_skipped",)
    return (found if wish.rewrite == "condense" else list(dict.fromkeys([plain, *found]))), ()


def _prompt(ask: Ask, wish: Wish, plain: str, num: int) -> str:
    turns = "".join(f"{role}: {text}\n" for role, text in ask.turns)
    form = FORM.format(what="query" if wish.rewrite == "condense" else "queries, one a line", turns=turns, question=plain)
    return f"{CONDENSE if wish.rewrite == 'condense' else FUSE.format(n=num)} {form}"


def _queries(said: str) -> list[str]:
    lines = [NUMBERED.sub("", line).strip().strip('"“”') for line in said.splitlines()]
    return [line for line in dict.fromkeys(lines) if line and len(line) <= MAX_REWRITTEN_CHARS]
