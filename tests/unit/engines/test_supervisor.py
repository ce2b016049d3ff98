"""The supervisor with real launchers and fake engines below them, and with time in the test's hand."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

from sluice.engines.base import CannotStart, Job
from sluice.engines.processes import kill_session
from sluice.engines.supervisor import MAX_CRASHES, START_TIMEOUT_S, Supervisor, ended_how
from tests.unit.engines.support import PATIENCE_S, Engines, VirtualClock, engines_at, wait_until_gone


class FirstLine:
    """A log whose first line is the reason, and its last one the stage."""

    def stage(self, text: str) -> str:
        return text.splitlines()[-1] if text else "nothing yet"

    def reason(self, text: str) -> str:
        return text.splitlines()[0] if text else "no reason"


async def never_healthy(url: str) -> bool:
    return False


class Told:
    """Remembers what was told, and lets a test wait for it."""

    def __init__(self) -> None:
        self.launched_pids: list[int] = []
        self.stages: list[str] = []
        self.crashes: asyncio.Queue[str] = asyncio.Queue()
        self.healths: asyncio.Queue[float] = asyncio.Queue()

    def launched(self, job: Job, pid: int) -> None:
        self.launched_pids.append(pid)

    def stage(self, job: Job, stage: str) -> None:
        self.stages.append(stage)

    def healthy(self, job: Job, after_s: float) -> None:
        self.healths.put_nowait(after_s)

    def crashed(self, job: Job, line: str) -> None:
        self.crashes.put_nowait(line)


class Bench:
    """One supervisor over fake engines."""

    def __init__(self, folder: Path, engines: Engines, num_jobs: int, grace_s: float) -> None:
        self.engines = engines
        self.clock = VirtualClock()
        self.told = Told()
        self.is_healthy = False
        self.log_path = folder / "worker-1.log"
        jobs = [
            Job(f"worker {n}", engines.command, os.environ, "", folder / f"worker-{n}.log", FirstLine())
            for n in range(1, num_jobs + 1)
        ]
        self.supervisor = Supervisor(
            jobs, is_healthy=self._health, kill_session=kill_session, notices=self.told, clock=self.clock, grace_s=grace_s
        )
        self.running = asyncio.create_task(self.supervisor.run())

    async def _health(self, url: str) -> bool:
        return self.is_healthy

    async def failure(self) -> str:
        async with asyncio.timeout(PATIENCE_S):
            with pytest.raises(CannotStart) as failed:
                await self.running
        return str(failed.value)

    async def crash(self) -> str:
        """The running engine ends; what was said of it."""
        (await self.engines.next()).tell("exit 3")
        return await self.told.crashes.get()


@asynccontextmanager
async def bench(folder: Path, num_jobs: int = 1, grace_s: float = 5) -> AsyncIterator[Bench]:
    async with engines_at(folder) as engines:
        bench = Bench(folder, engines, num_jobs, grace_s)
        try:
            yield bench
        finally:
            bench.running.cancel()
            with suppress(asyncio.CancelledError, CannotStart):
                await bench.running


async def test_a_worker_is_healthy_when_its_health_says_so(tmp_path: Path) -> None:
    async with bench(tmp_path) as at:
        await at.engines.next()
        await at.clock.pass_by()
        await at.clock.someone_sleeps()
        assert at.told.healths.empty()
        at.is_healthy = True
        await at.clock.pass_by()
        await at.supervisor.all_were_healthy()
        assert await at.told.healths.get() == 0.5


async def test_the_stages_of_a_start_are_told(tmp_path: Path) -> None:
    async with bench(tmp_path) as at:
        await (await at.engines.next()).ask("print loading the weights")
        await at.clock.pass_by()
        await at.clock.someone_sleeps()
        assert at.told.stages[-1] == "loading the weights"


async def test_a_worker_that_ends_while_loading_will_not_start(tmp_path: Path) -> None:
    async with bench(tmp_path) as at:
        engine = await at.engines.next()
        await engine.ask("print no such model")
        await engine.ask("print bye")
        engine.tell("exit 3")
        assert await at.failure() == (
            f"worker 1 ended while it was loading, exit code 3: no such model\n"
            f"The end of {at.log_path}:\n  no such model\n  bye"
        )


async def test_the_log_of_an_earlier_run_is_not_taken_for_the_reason(tmp_path: Path) -> None:
    (tmp_path / "worker-1.log").write_text("an old reason\n")
    async with bench(tmp_path) as at:
        (await at.engines.next()).tell("exit 3")
        assert "exit code 3: no reason" in await at.failure()


async def test_a_worker_that_never_gets_healthy_is_given_up(tmp_path: Path) -> None:
    async with bench(tmp_path) as at:
        engine = await at.engines.next()
        await at.clock.someone_sleeps()
        at.clock.jump(START_TIMEOUT_S + 1)
        await at.clock.pass_by()
        assert "worker 1 was not healthy after 30 minutes" in await at.failure()
        wait_until_gone(engine.pid)


async def test_a_worker_that_dies_is_started_again_and_said_so(tmp_path: Path) -> None:
    async with bench(tmp_path) as at:
        at.is_healthy = True
        engine = await at.engines.next()
        await at.told.healths.get()
        os.kill(engine.pid, signal.SIGKILL)
        assert await at.told.crashes.get() == (
            f"worker 1 killed by SIGKILL (out of memory?): no reason; starting it again in 1 s ({tmp_path / 'worker-1.log'})"
        )
        await at.clock.pass_by()
        assert (await at.engines.next()).pid != engine.pid
        await at.told.healths.get()


async def test_the_wait_before_a_restart_doubles(tmp_path: Path) -> None:
    async with bench(tmp_path) as at:
        at.is_healthy = True
        for wait_s in (1, 2, 4, 8):
            assert f"starting it again in {wait_s} s" in await at.crash()
            await at.clock.pass_by()
        assert at.clock.slept == [1, 2, 4, 8]


async def test_five_crashes_within_ten_minutes_end_it_with_the_reason(tmp_path: Path) -> None:
    async with bench(tmp_path) as at:
        at.is_healthy = True
        for _ in range(MAX_CRASHES - 1):
            await at.crash()
            await at.clock.pass_by()
        (await at.engines.next()).tell("exit 3")
        assert "worker 1 crashed 5 times within 10 minutes, the last time exit code 3: no reason" in await at.failure()


async def test_crashes_of_longer_ago_are_forgiven(tmp_path: Path) -> None:
    async with bench(tmp_path) as at:
        at.is_healthy = True
        for _ in range(2 * MAX_CRASHES):
            assert "starting it again in 1 s" in await at.crash()
            await at.clock.pass_by()
            at.clock.jump(601)


async def test_a_crash_while_loading_again_counts_too(tmp_path: Path) -> None:
    async with bench(tmp_path) as at:
        at.is_healthy = True
        await at.crash()
        at.is_healthy = False
        await at.clock.pass_by()
        assert "starting it again in 2 s" in await at.crash()


async def test_when_one_worker_is_given_up_the_others_end_too(tmp_path: Path) -> None:
    async with bench(tmp_path, num_jobs=2) as at:
        first, second = await at.engines.next(), await at.engines.next()
        first.tell("exit 3")
        await at.failure()
        wait_until_gone(second.pid)


async def test_cancelling_asks_every_worker_to_end_and_waits(tmp_path: Path) -> None:
    async with bench(tmp_path, num_jobs=2) as at:
        first, second = await at.engines.next(), await at.engines.next()
        at.running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await at.running
        wait_until_gone(first.pid)
        wait_until_gone(second.pid)


async def test_cancelling_while_a_restart_waits_ends_at_once(tmp_path: Path) -> None:
    async with bench(tmp_path) as at:
        at.is_healthy = True
        await at.crash()
        at.running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await at.running


async def test_a_launcher_that_was_killed_leaves_no_child(tmp_path: Path) -> None:
    async with bench(tmp_path) as at:
        at.is_healthy = True
        engine = await at.engines.next()
        await at.told.healths.get()
        child = int(await engine.ask("spawn"))
        os.kill(at.told.launched_pids[0], signal.SIGKILL)
        assert "killed by SIGKILL" in await at.told.crashes.get()
        wait_until_gone(engine.pid)
        wait_until_gone(child)


async def test_a_launcher_that_does_not_answer_is_killed_with_all_below_it(tmp_path: Path) -> None:
    async with bench(tmp_path, grace_s=0.2) as at:
        engine = await at.engines.next()
        child = int(await engine.ask("spawn"))
        [launcher] = at.told.launched_pids
        os.kill(launcher, signal.SIGSTOP)
        at.running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await at.running
        wait_until_gone(engine.pid)
        wait_until_gone(child)


async def test_a_mistake_of_ours_is_not_taken_for_a_worker_s(tmp_path: Path) -> None:
    class Broken(Told):
        def launched(self, job: Job, pid: int) -> None:
            raise LookupError("a bug")

    async with engines_at(tmp_path) as engines:
        job = Job("worker 1", engines.command, os.environ, "", tmp_path / "log", FirstLine())
        supervisor = Supervisor(
            [job], is_healthy=never_healthy, kill_session=kill_session, notices=Broken(), clock=VirtualClock()
        )
        with pytest.raises(ExceptionGroup, match="unhandled errors"):
            await supervisor.run()


@pytest.mark.parametrize(
    ("exit_code", "said"),
    [
        (0, "exit code 0"),
        (1, "exit code 1"),
        (139, "killed by SIGSEGV"),
        (137, "killed by SIGKILL (out of memory?)"),
        (-9, "killed by SIGKILL (out of memory?)"),
        (255, "exit code 255"),
    ],
)
def test_how_a_worker_ended_is_said_in_words(exit_code: int, said: str) -> None:
    assert ended_how(exit_code) == said
