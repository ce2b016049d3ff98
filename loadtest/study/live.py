"""A trace through a real gateway process, in front of a simulated fleet: arrivals are the trace's, whatever comes of them.

The fleet's time is warped, and so are the arrivals; times to first token are told in the fleet's own seconds.
"""

import asyncio
import json
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from loadtest.stack import MODEL
from loadtest.users.trace import Arrival

PATIENCE_S = 600.0


class Failed(Exception):
    """A call was not answered as it should be."""


def body_of(arrival: Arrival) -> bytes:
    return json.dumps(
        {
            "model": MODEL,
            "messages": [{"role": "user", "content": arrival.text(1.0)}],
            "stream": True,
            "stream_options": {"include_usage": True},
            "max_tokens": arrival.answer_tokens,
            "ignore_eos": True,
        }
    ).encode()


@dataclass
class Outcome:
    """What came of all calls."""

    ttft_s: list[float] = field(default_factory=list)
    prompt_tokens: int = 0
    cached_tokens: int = 0
    worst_lag_s: float = 0.0  # how late a call was sent, in seconds of this machine

    @property
    def mean_s(self) -> float:
        return sum(self.ttft_s) / len(self.ttft_s)

    def quantile_s(self, share: float) -> float:
        ordered = sorted(self.ttft_s)
        return ordered[min(int(share * len(ordered)), len(ordered) - 1)]

    @property
    def hit_rate(self) -> float:
        return self.cached_tokens / self.prompt_tokens


async def replay(urls: Sequence[str], key: str, arrivals: Sequence[Arrival], *, warp: float, seed: int = 0) -> Outcome:
    """Send every call at its time to any of the gateways, read every answer to its end. Raises `Failed` for the first that is
    not a good one."""
    bodies = [body_of(arrival) for arrival in arrivals]
    rng = random.Random(seed)
    outcome = Outcome()
    begun = time.perf_counter()
    async with asyncio.TaskGroup() as calls:
        for arrival, body in zip(arrivals, bodies, strict=True):
            due = begun + arrival.at_s / warp
            if (wait_s := due - time.perf_counter()) > 0:
                await asyncio.sleep(wait_s)
            outcome.worst_lag_s = max(outcome.worst_lag_s, time.perf_counter() - due)
            calls.create_task(_call(rng.choice(urls), key, body, warp, outcome))
    return outcome


async def _call(url: str, key: str, body: bytes, warp: float, outcome: Outcome) -> None:
    parts = urlsplit(url)
    begun = time.perf_counter()
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nhost: {parts.netloc}\r\nauthorization: Bearer {key}\r\n"
        f"content-type: application/json\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n"
    )
    async with asyncio.timeout(PATIENCE_S):
        reader, writer = await asyncio.open_connection(parts.hostname, parts.port, limit=1 << 20)
        try:
            writer.write(head.encode() + body)
            await _read(reader, begun, warp, outcome)
        finally:
            writer.close()


async def _read(reader: asyncio.StreamReader, begun: float, warp: float, outcome: Outcome) -> None:
    status = await reader.readline()
    if b" 200 " not in status:
        raise Failed(f"{status.decode().strip()}: {(await reader.read(2000))[-400:].decode(errors='replace')}")
    is_first, usage, is_done = True, None, False
    async for line in reader:
        if not line.startswith(b"data: "):
            continue
        if is_first:
            is_first = False
            outcome.ttft_s.append((time.perf_counter() - begun) * warp)
        if line.startswith(b"data: [DONE]"):
            is_done = True
        elif b'"usage":{' in line:
            usage = json.loads(line[6:])["usage"]
    if not is_done or usage is None:
        raise Failed("a stream ended without its usage and [DONE]")
    outcome.prompt_tokens += usage["prompt_tokens"]
    outcome.cached_tokens += (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
