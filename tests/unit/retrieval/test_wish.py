"""What is wished, of whom, in which order of precedence."""

from typing import Any

import pytest

from sluice.errors import BadRequest
from sluice.retrieval.base import Comparison, Weights
from sluice.retrieval.wish import Wish, wish_of
from sluice.wire.sources import Ask

DEFAULT = Wish(("vs_default",), fails_open=True)


def wished(
    member: dict[str, Any] | None = None, tool: dict[str, Any] | None = None, default: Wish | None = None
) -> Wish | None:
    return wish_of(Ask(member, tool), default)


def test_the_object_comes_before_the_tool_and_the_tool_before_the_default():
    tool = {"type": "file_search", "vector_store_ids": ["vs_tool"]}

    assert wished({"vector_store_ids": ["vs_a"]}, tool, DEFAULT) == Wish(("vs_a",))
    assert wished(None, tool, DEFAULT) == Wish(("vs_tool",))
    assert wished(None, None, DEFAULT) is DEFAULT
    assert wished() is None


def test_an_object_without_stores_takes_those_of_the_default_and_nothing_else_of_it():
    found = wished({"mode": "lexical"}, default=DEFAULT)

    assert found == Wish(("vs_default",), mode="lexical", fails_open=False)


def test_every_member_is_understood():
    found = wished(
        {
            "vector_store_ids": ["vs_a", "vs_b", "vs_a"],
            "mode": "hybrid",
            "max_num_results": 3,
            "ranking_options": {
                "ranker": "none",
                "score_threshold": 0.5,
                "hybrid_search": {"embedding_weight": 2, "text_weight": 1.5},
            },
            "filters": {"type": "eq", "key": "lang", "value": "zh"},
            "query": "port",
            "rewrite": "fusion",
            "num_queries": 5,
            "max_context_tokens": 100,
            "on_error": "open",
            "on_empty": "refuse",
            "citations": False,
            "include_content": False,
        }
    )

    assert found == Wish(
        ("vs_a", "vs_b"),
        mode="hybrid",
        max_num_results=3,
        score_threshold=0.5,
        weights=Weights(text=1.5, embedding=2.0),
        reranks=False,
        filters=Comparison("eq", "lang", "zh"),
        query="port",
        rewrite="fusion",
        num_queries=5,
        max_context_tokens=100,
        fails_open=True,
        refuses_when_empty=True,
        citations=False,
        include_content=False,
    )


@pytest.mark.parametrize(
    "member",
    [
        {"ranking_options": {"hybrid_search": {"embedding_weight": 1}}},
        {"ranking_options": {"hybrid_search": {"embedding_weight": 0, "text_weight": 0}}},
        {"ranking_options": {"hybrid_search": {"embedding_weight": -1, "text_weight": 1}}},
        {"ranking_options": {"score_threshold": 2}},
        {"ranking_options": {"score_threshold": True}},
        {"ranking_options": {"ranker": "magic"}},
        {"ranking_options": []},
        {"mode": "dense", "ranking_options": {"hybrid_search": {"embedding_weight": 0, "text_weight": 1}}},
        {"max_num_results": "5"},
        {"num_queries": 9},
        {"max_context_tokens": 0},
        {"query": 7},
        {"rewrite": "twice"},
        {"on_error": "shrug"},
        {"filters": {"type": "and", "filters": []}},
        {"vector_store_ids": ["a\nb"]},
        {"vector_store_ids": ["x" * 129]},
        {"vector_store_ids": "vs_a"},
    ],
)
def test_what_is_not_understood_is_refused_in_one_line(member: dict[str, Any]):
    with pytest.raises(BadRequest) as caught:
        wished({"vector_store_ids": ["vs_a"]} | member)

    assert "\n" not in caught.value.message and caught.value.param == "retrieval"
