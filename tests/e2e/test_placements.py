"""What gateways tell each other, through a real Redis that goes and comes, and what it is worth to a conversation."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import httpx
import pytest

from loadtest.stack import MODEL, Gateway, fleet, gateway, routes
from sluice.channel import RedisChannel
from sluice.sharing import Sharing
from tests.support.redis_server import RedisServer, find_redis
from tests.unit.test_placements import Side

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(find_redis() is None, reason="NO redis-server HERE: placements over several gateways are not tested"),
]

FIRST, SECOND = "Tell me of locks and weirs. " * 600, "And of mills? "


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    with RedisServer(tmp_path) as running:
        yield running


@asynccontextmanager
async def sharing(server: RedisServer) -> AsyncIterator[Side]:
    side = Side()
    task = asyncio.create_task(
        Sharing(RedisChannel(server.url, timeout_s=0.5), [side.placements], time.monotonic).run(), name="sharing"
    )
    try:
        yield side
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def heard(one: Side, other: Side) -> None:
    """A prompt of one comes to the other, sooner or later."""
    num_before = len(other.policy.heard_of)
    async with asyncio.timeout(60):
        while len(other.policy.heard_of) == num_before:
            one.placements.placed(one.workers[0], time.monotonic(), 1000, (1, 2))
            await asyncio.sleep(0.05)


async def test_gateways_hear_each_other_again_after_redis_was_killed_and_after_it_hung(server: RedisServer):
    async with sharing(server) as one, sharing(server) as other:
        await heard(one, other)
        server.kill()
        await asyncio.sleep(0.5)
        server.start()
        await heard(one, other)
        await heard(other, one)
        server.freeze()
        await asyncio.sleep(1.0)
        server.thaw()
        await heard(one, other)
        server.say("PUBLISH", "{sluice}:placements:1", "nonsense")
        await heard(other, one)


def ask(gateway: Gateway, key: str, text: str) -> httpx.Response:
    body = {"model": MODEL, "messages": [{"role": "user", "content": text}], "max_tokens": 2}
    answer = httpx.post(f"{gateway.url}/v1/chat/completions", json=body, headers={"authorization": f"Bearer {key}"}, timeout=60)
    assert answer.status_code == 200, answer.text
    return answer


@pytest.mark.parametrize("shares", [True, False])
def test_a_conversation_finds_its_prefix_again_through_another_gateway(server: RedisServer, tmp_path: Path, shares: bool):
    """Ten at once, so that few are where they would be if all workers were idle."""
    with fleet(tmp_path, "-n", "8", "--time-warp", "20") as workers:
        settings = routes(workers, explain={"headers": True}) | {
            "limits": {"store": server.url},
            "replicas": {"share_placements": shares},
        }
        with gateway(tmp_path, settings, name="one") as one, gateway(tmp_path, settings, name="two", made_keys=one.keys) as two:
            key = one.keys["people"]
            wait_until_heard(two, 1 if shares else 0)
            with ThreadPoolExecutor(10) as threads:
                first = list(threads.map(lambda number: ask(one, key, f"{number} {FIRST}"), range(10)))
            time.sleep(0.5)
            second = [ask(two, key, f"{number} {FIRST}{SECOND}") for number in range(10)]
    same = [a.headers["x-sluice-worker"] == b.headers["x-sluice-worker"] for a, b in zip(first, second, strict=True)]
    found = ["cached=0" not in answer.headers["x-sluice-route-reason"] for answer in second]
    cached = [(answer.json()["usage"]["prompt_tokens_details"] or {}).get("cached_tokens", 0) for answer in second]
    if shares:
        assert all(same) and all(found) and all(tokens > 1000 for tokens in cached)
    else:
        assert not any(found)


def wait_until_heard(gateway: Gateway, num_others: int) -> None:
    ends_at = time.monotonic() + 60
    while f"sluice_gateways_heard {float(num_others)}" not in httpx.get(gateway.metrics_url, timeout=30).text:
        assert time.monotonic() < ends_at
        time.sleep(0.1)
