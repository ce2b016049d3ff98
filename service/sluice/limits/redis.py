"""Limits of all gateways together, in Redis or Valkey: scripts that run there whole or not at all, by its clock.

One round trip a reservation. Settlements go in the background, many in one, with the leases that keep a place for each call
that is running: they expire 30 s after the gateway last renewed them, so one that was killed holds nothing for longer.

The server may be slow, gone, full, restarted with nothing in it, or another program. Then a reservation raises `StoreAway`,
within the time-out; after that at once, until a look in the background finds the server well again, which has first been told
of the calls that are running. What was used meanwhile is charged when it is back: settlements wait, up to a bound, and one
that finds no record is charged in full. They are idempotent, so one whose answer was lost is simply sent again.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Sequence
from importlib.resources import files
from typing import Any, NamedTuple

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import NoScriptError, RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

from sluice.limits.base import Answer, Ask, Kind, State, StoreAway

LEASE_MS = 30_000
RENEW_S = LEASE_MS / 10_000
RECORD_MS = 86_400_000  # of a reservation that is never settled; no call lasts longer
MARK_MS = 120_000  # that a settlement was done
RESEND_S = 100.0  # after that one whose answer was lost is not sent again: its mark may be gone
PLACE_WAIT_MS = 1000  # nobody knows when a call will end
LOOK_S = 0.2  # between two looks at a server that is away
CATCH_UP_S = 2 * LOOK_S  # for the other gateways
MAX_SLOW = 3  # time-outs in a row
MAX_SENDERS = 4  # round trips of reservations at a time; what comes meanwhile goes together in the next one
MAX_CONNECTIONS = MAX_SENDERS + 2
MAX_BATCH = 256
MAX_WAITING = 200_000  # settlements while the server is away; beyond it the oldest are lost, and counted
FLUSH_S = 2.0  # at the end, for what still waits
PREFIX = "{sluice}:"  # one slot of a cluster

logger = logging.getLogger("sluice.limits")


Arguments = tuple[list[str], list[Any]]  # of a script: its keys, and what else it is told


class Settlement(NamedTuple):
    ask: Ask
    tokens: int
    gpu_ms: int
    given_back: int = 0  # requests
    charged: int = 1  # requests, where there is no record
    sent_at: float | None = None  # when it was first sent, where nobody knows what became of it


class RedisStore:
    """The mutable state is what waits to be asked or settled, which leases are ours, and whether the server can be asked."""

    def __init__(
        self,
        url: str,
        *,
        username: str | None = None,
        password: str | None = None,
        timeout_s: float,
        replica: str,
        min_replicas: int = 1,
    ) -> None:
        """`min_replicas` gateways there are at least, whatever has been heard of them yet."""
        self._timeout_s = timeout_s
        self._replica = replica
        pool = BlockingConnectionPool.from_url(
            url,
            username=username,
            password=password,
            max_connections=MAX_CONNECTIONS,
            timeout=None,
            socket_timeout=timeout_s,
            socket_connect_timeout=timeout_s,
            retry=Retry(NoBackoff(), 0),
            protocol=2,
        )
        self._redis = Redis.from_pool(pool)
        self._scripts = {name: _source(name) for name in ("reserve", "settle", "renew")}
        self._shas: dict[str, str] = {}
        self._asking: deque[tuple[Ask, asyncio.Future[Any]]] = deque()
        self._senders: set[asyncio.Task[None]] = set()
        self._waiting: deque[Settlement] = deque()
        self._leases: dict[str, dict[str, None]] = {}  # by key: the ids of calls that are running
        self._has_work = asyncio.Event()
        self._is_settled = asyncio.Event()
        self._is_settled.set()
        self._num_slow = 0
        self.is_away = False
        self._min_replicas = self.num_replicas = min_replicas
        self.num_lost = 0  # settlements

    def __repr__(self) -> str:
        num_leases = sum(map(len, self._leases.values()))
        return f"<RedisStore [{'away' if self.is_away else 'up'}, {num_leases} leases, {len(self._waiting)} to settle]>"

    async def reserve(self, ask: Ask) -> Answer:
        if self.is_away:
            self._hold(ask)
            raise StoreAway
        told = asyncio.get_running_loop().create_future()
        self._asking.append((ask, told))
        if len(self._senders) < MAX_SENDERS:
            sender = asyncio.create_task(self._send())
            self._senders.add(sender)
            sender.add_done_callback(self._senders.discard)
        try:
            async with asyncio.timeout(self._timeout_s):
                answer = _answer(await told, len(ask.subjects))
        except (RedisError, OSError, TimeoutError) as exc:  # what it says of the server, the sender has seen
            self._hold(ask)
            raise StoreAway from exc
        except ValueError as exc:
            self._failed(exc)
            self._hold(ask)
            raise StoreAway from exc
        if answer.kind is None:
            self._hold(ask)
        return answer

    async def _send(self) -> None:
        """Ask for what waits to be asked for, whatever has gathered in one round trip, until nothing does."""
        while self._asking:
            batch = [self._asking.popleft() for _ in range(min(MAX_BATCH, len(self._asking)))]
            try:
                results = await self._pipeline("reserve", [_reserve_arguments(ask) for ask, _ in batch])
            except (RedisError, OSError, TimeoutError) as exc:
                results = [exc] * len(batch)
            failure = next((result for result in results if isinstance(result, Exception)), None)
            if failure is not None:
                self._failed(failure)  # once for the round trip, not for each of those who waited for it
            for (_, told), result in zip(batch, results, strict=True):
                if told.done():
                    continue
                if isinstance(result, Exception):
                    told.set_exception(result)
                else:
                    told.set_result(result)

    async def _pipeline(self, name: str, all_arguments: Sequence[Arguments]) -> list[Any]:
        """One script for many in one round trip; what failed is in the place of its answer."""
        try:
            async with asyncio.timeout(self._timeout_s):
                for _ in range(2):
                    sha = await self._sha(name)
                    pipeline = self._redis.pipeline(transaction=False)
                    for keys, arguments in all_arguments:
                        pipeline.evalsha(sha, len(keys), *keys, *arguments)
                    results = await pipeline.execute(raise_on_error=False)
                    if not any(isinstance(result, NoScriptError) for result in results):
                        break
                    self._shas.clear()  # restarted, or flushed: none of them was run
        except RuntimeError as exc:  # uvloop's word for a connection that was lost just before we wrote
            raise ConnectionResetError(_said(exc)) from exc
        self._num_slow = 0
        return list(results)

    def settle(self, ask: Ask, tokens: int, gpu_ms: int = 0) -> None:
        self._later(Settlement(ask, tokens, gpu_ms))

    def abandon(self, ask: Ask) -> None:
        self._later(Settlement(ask, ask.tokens, ask.gpu_ms))

    def withdraw(self, ask: Ask) -> None:
        self._later(Settlement(ask, 0, 0, given_back=1, charged=0))

    async def flush(self) -> None:
        await self._is_settled.wait()

    def _let_go(self, ask: Ask) -> None:
        """Its lease is renewed no more."""
        for subject in ask.subjects:
            if subject.concurrency and (held := self._leases.get(_leases_key(subject.id))) is not None:
                held.pop(ask.id, None)

    async def run(self) -> None:
        """Settle and renew until cancelled; then settle what waits, for as long as `FLUSH_S`."""
        try:
            while True:
                await self._work()
        finally:
            if not self.is_away:
                try:
                    async with asyncio.timeout(FLUSH_S):
                        while self._waiting:
                            await self._settle_batch()
                except (RedisError, OSError, TimeoutError, ValueError) as exc:
                    logger.error("limits: %d settlements are lost: %s", len(self._waiting), _said(exc))
            if self._waiting:
                self.num_lost += len(self._waiting)
            await self._redis.aclose()

    async def _work(self) -> None:
        """One turn of the background."""
        loop = asyncio.get_running_loop()
        renewed_at = float("-inf")
        try:
            while True:
                if loop.time() - renewed_at >= RENEW_S:
                    await self._renew()
                    renewed_at = loop.time()
                    if self.is_away:
                        await self._catch_up()
                    self._well()
                if self._waiting:
                    await self._settle_batch()
                    continue
                self._has_work.clear()
                try:
                    async with asyncio.timeout(renewed_at + RENEW_S - loop.time()):
                        await self._has_work.wait()
                except TimeoutError:
                    continue
                if self.is_away:
                    renewed_at = float("-inf")
        except (RedisError, OSError, TimeoutError, ValueError) as exc:
            self._failed(exc, is_sure=True)
            await asyncio.sleep(LOOK_S)

    async def _catch_up(self) -> None:
        """What has passed is charged before anybody asks again, by the other gateways too: else their calls would find a bucket
        that is fuller than it should be."""
        while self._waiting:
            await self._settle_batch()
        await asyncio.sleep(CATCH_UP_S)
        while self._waiting:
            await self._settle_batch()

    async def _renew(self) -> None:
        """All leases of this gateway in one go, and that it is alive."""
        keys = [f"{PREFIX}since", f"{PREFIX}replicas"]
        arguments: list[Any] = [self._replica, f"{LEASE_MS} {int(self.is_away)}"]
        for key, ids in list(self._leases.items()):
            if not ids:
                del self._leases[key]
                continue
            keys.append(key)
            arguments += [len(ids), *ids]
        [said] = await self._pipeline("renew", [(keys, arguments)])
        if isinstance(said, Exception):
            raise said
        self.num_replicas = max(self._min_replicas, int(said))

    async def _settle_batch(self) -> None:
        now = asyncio.get_running_loop().time()
        batch = [self._waiting.popleft() for _ in range(min(MAX_BATCH, len(self._waiting)))]
        fresh = [one for one in batch if one.sent_at is None or now - one.sent_at < RESEND_S]
        if len(fresh) < len(batch):
            self.num_lost += len(batch) - len(fresh)
            batch = fresh
        try:
            results = await self._pipeline("settle", [_settle_arguments(one) for one in batch])
        except BaseException:
            self._again(batch, now)
            raise
        failed = [one for one, result in zip(batch, results, strict=True) if isinstance(result, Exception)]
        if failed:
            self._again(failed, now)
            raise next(result for result in results if isinstance(result, Exception))
        if not self._waiting:
            self._is_settled.set()

    def _again(self, batch: list[Settlement], now: float) -> None:
        self._waiting.extendleft([one if one.sent_at is not None else one._replace(sent_at=now) for one in reversed(batch)])

    async def _sha(self, name: str) -> str:
        if name not in self._shas:
            said = await self._redis.script_load(self._scripts[name])
            self._shas[name] = said.decode() if isinstance(said, bytes) else str(said)
        return self._shas[name]

    def _later(self, settlement: Settlement) -> None:
        self._let_go(settlement.ask)
        self._waiting.append(settlement)
        if len(self._waiting) > MAX_WAITING:
            self._waiting.popleft()
            self.num_lost += 1
        self._is_settled.clear()
        self._has_work.set()

    def _hold(self, ask: Ask) -> None:
        """Renew its lease from now on, which `reserve` made; where nobody knows whether it did, it has one when the server is
        back."""
        for subject in ask.subjects:
            if subject.concurrency:
                self._leases.setdefault(_leases_key(subject.id), {})[ask.id] = None

    def _failed(self, exc: Exception, *, is_sure: bool = False) -> None:
        """A time-out may be our own fault; a refused connection or an error is not."""
        if isinstance(exc, NoScriptError):
            self._shas.clear()
            return
        self._num_slow += 1
        is_slow = isinstance(exc, TimeoutError | RedisTimeoutError)
        if (is_sure or not is_slow or self._num_slow >= MAX_SLOW) and not self.is_away:
            self.is_away = True
            self._has_work.set()
            logger.error("limits: the store is away, each limit does as its `fail` says: %s", _said(exc))

    def _well(self) -> None:
        if self.is_away:
            logger.warning("limits: the store is back, %d settlements wait", len(self._waiting))
        self.is_away = False
        self._num_slow = 0


def _reserve_arguments(ask: Ask) -> Arguments:
    return _keys(ask), [ask.id, f"{ask.tokens} {ask.gpu_ms} {LEASE_MS} {RECORD_MS} {PLACE_WAIT_MS} {_limits(ask)}"]


def _settle_arguments(one: Settlement) -> Arguments:
    ask = one.ask
    return _keys(ask), [ask.id, f"{one.tokens} {one.gpu_ms} {one.given_back} {one.charged} {MARK_MS} {_limits(ask)}"]


def _keys(ask: Ask) -> list[str]:
    keys = [f"{PREFIX}since", f"{PREFIX}reservation:{ask.id}"]
    for subject in ask.subjects:
        keys += (f"{PREFIX}book:{subject.id}", _leases_key(subject.id))
    return keys


def _leases_key(id: str) -> str:
    return f"{PREFIX}leases:{id}"


def _limits(ask: Ask) -> str:
    return " ".join([subject.written for subject in ask.subjects])


def _answer(reply: Any, num_subjects: int) -> Answer:
    """What `reserve.lua` says; raises `ValueError` for anything else."""
    if not isinstance(reply, bytes):
        raise ValueError(f"an answer of type {type(reply).__name__}")
    kind, *numbers = reply.split()
    by, wait_ms, *states = map(int, numbers)
    if len(states) != 4 * num_subjects or not 0 <= by < num_subjects:
        raise ValueError("an answer of another length")
    shown = [State(states[i], states[i + 1], states[i + 2] / 1000, states[i + 3] / 1000) for i in range(0, len(states), 4)]
    return Answer(shown, None if kind == b"-" else Kind(kind.decode()), by, wait_ms / 1000)


def _source(name: str) -> str:
    folder = files("sluice.limits")
    return (folder / "common.lua").read_text("utf-8") + (folder / f"{name}.lua").read_text("utf-8")


def _said(exc: BaseException) -> str:
    return str(exc).partition("\n")[0] or type(exc).__name__
