"""The worker where the call costs all calls together the least time: it has the prompt's beginning, or is free sooner.

For each candidate it is known, as far as a gateway can know, how long the prompts there will take (`Backlog`) and how much of
this prompt its cache holds (`Mirrors`). Their sum is the time to the first token, and the least of it is the greedy choice.
But what has to be computed also delays the calls that come to the same worker before it is free again, and takes room in its
cache: so computing is charged once more for each of those. That is the load gate: sticky until the wait there exceeds what is
saved, and the more so the busier all are.

Between equals, such as idle workers that know nothing of a prompt, its home decides (rendezvous hashing, Thaler and
Ravishankar 1998, of the first block that nobody holds): replicas of the gateway agree on it without talking.
"""

from __future__ import annotations

from bisect import bisect
from collections.abc import Sequence, Set
from typing import NamedTuple
from zlib import crc32

from sluice.policies.base import DECODING_TOKENS, RoutingPolicy, prompt_tokens_of, with_adapter
from sluice.policies.least_inflight import LeastInflight
from sluice.policies.mirrors import Mirrors
from sluice.prefix import COARSE_BYTES, MAX_BLOCKS, covered_bytes
from sluice.types import Call, Usage
from sluice.worker import Worker

MAX_PREDICTIONS = 4096  # calls in flight whose end teaches something
MOST_BUSY = 0.95  # no busy period is taken to be longer than at this utilisation
LATEST = 0.01  # the weight of one call in running means
STILL_YOUNG = 0.01  # of the cache's capacity: what was used so little ago is as good as used now
CROWD_EVERY = 32  # picks
MAX_HOLDERS = 8  # that are looked at for one call
NUM_SLOTS = 4096  # of blocks, for their homes
NUM_HOMES = 3  # of a slot: where the first one cannot be had, replicas agree on the second
MIXER, MASK = 0x9E3779B1, 0xFFFFFFFF
ENDS = [covered_bytes(k + 1) for k in range(MAX_BLOCKS)]


class Prediction(NamedTuple):
    """What was believed when a call was sent."""

    worker: Worker
    num_blocks: int  # that are cached there
    ages_kb: Sequence[float]  # of all its blocks
    at_kb: float  # what the worker had been sent by then


class PrefixAffinity(RoutingPolicy):
    reads_prefix = True

    def __init__(self, seed: int | None = None) -> None:
        self._freest = LeastInflight(seed)
        self._mirrors = Mirrors()
        self._homes: dict[int, Sequence[Worker]] = {}  # by slot, as far as they were asked for
        self._predictions: dict[str, Prediction] = {}  # by call, oldest first
        # Running means over the latest calls: seconds between them, and to compute one.
        self._gap_s = 1.0
        self._service_s = 0.0
        self._last_at: float | None = None
        self._bytes_per_token = 4.0
        self._delay = 0.0  # how many calls one more second of computing delays by a second
        self._num_picks = 0
        self._crowd = 1.0  # all calls in flight on our workers, over our own
        # The candidates of the last pick, also as a set.
        self._candidates: Sequence[Worker] = ()
        self._allowed: Set[Worker] = frozenset()
        # Of the last pick, for `prefill_tokens`: who holds how much of the prompt.
        self._holders: Sequence[tuple[int, int]] = ()

    def pick(self, candidates: Sequence[Worker], call: Call, now: float) -> Worker:
        candidates = with_adapter(candidates, call)
        self._count_call(candidates, now)
        return self._best(candidates, call, now)[0]

    def waits_until(self, candidates: Sequence[Worker], able: Sequence[Worker], call: Call, now: float) -> float | None:
        """A worker without room that is better than all who have is waited for, as long as the call itself would have to wait
        more for its first token elsewhere: then it loses nothing by it, whoever has room first."""
        candidates = with_adapter(candidates, call)
        best, _ = self._best(candidates, call, now)
        if best in able:
            return None
        there_s = self._first_token_s(call, best, now)
        other, _ = self._best(able, call, now)
        gain_s = self._first_token_s(call, other, now) - there_s
        return now + gain_s if gain_s > 0.0 else None

    def _first_token_s(self, call: Call, worker: Worker, now: float) -> float:
        """For a candidate of the last `_best`."""
        return self._freest.wait_s(worker, now) + worker.backlog.time_s(self._tokens_left(call, worker, self._holders))

    def _best(self, candidates: Sequence[Worker], call: Call, now: float) -> tuple[Worker, float]:
        """Where the call costs least, and how much that is."""
        freest = self._freest.pick(candidates, call, now)
        if len(self._mirrors.of) < len(candidates):
            self._meet(candidates)
        hashes = call.prefix.hashes
        holders = self._holders = self._mirrors.holders(hashes)
        best, least = freest, self._cost(freest, self._tokens_left(call, freest, holders), now)
        if not hashes:
            return best, least
        for worker, tokens in self._contenders(candidates, call, holders):
            cost = self._cost(worker, tokens, now)
            if cost < least:
                best, least = worker, cost
        # The home comes first: it is left only for someone who is better.
        home = self._home(candidates, hashes, holders)
        if home is not None and self._cost(home, self._tokens_left(call, home, holders), now) <= least:
            return home, least
        return best, least

    def _cost(self, worker: Worker, tokens: float, now: float) -> float:
        """What the call costs all calls together there, in seconds, where so many tokens of it have to be computed."""
        s_per_token = worker.backlog.s_per_token
        own_s = worker.backlog.time_s(tokens)
        busy_s = self._freest.wait_s(worker, now) + own_s
        num_calls = worker.in_flight + worker.in_flight_elsewhere
        return busy_s + own_s * self._delay * busy_s + num_calls * DECODING_TOKENS * s_per_token

    def prefill_tokens(self, call: Call, worker: Worker) -> int:
        """Also notes that the call goes there, and what is believed of it."""
        mirrors, hashes = self._mirrors, call.prefix.hashes
        tokens = round(self._tokens_left(call, worker, self._holders))
        self._service_s += LATEST * (tokens * worker.backlog.s_per_token - self._service_s)
        if hashes:
            if worker not in mirrors.of:
                self._meet([worker])
            mirror = mirrors.of[worker]
            num_blocks = mirror.num_held(self._holders)
            predictions = self._predictions
            ages_kb = mirrors.use(mirror, hashes)
            predictions[call.id] = Prediction(worker, num_blocks, ages_kb, mirror.now_kb)
            if len(predictions) > MAX_PREDICTIONS:
                del predictions[next(iter(predictions))]
        return tokens

    def reason(self, call: Call, worker: Worker) -> str:
        prediction = self._predictions.get(call.id)
        num_blocks = prediction.num_blocks if prediction is not None else 0
        return f"prefix_affinity; cached={covered_bytes(num_blocks)} of={call.prefix.num_bytes}"

    def observe(self, call: Call, worker: Worker, usage: Usage) -> None:
        """The cache of the engine, which knows only blocks of its own size, may end a little before the prediction."""
        prediction = self._predictions.pop(call.id, None)
        mirror = self._mirrors.of.get(worker)
        if prediction is None or prediction.worker is not worker or mirror is None:
            return
        if mirror.now_kb - prediction.at_kb > mirror.capacity_kb * STILL_YOUNG:
            self._mirrors.use(mirror, call.prefix.hashes)
        if usage.exact and usage.prompt_tokens and call.prefix.num_bytes:
            self._bytes_per_token += LATEST * (call.prefix.num_bytes / usage.prompt_tokens - self._bytes_per_token)
        mirror.is_told = mirror.is_told or usage.cached_tokens > 0
        if mirror.is_told and usage.exact and usage.prompt_tokens:
            found_bytes = usage.cached_tokens * call.prefix.num_bytes / usage.prompt_tokens
            num_found = min(bisect(ENDS, found_bytes + 1), len(prediction.ages_kb))
            if num_found < prediction.num_blocks and found_bytes + COARSE_BYTES >= covered_bytes(prediction.num_blocks):
                num_found = prediction.num_blocks
            mirror.learn(prediction.ages_kb, prediction.num_blocks, num_found)
            self._mirrors.evict(mirror)

    def heard(self, worker: Worker, tokens: int, hashes: Sequence[int], now: float) -> None:
        """The prompt is there now: our mirror takes it as one of ours, and what is learnt of all calls, counts it."""
        self._service_s += LATEST * (tokens * worker.backlog.s_per_token - self._service_s)
        self._count_gap(now)
        if hashes:
            if worker not in self._mirrors.of:
                self._meet([worker])
            self._mirrors.use(self._mirrors.of[worker], hashes)

    def cache_facts(self, worker: Worker) -> None:
        """The size of the cache in tokens, and by its events how long a block stays: a start for what answers teach."""
        mirror, facts = self._mirrors.of.get(worker), worker.cache
        if mirror is not None and facts.num_blocks:
            size_kb = facts.num_blocks * facts.block_size * self._bytes_per_token / 1024
            mirror.note(size_kb, facts.age_s, self._last_at or 0.0)
            self._mirrors.evict(mirror)

    def forget(self, worker: Worker) -> None:
        self._mirrors.forget(worker)
        self._homes.clear()

    def _meet(self, candidates: Sequence[Worker]) -> None:
        """Open a mirror for each worker that is new: it is a home for prompts from now on."""
        for worker in candidates:
            if worker not in self._mirrors.of:
                self._mirrors.open(worker, crc32(worker.url.encode()))
                self.cache_facts(worker)
        self._homes.clear()

    def _tokens_left(self, call: Call, worker: Worker, holders: Sequence[tuple[int, int]]) -> float:
        """What of the prompt the worker has to compute."""
        tokens = prompt_tokens_of(call)
        mirror = self._mirrors.of.get(worker)
        if mirror is not None and (num_blocks := mirror.num_held(holders)):
            tokens *= 1.0 - covered_bytes(num_blocks) / call.prefix.num_bytes
        return tokens

    def _count_call(self, candidates: Sequence[Worker], now: float) -> None:
        """How many calls will find a worker busy that is busy for one second more: those that come meanwhile, those that come
        while these are computed, and so on. Calls of other gateways count as far as engines show them."""
        self._count_gap(now)
        self._num_picks += 1
        if self._num_picks % CROWD_EVERY == 0:
            self._crowd += 0.1 * (_crowd(candidates) - self._crowd)
        rate = self._crowd / (max(self._gap_s, 1e-6) * len(candidates))
        self._delay = rate / (1.0 - min(MOST_BUSY, rate * self._service_s))

    def _count_gap(self, now: float) -> None:
        if self._last_at is not None:
            self._gap_s += LATEST * (now - self._last_at - self._gap_s)
        self._last_at = now

    def _contenders(
        self, candidates: Sequence[Worker], call: Call, holders: Sequence[tuple[int, int]]
    ) -> list[tuple[Worker, float]]:
        """Some of the candidates that hold most of the prompt, each with what it would have to compute."""
        allowed = self._allowed_among(candidates)
        workers, prompt_tokens, num_bytes = self._mirrors.workers, prompt_tokens_of(call), call.prefix.num_bytes
        seen, found = 0, list[tuple[Worker, float]]()
        for mask, num_blocks in holders:
            tokens = prompt_tokens * (1.0 - covered_bytes(num_blocks) / num_bytes)
            mask &= ~seen
            seen |= mask
            while mask:
                bit = mask & -mask
                mask ^= bit
                if (worker := workers[bit]) in allowed:
                    found.append((worker, tokens))
                    if len(found) == MAX_HOLDERS:
                        return found
        return found

    def _allowed_among(self, candidates: Sequence[Worker]) -> Set[Worker]:
        """The candidates as a set; the pool hands out the same sequence until something changes."""
        if candidates is not self._candidates:
            self._candidates, self._allowed = candidates, frozenset(candidates)
        return self._allowed

    def _home(self, candidates: Sequence[Worker], hashes: Sequence[int], holders: Sequence[tuple[int, int]]) -> Worker | None:
        """Where the prompt would go if all were equal, by the first block of it that nobody holds."""
        num_known = holders[0][1] if holders else 0
        allowed = self._allowed_among(candidates)
        homes = self._homes_of(hashes[min(num_known, len(hashes) - 1)])
        for worker in homes:
            if worker in allowed:
                return worker
        return None

    def _homes_of(self, block: int) -> Sequence[Worker]:
        """The workers that a block would be sent to if all were equal, the first one first."""
        slot = block % NUM_SLOTS
        homes = self._homes.get(slot)
        if homes is None:
            scores = [((slot ^ mirror.salt) * MIXER & MASK, mirror.bit) for mirror in self._mirrors.of.values()]
            homes = [self._mirrors.workers[bit] for _, bit in sorted(scores, reverse=True)[:NUM_HOMES]]
            self._homes[slot] = homes
        return homes


def _crowd(candidates: Sequence[Worker]) -> float:
    """How many calls the engines have for each one that is ours; 1 where they show none."""
    loads = [worker.load for worker in candidates if worker.load is not None]
    ours = sum([load.num_ours for load in loads])
    return max(1.0, sum([load.num_running + load.num_waiting for load in loads]) / ours) if ours else 1.0
