"""The worker that a conversation's name stands for, unless to wait there costs more than to compute its prompt elsewhere.

The name is what the route's `session_header` says. Replicas of the gateway agree on the worker without talking (rendezvous
hashing), and a worker that comes or goes moves only its own conversations. Calls without a name go by load.
"""

from __future__ import annotations

from collections.abc import Sequence
from zlib import crc32

from sluice.policies.base import RoutingPolicy, prompt_tokens_of, with_adapter
from sluice.policies.least_inflight import LeastInflight
from sluice.types import Call, Usage
from sluice.worker import Worker

LATEST = 0.02  # the weight of one call in the running mean
MIXER, MASK = 0x9E3779B1, 0xFFFFFFFF


class SessionAffinity(RoutingPolicy):
    def __init__(self, seed: int | None = None) -> None:
        self._freest = LeastInflight(seed)
        self._salts: dict[Worker, int] = {}
        self._cached = 0.0  # which part of a prompt is found in the cache of its conversation's worker, the running mean
        self._is_home = False  # whether the last call that was picked for went there

    def pick(self, candidates: Sequence[Worker], call: Call, now: float) -> Worker:
        candidates = with_adapter(candidates, call)
        freest = self._freest.pick(candidates, call, now)
        self._is_home = False
        if not call.session:
            return freest
        home = self._home(candidates, crc32(call.session.encode()))
        saved_s = prompt_tokens_of(call) * home.backlog.s_per_token
        if home is not freest and self._freest.wait_s(home, now) - self._freest.wait_s(freest, now) > saved_s:
            return freest
        self._is_home = True
        return home

    def prefill_tokens(self, call: Call, worker: Worker) -> int:
        return round(prompt_tokens_of(call) * (1.0 - self._cached if self._is_home else 1.0))

    def reason(self, call: Call, worker: Worker) -> str:
        return "session_affinity; " + ("home" if self._is_home else "home is busy" if call.session else "no session")

    def observe(self, call: Call, worker: Worker, usage: Usage) -> None:
        if call.session and usage.exact and usage.prompt_tokens:
            self._cached += LATEST * (usage.cached_tokens / usage.prompt_tokens - self._cached)

    def forget(self, worker: Worker) -> None:
        self._salts.pop(worker, None)

    def _home(self, candidates: Sequence[Worker], session: int) -> Worker:
        salts = self._salts
        best, most = candidates[0], -1
        for worker in candidates:
            salt = salts.get(worker)
            if salt is None:
                salt = salts[worker] = crc32(worker.url.encode())
            score = (session ^ salt) * MIXER & MASK
            if score > most:
                best, most = worker, score
        return best
