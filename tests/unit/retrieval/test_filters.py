"""Filters mean the same in Python and in SQL, and SQL never holds a client's text."""

import json
import sqlite3
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sluice.errors import BadRequest
from sluice.retrieval.base import Comparison, Compound
from sluice.retrieval.filters import MAX_DEPTH, MAX_NODES, compile_filter, matches, parse_filter

KEYS = st.sampled_from(["lang", "year", "draft", 'a"b', "x' OR 1=1 --", "日本", "$.lang"])
TEXTS = st.sampled_from(["zh", "en", "", "1", "true", "') OR 1=1 --", '"', "中文"])
SCALARS = TEXTS | st.booleans() | st.sampled_from([0, 1, 2, 2.5, -1])
ATTRIBUTES = st.dictionaries(KEYS, SCALARS, max_size=4)
COMPARED = st.one_of(
    st.fixed_dictionaries({"type": st.sampled_from(["eq", "ne"]), "key": KEYS, "value": SCALARS}),
    st.fixed_dictionaries(
        {"type": st.sampled_from(["gt", "gte", "lt", "lte"]), "key": KEYS, "value": TEXTS | st.sampled_from([0, 1, 2.5])}
    ),
    st.fixed_dictionaries(
        {"type": st.sampled_from(["in", "nin"]), "key": KEYS, "value": st.lists(SCALARS, min_size=1, max_size=3)}
    ),
)
FILTERS = st.recursive(
    COMPARED,
    lambda inner: st.fixed_dictionaries(
        {"type": st.sampled_from(["and", "or"]), "filters": st.lists(inner, min_size=1, max_size=3)}
    ),
    max_leaves=4,
)


def selected(found: Any, attributes: dict[str, Any]) -> bool:
    sql, parameters = compile_filter(found, "t.attributes")
    with sqlite3.connect(":memory:") as base:
        base.execute("CREATE TABLE t (attributes TEXT)")
        base.execute("INSERT INTO t VALUES (?)", [json.dumps(attributes)])
        [[count]] = base.execute(f"SELECT count(*) FROM t WHERE {sql}", parameters).fetchall()
    base.close()
    return bool(count)


@settings(max_examples=300, deadline=None)
@given(FILTERS, ATTRIBUTES)
def test_a_filter_selects_in_sql_what_it_matches_in_python(asked, attributes):
    try:
        found = parse_filter(asked)
    except BadRequest:
        return  # nested too deeply
    assert found is not None
    assert selected(found, attributes) == matches(found, attributes)


@given(FILTERS)
def test_the_sql_holds_no_text_of_the_client(asked):
    try:
        found = parse_filter(asked)
    except BadRequest:
        return
    assert found is not None
    sql, parameters = compile_filter(found, "t.attributes")

    assert "OR 1=1" not in sql and "lang" not in sql and "中" not in sql
    assert sql.count("?") == len(parameters)


@pytest.mark.parametrize(
    "asked, attributes, expected",
    [
        ({"type": "eq", "key": "v", "value": True}, {"v": 1}, False),
        ({"type": "eq", "key": "v", "value": 1}, {"v": True}, False),
        ({"type": "eq", "key": "v", "value": 1}, {"v": 1.0}, True),
        ({"type": "gt", "key": "v", "value": 1}, {"v": "2"}, False),
        ({"type": "gt", "key": "v", "value": "a"}, {"v": "b"}, True),
        ({"type": "ne", "key": "v", "value": "a"}, {}, True),
        ({"type": "nin", "key": "v", "value": ["a"]}, {"v": "a"}, False),
        ({"type": "in", "key": "v", "value": ["a", 2]}, {"v": 2}, True),
        ({"type": "lte", "key": "v", "value": 2}, {}, False),
    ],
)
def test_types_never_mix_and_what_is_absent_is_only_unequal(asked, attributes, expected):
    found = parse_filter(asked)

    assert found is not None
    assert matches(found, attributes) is expected
    assert selected(found, attributes) is expected


def test_a_filter_becomes_the_types_of_base():
    found = parse_filter({"type": "and", "filters": [{"type": "in", "key": "k", "value": ["a", 1]}]})

    assert found == Compound("and", (Comparison("in", "k", ("a", 1.0)),))
    assert parse_filter(None) is None


EQ = {"type": "eq", "key": "k", "value": 1}


def nested(depth: int) -> dict[str, Any]:
    return EQ if depth == 1 else {"type": "or", "filters": [nested(depth - 1)]}


@pytest.mark.parametrize(
    "bad",
    [
        *([], "x", {}, {"type": "like", "key": "k", "value": "x"}, {"type": ["eq"], "key": "k", "value": 1}),
        {"type": "eq", "key": "", "value": 1},
        {"type": "eq", "key": "k" * 65, "value": 1},
        {"type": "eq", "key": 1, "value": 1},
        {"type": "eq", "key": "k", "value": None},
        {"type": "eq", "key": "k", "value": "x" * 513},
        {"type": "eq", "key": "k", "value": float("nan")},
        {"type": "eq", "key": "k", "value": {"$ne": 1}},
        {"type": "eq", "key": "k", "value": 1, "or": 1},
        {"type": "gt", "key": "k", "value": True},
        {"type": "in", "key": "k", "value": "a"},
        {"type": "in", "key": "k", "value": []},
        {"type": "and", "filters": []},
        {"type": "and", "filters": EQ},
        {"type": "and", "filters": [EQ], "key": "k"},
        {"type": "and", "filters": [EQ] * MAX_NODES},
        nested(MAX_DEPTH + 1),
    ],
)
def test_what_is_no_filter_is_refused(bad):
    with pytest.raises(BadRequest) as caught:
        parse_filter(bad, param="filters")

    assert caught.value.param == "filters"
