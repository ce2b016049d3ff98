"""What the gateway puts into requests to steer the engine, and how long clients give them."""

from typing import Any

import orjson
import pytest

from sluice.api.steering import PRIORITISED, SALTED, Steering, timeout_ms
from sluice.config import ConfigError, Route, Settings
from sluice.errors import BadRequest
from sluice.types import Endpoint, Tenant
from sluice.wire.requests import parse
from sluice.wire.rules import Rules
from sluice.yaml_lines import parse as parse_yaml
from tests.support import scripts
from tests.support.scripted_worker import ScriptedWorker
from tests.unit.in_process import ASK, CHAT, serving, settings, told

ACME, GLOBEX, INITECH = (Tenant(name, f"key_{name}") for name in ("acme", "globex", "initech"))


def a_route(**members: Any) -> Route:
    return Route.model_validate({"workers": {"static": ["http://127.0.0.1:1"]}} | members)


def steering(secret: bytes = b"secret") -> Steering:
    return Steering(secret, lambda: 100.0, lambda: 1_800_000_000.0)


def test_without_being_asked_for_there_is_no_salt():
    assert steering().salt("m", a_route(), ACME) == ""


def test_each_tenant_has_a_salt_that_is_the_same_in_all_replicas_and_on_all_routes():
    route = a_route(cache_salt="tenant")
    salts = {steering().salt("m", route, tenant) for tenant in (ACME, GLOBEX)}
    assert len(salts) == 2 and all(len(salt) == 32 and salt.isalnum() for salt in salts)
    assert steering().salt("other", route, ACME) in salts
    assert steering(b"another").salt("m", route, ACME) not in salts


def test_a_group_of_tenants_may_share_and_so_may_all_who_use_a_route():
    route = a_route(cache_salt="tenant", cache_shared_by=["acme", "globex"])
    shared = steering().salt("m", route, ACME)
    assert steering().salt("m", route, GLOBEX) == shared != steering().salt("m", route, INITECH)
    assert steering().salt("other", route, ACME) != shared
    public = a_route(cache_salt="route")
    assert steering().salt("m", public, ACME) == steering().salt("m", public, INITECH) != steering().salt("n", public, ACME)


def test_a_salt_cannot_be_that_of_a_route_or_a_group_by_way_of_the_tenants_name():
    tenants = [Tenant(name, "k") for name in ("m", "group\0m", "route\0m")]
    salts = [steering().salt("m", a_route(cache_salt="tenant"), tenant) for tenant in tenants]
    salts += [steering().salt("m", a_route(cache_salt="route"), ACME)]
    salts += [steering().salt("m", a_route(cache_salt="tenant", cache_shared_by=["acme"]), ACME)]
    assert len(set(salts)) == len(salts)


def test_salts_ask_for_a_secret(tmp_path):
    path = tmp_path / "sluice.yaml"
    text = "routes:\n  m:\n    workers: {static: ['http://127.0.0.1:1']}\n    cache_salt: tenant\n"
    with pytest.raises(ConfigError, match=r"sluice.yaml:4: routes.m.cache_salt: salts are made with server.secret_env"):
        parse_yaml(path, text, Settings)
    assert parse_yaml(path, text + "server: {secret_env: S}\n", Settings)


def test_priorities_are_by_class_and_then_by_deadline_and_lower_is_earlier():
    route = a_route(queue={"engine_priority": True})

    def priority(tenant: Tenant, deadline: float) -> int:
        value = steering().members(Endpoint.CHAT, route, tenant, "", deadline)["priority"]
        assert isinstance(value, int)
        return value

    vip = Tenant("vip", "k", priority=1)
    assert priority(ACME, 100.0) == 18_000_000_000
    order = [(vip, 110.0), (vip, 3700.0), (ACME, 100.1), (ACME, 160.0), (Tenant("low", "k", priority=-10), 100.0)]
    assert sorted(order, key=lambda one: priority(*one)) == order
    assert abs(priority(Tenant("low", "k", priority=-10), 1e6)) < 2**53


@pytest.mark.parametrize("endpoint", Endpoint)
def test_members_go_only_where_vllm_has_them(endpoint):
    members = steering().members(endpoint, a_route(queue={"engine_priority": True}), ACME, "s", 1.0)
    assert ("cache_salt" in members) == (endpoint in SALTED)
    assert ("priority" in members) == (endpoint in PRIORITISED)
    assert steering().members(endpoint, a_route(), ACME, "", 1.0) == {}


@pytest.mark.parametrize(("header", "in_body", "given"), [(None, None, None), (b"500", None, 500), (None, 7, 7), (b"9", 7, 7)])
def test_the_shorter_time_holds(header, in_body, given):
    assert timeout_ms(header, in_body) == given


@pytest.mark.parametrize("header", [b"", b"0", b"-1", b"1.5", b"86400001", b"9" * 400, "²".encode("latin-1"), b"soon"])
def test_a_time_that_is_none_is_refused(header):
    with pytest.raises(BadRequest, match="x-request-timeout-ms must be a whole number"):
        timeout_ms(header, None)


def prepared(rules: Rules, endpoint: Endpoint = Endpoint.CHAT, steering: dict[str, Any] | None = None, **members: Any) -> Any:
    asked = {"model": "m"} | ({"prompt": "x"} if endpoint is Endpoint.COMPLETIONS else {"messages": [{"role": "user"}]})
    if endpoint is Endpoint.RESPONSES:
        asked = {"model": "m", "input": "x"}
    made = parse(endpoint, orjson.dumps(asked | members)).prepare(rules, model="m", steering=steering or {})
    return orjson.loads(made.body), made.max_tokens


def test_the_gateways_own_members_take_the_place_of_the_clients():
    body, _ = prepared(Rules(), steering={"cache_salt": "ours", "priority": 5}, cache_salt="theirs", priority=-9)
    assert (body["cache_salt"], body["priority"]) == ("ours", 5)
    body, _ = prepared(Rules(), cache_salt="theirs", priority=-9, request_timeout_ms=5)
    assert not {"cache_salt", "priority", "request_timeout_ms"} & body.keys()


RULES_100 = Rules.of("m", a_route(bounds={"max_tokens": 100}))


@pytest.mark.parametrize(
    ("endpoint", "asked", "goes_up"),
    [
        (Endpoint.CHAT, {}, {"max_completion_tokens": 100}),
        (Endpoint.CHAT, {"max_tokens": None}, {"max_completion_tokens": 100, "max_tokens": None}),
        (Endpoint.CHAT, {"max_tokens": 100}, {"max_tokens": 100}),
        (Endpoint.CHAT, {"max_tokens": 1}, {"max_tokens": 1}),
        (Endpoint.COMPLETIONS, {}, {}),  # vLLM's default is 16
        (Endpoint.RESPONSES, {}, {"max_output_tokens": 100}),
        (Endpoint.MESSAGES, {"max_tokens": 100}, {"max_tokens": 100}),
    ],
)
def test_an_answer_is_bounded_also_where_the_client_says_nothing(endpoint, asked, goes_up):
    body, max_tokens = prepared(RULES_100, endpoint, **asked)
    assert {name: value for name, value in body.items() if name.startswith("max")} == goes_up
    assert max_tokens == (16 if endpoint is Endpoint.COMPLETIONS else max(v for v in goes_up.values() if v))


def test_a_short_bound_holds_for_completions_too():
    body, max_tokens = prepared(Rules.of("m", a_route(bounds={"max_tokens": 10})), Endpoint.COMPLETIONS)
    assert body["max_tokens"] == max_tokens == 10


@pytest.mark.parametrize(
    ("endpoint", "asked", "param"),
    [
        (Endpoint.CHAT, {"max_tokens": 101}, "max_tokens"),
        (Endpoint.CHAT, {"max_completion_tokens": 101, "max_tokens": 1}, "max_completion_tokens"),
        (Endpoint.COMPLETIONS, {"max_tokens": 101}, "max_tokens"),
        (Endpoint.RESPONSES, {"max_output_tokens": 101}, "max_output_tokens"),
        (Endpoint.MESSAGES, {"max_tokens": 101}, "max_tokens"),
    ],
)
def test_more_than_the_bound_is_refused(endpoint, asked, param):
    with pytest.raises(BadRequest, match=f"`{param}` must be at most 100 for this model") as caught:
        prepared(RULES_100, endpoint, **asked)
    assert caught.value.param == param


async def test_salt_bounds_and_time_hold_on_the_whole_way(tmp_path, monkeypatch):
    monkeypatch.setenv("SECRET", "s3cret")
    route = {"cache_salt": "tenant", "bounds": {"max_prompt_tokens": 200, "max_tokens": 50}}
    async with ScriptedWorker() as worker:
        asked = settings(tmp_path, worker, route=route, server={"port": 0, "metrics_port": None, "secret_env": "SECRET"})
        async with serving(asked) as gateway:
            for key in (gateway.keys.acme, gateway.keys.acme, gateway.keys.globex):
                assert (await gateway.request("POST", CHAT, json=ASK, key=key)).status == 200
            sent = [orjson.loads(request.body) for request in worker.requests if request.method == "POST"]
            salts = [body["cache_salt"] for body in sent]
            assert salts[0] == salts[1] != salts[2] and sent[0]["max_completion_tokens"] == 50
            long = ASK | {"messages": [{"role": "user", "content": "word " * 1000}]}
            refused = await gateway.request("POST", CHAT, json=long)
            assert "at most 200 are allowed" in told(refused, 400, "context_length_exceeded")
            bad = await gateway.request("POST", CHAT, json=ASK, headers=[("x-request-timeout-ms", "soon")])
            told(bad, 400)
            worker.on(CHAT, scripts.never_answers(), scripts.never_answers())
            late = await gateway.request("POST", CHAT, json=ASK, headers=[("x-request-timeout-ms", "50")])
            assert "did not answer within 0.05 s" in told(late, 504, "worker_timeout")
            late = await gateway.request("POST", CHAT, json=ASK | {"request_timeout_ms": 50})
            assert "did not answer within 0.05 s" in told(late, 504, "worker_timeout")
            told(await gateway.request("POST", CHAT, json=ASK | {"request_timeout_ms": "x"}), 400, param="request_timeout_ms")
