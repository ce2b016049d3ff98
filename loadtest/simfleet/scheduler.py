"""Who computes what in the next step: vLLM's rules, over who runs, who waits and the block cache.

Every running job gets one token, or the next piece of its prompt, out of `max_num_batched_tokens`; one that finds no
block makes the latest admitted give up all of its own and wait in front (preemption by recomputation). If nothing had
to give up, waiting jobs are admitted in order while a slot, the budget and room for their whole prompt are left; they
begin with the blocks of their prefix that are cached.
"""

from collections import deque
from dataclasses import dataclass
from enum import Enum

from loadtest.simfleet.job import Job
from loadtest.simfleet.kv_cache import KvCache
from loadtest.simfleet.profile import Profile
from loadtest.simfleet.stats import Stats


class Paused(Enum):
    """What a sleeping or paused engine still does."""

    NO = "no"
    NEW = "new"  # admits nothing, finishes what runs
    ALL = "all"


@dataclass(slots=True)
class Batch:
    """The work of one step: how many tokens of each job."""

    work: list[tuple[Job, int]]
    preempted: bool
    num_decodes: int = 0
    context: int = 0  # tokens that the decoding jobs look back on
    num_prefilled: int = 0
    num_pairs: int = 0  # token pairs that prefill attention compares

    @property
    def is_decode_only(self) -> bool:
        return self.num_decodes == len(self.work)

    def measure(self) -> None:
        """Fill in what the time of the step depends on."""
        for job, num_new in self.work:
            if num_new == 1 and job.num_computed == job.num_tokens - 1:
                self.num_decodes += 1
                self.context += job.num_computed
            else:
                self.num_prefilled += num_new
                self.num_pairs += num_new * (2 * job.num_computed + num_new) // 2


class Scheduler:
    """Its mutable state: `running` in order of admission, `waiting` in order of arrival, and the cache."""

    def __init__(self, profile: Profile, cache: KvCache, stats: Stats, max_loras: int | None) -> None:
        self.profile = profile
        self.cache = cache
        self.stats = stats
        self.paused = Paused.NO
        self.running: list[Job] = []
        self.waiting: deque[Job] = deque()
        self.num_deferred = 0  # of those waiting, passed over because their adapter has no place
        self._max_loras = max_loras

    @property
    def is_runnable(self) -> bool:
        """Whether `compose` has anything to do."""
        if self.paused is Paused.ALL:
            return False
        return bool(self.running) or bool(self.waiting and self.paused is Paused.NO)

    @property
    def may_admit(self) -> bool:
        """Whether someone waits for a place that there is: admission is then a matter of blocks, from step to step."""
        has_place = len(self.running) < self.profile.max_num_seqs
        return bool(self.waiting) and has_place and self.paused is Paused.NO

    def compose(self, now_s: float) -> Batch:
        """The next step's work, its blocks taken."""
        batch = Batch([], preempted=False)
        budget = self._continue(batch)
        if not batch.preempted and self.paused is Paused.NO:
            self._admit(batch, budget, now_s)
        batch.measure()
        return batch

    def remove(self, job: Job) -> bool:
        """Take a job out of the running or the waiting and its blocks back; False if it is in neither."""
        if job in self.running:
            self.running.remove(job)
        elif job in self.waiting:
            self.waiting.remove(job)
        else:
            return False
        self.cache.release(job.table)
        return True

    def extend(self, jobs: list[Job], times: int) -> None:
        """Take blocks for `times` tokens of each, of which the first has its own, in the order of steps one by one: what is
        evicted depends on it. The caller has made sure that there are enough."""
        size, due = self.profile.block_size, []
        for at, job in enumerate(jobs):
            first, end = job.num_computed + 2, job.num_computed + times + 1
            for begins_at in (first + -first % size, first + (1 - first) % size):  # a block is full, a block is begun
                due += [(target - job.num_computed, at, target) for target in range(begins_at, end, size)]
        for _, at, target in sorted(due):
            has_grown = self.cache.grow(jobs[at].table, target)
            assert has_grown, jobs[at]
            self._commit(jobs[at], target)

    def _continue(self, batch: Batch) -> int:
        budget = self.profile.max_num_batched_tokens
        at = 0
        while at < len(self.running) and budget > 0:
            job = self.running[at]
            num_new = min(job.num_tokens - job.num_computed, budget)
            while not self.cache.grow(job.table, job.num_computed + num_new):
                batch.preempted = True
                if self._preempt() is job:
                    return budget
            self._commit(job, job.num_computed + num_new)
            batch.work.append((job, num_new))
            budget -= num_new
            at += 1
        return budget

    def _preempt(self) -> Job:
        victim = self.running.pop()
        self.cache.release(victim.table)
        victim.num_computed = 0
        victim.num_preemptions += 1
        self.stats.num_preemptions += 1
        self.waiting.appendleft(victim)
        return victim

    def _admit(self, batch: Batch, budget: int, now_s: float) -> None:
        passed_over: list[Job] = []
        while self.waiting and budget > 0 and len(self.running) < self.profile.max_num_seqs:
            job = self.waiting[0]
            if not self._adapter_fits(job):
                passed_over.append(self.waiting.popleft())
                continue
            num_new = self._take_in(job, budget, now_s)
            if not num_new:
                break
            self.waiting.popleft()
            self.running.append(job)
            batch.work.append((job, num_new))
            budget -= num_new
        self.num_deferred = len(passed_over)
        self.waiting.extendleft(reversed(passed_over))

    def _adapter_fits(self, job: Job) -> bool:
        if job.lora is None or self._max_loras is None:
            return True
        loaded = {other.lora for other in self.running if other.lora is not None}
        return job.lora in loaded or len(loaded) < self._max_loras

    def _take_in(self, job: Job, budget: int, now_s: float) -> int:
        """Give a waiting job its blocks; how many tokens it computes in this step, 0 if there is no room."""
        cache, size, num_tokens = self.cache, self.profile.block_size, job.num_tokens
        # The last token is computed even when all are cached: the next one comes out of it.
        num_whole = (num_tokens - 1) // size
        hashes = job.content.block_hashes(num_whole)[:num_whole]
        hit = hashes[: cache.match(hashes)]
        if -(-num_tokens // size) - len(hit) > cache.num_free - cache.num_idle(hit):
            return 0
        cache.adopt(job.table, hit)
        job.num_computed = len(hit) * size
        num_new = min(num_tokens - job.num_computed, budget)
        has_grown = cache.grow(job.table, job.num_computed + num_new)
        assert has_grown, job
        self._commit(job, job.num_computed + num_new)
        if job.scheduled_s is None:
            job.scheduled_s = now_s
            job.num_cached_tokens = job.num_computed
            self.stats.cache_queries += num_tokens
            self.stats.cache_hits += job.num_computed
        return num_new

    def _commit(self, job: Job, num_tokens: int) -> None:
        num_full = num_tokens // self.profile.block_size
        if num_full > job.table.num_committed:
            self.cache.commit(job.table, job.content.block_hashes(num_full)[:num_full], job.content)
