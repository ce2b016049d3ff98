"""The real SDKs at a limit: they wait as long as our 429s say, and succeed; a spent budget they give up on at once."""

import time
from collections.abc import AsyncIterator

import httpx
import openai
import pytest
import pytest_asyncio

from tests.e2e.gateway import RunningGateway, serving
from tests.e2e.test_sdk_node import node, node_is_here  # noqa: F401 - a fixture
from tests.support.scripted_worker import ScriptedWorker

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="module")]

RPM = 12  # one every five seconds: to be waited for once, and not to be had by the SDKs' own back-off
CHAT = "/v1/chat/completions"
ASK = {"model": "smollm2", "messages": [{"role": "user", "content": "Say hi"}]}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def limited(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[RunningGateway]:
    async with ScriptedWorker() as worker:
        settings = {
            "auth": {"keys_file": "keys.yaml"},
            "routes": {"smollm2": {"workers": {"static": [worker.url]}}},
            "limits": {"tenants": {"poor": {"tokens_per_day": 1}}},
        }
        tenants = {"python": ("--rpm", str(RPM)), "node": ("--rpm", str(RPM)), "counted": ("--rpm", "100"), "poor": ()}
        async with serving(tmp_path_factory.mktemp("limited"), settings, tenants=tenants) as gateway:
            yield gateway


async def spend(gateway: RunningGateway, key: str) -> None:
    """All requests that the key has left."""
    async with httpx.AsyncClient(base_url=gateway.url, headers={"authorization": f"Bearer {key}"}) as client:
        while (await client.post(CHAT, json=ASK)).status_code == 200:
            pass


async def test_openai_for_python_waits_and_succeeds(limited: RunningGateway):
    await spend(limited, limited.keys["python"])
    async with openai.AsyncOpenAI(base_url=limited.base_url, api_key=limited.keys["python"]) as client:
        raw = await client.chat.completions.with_raw_response.create(model="smollm2", messages=ASK["messages"])

    assert raw.parse().choices[0].message.content
    assert raw.retries_taken == 1


async def test_openai_for_node_waits_and_succeeds(limited: RunningGateway):
    await spend(limited, limited.keys["node"])
    await spend(limited, limited.keys["node"])
    saw = await node(limited, "openai", "patience", key=limited.keys["node"])

    assert saw["text"]


@pytest.mark.parametrize("language", ["python", "node"])
async def test_a_spent_budget_is_not_asked_for_again(limited: RunningGateway, language: str):
    key = limited.keys["poor"]
    await spend(limited, key)
    if language == "node":
        saw = await node(limited, "openai", "no_patience", key=key)
        assert (saw["name"], saw["code"]) == ("RateLimitError", "insufficient_quota") and saw["waitedMs"] < 30_000
        return
    async with openai.AsyncOpenAI(base_url=limited.base_url, api_key=key) as client:
        with pytest.raises(openai.RateLimitError) as caught:
            await client.chat.completions.create(model="smollm2", messages=ASK["messages"])
    assert caught.value.code == "insufficient_quota"
    assert caught.value.response.request.headers["x-stainless-retry-count"] == "0"


async def test_the_headers_add_up_over_a_run(limited: RunningGateway):
    """What is left falls by one a call, but for what flows in; it never says more than there is."""
    headers = {"authorization": f"Bearer {limited.keys['counted']}"}
    async with httpx.AsyncClient(base_url=limited.url, headers=headers) as client:
        began = time.monotonic()
        for number in range(1, 141):
            response = await client.post(CHAT, json=ASK | {"stream": number % 2 == 0})
            flowed = (time.monotonic() - began) * 100 / 60
            left = int(response.headers["x-ratelimit-remaining-requests"])
            assert response.headers["x-ratelimit-limit-requests"] == "100"
            if response.status_code == 200:
                assert 100 - number <= left <= max(0, 100 - number + flowed + 1), (number, left, flowed)
            else:
                assert left == 0 and number > 100
                assert int(response.headers["retry-after-ms"]) <= 600
            assert response.headers["x-ratelimit-reset-requests"].endswith("s")
