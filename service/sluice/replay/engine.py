"""The engine of one simulated worker: continuous batching with chunked prefill and a block-prefix cache, in virtual time.

A step computes one token for every sequence that decodes, and up to `max_batched_tokens` in all of waiting prompts, first
come, first served; it takes `step_s + decoding x decode_s + prefilled / prefill_tokens_per_s`. Steps that are alike are run as
one, so that a call costs a handful of events and not its hundreds of tokens. Simpler than vLLM in two ways: a prompt is
admitted when all blocks that it will ever need are there, so nothing is preempted; and answers leave nothing in the cache.
"""

from __future__ import annotations

import math
from collections import OrderedDict, deque
from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heappop, heappush

NEVER = math.inf


@dataclass(frozen=True, slots=True)
class EngineModel:
    """How fast a simulated worker is and how much it holds."""

    kv_blocks: int = 1000
    block_tokens: int = 512
    prefill_tokens_per_s: float = 8000.0
    step_s: float = 0.008
    decode_s: float = 0.00025
    max_batched_tokens: int = 2048
    max_seqs: int = 256


class Job:
    """One prompt being answered. `blocks` identify its whole blocks, each with all that is before it."""

    __slots__ = ("arrived_s", "blocks", "cached_tokens", "first_token_s", "left", "output_tokens", "owner", "prompt_tokens")

    def __init__(self, blocks: Sequence[int], prompt_tokens: int, output_tokens: int, owner: object = None) -> None:
        self.blocks = blocks
        self.prompt_tokens = prompt_tokens
        self.output_tokens = output_tokens
        self.owner = owner
        # Filled in by the engine
        self.arrived_s = 0.0
        self.left = 0  # tokens of the prompt that are still to be computed, once it is admitted
        self.cached_tokens = 0
        self.first_token_s = 0.0


class BlockCache:
    """The blocks of one worker: in use (counted), idle (findable, evicted least recently used first), or blank."""

    __slots__ = ("_idle", "_used", "num_blank", "num_blocks")

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        self.num_blank = num_blocks
        self._used: dict[int, int] = {}
        self._idle: OrderedDict[int, None] = OrderedDict()

    @property
    def usage(self) -> float:
        return 1.0 - (self.num_blank + len(self._idle)) / self.num_blocks

    def __contains__(self, block: int) -> bool:
        return block in self._used or block in self._idle

    def match(self, blocks: Sequence[int]) -> int:
        """How many leading blocks of a prompt are here."""
        used, idle = self._used, self._idle
        for at, block in enumerate(blocks):
            if block not in used and block not in idle:
                return at
        return len(blocks)

    def take(self, blocks: Sequence[int], num_cached: int, num_others: int) -> bool:
        """Hold these blocks, of which the first `num_cached` are here, and room for others; False where there is no room."""
        used, idle = self._used, self._idle
        num_new = len(blocks) - num_cached + num_others
        if num_new > self.num_blank + len(idle) - sum([block in idle for block in blocks[:num_cached]]):
            return False
        for block in blocks[:num_cached]:
            if block in idle:
                del idle[block]
                used[block] = 1
            else:
                used[block] += 1
        for _ in range(num_new - self.num_blank):
            idle.popitem(last=False)
            self.num_blank += 1
        self.num_blank -= num_new
        for block in blocks[num_cached:]:
            used[block] = 1
        return True

    def release(self, blocks: Sequence[int], num_others: int) -> None:
        """Let go; what is findable stays so, the end of a prompt to be evicted before its beginning."""
        used, idle = self._used, self._idle
        for block in reversed(blocks):
            if used[block] == 1:
                del used[block]
                idle[block] = None
            else:
                used[block] -= 1
        self.num_blank += num_others


class Engine:
    """Driven from outside: `add` a job, and `fire` at `next_s`, when something happens next; never without."""

    def __init__(self, model: EngineModel) -> None:
        self.model = model
        self.cache = BlockCache(model.kv_blocks)
        self.waiting: deque[Job] = deque()
        self.prefilling: list[Job] = []
        self.prefilled_tokens = 0  # all that were ever computed
        self._decoding: list[tuple[int, int, Job]] = []  # (step in which it ends, number, job), a heap
        self._num_jobs = 0
        # The steps under way: so many alike, since when, how long each; which tokens they compute.
        self.next_s = NEVER
        self._since_s = 0.0
        self._step = 0
        self._num_steps = 0
        self._each_s = 0.0
        self._work: list[tuple[Job, int]] = []
        self._has_room = True  # tokens of the step's budget are left

    @property
    def num_running(self) -> int:
        return len(self._decoding) + len(self.prefilling)

    def backlog_tokens(self, now_s: float) -> int:
        """What of the admitted prompts is not computed yet at this moment; those waiting are not in it."""
        left = sum([job.left for job in self.prefilling])
        if self._work and self._each_s:
            share = min(1.0, (now_s - self._since_s) / (self._each_s * self._num_steps))
            left -= int(share * self._num_steps * sum([tokens for _, tokens in self._work]))
        return left

    def add(self, job: Job, now_s: float) -> None:
        job.arrived_s = now_s
        self.waiting.append(job)
        if self.next_s == NEVER:
            self._since_s = now_s
            self._plan()
        elif self._has_room and self._num_steps > 1 and len(self.waiting) == 1:
            # It can be admitted at the end of the step that is under way now.
            steps = int((now_s - self._since_s) / self._each_s) + 1
            if steps < self._num_steps:
                self._num_steps = steps
                self.next_s = self._since_s + steps * self._each_s

    def fire(self) -> tuple[list[Job], list[Job]]:
        """The steps under way have ended: the jobs that got their first token, and those that are done."""
        now_s = self._since_s = self.next_s
        self._step += self._num_steps
        started: list[Job] = []
        ended: list[Job] = []
        for job, tokens in self._work:
            job.left -= tokens * self._num_steps
            self.prefilled_tokens += tokens * self._num_steps
            if not job.left:
                job.first_token_s = now_s
                started.append(job)
                self._num_jobs += 1
                heappush(self._decoding, (self._step + job.output_tokens - 1, self._num_jobs, job))
        if started:
            self.prefilling = [job for job in self.prefilling if job.left]
        decoding = self._decoding
        while decoding and decoding[0][0] <= self._step:
            job = heappop(decoding)[2]
            self.cache.release(job.blocks, self._num_others(job))
            ended.append(job)
        self._plan()
        return started, ended

    def _num_others(self, job: Job) -> int:
        """Blocks that it holds besides those of its prompt that can be found again."""
        return -(-(job.prompt_tokens + job.output_tokens) // self.model.block_tokens) - len(job.blocks)

    def _plan(self) -> None:
        """Compose the next step, and see how often it comes again."""
        model, decoding, waiting = self.model, self._decoding, self.waiting
        budget = model.max_batched_tokens - len(decoding)
        work: list[tuple[Job, int]] = []
        for job in self.prefilling:
            tokens = min(job.left, budget)
            if tokens:
                work.append((job, tokens))
                budget -= tokens
        while budget and waiting and self.num_running < model.max_seqs and self._admit(waiting[0]):
            job = waiting.popleft()
            self.prefilling.append(job)
            tokens = min(job.left, budget)
            work.append((job, tokens))
            budget -= tokens
        self._work = work
        self._has_room = budget > 0
        if not work and not decoding:
            self.next_s = NEVER
            return
        self._num_steps = self._num_alike(work)
        prefilled = sum([tokens for _, tokens in work])
        self._each_s = model.step_s + len(decoding) * model.decode_s + prefilled / model.prefill_tokens_per_s
        self.next_s = self._since_s + self._num_steps * self._each_s

    def _num_alike(self, work: list[tuple[Job, int]]) -> int:
        until_end = self._decoding[0][0] - self._step if self._decoding else 1 << 60
        if not work:
            return until_end
        job, tokens = work[0]
        return min(until_end, job.left // tokens) if len(work) == 1 and not self._has_room else 1

    def _admit(self, job: Job) -> bool:
        num_cached = self.cache.match(job.blocks)
        if not self.cache.take(job.blocks, num_cached, self._num_others(job)):
            return False
        job.cached_tokens = num_cached * self.model.block_tokens
        job.left = job.prompt_tokens - job.cached_tokens
        return True
