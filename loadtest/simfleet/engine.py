"""The engine of one worker: continuous batching in virtual time.

Pure: no I/O, no clock, no randomness. Whoever drives it says what time it is; `advance(now)` runs every step that has
ended by then. A live server drives it with the wall clock, a study with the times of its own events. A step takes as
long as the profile says (`Profile`), then each job whose tokens are all computed gets its next one; a job that comes
in the middle of a step waits for its end.
"""

import heapq

from loadtest.simfleet.job import Job, Progress
from loadtest.simfleet.kv_cache import Event, KvCache
from loadtest.simfleet.profile import Profile
from loadtest.simfleet.scheduler import Batch, Paused, Scheduler
from loadtest.simfleet.stats import Stats

_LOOKAHEAD_TOKENS = 32
_NEVER = float("inf")


class QueueFull(Exception):
    """Refused at the door, nothing computed; `reason` is one of `REJECTION_REASONS`."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Engine:
    """Its mutable state: who has arrived but is not queued yet, the step under way, and the scheduler's."""

    def __init__(
        self,
        profile: Profile,
        *,
        max_num_queued_reqs: int | None = None,
        max_num_queued_tokens: int | None = None,
        max_loras: int | None = None,
        record_events: bool = False,
    ) -> None:
        self.profile = profile
        self.stats = Stats(profile.max_model_len)
        self.cache = KvCache(profile.num_kv_blocks, profile.block_size, record_events=record_events)
        self.scheduler = Scheduler(profile, self.cache, self.stats, max_loras)
        self.slowdown = 1.0
        self._max_reqs, self._max_tokens = max_num_queued_reqs, max_num_queued_tokens
        self._step_s = [profile.step_s(num_decodes) for num_decodes in range(profile.max_num_seqs + 1)]

        self._arriving: list[tuple[float, int, Job]] = []
        self._num_added = 0
        self._backlog_tokens = 0  # prompts without a first token
        self._batch: Batch | None = None
        self._ends_s = 0.0  # of the step under way, or of the last one

    def __repr__(self) -> str:
        running, waiting = len(self.scheduler.running), len(self.scheduler.waiting)
        return f"<Engine {self.profile.name} | {running} running, {waiting} waiting | {self.cache!r}>"

    @property
    def num_unfinished(self) -> int:
        return len(self.scheduler.running) + len(self.scheduler.waiting) + len(self._arriving)

    def check_room(self, num_jobs: int = 1) -> None:
        """Raise `QueueFull` if so many more are more than the limits allow."""
        if self._max_reqs is not None and self.num_unfinished + num_jobs > self._max_reqs:
            self.stats.rejected["max_num_queued_reqs"] += 1
            raise QueueFull("max_num_queued_reqs")
        if self._max_tokens is not None and self._backlog_tokens >= self._max_tokens:
            self.stats.rejected["max_num_queued_tokens"] += 1
            raise QueueFull("max_num_queued_tokens")

    def add(self, job: Job, now_s: float, *, delay_s: float = 0.0) -> None:
        """Take a job in. It reaches the queue after the profile's overhead and `delay_s`."""
        if job.num_prompt_tokens >= self.profile.max_model_len:
            raise ValueError(f"a prompt of {job.num_prompt_tokens} tokens leaves no room for a token of the answer")
        job.arrived_s = now_s
        job.queued_s = now_s + self.profile.request_overhead_ms / 1e3 + delay_s
        self._num_added += 1
        heapq.heappush(self._arriving, (job.queued_s, self._num_added, job))
        self._backlog_tokens += job.num_prompt_tokens

    def abort(self, job: Job) -> None:
        """Forget a job wherever it is; its blocks are free at once. Nothing if it is done."""
        if job.done:
            return
        if not self.scheduler.remove(job):
            self._arriving = [entry for entry in self._arriving if entry[2] is not job]
            heapq.heapify(self._arriving)
        self._close(job)
        self.stats.finished["abort"] += 1

    def abort_all(self) -> list[Job]:
        """Abort everything, and say what that was."""
        aborted = [*self.scheduler.running, *self.scheduler.waiting, *(entry[2] for entry in self._arriving)]
        for job in aborted:
            self.abort(job)
        return aborted

    def pause(self, paused: Paused, now_s: float) -> None:
        """Stop or go on. What came meanwhile is scheduled from `now_s` on."""
        self.scheduler.paused = paused
        if self._batch is None:
            self._ends_s = max(self._ends_s, now_s)

    def next_event_s(self) -> float:
        """When `advance` will next have something to do; infinity when it waits for a call."""
        if self._batch is not None or self.scheduler.is_runnable:
            return self._ends_s
        if self._arriving and self.scheduler.paused is Paused.NO:
            return max(self._arriving[0][0], self._ends_s)
        return _NEVER

    def advance(self, now_s: float) -> list[Progress]:
        """Run everything that has ended by `now_s`, in order."""
        progress: list[Progress] = []
        while True:
            if self._batch is None:
                self._begin_step(now_s)
            if self._batch is None or self._ends_s > now_s:
                return progress
            batch, self._batch = self._batch, None
            if batch.is_decode_only and not batch.preempted:
                self._end_decodes(batch, now_s, progress)
            else:
                self._end_step(batch, progress)

    def take_events(self) -> list[Event]:
        """The cache's events since the last call, oldest first."""
        return self.cache.take_events()

    def _receive(self, now_s: float) -> None:
        while self._arriving and self._arriving[0][0] <= now_s:
            self.scheduler.waiting.append(heapq.heappop(self._arriving)[2])

    def _begin_step(self, now_s: float) -> None:
        start_s = self._ends_s
        self._receive(start_s)
        if not self.scheduler.is_runnable:
            if self.scheduler.paused is not Paused.NO:
                self._receive(now_s)
                return
            if not self._arriving or self._arriving[0][0] > now_s:
                return
            start_s = self._arriving[0][0]
            self._receive(start_s)
        if start_s > now_s:
            return
        batch = self.scheduler.compose(start_s)
        self._batch = batch
        self._ends_s = start_s + self._duration_s(batch)
        self.stats.num_steps += 1
        self.stats.step_tokens.observe(batch.num_decodes + batch.num_prefilled)

    def _duration_s(self, batch: Batch) -> float:
        profile = self.profile
        return self.slowdown * (
            self._step_s[batch.num_decodes]
            + (batch.context * profile.context_ns + batch.num_pairs * profile.prefill_context_ns) / 1e9
            + batch.num_prefilled / profile.prefill_tokens_per_s
        )

    def _end_step(self, batch: Batch, progress: list[Progress]) -> None:
        for job, num_new in batch.work:
            if not job.done:
                job.num_computed += num_new
                if job.num_computed == job.num_tokens:
                    self._emit(job, 1, self._ends_s, self._ends_s, progress)

    def _end_decodes(self, batch: Batch, now_s: float, progress: list[Progress]) -> None:
        """End this step, and the same step as often as it comes again by `now_s`: while all decode, nobody ends,
        nobody arrives or waits for admission and there are blocks for everyone, nothing can change."""
        jobs = [job for job, _ in batch.work if not job.done]
        if not jobs:
            return
        most = self._most_repeats(jobs) if len(jobs) == len(batch.work) else 1
        next_arrival_s = self._arriving[0][0] if self._arriving else _NEVER
        times, first_s = 1, self._ends_s
        while times < most and next_arrival_s > self._ends_s:
            batch.context += len(jobs)
            duration_s = self._duration_s(batch)
            if self._ends_s + duration_s > now_s:
                break
            self._ends_s += duration_s
            times += 1
            self.stats.inter_token_s.observe(duration_s, len(jobs))
        self.stats.num_steps += times - 1
        self.stats.step_tokens.observe(len(jobs), times - 1)
        if times > 1:
            self.scheduler.extend(jobs, times)
        for job in jobs:
            job.num_computed += times
            self._emit(job, times, first_s, self._ends_s, progress)

    def _most_repeats(self, jobs: list[Job]) -> int:
        if self.scheduler.may_admit:
            return 1
        most = min(job.content.reach(job.num_generated + _LOOKAHEAD_TOKENS) - job.num_generated for job in jobs)
        has_blocks = self.cache.num_free >= len(jobs) * (most // self.profile.block_size + 1)
        return most if has_blocks else 1

    def _emit(self, job: Job, times: int, first_s: float, last_s: float, progress: list[Progress]) -> None:
        """`times` more tokens, the first at `first_s`; the gaps between them are counted already."""
        stats, start = self.stats, job.num_generated
        job.num_generated += times
        if job.last_token_s is None:
            job.first_token_s = first_s
            self._backlog_tokens -= job.num_prompt_tokens
            job.num_stored_tokens = len(job.table.hashes) * self.profile.block_size - job.num_cached_tokens
            stats.first_token_s.observe(first_s - job.arrived_s)
            stats.prompt_tokens += job.num_prompt_tokens
            stats.prompt_tokens_cached += job.num_cached_tokens
        else:
            stats.inter_token_s.observe(first_s - job.last_token_s)
        job.last_token_s = last_s
        stats.generation_tokens += times
        finished = job.content.reach(job.num_generated + 1) == job.num_generated
        if finished:
            self.scheduler.remove(job)
            self._close(job)
            self._count(job, last_s)
        progress.append(Progress(job, start, job.num_generated, finished))

    def _close(self, job: Job) -> None:
        job.done = True
        if job.first_token_s is None:
            self._backlog_tokens -= job.num_prompt_tokens

    def _count(self, job: Job, now_s: float) -> None:
        stats, scheduled_s, first_s = self.stats, job.scheduled_s, job.first_token_s
        assert scheduled_s is not None and first_s is not None
        stats.e2e_s.observe(now_s - job.arrived_s)
        stats.queue_s.observe(scheduled_s - job.queued_s)
        stats.prefill_s.observe(first_s - scheduled_s)
        stats.inference_s.observe(now_s - scheduled_s)
        stats.decode_s.observe(now_s - first_s)
        stats.per_output_token_s.observe((now_s - first_s) / max(job.num_generated - 1, 1))
        stats.request_prompt_tokens.observe(job.num_prompt_tokens)
        stats.request_generation_tokens.observe(job.num_generated)
        stats.request_kv_computed_tokens.observe(job.num_prompt_tokens - job.num_cached_tokens)
        stats.request_preemptions.observe(job.num_preemptions)
