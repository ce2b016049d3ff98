"""One simulated vLLM worker: an engine behind a port, from start to kill and back."""

import asyncio
import secrets
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from enum import Enum
from functools import partial
from random import Random

import zmq

from loadtest.simfleet.answer import Answer, Manuscript, Namespace
from loadtest.simfleet.asked import Asked, Reader
from loadtest.simfleet.clock import WorkerClock
from loadtest.simfleet.config import WorkerConfig
from loadtest.simfleet.driver import Driver
from loadtest.simfleet.engine import Engine, QueueFull
from loadtest.simfleet.errors import engine_dead, queue_full, shutting_down
from loadtest.simfleet.faults import Suffering
from loadtest.simfleet.http_server import HttpServer, Reply, Request
from loadtest.simfleet.job import Job, Progress
from loadtest.simfleet.kv_cache import Event
from loadtest.simfleet.kv_events import Publisher
from loadtest.simfleet.load_report import LoadReport
from loadtest.simfleet.replies import Choice, Open, Stream, Whole
from loadtest.simfleet.scheduler import Paused
from loadtest.simfleet.text import Author
from loadtest.simfleet.wire import Wire


class State(Enum):
    """Where a worker is in its life."""

    DOWN = "down"
    UP = "up"
    DRAINING = "draining"
    ENGINE_DEAD = "engine_dead"


@dataclass(frozen=True)
class KvEndpoints:
    """Where a worker publishes its KV events."""

    context: "zmq.Context[zmq.Socket[bytes]]"
    endpoint: str
    replay_endpoint: str | None
    topic: str = "kv"


class Worker:
    """Its mutable state: `state`, the engine and its driver, the open replies, the adapters, whether it sleeps, and the
    faults it suffers from. All of it but the faults begins anew with each `start`."""

    def __init__(
        self,
        index: int,
        config: WorkerConfig,
        author: Author,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        warp: float = 1.0,
        seed: int = 0,
        kv_endpoints: KvEndpoints | None = None,
        handle: Callable[["Worker", Request, Reply], None],
    ) -> None:
        self.index = index
        self.config = config
        self.author = author
        self.host, self.port = host, port
        self.warp = warp
        self.suffering = Suffering(Random(seed * 1_000_003 + index))
        self.kv_endpoints = kv_endpoints
        self.server = HttpServer(lambda request, reply: handle(self, request, reply), keep_alive_s=config.keep_alive_s)
        self.state = State.DOWN
        self.num_starts = 0
        self.num_asked = 0  # requests for work, refused ones too, in all lives
        self.publisher: Publisher | None = None
        self._id_prefix = secrets.token_hex(5)
        self._num_requests = 0
        self._begin_life()

    def __repr__(self) -> str:
        return f"<Worker {self.index} {self.url} {self.state.value} | {len(self.replies)} replies | {self.engine!r}>"

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"

    # -- life --------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """A new process: empty cache, no adapters but the configured ones, awake. OSError if the port is taken."""
        self._begin_life()
        self.suffering.orders.pop("stall", None)
        self.suffering.orders.pop("slow", None)
        if self.kv_endpoints is not None:
            kv = self.kv_endpoints
            self.publisher = Publisher(kv.context, kv.endpoint, kv.replay_endpoint, kv.topic)
            # Back at the same addresses after a restart.
            self.kv_endpoints = KvEndpoints(kv.context, self.publisher.endpoint, self.publisher.replay_endpoint, kv.topic)
        try:
            self.port = await self.server.open(self.host, self.port)
        except OSError:
            self._close_publisher()
            raise
        self.state = State.UP
        self.num_starts += 1

    def stop(self, *, reset: bool) -> None:
        """The end of the process, at once: port closed, connections dropped, sockets and cache gone."""
        self.state = State.DOWN
        self.replies.clear()
        self.driver.close()
        self.server.close(reset=reset)
        self._close_publisher()

    def _close_publisher(self) -> None:
        if self.publisher is not None:
            self.publisher.close()
            self.publisher = None

    def _begin_life(self) -> None:
        loop, config = asyncio.get_running_loop(), self.config
        self.engine = Engine(
            config.profile,
            max_num_queued_reqs=config.max_num_queued_reqs,
            max_num_queued_tokens=config.max_num_queued_tokens,
            max_loras=config.max_loras,
            record_events=self.kv_endpoints is not None,
        )
        self.report = LoadReport(self.engine, config, self.suffering)
        self.clock = WorkerClock(loop.time, self.warp)
        self.driver = Driver(self.engine, self.clock, self._on_progress, self._on_cache_events)
        self.publisher = None
        self.adapters = dict(config.lora_modules)
        self.adapter_ids = {name: at for at, name in enumerate(self.adapters, start=1)}
        self.reader = Reader(config, self.author.tokenizer, self.adapters)
        self.replies: dict[Open, None] = {}
        self.sleep_level: int | None = None
        self._when_idle: list[Callable[[], None]] = []
        self._when_alone: list[Callable[[], None]] = []
        self.started_at = int(time.time())

    # -- requests ----------------------------------------------------------------------------------------------------

    def generate(self, asked: Asked, request: Request, reply: Reply) -> None:
        """Let the engine answer. Raises `WireError` if it is refused."""
        if self.state is State.ENGINE_DEAD:
            raise engine_dead()
        if self.state is State.DRAINING and not asked.is_tokenised:
            raise shutting_down()
        try:
            self.driver.catch_up()
            self.engine.check_room(asked.num_choices)
        except QueueFull as full:
            raise queue_full(full.reason) from None
        wire = Wire(asked, self._reply_id(request, asked), int(time.time()), self.config, self.author.tokenizer)
        answering: Stream | Whole
        if asked.stream:
            answering = stream = Stream(wire, reply, self._forget)
            stream.expect(self.suffering.mischief())
            stream.open()
        else:
            wanted = request.headers.get("endpoint-load-metrics-format", "")
            answering = Whole(wire, reply, self._forget, lambda: self.report.headers(wanted))
        self._begin(answering, asked)
        if self.state is State.DRAINING:
            answering.abort()
            return
        reply.on_gone = partial(self._forget, answering)
        stats = self.engine.stats
        stats.request_choices.observe(asked.num_choices)
        for ending in asked.endings:
            stats.request_max_tokens.observe(ending.max_tokens)
        self.driver.add(answering.jobs, self.suffering.delay_s())

    def pause(self, mode: str, then: Callable[[], None], *, clear_cache: bool = True) -> None:
        """Stop generating: mode abort ends what runs, wait lets it end, keep freezes it. The cache is dropped once
        nothing runs. `then` is called when that is done."""
        if mode == "abort":
            self.abort_all()
        self.driver.pause(Paused.ALL if mode == "keep" else Paused.NEW)

        def paused() -> None:
            if clear_cache:
                self.reset_cache()
            then()

        if mode == "keep":
            then()
        else:
            self.when_idle(paused)

    def sleep(self, level: int, mode: str, then: Callable[[], None]) -> None:
        """Pause; level 1 and 2 give the memory back, and the cache with it."""

        def asleep() -> None:
            self.sleep_level = level
            then()

        self.pause(mode, asleep, clear_cache=level > 0)

    def when_alone(self, act: Callable[[], None]) -> None:
        """Call `act` once no client waits for a reply."""
        self._when_alone.append(act)
        self._check_idle()

    def when_idle(self, act: Callable[[], None]) -> None:
        """Call `act` once nothing runs."""
        self._when_idle.append(act)
        self._check_idle()

    def wake(self) -> None:
        """Go on, with all that came meanwhile."""
        self.sleep_level = None
        self.driver.pause(Paused.NO)

    def reset_cache(self) -> bool:
        """Forget all prefixes; False while anything runs."""
        self.driver.catch_up()
        cleared = self.engine.cache.clear()
        self.driver.catch_up()
        return cleared

    def abort_all(self) -> None:
        """End every reply with `finish_reason` abort."""
        self.driver.abort_all()
        for reply in list(self.replies):
            reply.abort()

    def fail_all(self) -> None:
        """End every reply with the error of a dead engine: as an event where a stream has begun."""
        self.driver.abort_all()
        for reply in list(self.replies):
            reply.fail(engine_dead())

    def metrics_page(self, names: Collection[str] | None = None) -> bytes:
        """`/metrics`, or these of it; true or not."""
        self.driver.catch_up()
        return self.report.page(names, sleep_level=self.sleep_level, has_adapters=bool(self.adapters))

    def _begin(self, answering: Stream | Whole, asked: Asked) -> None:
        lora_id = self.adapter_ids.get(asked.lora) if asked.lora is not None else None
        namespace = Namespace(asked.lora, lora_id, asked.cache_salt)
        author, size = self.author, self.config.profile.block_size
        choices: list[Choice] = []
        jobs: list[Job] = []
        for ids, ending, echoed in zip(asked.prompts, asked.endings, asked.echoed, strict=True):
            for at in range(asked.num_choices):
                # Adapters and choices do not all say the same.
                voice = f"{asked.lora or ''}\0{at}" if asked.lora or at else ""
                draft = author.begin(ids, voice, may_end=not ending.ignore_eos)
                answer = Answer(draft, author.tokenizer, ending, "" if asked.is_chat else echoed)
                choice = Choice(answering, len(choices), answer, ids, echoed if asked.is_chat else "")
                choices.append(choice)
                content = Manuscript(ids, answer, size, namespace)
                jobs.append(Job(content, len(ids), lora=asked.lora, owner=choice))
        answering.begin(choices, jobs)
        self.replies[answering] = None

    def _reply_id(self, request: Request, asked: Asked) -> str:
        self._num_requests += 1
        own = f"{self._id_prefix}{self._num_requests:06x}"
        return f"{'chatcmpl' if asked.is_chat else 'cmpl'}-{request.headers.get('x-request-id', own)}"

    # -- what happens ------------------------------------------------------------------------------------------------

    def _on_progress(self, progress: Progress) -> None:
        choice = progress.job.owner
        assert isinstance(choice, Choice)
        choice.reply.advance(choice, progress)
        if progress.finished:
            self.engine.stats.finished[choice.answer.finish_reason or "stop"] += 1

    def _on_cache_events(self, events: list[Event]) -> None:
        if self.publisher is not None:
            self.publisher.publish(events, self.config.profile.block_size)

    def _forget(self, answering: Open) -> None:
        """A reply is over; its jobs that are not are taken back. Nothing if it belongs to an earlier life."""
        if answering not in self.replies:
            return
        del self.replies[answering]
        for job in answering.jobs:
            if not job.done:
                self.driver.abort(job)
        self._check_idle()

    def _check_idle(self) -> None:
        due: list[Callable[[], None]] = []
        scheduler = self.engine.scheduler
        if not scheduler.running and (scheduler.paused is not Paused.NO or not self.engine.num_unfinished):
            due, self._when_idle = self._when_idle, []
        if not self.replies:
            due, self._when_alone = due + self._when_alone, []
        for act in due:
            act()
