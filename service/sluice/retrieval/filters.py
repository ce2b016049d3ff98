"""OpenAI's attribute filters: read from a request, tested on attributes, and compiled to SQL that holds no text of a client.

The SQL knows keys and values as parameters only; operators come from a fixed table. Types never mix: a number is less than no
string, and `true` is not `1`.
"""

from __future__ import annotations

from typing import Any, Final

from sluice.errors import BadRequest
from sluice.retrieval.base import Attributes, Comparison, Compound, Filter, Operator, Scalar

MAX_NODES = 20
MAX_DEPTH = 4
MAX_VALUES = 100
MAX_KEY_CHARS = 64
MAX_VALUE_CHARS = 512
ORDERINGS: Final[dict[Operator, str]] = {"gt": ">", "gte": ">=", "lt": "<", "lte": "<="}
COMPARISONS: Final[frozenset[str]] = frozenset({"eq", "ne", "in", "nin", *ORDERINGS})


def parse_filter(given: Any, *, param: str = "filters") -> Filter | None:
    """The filter of a request's member; raises `BadRequest` for anything that is not one, or is too large."""
    if given is None:
        return None
    found = _parse(given, param, 1)
    if (nodes := _num_nodes(found)) > MAX_NODES:
        raise BadRequest(f"`{param}` has {nodes} parts; at most {MAX_NODES} are allowed.", param=param)
    return found


def _parse(given: Any, param: str, depth: int) -> Filter:
    if depth > MAX_DEPTH:
        raise BadRequest(f"`{param}` is nested deeper than {MAX_DEPTH} levels.", param=param)
    if not isinstance(given, dict):
        raise BadRequest(f"`{param}` must be an object such as {{type, key, value}} or {{type, filters}}.", param=param)
    kind = given.get("type")
    if kind == "and" or kind == "or":
        inner = given.get("filters")
        if given.keys() != {"type", "filters"} or not isinstance(inner, list) or not 0 < len(inner) <= MAX_NODES:
            raise BadRequest(f"`{param}`: `{kind}` has `filters`, a list of 1 to {MAX_NODES}, and nothing else.", param=param)
        return Compound(kind, tuple(_parse(one, param, depth + 1) for one in inner))
    if not isinstance(kind, str) or kind not in COMPARISONS:
        raise BadRequest(f"`{param}`: `type` is one of and, or, {', '.join(sorted(COMPARISONS))}.", param=param)
    if given.keys() != {"type", "key", "value"}:
        raise BadRequest(f"`{param}`: a comparison has `type`, `key` and `value`, and nothing else.", param=param)
    key = given["key"]
    if not isinstance(key, str) or not 0 < len(key) <= MAX_KEY_CHARS:
        raise BadRequest(f"`{param}`: a key is 1 to {MAX_KEY_CHARS} characters.", param=param)
    return Comparison(kind, key, _value(kind, given["value"], param))  # type: ignore[arg-type]


def _value(kind: str, given: Any, param: str) -> Scalar | tuple[Scalar, ...]:
    if kind in ("in", "nin"):
        if not isinstance(given, list) or not 0 < len(given) <= MAX_VALUES:
            raise BadRequest(f"`{param}`: `{kind}` takes a list of 1 to {MAX_VALUES} values.", param=param)
        return tuple(scalar(one, param) for one in given)
    value = scalar(given, param)
    if kind in ORDERINGS and isinstance(value, bool):
        raise BadRequest(f"`{param}`: `{kind}` compares strings or numbers, not true and false.", param=param)
    return value


def scalar(given: Any, param: str) -> Scalar:
    """A value that an attribute can have: a string, a finite number or a boolean."""
    if isinstance(given, bool):
        return given
    if isinstance(given, str) and len(given) <= MAX_VALUE_CHARS:
        return given
    if isinstance(given, int | float) and abs(given) <= 1e300:  # NaN is not
        return float(given)
    raise BadRequest(
        f"`{param}`: a value is a string of at most {MAX_VALUE_CHARS} characters, a number or a boolean.", param=param
    )


def _num_nodes(found: Filter) -> int:
    return 1 if isinstance(found, Comparison) else 1 + sum(map(_num_nodes, found.filters))


def matches(found: Filter, attributes: Attributes) -> bool:
    """What the compiled SQL must say too."""
    if isinstance(found, Compound):
        test = all if found.operator == "and" else any
        return test(matches(one, attributes) for one in found.filters)
    here, wanted = attributes.get(found.key), found.value
    if isinstance(wanted, tuple):
        is_in = any(_same(here, one) for one in wanted)
        return is_in if found.operator == "in" else not is_in
    if found.operator in ("eq", "ne"):
        return _same(here, wanted) == (found.operator == "eq")
    if isinstance(here, str) and isinstance(wanted, str):
        return _ordered(found.operator, (here > wanted) - (here < wanted))
    if _is_number(here) and _is_number(wanted):
        return _ordered(found.operator, (here > wanted) - (here < wanted))  # type: ignore[operator]
    return False


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _same(here: object, wanted: Scalar) -> bool:
    if isinstance(here, bool) or isinstance(wanted, bool):
        return here is wanted
    return here == wanted


def _ordered(operator: str, sign: int) -> bool:
    return {"gt": sign > 0, "gte": sign >= 0, "lt": sign < 0, "lte": sign <= 0}[operator]


def compile_filter(found: Filter, column: str) -> tuple[str, list[str | float]]:
    """SQL over the JSON object in `column` (our own name), and its parameters."""
    parameters: list[str | float] = []

    def sql(one: Filter) -> str:
        if isinstance(one, Compound):
            return "(" + f" {one.operator.upper()} ".join(map(sql, one.filters)) + ")"
        wanted = one.value if isinstance(one.value, tuple) else (one.value,)
        symbol = ORDERINGS.get(one.operator, "=")
        tests = " OR ".join(test(one.key, value, symbol) for value in wanted)
        exists = f"EXISTS (SELECT 1 FROM json_each({column}) AS a WHERE {tests})"
        return f"NOT {exists}" if one.operator in ("ne", "nin") else exists

    def test(key: str, value: Scalar, symbol: str) -> str:
        parameters.append(key)
        if isinstance(value, bool):
            return f"(a.key = ? AND a.type = '{'true' if value else 'false'}')"
        parameters.append(value)
        types = "a.type = 'text'" if isinstance(value, str) else "a.type IN ('integer', 'real')"
        return f"(a.key = ? AND {types} AND a.value {symbol} ?)"

    return sql(found), parameters
