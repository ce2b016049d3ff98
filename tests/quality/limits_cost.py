"""`make limits-study`, its first part: what a call's limits cost, in memory and in Redis, each beside its bar.

    python -m tests.quality.limits_cost

memory    a reservation with its settlement and its headers: CPU time, and instructions where valgrind is here (30,000 at most)
redis     how long a reservation takes beside the same script called by redis-py alone (EVALSHA) in the same loop, at 1 client
          and at 64: twice its p99 at most. Settlements are sent meanwhile, by ours alone.

One subject, a tenant with requests and tokens a minute. Exit code 1 where a bar is missed.
"""

from __future__ import annotations

import argparse
import asyncio
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import uvloop
from redis.asyncio import Redis

from sluice.config import LimitsSettings
from sluice.limits import redis as store_module
from sluice.limits.base import Ask, Subject
from sluice.limits.limiter import Limiter
from sluice.limits.memory import MemoryStore
from sluice.limits.redis import RedisStore
from sluice.limits.rules import Rules
from sluice.types import Call, Endpoint, Tenant
from tests.support.redis_server import RedisServer, find_redis

INSTRUCTIONS_BAR = 30_000
RATIO_BAR = 2.0
CALLS = (1_000, 21_000)  # counted at both: the difference is that of the calls alone
LIMITS = {"rpm": 1_000_000, "tpm": 1_000_000_000}
ROUNDS = 10  # of each of both ways, by turns


async def run_in_memory(num_calls: int, *, limited: bool) -> float:
    """CPU seconds of so many calls through the limiter; of an empty loop over the same calls where it is not limited."""
    store = MemoryStore(time.monotonic, time.time)
    limiter = Limiter(Rules(LimitsSettings.model_validate({"default": LIMITS})), store, store)
    tenant = Tenant("acme", "key_1")
    calls = [
        Call(f"req-{number}", tenant, "llama", Endpoint.CHAT, "/", prompt_tokens=20, output_tokens=20)
        for number in range(num_calls)
    ]
    began = time.process_time()
    for call in calls:
        if limited:
            async with limiter.reservation(call) as reservation:
                reservation.spend(30)
                assert len(reservation.headers) == 6
    return time.process_time() - began


def instructions(num_calls: int, *, limited: bool) -> int:
    """Of a process that does only this, by callgrind."""
    command = ["valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null", sys.executable, "-m", __spec__.name]
    command += ["--count", str(num_calls), *(() if limited else ("--empty",))]
    said = subprocess.run(command, capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": "0"}).stderr
    found = re.search(r"Collected : (\d+)", said)
    assert found is not None, said
    return int(found[1])


def measure_memory(tell: Callable[..., None]) -> None:
    seconds = min(asyncio.run(run_in_memory(20_000, limited=True)) for _ in range(5))
    tell("in memory, CPU a call", f"{seconds / 20_000 * 1e6:.1f} us")
    if shutil.which("valgrind") is None:
        tell("in memory, instructions a call", "NOT COUNTED: there is no valgrind here")
        return
    few, many = CALLS
    instructions(few, limited=True)  # for what Python compiles once
    whole, empty = [instructions(many, limited=it) - instructions(few, limited=it) for it in (True, False)]
    count = (whole - empty) / (many - few)
    tell(
        "in memory, instructions a call",
        f"{count / 1000:.1f} ki",
        f"<= {INSTRUCTIONS_BAR // 1000} ki",
        count <= INSTRUCTIONS_BAR,
    )


async def latencies(one: Callable[[], Awaitable[Any]], num_clients: int, num_calls: int) -> list[float]:
    """Of so many calls, each client sending its next one at once."""
    took: list[float] = []

    async def client() -> None:
        for _ in range(num_calls // num_clients):
            began = time.perf_counter()
            await one()
            took.append(time.perf_counter() - began)

    await asyncio.gather(*(client() for _ in range(num_clients)))
    return took


async def measure_redis(server: RedisServer, num_clients: int, tell: Callable[..., None]) -> None:
    subject = Subject("tenant:acme", "tenant acme", "open", rpm=LIMITS["rpm"], tpm=LIMITS["tpm"])
    numbers = iter(range(10**9))
    store = RedisStore(server.url, timeout_s=5.0, replica="one")
    background = asyncio.create_task(store.run())
    bare: Redis = Redis.from_url(server.url, protocol=2)
    sha = await bare.script_load(store_module._source("reserve"))

    def an_ask() -> Ask:
        return Ask(f"req-{next(numbers)}", (subject,), 40)

    async def ours() -> None:
        ask = an_ask()
        await store.reserve(ask)
        store.settle(ask, 30)

    async def theirs() -> None:
        keys, arguments = store_module._reserve_arguments(an_ask())
        await bare.evalsha(sha, len(keys), *keys, *arguments)

    found: dict[str, list[float]] = {"ours": [], "bare": []}
    num_calls = 500 if num_clients == 1 else 2_000
    for number in range(ROUNDS + 1):
        for name, one in (("ours", ours), ("bare", theirs)):
            took = await latencies(one, num_clients, num_calls)
            await store.flush()
            if number:  # the first round opens connections
                found[name] += took
    background.cancel()
    await asyncio.gather(background, return_exceptions=True)
    await bare.aclose()
    p50, p99 = [{name: sorted(took)[int(len(took) * share)] for name, took in found.items()} for share in (0.5, 0.99)]
    name = f"in Redis, {num_clients} client{'s' if num_clients > 1 else ''}"
    tell(f"{name}: p50 of ours / of a bare EVALSHA", _pair(p50))
    tell(f"{name}: p99 of ours / of a bare EVALSHA", _pair(p99), f"<= {RATIO_BAR:g}", p99["ours"] <= RATIO_BAR * p99["bare"])


def _pair(both: dict[str, float]) -> str:
    return f"{both['ours'] * 1e6:.0f} / {both['bare'] * 1e6:.0f} us = {both['ours'] / both['bare']:.2f}"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.quality.limits_cost", description=__doc__.partition("\n")[0])
    parser.add_argument("--count", type=int, help=argparse.SUPPRESS)  # only the calls, for whoever counts instructions
    parser.add_argument("--empty", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.count is not None:
        asyncio.run(run_in_memory(options.count, limited=not options.empty))
        return 0
    missed: list[str] = []

    def tell(name: str, seen: str, bar: str = "", is_met: bool = True) -> None:
        print(f"{name}: {seen}{f' ({bar})' if bar else ''}{'' if is_met else ' MISSED'}", flush=True)
        if not is_met:
            missed.append(name)

    measure_memory(tell)
    if find_redis() is None:
        print("NO redis-server HERE: its cost is not measured")
        return 1
    with tempfile.TemporaryDirectory() as folder, RedisServer(Path(folder)) as server:
        for num_clients in (1, 64):
            uvloop.run(measure_redis(server, num_clients, tell))
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
