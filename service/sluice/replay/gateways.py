"""Gateways in a replay: each is a policy over workers of its own, and knows what a gateway knows.

That is its own leases, when first events come, what usage says at the ends, the load that was last scraped, and, where they
share a store, what the others tell.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Sequence
from zlib import crc32

from sluice.placements import Notes, Placements
from sluice.policies.base import RoutingPolicy
from sluice.replay.engine import Engine, Job
from sluice.replay.trace import Request
from sluice.types import Call, Endpoint, Tenant, Usage
from sluice.upstream.connections import Connections
from sluice.worker import EngineLoad, Lease, Worker

SCRAPE_S = 0.25
ROUND_S = 0.02  # between two rounds of notes, which name all workers every so many rounds
WHOLE_EVERY = 50
STICKY_BLOCK = 4  # of 1 KiB: the first that is not of the Mooncake trace's common system prompt, and one or two more
TENANT = Tenant("replay", "replay")


def call_of(request: Request, id: str, now: float) -> Call:
    """The request as a call that a gateway has read."""
    return Call(
        id=id,
        tenant=TENANT,
        route="replay",
        endpoint=Endpoint.CHAT,
        path=Endpoint.CHAT,
        stream=True,
        prompt_tokens=request.prompt_tokens,
        prefix=request.prefix,
        started_at=now,
    )


class Gateway:
    """One replica. The clock of its workers stands where the replay stands."""

    def __init__(self, policy: RoutingPolicy, num_workers: int) -> None:
        self.policy = policy
        self.now = 0.0
        urls = [f"http://worker-{number}:8000" for number in range(num_workers)]
        self.workers = [Worker(url, Connections(url)) for url in urls]
        self.placements = Placements("replay", policy, lambda: self.workers)
        self._numbers = {worker: number for number, worker in enumerate(self.workers)}

    def send(self, call: Call) -> tuple[int, Lease]:
        """Which worker the call goes to, and its slot there, which is held from now on."""
        worker = self.policy.pick(self.workers, call, self.now)
        lease = worker.lease(self.policy.prefill_tokens(call, worker), lambda: self.now, shows_first_event=True)
        lease.__enter__()
        self.placements.placed(worker, self.now, lease.prefill_tokens, call.prefix.hashes)
        return self._numbers[worker], lease


class Gateways:
    """One or more gateways in front of the same engines, behind a load balancer that goes by nothing or by conversation.

    By conversation means by the prompt's beginning: what follows on a request comes to the gateway that it came to.
    """

    def __init__(
        self,
        policies: Sequence[RoutingPolicy],
        engines: Sequence[Engine],
        seed: int,
        *,
        sticky: bool = False,
        notes_late_s: float | None = None,
    ) -> None:
        """So late the others hear what each tells; None: nothing is told."""
        self._gateways = [Gateway(policy, len(engines)) for policy in policies]
        self._engines = engines
        self._random = random.Random(seed)
        self._sticky = sticky
        self._late_s = notes_late_s if len(policies) > 1 else None
        self._num_rounds = 0
        self._on_the_way: deque[tuple[float, int, Notes]] = deque()  # since when, and from whom
        self._num_calls = 0
        self._held: dict[Job, tuple[Gateway, Call, Lease]] = {}
        self._scraped_s = [-1.0] * len(engines)
        self._changed_s = [0.0] * len(engines)  # since when each engine is as it is

    def choose(self, job: Job, request: Request, now: float) -> int:
        self._tell(now)
        gateway = self._gateway_of(request)
        gateway.now = now
        for number in range(len(self._engines)):
            self._scrape(number, now)
        self._num_calls += 1
        call = call_of(request, str(self._num_calls), now)
        number, lease = gateway.send(call)
        self._held[job] = gateway, call, lease
        return number

    def started(self, job: Job, now: float) -> None:
        self._tell(now)
        gateway, _, lease = self._held[job]
        gateway.now = now
        lease.prefilled()

    def ended(self, job: Job, now: float) -> None:
        self._tell(now)
        gateway, call, lease = self._held.pop(job)
        gateway.now = now
        lease.__exit__(None, None, None)
        gateway.policy.observe(call, lease.worker, Usage(job.prompt_tokens, job.output_tokens, job.cached_tokens, exact=True))

    def changes(self, number: int, now: float) -> None:
        self._scrape(number, now)
        self._changed_s[number] = now

    def _scrape(self, number: int, now: float) -> None:
        """What all gateways saw of the engine at the last scrape, if it is new: it has been as it is since it last changed."""
        scraped_s = now // SCRAPE_S * SCRAPE_S
        if scraped_s <= self._scraped_s[number] or scraped_s < self._changed_s[number]:
            return
        self._scraped_s[number] = scraped_s
        engine = self._engines[number]
        for gateway in self._gateways:
            worker = gateway.workers[number]
            worker.load = EngineLoad(
                num_running=engine.num_running,
                num_waiting=len(engine.waiting),
                kv_usage=engine.cache.usage,
                read_at=scraped_s,
                num_ours=worker.in_flight + worker.in_flight_elsewhere,
            )

    def _tell(self, now: float) -> None:
        """All that was told and heard until now, before what happens now."""
        if self._late_s is None:
            return
        if now >= (self._num_rounds + 1) * ROUND_S:
            self._num_rounds = int(now / ROUND_S)
            round_s = self._num_rounds * ROUND_S
            for number, gateway in enumerate(self._gateways):
                notes = gateway.placements.notes(round_s, is_whole=self._num_rounds % WHOLE_EVERY == 0)
                if notes is not None:
                    self._on_the_way.append((round_s, number, notes))
        while self._on_the_way and self._on_the_way[0][0] + self._late_s <= now:
            told_s, sender, notes = self._on_the_way.popleft()
            for number, gateway in enumerate(self._gateways):
                if number != sender:
                    gateway.placements.hear(str(sender), notes, told_s)

    def _gateway_of(self, request: Request) -> Gateway:
        """By what follows the system prompt, which all may share, where conversations stay with their gateway."""
        hashes = request.prefix.hashes
        if self._sticky and len(hashes) > STICKY_BLOCK:
            return self._gateways[crc32(hashes[STICKY_BLOCK].to_bytes(8, "little")) % len(self._gateways)]
        return self._gateways[int(self._random.random() * len(self._gateways))]
