"""What is measured: the capacity of a fleet through gateways, then fairness, order, and three times the load."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from loadtest.overload.client import Crowd, Result, Shape, firsts, quantile, watch_livez
from loadtest.overload.sources import make_stores

# The fleet: an H100's shape at a tenth of its speed, so that this machine's own delays weigh little beside it.
NUM_WORKERS, NUM_SEQS = 6, 16
FLEET = ("-n", str(NUM_WORKERS), "--profile", "h100-llama-3.1-8b", "--max-num-seqs", str(NUM_SEQS), "--time-warp", "0.1")
SLO_S = 10.0  # a call alone takes a third of that
QUEUE = {"timeout_s": 1.0, "max_waiting": 1000}
HEAVY = Shape(prompt_tokens=200, answer_tokens=32)
LIGHT = Shape(prompt_tokens=2000, answer_tokens=32)
OVERLOADED = Shape(prompt_tokens=200, answer_tokens=32, timeout_ms=int(SLO_S * 1000))
SEARCHING = Shape(prompt_tokens=200, answer_tokens=32, timeout_ms=int(SLO_S * 1000), searches=True)
RAMP_S = 6  # until as many calls end as begin
LEARNING_S = 12  # of the windows, before anything is measured
NUM_TENANTS = 10  # who share the fleet; of them one is heavy and four are there
LIGHTS = ("light-1", "light-2", "light-3", "light-4")
CROWD = ("crowd-0", "crowd-1", "crowd-2", "crowd-3")
KEYS: dict[str, Sequence[str]] = {
    "heavy": (),
    **{name: () for name in LIGHTS},
    "high": ("--priority", "5"),
    "normal": (),
    "low": ("--priority", "-5"),
    **{name: () for name in CROWD},
    "calm": (),
}


@dataclass
class Figure:
    """One line of the table: what was seen, beside what it is held to, where it is held to something."""

    name: str
    seen: str
    bar: str = ""
    is_met: bool | None = None


@dataclass
class Study:
    """The study of some gateways over one fleet; what it finds gathers in `figures`."""

    crowd: Crowd
    urls: Sequence[str]
    pids: Sequence[int]
    keys: Mapping[str, str]
    scale: float  # of all durations
    say: Callable[[str], None]
    figures: list[Figure] = field(default_factory=list)
    capacity: float = 0.0  # calls a second

    def add(self, name: str, seen: str, bar: str = "", is_met: bool | None = None) -> None:
        self.figures.append(Figure(name, seen, bar, is_met))
        self.say(f"  {name}: {seen}{f' ({bar})' if bar else ''}")

    async def measure_capacity(self, names: Sequence[str] = ("heavy",), shape: Shape = HEAVY) -> None:
        """As many calls as the fleet ends while more clients ask than it has slots."""
        clients, seconds = int(NUM_WORKERS * NUM_SEQS * 1.5) // len(names), 20 * self.scale
        runs = (self.crowd.closed(name, shape, clients=clients, seconds=LEARNING_S + seconds) for name in names)
        results = [result for found in await asyncio.gather(*runs) for result in found]
        begun = min(result.asked_at for result in results) + LEARNING_S
        ends = [result.asked_at + result.done_s for result in results if result.is_whole]
        self.capacity = sum(begun <= end < begun + seconds for end in ends) / seconds
        name = "capacity C with retrieval" if shape.searches else "capacity C"
        self.add(name, f"{self.capacity:.1f} calls/s, {self.capacity * shape.answer_tokens:.0f} tokens/s")

    async def lights(self, seconds: float, names: Sequence[str] = LIGHTS) -> list[Result]:
        """Four light tenants, at half of their shares together: a call of theirs costs what eight of the heavy one's do."""
        cost = (LIGHT.prompt_tokens + 2 * LIGHT.answer_tokens) / (HEAVY.prompt_tokens + 2 * HEAVY.answer_tokens)
        rate = self.capacity / NUM_TENANTS / cost / 2
        runs = (self.crowd.poisson(name, LIGHT, rate=rate, seconds=seconds) for name in names)
        return [result for results in await asyncio.gather(*runs) for result in results]

    async def beside(self, seconds: float, names: Sequence[str] = LIGHTS) -> tuple[list[Result], list[Result]]:
        """The light tenants beside one that sends 50 times its share, once that one has filled the fleet; both of them."""
        rate = 50 * self.capacity / NUM_TENANTS
        heavy = asyncio.create_task(self.crowd.poisson("heavy", HEAVY, rate=rate, seconds=RAMP_S + seconds))
        await asyncio.sleep(RAMP_S)
        return await self.lights(seconds, names), await heavy

    async def fairness(self) -> None:
        """A tenant that sends 50 times its share, beside light ones."""
        seconds = 60 * self.scale
        alone = await self.lights(seconds)
        fair, heavy = await self.beside(seconds)
        self._tell_light("alone", alone)
        self._tell_light("beside the heavy one", fair)
        ratio = quantile(firsts(fair), 0.95) / quantile(firsts(alone), 0.95)
        shed = sum(result.status != 200 for result in fair)
        self.add("light tenants' TTFT p95 beside the heavy one / alone", f"{ratio:.2f}", "<= 1.5", ratio <= 1.5)
        self.add("light tenants' calls shed", f"{shed} of {len(fair)}", "0", shed == 0)
        served = sum(result.is_whole for result in heavy)
        self.add("calls of the heavy one that were served", f"{served} of {len(heavy)}")

    async def fifo(self) -> None:
        """The same, where the gateway cannot tell the light ones from the heavy one: first come, first served."""
        self._tell_light("beside it, first come first served", (await self.beside(30 * self.scale, ["heavy"] * len(LIGHTS)))[0])

    def _tell_light(self, name: str, results: list[Result]) -> None:
        first = firsts(results)
        shed = sum(result.status == 429 for result in results)
        self.add(
            f"light tenants {name}",
            f"TTFT p50 {quantile(first, 0.5) * 1e3:.0f} ms, p95 {quantile(first, 0.95) * 1e3:.0f} ms, "
            f"{shed} of {len(results)} shed",
        )

    async def order(self) -> None:
        """Three classes, each with two thirds of what the fleet can do; and two deadlines of one tenant at twice that."""
        seconds = RAMP_S + 20 * self.scale
        classes = ("high", "normal", "low")
        runs = (self.crowd.poisson(who, HEAVY, rate=self.capacity * 2 / 3, seconds=seconds) for who in classes)
        served = {}
        for who, results in zip(classes, await asyncio.gather(*runs), strict=True):
            served[who] = sum(result.is_whole for result in results) / len(results)
            self.add(f"class {who}", f"{served[who]:.0%} served, TTFT p95 {quantile(firsts(results), 0.95) * 1e3:.0f} ms")
        holds = served["high"] > served["normal"] > served["low"]
        self.add("the order of classes holds", "yes" if holds else "no", "the higher, the more is served", holds)
        shapes = [Shape(HEAVY.prompt_tokens, HEAVY.answer_tokens, timeout_ms) for timeout_ms in (7_000, 30_000)]
        runs = (self.crowd.poisson("normal", shape, rate=self.capacity, seconds=seconds) for shape in shapes)
        urgent, patient = await asyncio.gather(*runs)
        # Who has time waits for who has not; of those with time, only who finds room at once is served.
        shares = [sum(result.is_whole for result in results) / len(results) for results in (urgent, patient)]
        self.add(
            "served of those with 7 s and with 30 s",
            f"{shares[0]:.0%} and {shares[1]:.0%}",
            "the urgent first",
            shares[0] > shares[1],
        )
        late = sum(result.is_whole and result.done_s > 7.2 for result in urgent)
        self.add("urgent calls answered too late", f"{late} of {len(urgent)}", "0", late == 0)

    async def overload(self) -> None:
        """From half of what the fleet can do to three times that, and back."""
        await self._overload(OVERLOADED, (0.5, 0.8, 1.0))

    async def retrieval(self) -> None:
        """The same with calls that retrieve, whose prompts are longer: what the fleet can do is measured anew."""
        before = self.capacity
        self.crowd.stores = await asyncio.to_thread(make_stores, self.urls, self.keys, CROWD)
        await self.measure_capacity(CROWD, replace(SEARCHING, timeout_ms=None))
        await self._overload(SEARCHING, (0.5, 1.0))
        self.capacity = before

    async def _overload(self, shape: Shape, loads: Sequence[float]) -> None:
        """`loads`, of which the first is a calm one, then three times the capacity, then the calm one again."""
        seconds = RAMP_S + 20 * self.scale
        results = {load: await self._crowd(shape, load, seconds) for load in loads}
        goodput = {load: _goodput(found, seconds) for load, found in results.items()}
        calm_p95 = quantile(firsts(results[loads[0]]), 0.95)
        livez_s: list[float] = []
        watch = asyncio.create_task(watch_livez(self.urls, livez_s))
        memory = asyncio.create_task(self._memory(seconds * 1.5))
        overload = asyncio.create_task(self._crowd(shape, 3.0, seconds * 1.5))
        await asyncio.sleep(seconds * 1.5)
        after = await self._crowd(shape, loads[0], 10.0)  # at once, before the queue is empty
        overloaded = await overload
        watch.cancel()
        with suppress(asyncio.CancelledError):
            await watch
        goodput[3.0] = _goodput(overloaded, seconds * 1.5)
        self._judge(goodput, overloaded, livez_s, await memory)
        begun = min(result.asked_at for result in after)
        late = firsts(after, lambda result: result.asked_at > begun + 2)
        soon = firsts(after, lambda result: result.asked_at <= begun + 2)
        self.add(
            "TTFT p95 before; in the 2 s after it ended; later",
            f"{calm_p95 * 1e3:.0f}; {quantile(soon, 0.95) * 1e3:.0f}; {quantile(late, 0.95) * 1e3:.0f} ms",
            "later <= 1.5 x before",
            quantile(late, 0.95) <= 1.5 * calm_p95,
        )

    def _judge(
        self, goodput: dict[float, float], results: list[Result], livez_s: list[float], memory: tuple[float, float]
    ) -> None:
        best = max(goodput.values())
        told = ", ".join(f"{load:g} C: {tokens:.0f}" for load, tokens in goodput.items())
        self.add("goodput (tokens/s of calls within the SLO)", told)
        self.add("goodput at 3 C / the best", f"{goodput[3.0] / best:.1%}", ">= 95 %", goodput[3.0] >= 0.95 * best)
        shed = [result for result in results if result.status == 429]
        odd = sum(result.status not in (200, 429) for result in results)
        broken = sum(result.status == 200 and not result.is_whole for result in results)
        self.add("shed at 3 C", f"{len(shed)} of {len(results)}; neither answered nor shed: {odd}", "0", odd == 0)
        self.add("answers at 3 C that were cut", f"{broken}")
        waits = [result.retry_after_s or 0 for result in shed]
        self.add("retry-after told", f"p50 {quantile(waits, 0.5):.1f} s, p95 {quantile(waits, 0.95):.1f} s")
        at_once = [result.done_s for result in shed if result.done_s < 0.5]  # the others waited, and gave way or ran out
        livez, told_shed = quantile(livez_s, 0.99), quantile(at_once, 0.99)
        self.add(
            "p99 of a shed answer / of /livez",
            f"{told_shed * 1e3:.1f} / {livez * 1e3:.1f} ms = {told_shed / livez:.1f}; {len(shed) - len(at_once)} after a wait",
            "<= 3",
            told_shed <= 3 * livez,
        )
        self.add(
            "memory of the gateways, a third into the overload and at its end",
            f"{memory[0]:.1f} and {memory[1]:.1f} MiB",
            "<= 5 % more",
            memory[1] <= memory[0] * 1.05,
        )

    async def _crowd(self, shape: Shape, load: float, seconds: float) -> list[Result]:
        """Four tenants with so many times the capacity together."""
        rate = self.capacity * load / len(CROWD)
        runs = [asyncio.create_task(self.crowd.poisson(name, shape, rate=rate, seconds=seconds)) for name in CROWD]
        return [result for results in await asyncio.gather(*runs) for result in results]

    async def _memory(self, seconds: float) -> tuple[float, float]:
        await asyncio.sleep(seconds / 3)
        before = sum(map(resident_mib, self.pids))
        await asyncio.sleep(seconds * 2 / 3 - 0.5)
        return before, sum(map(resident_mib, self.pids))


def _goodput(results: Sequence[Result], seconds: float) -> float:
    """Tokens a second of the calls that ended within their SLO, from when the first ones could to the end of the load."""
    begun = min((result.asked_at for result in results), default=0.0)
    good = [result for result in results if result.is_whole and result.done_s <= SLO_S]
    ended = [one for one in good if begun + RAMP_S <= one.asked_at + one.done_s < begun + seconds]
    return sum(result.answer_tokens for result in ended) / (seconds - RAMP_S)


def resident_mib(pid: int) -> float:
    found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found is not None
    return int(found[1]) / 1024
