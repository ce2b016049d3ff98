"""Scraping a worker's load: what is believed, what is not, and what it costs nobody."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager

import pytest

from sluice.config import Probes
from sluice.scraper import FROZEN_S, LOW_READINGS, Scraper
from sluice.upstream.connections import Connections
from sluice.worker import EngineLoad, Worker
from tests.support import scripts
from tests.support.raw_server import Script
from tests.support.scripted_worker import ScriptedWorker

PATIENT = Probes(timeout_s=10)
SHORT = Probes(timeout_s=0.05, load_interval_s=0.25)


def page(running: float = 0, waiting: float = 0, *, tokens: float = 0, awake: float = 1, blocks: str = "None") -> Script:
    text = f"""# vllm
vllm:num_requests_running{{engine="0"}} {running}
vllm:num_requests_waiting{{engine="0"}} {waiting}
vllm:engine_sleep_state{{engine="0",sleep_state="awake"}} {awake}
vllm:kv_cache_usage_perc{{engine="0"}} 0.5
vllm:prompt_tokens_total{{engine="0"}} {tokens}
vllm:cache_config_info{{block_size="16",num_gpu_blocks="{blocks}"}} 1.0
"""
    return scripts.reply(200, text.encode(), content_type="text/plain")


class Scraped:
    """A worker that is scraped by hand, at times that the test sets."""

    def __init__(self, scripted: ScriptedWorker, settings: Probes) -> None:
        self.scripted = scripted
        self.worker = Worker(scripted.url, Connections(scripted.url))
        self.now = 0.0
        self.num_restarts = 0
        self.caches: list[tuple[int, int]] = []
        self.scraper = Scraper(
            self.worker,
            settings,
            lambda: self.now,
            on_restart=self._restarted,
            on_cache=lambda *size: self.caches.append(size),
        )

    def _restarted(self) -> None:
        self.num_restarts += 1

    async def see(self, script: Script, at: float = 0.0) -> EngineLoad | None:
        self.scripted.on("/metrics/", script)
        self.scripted.on("/metrics", script)
        self.now = at
        await self.scraper.scrape()
        return self.worker.load


@asynccontextmanager
async def scraped(settings: Probes = PATIENT) -> AsyncIterator[Scraped]:
    async with ScriptedWorker() as scripted:
        one = Scraped(scripted, settings)
        try:
            yield one
        finally:
            one.worker.connections.close()


async def test_the_load_is_what_the_engine_says_and_what_was_ours_then():
    async with scraped() as one:
        with one.worker.lease(), one.worker.lease():
            assert await one.see(page(5, 2), 7.0) == EngineLoad(5, 2, 2, 0.5, 7.0, 2)
        [request] = one.scripted.requests
        assert request.target.startswith("/metrics/?name%5B%5D=vllm%3Anum_requests_running&")


@pytest.mark.parametrize("script", [scripts.reply(200, b"# nothing", content_type="text/plain"), scripts.empty(404)])
async def test_a_worker_that_cannot_choose_is_asked_for_the_whole_page(script):
    async with scraped() as one:
        assert await one.see(script) is None
        assert await one.see(page(1)) is not None
        assert [request.target.partition("?")[1] for request in one.scripted.requests] == ["?", ""]


@pytest.mark.parametrize(
    "script",
    [
        scripts.never_answers(),
        scripts.empty(503),
        scripts.garbage(),
        scripts.reset_before_any_byte(),
        scripts.reply(200, b"# nothing of it", content_type="text/plain"),
    ],
)
async def test_a_load_that_cannot_be_read_is_unknown_after_a_while(script, caplog):
    async with scraped(SHORT) as one:
        assert await one.see(page(1)) is not None
        assert await one.see(script, 1.0) is not None
        assert await one.see(script, 1.1) is None
        assert "load unknown" in caplog.text and len(caplog.records) == 1
        assert await one.see(page(1, tokens=1), 9.0) is not None


@pytest.mark.parametrize(("running", "waiting"), [(-1, 0), ("NaN", 0), (0, "+Inf"), (1e9, 0)])
async def test_numbers_that_cannot_be_are_believed_at_no_time(running, waiting, caplog):
    async with scraped() as one:
        assert await one.see(page(1)) is not None
        for at in (0.1, 0.2):
            assert await one.see(page(running, waiting), at) is None
        assert len(caplog.records) == 1 and "not to be believed" in caplog.text


async def test_a_worker_that_reports_fewer_calls_than_we_have_there_is_not_believed():
    async with scraped() as one:
        with ExitStack() as calls:
            for _ in range(10):
                calls.enter_context(one.worker.lease())
            seen = [await one.see(page(0, tokens=at), at) for at in range(LOW_READINGS + 1)]
            assert [load is None for load in seen] == [False] * LOW_READINGS + [True]
            assert await one.see(page(5, tokens=99), 9.0) is not None


async def test_calls_that_just_came_are_not_held_against_it():
    async with scraped() as one:
        await one.see(page(0))
        for at in range(1, 9):
            with one.worker.lease(), one.worker.lease(), one.worker.lease():
                pass
            assert await one.see(page(0, tokens=at), float(at)) is not None


async def test_an_engine_that_has_work_and_computes_nothing_is_not_believed(caplog):
    async with scraped() as one:
        assert await one.see(page(3, tokens=100), 0.0) is not None
        assert await one.see(page(3, tokens=100), FROZEN_S) is not None
        assert await one.see(page(3, tokens=100), FROZEN_S + 1) is None
        assert "have stopped, or its engine has" in caplog.text
        assert await one.see(page(3, tokens=101), FROZEN_S + 2) is not None


async def test_an_engine_that_has_nothing_to_do_may_stand_still():
    async with scraped() as one:
        for at in (0.0, 100.0, 200.0):
            assert await one.see(page(0, tokens=5), at) is not None


async def test_an_engine_that_begins_anew_is_told():
    async with scraped() as one:
        await one.see(page(tokens=100, blocks="1000"))
        await one.see(page(tokens=100, blocks="1000"))
        assert (one.num_restarts, one.caches) == (0, [(16, 1000)])
        await one.see(page(tokens=3, blocks="1000"))
        assert (one.num_restarts, one.caches) == (1, [(16, 1000), (16, 1000)])


async def test_sleep_is_told():
    async with scraped() as one:
        await one.see(page(awake=0))
        assert one.worker.is_asleep
        await one.see(page(awake=1))
        assert not one.worker.is_asleep


async def test_a_worker_that_is_down_is_not_asked():
    async with scraped() as one:
        await one.see(page(1))
        one.worker.judge(is_healthy=False)
        assert await one.see(page(1)) is None
        assert len(one.scripted.requests) == 1


async def test_it_begins_at_a_moment_of_its_own_and_goes_on_until_it_is_cancelled():
    naps: list[float] = []

    async def sleep(seconds: float) -> None:
        naps.append(seconds)
        if len(naps) == 4:
            raise asyncio.CancelledError

    async with scraped(Probes(load_interval_s=0.2)) as one:
        one.scripted.on("/metrics/", page(1))
        with pytest.raises(asyncio.CancelledError):
            await one.scraper.run(sleep)
    assert 0 <= naps[0] <= 0.2 and naps[1:] == [0.2, 0.2, 0.2]
    assert len(one.scripted.requests) == 3
