"""Names that clients use: routes, aliases and adapters, for those who may use them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sluice.config import Route
from sluice.directory import Directory
from sluice.errors import ModelNotFound
from sluice.types import Tenant

ANYONE = Tenant("acme", "k1")
LIMITED = Tenant("globex", "k2", routes=frozenset({"smollm2"}))


def route(**settings: object) -> Route:
    return Route.model_validate({"workers": {"static": ["http://127.0.0.1:8101"]}} | settings)


DIRECTORY = Directory(
    {
        "smollm2": route(served_model="smollm2-135m", aliases=["gpt-4o-mini", "small"], adapters=["pirate"]),
        "minilm": route(aliases=["text-embedding-3-small"]),
    }
)


@pytest.mark.parametrize(
    ("name", "route_name", "served_model"),
    [
        ("smollm2", "smollm2", "smollm2-135m"),
        ("gpt-4o-mini", "smollm2", "smollm2-135m"),
        ("small", "smollm2", "smollm2-135m"),
        ("pirate", "smollm2", "pirate"),
        ("minilm", "minilm", "minilm"),
        ("text-embedding-3-small", "minilm", "minilm"),
    ],
)
def test_a_name_leads_to_its_route_and_to_what_the_worker_calls_it(name, route_name, served_model):
    target = DIRECTORY.find(name, ANYONE)
    assert (target.route, target.served_model) == (route_name, served_model)
    assert target.settings.workers.static == ("http://127.0.0.1:8101",)


def test_rules_are_those_of_the_route():
    directory = Directory({"a": route(bounds={"max_n": 2}, aliases=["b"], adapters=["c"]), "d": route()})
    assert [directory.find(name, ANYONE).rules.bounds.max_n for name in "abcd"] == [2, 2, 2, 16]


@given(st.text())
def test_any_other_name_does_not_exist(name):
    if name not in DIRECTORY.names(ANYONE):
        with pytest.raises(ModelNotFound):
            DIRECTORY.find(name, ANYONE)


@pytest.mark.parametrize("name", ["minilm", "text-embedding-3-small"])
def test_a_forbidden_name_is_refused_like_one_that_does_not_exist(name):
    with pytest.raises(ModelNotFound) as forbidden:
        DIRECTORY.find(name, LIMITED)
    with pytest.raises(ModelNotFound) as unknown:
        Directory({"smollm2": route()}).find(name, LIMITED)
    assert forbidden.value.envelope() == unknown.value.envelope()
    assert forbidden.value.status == 404 and forbidden.value.code == "model_not_found"


def test_names_are_all_that_the_tenant_may_use():
    assert set(DIRECTORY.names(LIMITED)) == {"smollm2", "gpt-4o-mini", "small", "pirate"}
    assert set(DIRECTORY.names(ANYONE)) == {*DIRECTORY.names(LIMITED), "minilm", "text-embedding-3-small"}
    assert DIRECTORY.names(Tenant("none", "k3", routes=frozenset())) == {}
    for name, target in DIRECTORY.names(LIMITED).items():
        assert DIRECTORY.find(name, LIMITED) is target


# Adapters that workers report


def test_adapters_that_workers_report_come_and_go():
    directory = Directory({"a": route(adapters="discover", bounds={"max_n": 2}), "b": route(adapters="discover")})
    directory.discover("a", ["pirate", "b"])
    target = directory.find("pirate", ANYONE)
    assert (target.route, target.served_model, target.adapter, target.rules.bounds.max_n) == ("a", "pirate", "pirate", 2)
    assert directory.find("b", ANYONE).route == "b"
    directory.discover("b", ["pirate", "poet"])
    assert {name: target.route for name, target in directory.names(ANYONE).items()} == {
        "a": "a",
        "b": "b",
        "pirate": "a",
        "poet": "b",
    }
    directory.discover("a", [])
    with pytest.raises(ModelNotFound):
        directory.find("pirate", ANYONE)
    directory.discover("b", ["pirate"])
    assert directory.find("pirate", ANYONE).route == "b"
