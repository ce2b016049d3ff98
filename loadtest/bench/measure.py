"""One measurement of one subject: CPU and instructions a unit of work, gaps between events, memory."""

import asyncio
import gc
import statistics
import time
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace

from loadtest.bench import meter
from loadtest.bench.answers import Ask, WrongAnswer, make_ask, prompt_text
from loadtest.bench.client import GapLog, Watch, connected
from loadtest.bench.engine import Turns
from loadtest.bench.processes import Subject
from loadtest.bench.report import percentile
from loadtest.bench.shape import num_events

_SETTLE_S = 0.5
_QUIET_S = 0.4


@dataclass(frozen=True)
class Load:
    """What each of `num_clients` asks, `times` times in a row."""

    num_clients: int
    times: int
    num_tokens: int
    stream: bool = False
    pace_s: float = 0.0
    prompt_bytes: int = 64

    @property
    def units_per_answer(self) -> int:
        return num_events(self.num_tokens) if self.stream else 1

    @property
    def num_units(self) -> int:
        return self.num_clients * self.times * self.units_per_answer

    @property
    def stream_s(self) -> float:
        return self.num_tokens * self.pace_s

    def watch(self, turns: Turns) -> Watch | None:
        """Who must be told of events that have come: streams that go flat out wait for it."""
        return None if self.pace_s or not self.stream else lambda _connection, num_events: turns.seen(num_events)

    def ask_of(self, subject: Subject, model: str) -> Ask:
        return make_ask(
            f"127.0.0.1:{subject.port}",
            subject.key,
            model,
            self.num_tokens,
            stream=self.stream,
            contents=(prompt_text(self.prompt_bytes),),
        )

    def warm_up_ask_of(self, subject: Subject, model: str) -> Ask:
        """The same with few events: opens the connections, downstream and upstream."""
        return replace(self, num_tokens=min(self.num_tokens, 4)).ask_of(subject, model)


async def cpu_us_a_unit(subject: Subject, load: Load, model: str, turns: Turns) -> float:
    gc.collect()
    async with connected(subject.port, load.num_clients, load.watch(turns)) as crew:
        await crew.ask(load.warm_up_ask_of(subject, model), 1)
        before_s = meter.cpu_s(subject.pid)
        await crew.ask(load.ask_of(subject, model), load.times)
        return (meter.cpu_s(subject.pid) - before_s) / load.num_units * 1e6


async def kilo_instructions_a_unit(subject: Subject, load: Load, model: str, turns: Turns) -> float | None:
    """None where `perf` lost count."""
    async with connected(subject.port, load.num_clients, load.watch(turns)) as crew:
        await crew.ask(load.warm_up_ask_of(subject, model), 1)
        with meter.counted_instructions(subject.pid) as count:
            await crew.ask(load.ask_of(subject, model), load.times)
    return None if count.num_instructions is None else count.num_instructions / load.num_units / 1e3


@dataclass(frozen=True)
class Held:
    """Many streams at once."""

    kib: float  # a stream
    gap_p99_ms: float
    cpu_us: float  # an event


async def hold_streams(subject: Subject, load: Load, model: str, ramp_s: float) -> Held:
    """Memory and gaps while all streams are open; starts are spread over `ramp_s`, shorter than a stream."""
    gc.collect()
    gap_log = GapLog()
    gaps_s: list[float] = []
    few = Load(64, 2, 4, True, load.pace_s)
    async with connected(subject.port, few.num_clients) as crew:  # every path has been taken once
        await crew.ask(few.ask_of(subject, model), few.times)
    before_bytes, before_s = meter.rss_bytes(subject.pid), meter.cpu_s(subject.pid)
    async with (
        connected(subject.port, load.num_clients, gap_log) as crew,
        _beside(crew.ask(load.ask_of(subject, model), 1, spread_s=ramp_s)) as streams,
    ):
        await _sleep_while_running(streams, ramp_s + _SETTLE_S)
        gap_log.into_s = gaps_s
        await _sleep_while_running(streams, load.stream_s - ramp_s - 2 * _SETTLE_S)
        gap_log.into_s = None
        grown_bytes = meter.rss_bytes(subject.pid) - before_bytes
        await streams
    return Held(
        kib=grown_bytes / load.num_clients / 1024,
        gap_p99_ms=percentile(gaps_s, 0.99) * 1e3,
        cpu_us=(meter.cpu_s(subject.pid) - before_s) / load.num_units * 1e6,
    )


@dataclass(frozen=True)
class Disturbed:
    """Gaps of paced streams without and with large bodies beside them."""

    quiet_p99_ms: float
    disturbed_p99_ms: float

    @property
    def raised_ms(self) -> float:
        return self.disturbed_p99_ms - self.quiet_p99_ms


async def disturb_streams(subject: Subject, load: Load, model: str, body: Ask, num_bodies: int) -> Disturbed:
    """Streams run all the time; only gaps that end while a body is under way, or just after, count as disturbed.

    The p99 is taken of each body by itself and their median is told: what every body does counts, what the machine did
    once does not.
    """
    gc.collect()
    gap_log = GapLog()
    quiet_ms: list[float] = []
    disturbed_ms: list[float] = []
    async with (
        connected(subject.port, load.num_clients, gap_log) as crew,
        connected(subject.port, 1) as sender,
        _beside(crew.ask(load.ask_of(subject, model), load.times)) as streams,
    ):
        await _sleep_while_running(streams, _SETTLE_S)
        for _ in range(num_bodies):
            with _p99_ms(gap_log, quiet_ms):
                await _sleep_while_running(streams, _QUIET_S)
            with _p99_ms(gap_log, disturbed_ms):
                await sender.ask(body, 1)
                await _sleep_while_running(streams, 2 * load.pace_s)
    return Disturbed(statistics.median(quiet_ms), statistics.median(disturbed_ms))


@contextmanager
def _p99_ms(gap_log: GapLog, figures: list[float]) -> Iterator[None]:
    """Adds the p99 of the gaps that end within the block; where none did, the whole block was one gap."""
    gaps_s: list[float] = []
    gap_log.into_s = gaps_s
    began_s = time.perf_counter()
    yield
    gap_log.into_s = None
    figures.append(percentile(gaps_s or [time.perf_counter() - began_s], 0.99) * 1e3)


@asynccontextmanager
async def _beside(work: Coroutine[None, None, None]) -> AsyncIterator[asyncio.Task[None]]:
    """Runs the work during the block; what is left of it then is cancelled."""
    task = asyncio.ensure_future(work)
    try:
        yield task
    finally:
        task.cancel()


async def _sleep_while_running(task: asyncio.Task[None], seconds: float) -> None:
    """The task's error if it fails; an error too if it ends, for then there was nothing to measure."""
    await asyncio.wait([task], timeout=seconds)
    if task.done():
        task.result()
        raise WrongAnswer("the streams ended before they were measured: the machine is too slow for this run")
