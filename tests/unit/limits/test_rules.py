"""Whom a call counts for."""

from dataclasses import replace
from typing import Any

import pytest

from sluice.config import LimitsSettings
from sluice.limits.base import Kind, Subject
from sluice.limits.rules import Rules
from sluice.types import Call, Endpoint, Tenant


def call(tenant: Tenant, route: str = "llama", user: str = "") -> Call:
    return Call("req-1", tenant, route, Endpoint.CHAT, "/v1/chat/completions", user=user)


def rules(**asked: Any) -> Rules:
    return Rules(LimitsSettings.model_validate(asked))


def test_without_limits_a_call_counts_for_nobody():
    assert rules().subjects(call(Tenant("acme", "k1"))) == ()
    assert rules(default={"per_user": {"rpm": 5}}).subjects(call(Tenant("acme", "k1"))) == ()


def test_a_call_counts_for_its_tenant_its_key_its_person_and_its_route():
    tenant = {"rpm": 10, "per_key": {"tpm": 5}, "per_user": {"rpm": 2}, "routes": {"llama": {"concurrency": 3}}}
    found = rules(tenants={"acme": tenant}, routes={"llama": {"rpm": 99}}).subjects(call(Tenant("acme", "k1"), user="ada"))

    assert [(one.id, one.numbers[:3]) for one in found] == [
        ("tenant:acme", (10, 0, 0)),
        ("tenant:acme:route:llama", (0, 0, 3)),
        ("key:k1", (0, 5, 0)),
        ("route:llama", (99, 0, 0)),
        ("tenant:acme:user:ada", (2, 0, 0)),
    ]


def test_a_keys_own_limits_go_before_what_its_tenant_gives_each_key():
    known = rules(default={"per_key": {"rpm": 10, "tpm": 100}})

    [own] = known.subjects(call(Tenant("acme", "k1", rpm=3)))
    [same] = known.subjects(call(Tenant("acme", "k2")))
    assert (own.numbers[:2], same.numbers[:2]) == ((3, 100), (10, 100))


def test_a_key_may_be_limited_where_nobody_else_is():
    [found] = rules().subjects(call(Tenant("acme", "k1", concurrency=2)))
    assert found.concurrency == 2


def test_a_named_tenants_limits_stand_in_the_place_of_the_default():
    known = rules(default={"rpm": 1}, tenants={"acme": {"tpm": 5}})

    assert [one.numbers[:2] for one in known.subjects(call(Tenant("acme", "k1")))] == [(0, 5)]
    assert [one.numbers[:2] for one in known.subjects(call(Tenant("globex", "k2")))] == [(1, 0)]


def test_a_call_of_the_gateways_own_costs_tokens_alone():
    known = rules(default={"rpm": 1, "tpm": 100, "concurrency": 1, "per_key": {"rpm": 5}})
    tenant = Tenant("acme", "k1")

    [found] = known.subjects(replace(call(tenant), is_child=True))
    assert found.numbers[:3] == (0, 100, 0)
    assert len(known.subjects(call(tenant))) == 2


def test_a_key_whose_entry_has_changed_is_looked_at_anew():
    known = rules()
    assert known.subjects(call(Tenant("acme", "k1"))) == ()
    assert known.subjects(call(Tenant("acme", "k1", rpm=5)))[0].rpm == 5


def test_fail_is_inherited_from_the_outside_in():
    tenant = {"rpm": 1, "per_key": {"rpm": 1, "fail": "local"}, "per_user": {"rpm": 1}}
    known = rules(fail="closed", default={"rpm": 1}, tenants={"acme": tenant | {"fail": "open"}})

    assert [one.fail for one in known.subjects(call(Tenant("acme", "k1"), user="u"))] == ["open", "local", "open"]
    assert [one.fail for one in known.subjects(call(Tenant("globex", "k2")))] == ["closed"]


def test_one_gateways_part_is_never_nothing():
    whole = Subject("a", "a", "local", rpm=10, tpm=1, gpu_ms_per_day=9)
    assert whole.part_of(4).numbers == (2, 1, 0, 0, 0, 2, 0)


@pytest.mark.parametrize("place, kind", [*enumerate(Kind)])
def test_each_limit_is_found_by_its_kind(place: int, kind: Kind):
    assert Subject("a", "a", "open", *range(1, 8)).limit(kind) == place + 1
