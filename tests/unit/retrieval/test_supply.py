"""Vectors come to the process from a gateway's route, and no text, route or process can stop those of the others."""

import asyncio
import time
from array import array
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import msgspec
import pytest

from sluice.errors import BadRequest, RetrievalUnavailable, WorkerUnavailable
from sluice.retrieval import wire
from sluice.retrieval.base import Weights
from sluice.retrieval.process import SharedProcess
from sluice.retrieval.supply import LOOK_S, MAX_ATTEMPTS, VectorSupply
from tests.support import scripts
from tests.support.raw_server import RawServer, Request, Script

BATCH = wire.TakenBody("vs_1", "acme", (1, 2), ("good", "bad"))


class Embedder:
    """Of the length of the text and 1; what it is told to refuse, it refuses."""

    model_id = "minilm"
    weights = Weights()

    def __init__(self, *, refuses: Sequence[str] = (), fails: int = 0) -> None:
        self.refuses, self.fails = refuses, fails
        self.asked: list[tuple[str, ...]] = []

    async def embed(self, texts, *, tenant, kind, deadline):
        assert (tenant.name, kind) == ("acme", "passage") and deadline > time.monotonic()
        self.asked.append(tuple(texts))
        if self.fails:
            self.fails -= 1
            raise WorkerUnavailable("no worker")
        if set(texts) & set(self.refuses):
            raise BadRequest("too strange")
        return [[float(len(text)), 1.0] for text in texts]


class Process(RawServer):
    """The other side, which hands out one batch and notes what comes back."""

    def __init__(self, batch: wire.TakenBody | None = BATCH, *, put_status: int = 200) -> None:
        super().__init__()
        self._batches = [batch]
        self._put_status = put_status
        self.put: dict[int, list[float]] = {}
        self.failed: list[int] = []

    def script_for(self, request: Request) -> Script:
        if request.path == wire.TAKE_PATH:
            assert request.json()["model"] == "minilm"
            taken = self._batches.pop() if self._batches else None
            return scripts.reply(200, None if taken is None else msgspec.to_builtins(taken))
        given = msgspec.json.decode(request.body, type=wire.PutBody)
        if request.path == wire.FAIL_PATH:
            self.failed += given.ids
        elif self._put_status == 200:
            rows = array("f", given.vectors).tolist()
            self.put |= {id: rows[2 * at : 2 * at + 2] for at, id in enumerate(given.ids)}
        return scripts.reply(self._put_status if request.path == wire.PUT_PATH else 200, {})


class Naps:
    def __init__(self, until: int = 1000) -> None:
        self.taken: list[float] = []
        self._until = until

    async def __call__(self, seconds: float) -> None:
        self.taken.append(seconds)
        if len(self.taken) == self._until:
            raise asyncio.CancelledError


@asynccontextmanager
async def supply(server: RawServer, embedder: Embedder, naps: Naps) -> AsyncIterator[VectorSupply]:
    async with SharedProcess(server.url, "secret") as process:
        yield VectorSupply(process, embedder, timeout_s=5, clock=time.monotonic, sleep=naps)


async def turn(server: RawServer, embedder: Embedder, naps: Naps) -> None:
    async with supply(server, embedder, naps) as one:
        await one.turn()


async def test_what_waits_is_embedded_and_put():
    async with Process() as server:
        embedder = Embedder()
        await turn(server, embedder, Naps())
        await turn(server, embedder, Naps())  # nothing waits any more

    assert server.put == {1: [4.0, 1.0], 2: [3.0, 1.0]} and embedder.asked == [("good", "bad")]


async def test_a_text_that_is_refused_fails_alone():
    async with Process() as server:
        await turn(server, Embedder(refuses=["bad"]), Naps())

    assert server.put == {1: [4.0, 1.0]} and server.failed == [2]


async def test_vectors_that_the_store_does_not_take_end_the_waiting():
    async with Process(put_status=400) as server:
        await turn(server, Embedder(), Naps())

    assert server.failed == [1, 2]


async def test_a_route_that_is_down_is_asked_again_and_the_batch_given_back_in_the_end():
    naps = Naps()
    async with Process() as server:
        await turn(server, Embedder(fails=2), naps)
    assert len(server.put) == 2 and naps.taken == [2, 4]

    async with Process() as server:
        with pytest.raises(RetrievalUnavailable):
            await turn(server, Embedder(fails=MAX_ATTEMPTS), naps)
    assert server.put == {} and server.failed == []


async def test_the_loop_outlives_a_process_that_is_down(caplog):
    naps = Naps(until=3)
    async with Process(None) as server:
        pass  # and gone
    async with supply(server, Embedder(), naps) as one:
        with pytest.raises(asyncio.CancelledError):
            await one.run()

    assert naps.taken == [2, 4, 8] and len(caplog.records) == 1


async def test_the_loop_only_looks_while_there_is_nothing():
    class Nothing(SharedProcess):
        def has_data(self) -> bool:
            return False

    naps = Naps(until=2)
    process = Nothing("http://127.0.0.1:9", "secret")
    with pytest.raises(asyncio.CancelledError):
        await VectorSupply(process, Embedder(), timeout_s=5, clock=time.monotonic, sleep=naps).run()

    assert naps.taken == [LOOK_S, LOOK_S]


async def test_an_answer_of_another_kind_is_unavailable():
    class Strange(Process):
        def script_for(self, request: Request) -> Script:
            return scripts.reply(500, {}) if request.nth_on_connection == 1 else scripts.reply(200, "?")

    async with Strange() as server:
        async with supply(server, Embedder(), Naps()) as one:
            for _ in range(2):
                with pytest.raises(RetrievalUnavailable):
                    await one.turn()
