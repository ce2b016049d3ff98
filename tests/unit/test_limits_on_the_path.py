"""Limits on a call's whole way through a gateway: what clients see of them, and what is charged however a call ends."""

from pathlib import Path
from typing import Any

import pytest

from sluice.limits.memory import MemoryStore
from tests.support import scripts
from tests.support import vllm_shapes as vllm
from tests.support.scripted_worker import ScriptedWorker
from tests.unit.in_process import ASK, CHAT, STREAM, Gateway, serving, settings, told

HEADERS = ("limit-requests", "remaining-requests", "reset-requests", "limit-tokens", "remaining-tokens", "reset-tokens")


def limited(tmp_path: Path, worker: ScriptedWorker, **limits: Any) -> Any:
    return settings(
        tmp_path, worker, limits={"tenants": {"acme": {"rpm": 60, "tpm": 60_000, "tokens_per_day": 10**9} | limits}}
    )


def charged(gateway: Gateway) -> int:
    """Tokens of acme today, when nothing is reserved any more."""
    store = gateway.app.limiter.store
    assert isinstance(store, MemoryStore) and "0 open" in repr(store)
    return store._books["tenant:acme"].day_tokens


@pytest.mark.parametrize("body", [ASK, STREAM])
async def test_answers_carry_all_six_headers(tmp_path: Path, body: dict[str, Any]):
    async with ScriptedWorker() as worker, serving(limited(tmp_path, worker)) as gateway:
        response = await gateway.request("POST", CHAT, json=body)

        assert response.status == 200
        assert all(response.header(f"x-ratelimit-{name}") for name in HEADERS)
        assert response.header("x-ratelimit-remaining-requests") == "59"
        other = await gateway.request("POST", CHAT, json=body, key=gateway.keys.globex)
        assert other.header("x-ratelimit-limit-requests") is None


async def test_beyond_the_limit_a_client_is_told_when_to_come_back_and_no_worker_is_asked(tmp_path: Path):
    async with ScriptedWorker() as worker, serving(limited(tmp_path, worker, rpm=2)) as gateway:
        for _ in range(2):
            assert (await gateway.request("POST", CHAT, json=ASK)).status == 200
        refused = await gateway.request("POST", CHAT, json=ASK)

        assert "tenant acme: 2 requests per minute" in told(refused, 429, "rate_limit_exceeded")
        assert refused.header("x-should-retry") == "true" and refused.header("x-ratelimit-remaining-requests") == "0"
        assert len(worker.calls(CHAT)) == 2
        assert gateway.metric('sluice_limits_refused_total{limit="rpm"}') == 1


@pytest.mark.parametrize("body", [ASK, STREAM])
async def test_a_finished_call_is_charged_what_its_worker_says(tmp_path: Path, body: dict[str, Any]):
    async with ScriptedWorker() as worker, serving(limited(tmp_path, worker)) as gateway:
        await gateway.request("POST", CHAT, json=body)
        await gateway.holds_nothing()

        used = sum(gateway.metric(f'sluice_tokens_total{{exact="true",kind="{kind}"') for kind in ("prompt", "completion"))
        assert used > 0
        assert charged(gateway) == used


async def test_a_client_that_leaves_is_charged_the_events_that_came_and_they_are_not_exact(tmp_path: Path):
    async with ScriptedWorker() as worker, serving(limited(tmp_path, worker)) as gateway:
        worker.on(CHAT, scripts.chat_stream(after=5, ending="hang"))
        async with gateway.connect() as client:
            await client.send(gateway.bytes("POST", CHAT, json=STREAM | {"max_tokens": 2000}))
            await client.read_until(vllm.WORDS[3].encode())
        await gateway.holds_nothing()

        counted = gateway.metric('sluice_tokens_total{exact="false",kind="completion"')
        prompt = gateway.metric('sluice_tokens_total{exact="false",kind="prompt"')
        assert 3 <= counted <= 7 and 3 <= prompt <= 30
        assert charged(gateway) == counted + prompt


async def test_a_call_that_no_worker_took_is_charged_its_request_alone(tmp_path: Path):
    async with ScriptedWorker() as worker, serving(limited(tmp_path, worker)) as gateway:
        await worker.stop()
        assert (await gateway.request("POST", CHAT, json=ASK)).status in (502, 503)
        await gateway.holds_nothing()

        assert charged(gateway) == 0


async def test_what_a_worker_refuses_is_charged_its_request_alone(tmp_path: Path):
    async with ScriptedWorker() as worker, serving(limited(tmp_path, worker)) as gateway:
        worker.on(CHAT, scripts.reply(400, {"error": {"message": "no", "type": "BadRequestError", "code": 400}}))
        assert (await gateway.request("POST", CHAT, json=ASK)).status == 400
        await gateway.holds_nothing()

        assert charged(gateway) == 0


async def test_a_place_is_held_as_long_as_the_answer_takes(tmp_path: Path):
    async with ScriptedWorker() as worker, serving(limited(tmp_path, worker, concurrency=1)) as gateway:
        worker.on(CHAT, scripts.chat_stream(after=3, ending="hang"), None)
        async with gateway.connect() as client:
            await client.send(gateway.bytes("POST", CHAT, json=STREAM))
            await client.read_until(b"data: ")
            refused = await gateway.request("POST", CHAT, json=ASK)
            assert "1 calls at the same time" in told(refused, 429, "rate_limit_exceeded")
        await gateway.holds_nothing()
        assert (await gateway.request("POST", CHAT, json=ASK)).status == 200


async def test_what_calls_at_a_worker_were_charged_is_shown_beside_what_its_engine_says(tmp_path: Path):
    async with ScriptedWorker() as worker, serving(settings(tmp_path, worker)) as gateway:
        for body in (ASK, STREAM):
            await gateway.request("POST", CHAT, json=body)
        [known] = gateway.pools[0].workers
        known.num_tokens = 1234

        used = sum(gateway.metric(f'sluice_tokens_total{{exact="true",kind="{kind}"') for kind in ("prompt", "completion"))
        assert gateway.metric("sluice_worker_tokens_charged_total") == used > 0
        assert gateway.metric("sluice_worker_engine_tokens_total") == 1234
