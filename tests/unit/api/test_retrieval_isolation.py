"""No tenant ever sees a passage of another: randomised attempts through every endpoint of the whole gateway.

What is looked for is a word that stands in the victims' files alone and that no attempt names. Attempts that ask for their own
must find their own, else the suite would prove nothing. `SLUICE_LEAK_ATTEMPTS` sets how many; `make leak` runs 10,000.
"""

import asyncio
import os
import random
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import openai
import pytest
import pytest_asyncio

from tests.support.raw_http import Response
from tests.support.scripted_worker import ScriptedWorker
from tests.unit.in_process import CHAT, Gateway, serving, settings

ATTEMPTS = int(os.environ.get("SLUICE_LEAK_ATTEMPTS", "300"))
LIMITS = {"read_memory_bytes": 400_000_000}
WORDS = "gateway port listens admission queue fair tokens cache prefix worker 网关 端口 队列".split()
RESPONSE = {"model": "smollm2", "store": False, "include": ["file_search_call.results"]}
HOSTILE = ['" OR 1=1 --', "* NEAR/1 *", "tenant:acme", "') UNION SELECT text FROM passages --", "a OR b", "../vs_", "\u202e"]


@dataclass
class Party:
    """A tenant with what is its own; `mark` is in its files alone."""

    name: str
    key: str
    mark: str
    stores: list[str]
    files: list[str]


@dataclass
class Scene:
    gateway: Gateway
    worker: ScriptedWorker
    parties: list[Party]


pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def scene(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Scene]:
    asked = {"retrieval": {"limits": LIMITS, "on_call": {"max_concurrent_searches": 64, "search_timeout_s": 60}}}
    folder = tmp_path_factory.mktemp("gateway")
    async with ScriptedWorker() as worker, serving(settings(folder, worker, **asked)) as gateway:
        parties = []
        for name, key in (("acme", gateway.keys.acme), ("globex", gateway.keys.globex)):
            party = Party(name, key, f"zq{name[::-1]}mark", [], [])
            async with openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key=key, max_retries=0) as client:
                for i in range(2):
                    store = await client.vector_stores.create(name=f"{name}-{i}")
                    text = "\n\n".join(f"{party.mark} {' '.join(WORDS[j:] + WORDS[:j])}." for j in range(len(WORDS)))
                    file = await client.files.create(file=(f"{i}.md", text.encode()), purpose="assistants")
                    done = await client.vector_stores.files.create_and_poll(
                        file.id, vector_store_id=store.id, attributes={"tenant": name, "lang": "en"}, poll_interval_ms=20
                    )
                    assert done.status == "completed"
                    party.stores.append(store.id)
                    party.files.append(file.id)
            parties.append(party)
        yield Scene(gateway, worker, parties)


def twisted(rng: random.Random, id: str) -> str:
    """A foreign id as a client might bend it, in the hope that somebody bends it back."""
    bent = [id, id.upper(), f"{id} ", f" {id}", f"{id}\x00", id[:-1] + rng.choice("0123456789abcdef"), f"{id}/../{id}"]
    return rng.choice([*bent, f"{id}' OR '1'='1", f"%{id[3:]}", "*", "", id[:3] + "0" * (len(id) - 3)])


def filters(rng: random.Random, victim: Party) -> dict[str, Any]:
    one = [
        {"type": "eq", "key": "tenant", "value": victim.name},
        {"type": "ne", "key": "tenant", "value": "nobody"},
        {"type": "eq", "key": "tenant' OR '1'='1", "value": victim.name},
        {"type": "in", "key": "$.tenant", "value": [victim.name, "x"]},
    ]
    return rng.choice([rng.choice(one), {"type": "or", "filters": [rng.choice(one), rng.choice(one)]}])


def attempt(rng: random.Random, me: Party, victim: Party) -> tuple[str, str, dict[str, Any], bool]:
    """Method, path, options, and whether it asks for the attacker's own alone, which it must then find."""
    own, foreign = rng.choice(me.stores), rng.choice(victim.stores)
    is_own = rng.random() < 0.25
    target = own if is_own else rng.choice([foreign, foreign, twisted(rng, foreign)])
    query = " ".join(rng.sample(WORDS, 3)) + rng.choice(["", " " + rng.choice(HOSTILE)])
    more = {"filters": filters(rng, victim)} if rng.random() < 0.4 and not is_own else {}
    mode = {"mode": rng.choice(["lexical", "hybrid"])}
    file = rng.choice(victim.files)
    stores = [own] if is_own else rng.sample([own, target], 2) if rng.random() < 0.5 else [target]
    ask: dict[str, Any] = {"model": "smollm2", "messages": [{"role": "user", "content": query}]}
    wish = {"vector_store_ids": stores, "on_error": rng.choice(["fail", "open"])} | mode | more
    options = [
        ("POST", f"/v1/vector_stores/{target}/search", {"json": {"query": query} | mode | more}, is_own),
        ("POST", CHAT, {"json": ask | {"retrieval": wish, "stream": rng.random() < 0.3}}, is_own),
        ("POST", CHAT, {"json": ask | {"tools": [{"type": "file_search", "vector_store_ids": stores} | more]}}, is_own),
        ("POST", "/v1/responses", {"json": RESPONSE | {"input": query, "retrieval": wish}}, is_own),
        (
            *("POST", "/retrieval"),
            {"json": {"knowledge_id": target, "query": query, "retrieval_setting": {"top_k": 9, "score_threshold": 0}}},
            is_own,
        ),
        ("GET", f"/v1/files/{file}/content", {}, False),
        ("GET", f"/v1/vector_stores/{rng.choice([own, target])}/files/{file}/content", {}, False),
        ("POST", f"/v1/vector_stores/{own}/files", {"json": {"file_id": file}}, False),
        ("POST", f"/v1/vector_stores/{own}/file_batches", {"json": {"file_ids": [file, me.files[0]]}}, False),
        ("GET", f"/v1/vector_stores/{target}/files", {}, False),
        ("GET", "/v1/files?limit=100", {}, False),
        ("GET", f"/v1/vector_stores?limit=100&after={foreign}", {}, False),
    ]
    return rng.choice(options)


async def test_no_attempt_finds_a_passage_of_another_tenant(scene: Scene):
    rng = random.Random(20261125)
    found: Counter[str] = Counter()
    leaks: list[Any] = []

    async def attack(number: int) -> None:
        me, victim = rng.sample(scene.parties, 2)
        method, path, options, is_own = attempt(rng, me, victim)
        headers = [("x-sluice-tenant", victim.name), ("openai-organization", victim.name)] if number % 3 == 0 else []
        response: Response = await scene.gateway.request(method, quoted(path), key=me.key, headers=headers, **options)
        assert response.status < 500, response
        if victim.mark.encode() in response.body:
            leaks.append((method, path, options, response))
        found["attempts"] += 1
        found[f"own {me.mark.encode() in response.body}" if is_own else "foreign"] += 1

    for at in range(0, ATTEMPTS, 8):
        await asyncio.gather(*(attack(number) for number in range(at, min(at + 8, ATTEMPTS))))
        for request in scene.worker.calls():
            marks = [party.mark for party in scene.parties if party.mark.encode() in request.body]
            if len(marks) > 1:
                leaks.append(request)
        scene.worker.requests.clear()

    print(f"\n{found['attempts']} attempts: {found['foreign']} for another's, {len(leaks)} found a passage of another tenant")
    assert leaks == []
    assert found["attempts"] == ATTEMPTS and found["foreign"] > ATTEMPTS / 3
    assert found["own True"] > ATTEMPTS / 12 and found["own False"] == 0


def quoted(path: str) -> str:
    """What an HTTP client makes of a path that holds anything."""
    return quote(path, safe="/?&=%")


async def test_ids_say_nothing_of_one_another(scene: Scene):
    """128 random bits each: no counter, no time, no tenant in them."""
    ids = [id for party in scene.parties for id in (*party.stores, *party.files)]
    tails = [id.partition("_")[2] or id.partition("-")[2] for id in ids]

    assert len(set(tails)) == len(tails) and all(len(tail) >= 32 for tail in tails)
    assert all(len(set(column)) > 1 for column in list(zip(*tails, strict=False))[:16])


async def test_a_calls_record_is_as_unknown_to_others_as_none_at_all(scene: Scene):
    me, other = scene.parties
    asked = {"model": "smollm2", "messages": [{"role": "user", "content": "gateway"}]}
    answer = await scene.gateway.request("POST", CHAT, json=asked | {"retrieval": {"vector_store_ids": me.stores}}, key=me.key)
    id = answer.json()["retrieval"]["id"]

    own = await scene.gateway.request("GET", f"/v1/retrieval/{id}", key=me.key)
    foreign = await scene.gateway.request("GET", f"/v1/retrieval/{id}", key=other.key)
    unknown = await scene.gateway.request("GET", "/v1/retrieval/req-0", key=other.key)

    assert me.mark in own.body.decode() and (foreign.status, unknown.status) == (404, 404)
    assert foreign.body.replace(id.encode(), b"req-0") == unknown.body
