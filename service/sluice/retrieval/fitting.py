"""As many sources as fit the model: within the wish, and within what prompt and answer leave of the context.

No tokenizer makes more tokens than there are bytes. Where that bound fits nothing has to be counted, which is the rule for a
model with a large context; else the worker counts, and where it does not answer the bound holds. So the sources never make a
call too long that was not too long before.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from sluice.retrieval.base import Passage
from sluice.retrieval.cleaning import Cleaner
from sluice.retrieval.prompt_block import Source, block, pack
from sluice.retrieval.wish import Wish
from sluice.types import Call
from sluice.wire.sources import Ask

ANSWER_TOKENS = 512  # kept free where the client does not say how many it wants, and at most a quarter of the context
SLACK_TOKENS = 16  # tokens that begin and end a text do not add up
MAX_ROUNDS = 4


class TokenCounter(Protocol):
    """Counts by the tokenizer of a call's own workers. None where it cannot be said in time."""

    async def of_prompt(self, call: Call, ask: Ask) -> int | None:
        """Of the call's prompt as its template renders it, without sources."""

    async def of_text(self, call: Call, text: str) -> int | None: ...


class Fit(NamedTuple):
    sources: tuple[Source, ...]
    prompt: str  # what goes before the question
    tokens: int  # of it, counted or estimated
    is_truncated: bool


async def fitted(
    passages: Sequence[Passage],
    wish: Wish,
    ask: Ask,
    call: Call,
    *,
    context: int | None,
    counter: TokenCounter,
    cleaner: Cleaner,
) -> Fit:
    """The best passages that fit, in their order. `context` is the model's; None where its workers have not told."""
    fit = _packed(passages, wish, wish.max_context_tokens, cleaner)
    if context is None or not fit.sources:
        return fit
    answer = min(ANSWER_TOKENS, context // 4) if call.max_tokens is None else call.max_tokens
    if _most(fit) + ask.max_prompt_tokens + answer <= context:
        return fit
    counted = await counter.of_prompt(call, ask)
    prompt = ask.max_prompt_tokens if counted is None else min(counted + SLACK_TOKENS, ask.max_prompt_tokens)
    room = context - prompt - answer
    for _ in range(MAX_ROUNDS):
        if not fit.sources or _most(fit) <= room:
            return fit
        counted = await counter.of_text(call, fit.prompt)
        tokens = _most(fit) if counted is None else counted + SLACK_TOKENS
        if tokens <= room:
            return fit._replace(tokens=tokens)
        estimated = min(fit.tokens, wish.max_context_tokens)
        fit = _packed(passages, wish, int(0.95 * estimated * room / tokens), cleaner)._replace(is_truncated=True)
    return Fit((), "", 0, is_truncated=True)


def _packed(passages: Sequence[Passage], wish: Wish, budget_tokens: int, cleaner: Cleaner) -> Fit:
    sources, is_truncated = pack(passages, budget_tokens, cleaner)
    text = block(sources, cites=wish.citations)
    tokens = sum(source.tokens for source in sources)
    return Fit(tuple(sources), text, tokens, is_truncated)


def _most(fit: Fit) -> int:
    return len(fit.prompt.encode())
