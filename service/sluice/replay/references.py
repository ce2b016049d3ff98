"""What policies are compared with: one that sees more than a gateway can, one that sees nothing, and the best of all caches.

`oracle` sees every engine's cache and queue exactly, also what of a prompt is computed already, and picks the least predicted
time to first token. It is greedy, so it is no strict bound.
"""

from __future__ import annotations

import random
from collections import OrderedDict
from collections.abc import Sequence

from sluice.replay.engine import Engine, Job
from sluice.replay.simulate import Arrivals
from sluice.replay.trace import Request


class Reference:
    """Chooses by looking at the engines, and needs to be told nothing."""

    def __init__(self, engines: Sequence[Engine], seed: int) -> None:
        self._engines = engines
        self._random = random.Random(seed)

    def choose(self, job: Job, request: Request, now: float) -> int:
        raise NotImplementedError

    def started(self, job: Job, now: float) -> None:
        return

    def ended(self, job: Job, now: float) -> None:
        return

    def changes(self, number: int, now: float) -> None:
        return


class RandomChoice(Reference):
    def choose(self, job: Job, request: Request, now: float) -> int:
        return int(self._random.random() * len(self._engines))


class Oracle(Reference):
    def choose(self, job: Job, request: Request, now: float) -> int:
        tokens = [_tokens_until_first(engine, request, now) for engine in self._engines]
        least = min(tokens)
        return self._random.choice([number for number, one in enumerate(tokens) if one == least])


def _tokens_until_first(engine: Engine, request: Request, now: float) -> int:
    """What the engine has to compute before the request's first token; also what prompts ahead of it will bring is cached."""
    size = engine.model.block_tokens
    coming: set[int] = set()
    tokens = engine.backlog_tokens(now)
    for job in engine.waiting:
        tokens += job.prompt_tokens - size * _num_cached(engine, job.blocks, coming)
        coming.update(job.blocks)
    return tokens + request.prompt_tokens - size * _num_cached(engine, request.blocks, coming)


def _num_cached(engine: Engine, blocks: Sequence[int], coming: set[int]) -> int:
    num_cached = engine.cache.match(blocks)
    while num_cached < len(blocks) and (blocks[num_cached] in coming or blocks[num_cached] in engine.cache):
        num_cached += 1
    return num_cached


def pooled_hit_rate(arrivals: Arrivals, num_blocks: int, block_tokens: int) -> float:
    """Of one cache as large as all engines' together, least recently used first out: what no placement can exceed by much."""
    cache: OrderedDict[int, None] = OrderedDict()
    cached_tokens = prompt_tokens = 0
    for _, request in arrivals:
        prompt_tokens += request.prompt_tokens
        blocks = request.blocks
        num_cached = next((at for at, block in enumerate(blocks) if block not in cache), len(blocks))
        cached_tokens += num_cached * block_tokens
        for block in reversed(blocks):
            cache[block] = None
            cache.move_to_end(block)
        while len(cache) > num_blocks:
            cache.popitem(last=False)
    return cached_tokens / prompt_tokens


REFERENCES: dict[str, type[Reference]] = {"oracle": Oracle, "random": RandomChoice}
