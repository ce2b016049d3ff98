"""The disturbances, and what must hold while they last."""

import asyncio
import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from statistics import mean

import httpx

from loadtest.chaos.streams import Crowd, Oracle, Tally
from loadtest.stack import Gateway, Workers

SETTLES_S = 2.0  # after which a worker that refuses may get few calls
SICK_SHARE = 0.05
HOT_SHARE = 1.5  # of the mean: what a worker may get at most whose metrics are no good


@dataclass(frozen=True)
class Size:
    """How much of it: the full form takes three minutes, the short one is for a test."""

    num_workers: int
    num_streams: int
    num_tokens: tuple[int, int]
    lasts_s: float
    kill_every_s: float
    back_after_s: float
    warp: float


FULL = Size(num_workers=16, num_streams=200, num_tokens=(300, 880), lasts_s=60, kill_every_s=2, back_after_s=5, warp=1)
SHORT = Size(num_workers=6, num_streams=16, num_tokens=(100, 300), lasts_s=3, kill_every_s=0.5, back_after_s=1, warp=4)


@dataclass(frozen=True)
class Result:
    """What came of one scenario; each bar is (what, as measured, whether it holds)."""

    name: str
    tally: Tally
    bars: Sequence[tuple[str, str, bool]]

    @property
    def is_passed(self) -> bool:
        return all(holds for _, _, holds in self.bars)


@dataclass(frozen=True)
class Scene:
    """Where a scenario plays."""

    workers: Workers
    gateway: Gateway
    oracle: Oracle
    size: Size

    def crowd(self, seed: int, num_tokens: tuple[int, int]) -> Crowd:
        return Crowd(self.gateway.url, next(iter(self.gateway.keys.values())), self.oracle, num_tokens=num_tokens, seed=seed)

    async def order(self, **members: object) -> None:
        await asyncio.to_thread(self.workers.order, **members)

    async def asked(self) -> list[int]:
        """How many calls each worker has got so far."""
        state = await asyncio.to_thread(self.workers.state)
        return [worker["num_asked"] for worker in state["workers"]]

    async def counter(self, name: str) -> float:
        """A counter of the gateway, summed over its labels."""
        async with httpx.AsyncClient(verify=False) as http:
            page = (await http.get(self.gateway.metrics_url)).text
        return sum(float(value) for value in re.findall(rf"^{name}(?:\{{.*\}})? (\S+)$", page, re.MULTILINE))


def _common(tally: Tally) -> list[tuple[str, str, bool]]:
    return [
        ("answers", str(tally.num_answers), tally.num_answers > 0),
        ("failed calls", str(tally.num_failed), tally.num_failed == 0),
        ("wrong answers", str(tally.num_wrong), tally.num_wrong == 0),
    ]


async def kills(scene: Scene) -> Result:
    """Workers killed at random, back after a while, under streams that outlast several of them."""
    size = scene.size
    crowd = scene.crowd(1, size.num_tokens)
    before = await scene.counter("sluice_resumes_total")
    chaos = {"kind": "kill", "for_s": size.back_after_s * size.warp}
    await asyncio.to_thread(
        scene.workers.chaos, chaos, every_s=size.kill_every_s * size.warp, for_s=(size.lasts_s - 1) * size.warp
    )
    await crowd.run(size.num_streams, size.lasts_s)
    num_resumes = await scene.counter("sluice_resumes_total") - before
    return Result("workers killed at random", crowd.tally, [*_common(crowd.tally), _at_least_one("resumes", num_resumes)])


async def storm(scene: Scene) -> Result:
    """Half of the workers refuse everything, as if their queues were full."""
    size = scene.size
    sick = range(size.num_workers // 2)
    crowd = scene.crowd(2, (5, 20))
    counts: list[list[int]] = []

    async def disturb() -> None:
        await asyncio.sleep(1)
        await scene.order(kind="storm", worker=list(sick))
        await asyncio.sleep(SETTLES_S)
        counts.append(await scene.asked())

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(disturb())
        tasks.create_task(crowd.run(max(24, size.num_streams // 4), min(20.0, 1 + SETTLES_S + size.lasts_s)))
    counts.append(await scene.asked())
    await scene.order(kind="clear")
    got = [after - before for before, after in zip(*counts, strict=True)]
    share = sum(got[worker] for worker in sick) / max(1, sum(got))
    is_few = share < SICK_SHARE or max(got[worker] for worker in sick) <= 1  # one call each may be many of a few
    bars = [*_common(crowd.tally), (f"calls to the sick half from {SETTLES_S:g} s on", f"{share:.1%}", is_few)]
    return Result("half of the workers refuse with 503", crowd.tally, bars)


async def rolling_restart(scene: Scene) -> Result:
    """Every worker is drained as by SIGTERM, with too little time for its streams, and comes back."""
    size = scene.size
    crowd = scene.crowd(3, size.num_tokens)
    pause_s = size.lasts_s / size.num_workers
    before = [worker["num_starts"] for worker in scene.workers.state()["workers"]]

    async def disturb() -> None:
        for worker in range(size.num_workers):
            await scene.order(kind="drain", worker=worker, timeout_s=pause_s / 2 * size.warp)
            await asyncio.sleep(pause_s * 0.75)
            await scene.order(kind="restart", worker=worker)
            await asyncio.sleep(pause_s * 0.25)

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(disturb())
        tasks.create_task(crowd.run(size.num_streams // 2, size.lasts_s))
    num_restarted = 0
    for _ in range(200):  # the last one is ordered to start shortly before the streams end
        state = await asyncio.to_thread(scene.workers.state)
        num_restarted = sum(worker["num_starts"] > start for worker, start in zip(state["workers"], before, strict=True))
        if num_restarted == size.num_workers:
            break
        await asyncio.sleep(0.05)
    bar = ("workers restarted", str(num_restarted), num_restarted == size.num_workers)
    return Result("rolling restart", crowd.tally, [*_common(crowd.tally), bar])


async def bad_metrics(scene: Scene) -> Result:
    """One worker's metrics never come, another's say that it is idle: neither may become a hot spot."""
    size = scene.size
    crowd = scene.crowd(4, (10, 40))
    await scene.order(kind="hanging_metrics", worker=0)
    await scene.order(kind="lying_metrics", worker=1)
    before = await scene.asked()
    await crowd.run(size.num_workers * 6, min(20.0, size.lasts_s))
    got = [after - start for start, after in zip(before, await scene.asked(), strict=True)]
    await scene.order(kind="clear")
    hottest = max(got[:2]) / mean(got)
    bars = [*_common(crowd.tally), ("the hotter of the two beside the mean", f"{hottest:.2f} x", hottest <= HOT_SHARE)]
    return Result("metrics that hang or lie", crowd.tally, bars)


def _at_least_one(name: str, count: float) -> tuple[str, str, bool]:
    return name, f"{count:g}", count > 0


SCENARIOS: dict[str, Callable[[Scene], Awaitable[Result]]] = {
    "kills": kills,
    "storm": storm,
    "rolling": rolling_restart,
    "metrics": bad_metrics,
}
