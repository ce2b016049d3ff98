"""Recorded traffic: when calls came, how long they were and what their prompts share; read from files, or made up.

What the gateway sees of a prompt is what it would see of the text: blocks of its own size, in bytes, at `BYTES_PER_TOKEN`.
"""

from __future__ import annotations

import csv
import random
from bisect import bisect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import orjson

from sluice.prefix import MAX_BLOCKS, covered_bytes
from sluice.types import Prefix

BYTES_PER_TOKEN = 4
STEP_S = 3.0  # Mooncake's time stamps come in steps of this
ENDS = [covered_bytes(k + 1) for k in range(MAX_BLOCKS)]


class TraceError(ValueError):
    """A trace that cannot be used; the message says what it should be."""


@dataclass(frozen=True, slots=True)
class Request:
    """One call of a trace. `blocks` identify the prompt's whole blocks, each together with all that is before it."""

    at_s: float
    prompt_tokens: int
    output_tokens: int
    blocks: tuple[int, ...]
    prefix: Prefix


@dataclass(frozen=True, slots=True)
class Trace:
    requests: Sequence[Request]
    block_tokens: int
    step_s: float  # how coarse its times are

    @property
    def prompt_tokens(self) -> int:
        return sum(request.prompt_tokens for request in self.requests)

    def arrivals(self, *, tokens_per_s: float, rng: random.Random) -> list[tuple[float, Request]]:
        """The requests at times that are jittered within their steps and warped to bring so many prompt tokens a second."""
        times = sorted((request.at_s + rng.random() * self.step_s, number) for number, request in enumerate(self.requests))
        first_s, last_s = times[0][0], times[-1][0]
        warp = self.prompt_tokens / tokens_per_s / max(last_s - first_s, 1e-9)
        return [((at_s - first_s) * warp, self.requests[number]) for at_s, number in times]


def read(path: Path, *, limit: int | None = None) -> Trace:
    """A trace by its file: Mooncake's JSON lines, or Azure's CSV. Raises `TraceError` for anything else."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            if path.suffix == ".csv":
                return Trace(_head(_azure(csv.DictReader(file)), limit), 512, 0.0)
            return Trace(_head(_mooncake(file), limit), 512, STEP_S)
    except OSError as exc:
        raise TraceError(f"{path}: {exc.strerror}") from exc
    except (ValueError, KeyError, TypeError) as exc:
        raise TraceError(
            f"{path}: not a trace: it must be Mooncake's (JSON lines of timestamp, input_length, output_length, hash_ids) "
            f"or Azure's (.csv of TIMESTAMP, ContextTokens, GeneratedTokens): {exc}"
        ) from exc


def _head(requests: Iterator[Request], limit: int | None) -> list[Request]:
    found = [request for request, _ in zip(requests, range(limit or 1 << 60), strict=False)]
    if not found:
        raise ValueError("it is empty")
    return found


def _mooncake(lines: Iterator[str]) -> Iterator[Request]:
    for line in lines:
        one = orjson.loads(line)
        yield request(one["timestamp"] / 1e3, one["input_length"], one["output_length"], one["hash_ids"], 512)


def _azure(rows: Iterator[dict[str, str]]) -> Iterator[Request]:
    next_id, first = 0, None
    for row in rows:
        at = datetime.strptime(row["TIMESTAMP"][:26], "%Y-%m-%d %H:%M:%S.%f")
        first = first or at
        prompt_tokens = int(row["ContextTokens"])
        num_blocks = -(-prompt_tokens // 512)
        ids = range(next_id, next_id + num_blocks)
        next_id += num_blocks
        yield request((at - first).total_seconds(), prompt_tokens, int(row["GeneratedTokens"]), ids, 512)


def request(at_s: float, prompt_tokens: int, output_tokens: int, ids: Sequence[int], block_tokens: int) -> Request:
    """A request out of the ids of all its prompt's blocks, the last of which may be filled in part."""
    if prompt_tokens < 1 or len(ids) != -(-prompt_tokens // block_tokens):
        raise ValueError(f"{len(ids)} blocks of {block_tokens} tokens for a prompt of {prompt_tokens}")
    # The last token is computed even when all are cached: the next one comes out of it.
    whole = tuple(ids[: (prompt_tokens - 1) // block_tokens])
    return Request(at_s, prompt_tokens, max(output_tokens, 1), whole, _prefix(ids, prompt_tokens, block_tokens))


def _prefix(ids: Sequence[int], prompt_tokens: int, block_tokens: int) -> Prefix:
    """The gateway's block k is known by the last of the trace's blocks that it reaches into, which stands for all before."""
    num_bytes, block_bytes = prompt_tokens * BYTES_PER_TOKEN, block_tokens * BYTES_PER_TOKEN
    num_blocks = bisect(ENDS, num_bytes)
    return Prefix(tuple(ids[(ENDS[k] - 1) // block_bytes] * MAX_BLOCKS + k for k in range(num_blocks)), num_bytes)


def conversations(num_requests: int, *, seed: int, num_systems: int = 6, block_tokens: int = 64) -> Trace:
    """Made-up chats: a few system prompts of different length that many share, and turns that each add to the one before.

    A turn comes some time after the last; one chat in a few goes on for many turns. No data of anybody is in it.
    """
    rng = random.Random(seed)
    fresh = iter(range(1 << 40))
    systems = [[next(fresh) for _ in range(rng.randint(2, 24))] for _ in range(num_systems)]
    open_chats: list[list[int]] = []
    requests: list[Request] = []
    at_s = 0.0
    while len(requests) < num_requests:
        at_s += rng.expovariate(1.0)
        if open_chats and rng.random() < 0.6:
            chat = open_chats.pop(int(len(open_chats) * rng.random() ** 0.5))  # rather a recent one
        else:
            chat = list(systems[min(int(rng.expovariate(0.6)), num_systems - 1)])
        chat += [next(fresh) for _ in range(1 + int(rng.lognormvariate(1.6, 1.0)))]
        prompt_tokens = len(chat) * block_tokens - rng.randrange(block_tokens)
        requests.append(request(at_s, prompt_tokens, 1 + int(rng.lognormvariate(4.0, 0.8)), chat, block_tokens))
        open_chats.append(chat)
        del open_chats[: -8 * num_systems]
    return Trace(requests, block_tokens, 0.0)
