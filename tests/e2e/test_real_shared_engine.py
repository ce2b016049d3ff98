"""A real vLLM that tenants share: its prefix cache kept apart by salts, its order told by priorities."""

from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from tests.e2e.gateway import RunningGateway, serving

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="session")]

CHAT = "/v1/chat/completions"
BLOCK_TOKENS = 128  # of the prefix cache on the CPU
STORY = " ".join(f"On day {number} the sea was calm and the crew mended sails." for number in range(60))
ENDPOINTS: list[tuple[str, dict[str, Any]]] = [
    (CHAT, {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2}),
    ("/v1/completions", {"prompt": "The sea", "max_tokens": 2}),
    ("/v1/responses", {"input": "Hi", "max_output_tokens": 2, "store": False}),
    ("/v1/messages", {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2}),
]


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def shared(start_worker: Any, chat_model: Any, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[RunningGateway]:
    """One worker with priority scheduling behind three routes: salts by tenant, a group of two in it; by route; none."""
    with start_worker(chat_model, "smollm2", extra_args=("--scheduling-policy", "priority")) as started:
        workers = {"static": [started.ready().url]}
        route = {"workers": workers, "served_model": "smollm2", "queue": {"engine_priority": True}}
        settings = {
            "server": {"secret_env": "SECRET"},
            "auth": {"mode": "keys", "keys_file": "keys.yaml"},
            "routes": {
                "apart": route | {"cache_salt": "tenant", "cache_shared_by": ["ann", "bob"], "bounds": {"max_tokens": 5}},
                "public": route | {"cache_salt": "route"},
                "open": route,
            },
        }
        tenants: dict[str, tuple[str, ...]] = {"globex": (), "ann": ("--priority", "5"), "bob": ("--priority", "-5")}
        folder = tmp_path_factory.mktemp("shared")
        async with serving(folder, settings, environment={"SECRET": "s3cret"}, tenants=tenants) as gateway:
            yield gateway


async def cached_tokens(gateway: RunningGateway, tenant: str, route: str, about: str) -> int:
    """How much of the story the worker had in its cache for this tenant."""
    asked = {"model": route, "max_tokens": 1, "messages": [{"role": "user", "content": f"{about}: {STORY}"}]}
    response = await gateway.request("POST", CHAT, json=asked, key=gateway.keys[tenant])
    assert response.status == 200, response
    usage = response.json()["usage"]
    assert usage["prompt_tokens"] > 3 * BLOCK_TOKENS
    return int((usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0)


async def test_a_tenant_finds_its_own_prompts_in_the_cache_and_nobody_elses(shared: RunningGateway):
    assert await cached_tokens(shared, "acme", "apart", "one") == 0
    assert await cached_tokens(shared, "acme", "apart", "one") >= 3 * BLOCK_TOKENS
    assert await cached_tokens(shared, "globex", "apart", "one") == 0


async def test_tenants_of_a_group_share_and_so_do_all_on_a_public_route(shared: RunningGateway):
    assert await cached_tokens(shared, "ann", "apart", "two") == 0
    assert await cached_tokens(shared, "bob", "apart", "two") >= 3 * BLOCK_TOKENS
    assert await cached_tokens(shared, "acme", "public", "two") == 0
    assert await cached_tokens(shared, "globex", "public", "two") >= 3 * BLOCK_TOKENS
    assert await cached_tokens(shared, "acme", "open", "two") == 0
    assert await cached_tokens(shared, "globex", "open", "two") >= 3 * BLOCK_TOKENS


@pytest.mark.parametrize(("path", "members"), ENDPOINTS, ids=lambda value: value if isinstance(value, str) else "")
async def test_salts_and_priorities_are_taken_by_every_endpoint(shared: RunningGateway, path: str, members: dict[str, Any]):
    for tenant in ("acme", "ann", "bob"):
        asked = members | {"model": "apart", "cache_salt": "theirs", "priority": -1, "request_timeout_ms": 60_000}
        response = await shared.request("POST", path, json=asked, key=shared.keys[tenant])
        assert response.status == 200, response


async def test_an_answer_that_names_no_bound_has_the_routes(shared: RunningGateway):
    asked = {"model": "apart", "messages": [{"role": "user", "content": "Write a long poem."}], "min_tokens": 5}
    response = await shared.request("POST", CHAT, json=asked)
    assert response.status == 200 and response.json()["usage"]["completion_tokens"] == 5
