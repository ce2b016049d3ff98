"""What a call wishes of retrieval, validated: from the `retrieval` object, a `file_search` tool, or a default of the site.

The object comes before the tool, the tool before the default. A member that we do not know is refused: a wish that is
half understood would be half served.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar, get_args

from sluice.errors import BadRequest
from sluice.retrieval.base import MAX_QUERY_CHARS, MAX_RESULTS, MAX_STORES, Filter, Mode, Weights
from sluice.retrieval.filters import parse_filter
from sluice.wire.members import integer
from sluice.wire.sources import Ask

T = TypeVar("T", bound=str)
Rewrite = Literal["none", "condense", "fusion"]
MODES: tuple[Mode, ...] = get_args(Mode)
REWRITES: tuple[Rewrite, ...] = get_args(Rewrite)
RANKERS = ("auto", "none", "default-2024-11-15")
MAX_CONTEXT_TOKENS = 131_072
MAX_STORE_ID_CHARS = 128
MEMBERS = frozenset(
    "vector_store_ids mode max_num_results ranking_options filters query rewrite num_queries max_context_tokens on_error "
    "on_empty citations include_content".split()
)
TOOL_MEMBERS = frozenset({"type", "vector_store_ids", "max_num_results", "filters", "ranking_options"})


@dataclass(frozen=True, slots=True)
class Wish:
    """One call's search, and what becomes of it."""

    stores: tuple[str, ...]
    mode: Mode = "hybrid"
    max_num_results: int = 8
    score_threshold: float = 0.0
    weights: Weights | None = None  # None: the embedder's
    reranks: bool = True  # where a reranker is configured
    filters: Filter | None = None
    query: str | None = None  # None: the last user turn
    rewrite: Rewrite = "none"
    num_queries: int = 3
    max_context_tokens: int = 2048
    fails_open: bool = False
    refuses_when_empty: bool = False
    citations: bool = True
    include_content: bool = True


def wish_of(ask: Ask, default: Wish | None) -> Wish | None:
    """The wish of a request; None where nothing is wished. Raises `BadRequest` with what is wrong with it.

    `default` is what a call gets that asks for nothing. One that asks without naming stores gets those of the default.
    """
    if ask.member is not None:
        return _of_member(ask.member, default)
    if ask.tool is not None:
        return _of_tool(ask.tool)
    return default


def _of_member(given: Mapping[str, Any], default: Wish | None) -> Wish:
    if unknown := sorted(given.keys() - MEMBERS):
        raise BadRequest(
            f"`retrieval.{unknown[0][:64]}` is unknown; known are {', '.join(sorted(MEMBERS))}.", param="retrieval"
        )
    here = "retrieval"
    wish = replace(
        _ranked(given, here),
        stores=_stores(given, here, default),
        mode=_one_of(given, here, "mode", MODES, "hybrid"),
        query=_query(given, here),
        rewrite=_one_of(given, here, "rewrite", REWRITES, "none"),
        num_queries=_integer(given, here, "num_queries", 2, 5, 3),
        max_context_tokens=_integer(given, here, "max_context_tokens", 1, MAX_CONTEXT_TOKENS, 2048),
        fails_open=_one_of(given, here, "on_error", ("fail", "open"), "fail") == "open",
        refuses_when_empty=_one_of(given, here, "on_empty", ("answer", "refuse"), "answer") == "refuse",
        citations=_flag(given, here, "citations"),
        include_content=_flag(given, here, "include_content"),
    )
    if wish.mode == "dense" and wish.weights is not None and not wish.weights.embedding:
        raise BadRequest("`retrieval.mode` is dense and its `embedding_weight` is 0: nothing would be found.", param=here)
    return wish


def _of_tool(given: Mapping[str, Any]) -> Wish:
    if unknown := sorted(given.keys() - TOOL_MEMBERS):
        message = f"`tools`: file_search has no `{unknown[0][:64]}`; known are {', '.join(sorted(TOOL_MEMBERS))}."
        raise BadRequest(message, param="tools")
    return replace(_ranked(given, "tools"), stores=_stores(given, "tools", None))


def _ranked(given: Mapping[str, Any], here: str) -> Wish:
    """What both forms have: how many results, how they are ranked and filtered."""
    options = given.get("ranking_options")
    if options is None:
        options = {}
    if not isinstance(options, dict) or options.keys() - {"ranker", "score_threshold", "hybrid_search"}:
        message = f"`{here}`: `ranking_options` is an object of ranker, score_threshold and hybrid_search."
        raise BadRequest(message, param=here)
    return Wish(
        stores=(),
        max_num_results=_integer(given, here, "max_num_results", 1, MAX_RESULTS, 8),
        score_threshold=_number(options, here, "score_threshold", 1.0),
        weights=_weights(options.get("hybrid_search"), here),
        reranks=_one_of(options, here, "ranker", RANKERS, "auto") != "none",
        filters=parse_filter(given.get("filters"), param=here),
    )


def _weights(given: Any, here: str) -> Weights | None:
    if given is None:
        return None
    if not isinstance(given, dict) or given.keys() != {"embedding_weight", "text_weight"}:
        raise BadRequest(f"`{here}`: `hybrid_search` is an object of embedding_weight and text_weight.", param=here)
    weights = Weights(_number(given, here, "text_weight", 1e6), _number(given, here, "embedding_weight", 1e6))
    if not weights.text and not weights.embedding:
        raise BadRequest(f"`{here}`: of `hybrid_search`'s weights one must be over 0.", param=here)
    return weights


def _stores(given: Mapping[str, Any], here: str, default: Wish | None) -> tuple[str, ...]:
    ids = given.get("vector_store_ids")
    if ids is None and default is not None:
        return default.stores
    if not isinstance(ids, list) or not 0 < len(ids) <= MAX_STORES:
        raise BadRequest(f"`{here}`: `vector_store_ids` must be a list of 1 to {MAX_STORES} ids.", param=here)
    for one in ids:
        if not isinstance(one, str) or not 0 < len(one) <= MAX_STORE_ID_CHARS or not one.isprintable():
            raise BadRequest(f"`{here}`: `vector_store_ids` holds something that is no id.", param=here)
    return tuple(dict.fromkeys(ids))


def _query(given: Mapping[str, Any], here: str) -> str | None:
    query = given.get("query")
    if query is None:
        return None
    if not isinstance(query, str) or not query.strip():
        raise BadRequest(f"`{here}.query` must be a text, or null for the user's last words.", param=here)
    return query[:MAX_QUERY_CHARS]


def _one_of(given: Mapping[str, Any], here: str, name: str, allowed: tuple[T, ...], default: T) -> T:
    value = given.get(name)
    if value is None:
        return default
    for one in allowed:
        if value == one:
            return one
    raise BadRequest(f"`{here}`: `{name}` must be one of {', '.join(allowed)}.", param=here)


def _integer(given: Mapping[str, Any], here: str, name: str, low: int, high: int, default: int) -> int:
    try:
        value = integer(given, name, low, high)
    except BadRequest as exc:
        raise BadRequest(f"`{here}`: {exc.message}", param=here) from exc
    return default if value is None else value


def _number(given: Mapping[str, Any], here: str, name: str, high: float) -> float:
    value = given.get(name)
    if value is None:
        return 0.0
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= high:
        raise BadRequest(f"`{here}`: `{name}` must be a number from 0 to {high:g}.", param=here)
    return float(value)


def _flag(given: Mapping[str, Any], here: str, name: str) -> bool:
    value = given.get(name)
    if value is not None and not isinstance(value, bool):
        raise BadRequest(f"`{here}`: `{name}` must be true or false.", param=here)
    return value is not False
