"""What a policy gets to see of a call."""

import orjson
import pytest

from sluice.policies.base import RoutingPolicy
from sluice.prefix import prefix_of, seed_of
from sluice.types import Call, Endpoint, Prefix, Usage
from tests.support.scripted_worker import ScriptedWorker
from tests.unit.in_process import ASK, CHAT, STREAM, serving, settings

LONG = {"messages": [{"role": "user", "content": "word " * 1000}]}
LARGE = {"messages": [{"role": "user", "content": "word " * 100_000}]}


class Watching(RoutingPolicy):
    """Takes the first candidate, and keeps the calls."""

    reads_prefix = True

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.observed: list[tuple[Call, Usage]] = []

    def pick(self, candidates, call, now):
        self.calls.append(call)
        return candidates[0]

    def observe(self, call, worker, usage):
        self.observed.append((call, usage))


async def seen(tmp_path, *bodies: dict, headers=(), **route) -> list[Call]:
    async with ScriptedWorker() as worker, ScriptedWorker() as other:
        two = {"workers": {"static": [worker.url, other.url]}}
        route = two | {"policy": f"{__name__}:Watching", "session_header": "X-Chat-Id", "adapters": ["pirate"]} | route
        async with serving(settings(tmp_path, worker, route=route)) as gateway:
            for body in bodies:
                await gateway.request("POST", CHAT, json=ASK | body, headers=list(headers))
            return gateway.pools[0]._policy.calls


async def test_a_call_has_the_prefix_of_its_prompt(tmp_path):
    small, large = await seen(tmp_path, LONG, LARGE)
    assert small.prefix == prefix_of(Endpoint.CHAT, LONG, seed_of("smollm2")) and small.prefix.hashes
    assert large.prefix == prefix_of(Endpoint.CHAT, LARGE, seed_of("smollm2"))
    assert len(orjson.dumps(LARGE)) > 262_144  # so it was read in the child


async def test_an_adapters_call_names_it_and_shares_no_prefix_with_the_model(tmp_path):
    of_model, of_adapter = await seen(tmp_path, LONG, LONG | {"model": "pirate"})
    assert (of_model.adapter, of_adapter.adapter) == (None, "pirate")
    assert not set(of_model.prefix.hashes) & set(of_adapter.prefix.hashes)


async def test_the_session_is_what_the_configured_header_says(tmp_path):
    [call] = await seen(tmp_path, {}, headers=[("x-chat-id", "9" * 300)])
    assert call.session == "9" * 256


async def test_without_a_policy_that_reads_it_nothing_is_hashed(tmp_path, monkeypatch):
    monkeypatch.setattr(Watching, "reads_prefix", False)
    [call] = await seen(tmp_path, LONG, session_header=None)
    assert (call.prefix, call.session) == (Prefix(), "")


async def test_the_policy_is_told_what_calls_took_streamed_or_whole(tmp_path):
    async with (
        ScriptedWorker() as worker,
        serving(settings(tmp_path, worker, route={"policy": f"{__name__}:Watching"})) as gateway,
    ):
        for body in (ASK, STREAM):
            await gateway.request("POST", CHAT, json=body)
        await gateway.holds_nothing()
        [whole, streamed] = gateway.pools[0]._policy.observed
        assert not whole[0].stream and streamed[0].stream
        assert whole[1].exact and streamed[1].exact and streamed[1].prompt_tokens > 0


async def test_the_first_event_of_a_stream_shows_how_fast_the_worker_is(tmp_path):
    async with ScriptedWorker() as worker, serving(settings(tmp_path, worker)) as gateway:
        [one] = gateway.pools[0].workers
        before = one.backlog.s_per_token
        await gateway.request("POST", CHAT, json=ASK)
        assert one.backlog.s_per_token == before
        await gateway.request("POST", CHAT, json=STREAM)
        assert one.backlog.s_per_token != before


async def test_where_there_is_no_choice_nothing_is_hashed(tmp_path):
    async with ScriptedWorker() as worker, serving(settings(tmp_path, worker)) as gateway:
        assert gateway.pools[0]._policy.reads_prefix and not gateway.pools[0].reads_prefix


@pytest.mark.parametrize("body", [ASK, STREAM])
async def test_answers_say_where_they_came_from_and_why_where_that_is_asked_for(tmp_path, body):
    async with ScriptedWorker() as worker:
        route = {"policy": "least_inflight", "explain": {"headers": True, "log_share": 0}}
        async with serving(settings(tmp_path, worker, route=route)) as gateway:
            answer = await gateway.request("POST", CHAT, json=body)
            assert answer.header("x-sluice-worker") == worker.url
            assert (answer.header("x-sluice-route-reason") or "").startswith("least_inflight; in_flight=0; ")
            assert (answer.header("x-sluice-route-reason") or "").endswith("candidates=1")
        assert gateway.lines()[0]["route_reason"] == answer.header("x-sluice-route-reason")


@pytest.mark.parametrize("share", [0, 1])
async def test_the_log_says_why_for_a_share_of_the_calls_and_clients_are_told_nothing(tmp_path, share):
    async with ScriptedWorker() as worker:
        async with serving(settings(tmp_path, worker, route={"explain": {"log_share": share}})) as gateway:
            answer = await gateway.request("POST", CHAT, json=ASK)
            assert answer.header("x-sluice-worker") is None and answer.header("x-sluice-route-reason") is None
        assert [line.get("route_reason", "").partition(";")[0] for line in gateway.lines()] == ["prefix_affinity" * share]


async def test_the_end_of_what_generates_nothing_shows_how_fast_the_worker_is(tmp_path):
    async with ScriptedWorker() as worker, serving(settings(tmp_path, worker)) as gateway:
        [one] = gateway.pools[0].workers
        before = one.backlog.s_per_token
        await gateway.request("POST", "/v1/embeddings", json={"model": "smollm2", "input": "word " * 100})
        assert one.backlog.s_per_token != before
        assert one.prefill_tokens == 0
