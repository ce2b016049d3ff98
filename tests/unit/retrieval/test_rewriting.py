"""Queries that a model writes, and what is searched where it does not."""

import asyncio

import pytest

from sluice.errors import BadRequest, UpstreamError
from sluice.retrieval.rewriting import rewritten
from sluice.retrieval.wish import Wish
from sluice.types import Tenant
from sluice.wire.sources import Ask

ACME = Tenant("acme", "k")
ASK = Ask({}, None, question="And its port?", turns=(("user", "What is Sluice?"), ("assistant", "A gateway.")))


class Says:
    def __init__(self, said: str | Exception | None) -> None:
        self.said = said
        self.prompts: list[str] = []

    async def complete(self, prompt: str, *, tenant: Tenant, max_tokens: int, deadline: float) -> str:
        self.prompts.append(prompt)
        if self.said is None:
            await asyncio.Event().wait()
        if isinstance(self.said, Exception):
            raise self.said
        assert isinstance(self.said, str)
        return self.said


async def queries(rewriter: Says | None, **wish: object) -> tuple[list[str], tuple[str, ...]]:
    return await rewritten(ASK, Wish(("vs",), **wish), ACME, rewriter=rewriter, timeout_s=0.02, now=0.0)  # type: ignore[arg-type]


async def test_nobody_is_asked_unless_it_is_wished():
    assert await queries(Says("never")) == (["And its port?"], ())
    assert await queries(None, query="port of Sluice") == (["port of Sluice"], ())


async def test_a_question_is_condensed_with_its_conversation():
    rewriter = Says('  "Port of the Sluice gateway"\n')

    assert await queries(rewriter, rewrite="condense") == (["Port of the Sluice gateway"], ())
    assert "user: What is Sluice?\nassistant: A gateway.\nuser: And its port?" in rewriter.prompts[0]


async def test_fusion_keeps_the_plain_question_and_bounds_the_others():
    rewriter = Says("1. port of sluice\n- And its port?\n(3) sluice listen address\nfourth\n" + "x" * 500)

    found, notes = await queries(rewriter, rewrite="fusion", num_queries=4)

    assert found == ["And its port?", "port of sluice", "sluice listen address"] and notes == ()
    assert "Write 3 different" in rewriter.prompts[0]


@pytest.mark.parametrize("said", [None, UpstreamError("inner"), "", "\n \n", "x" * 5000])
async def test_a_model_that_fails_or_babbles_leaves_the_plain_question_and_a_note(said: str | Exception | None):
    assert await queries(Says(said), rewrite="fusion") == (["And its port?"], ("rewrite_skipped",))


async def test_where_nobody_can_rewrite_it_is_refused():
    with pytest.raises(BadRequest, match="rewrite_route"):
        await queries(None, rewrite="condense")
