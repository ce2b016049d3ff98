"""A call that ends at any of its awaits, because its client leaves or its task is cancelled, leaves nothing behind.

The whole gateway is driven as one coroutine, from the first byte of the request to the last of the answer. It is stopped at
its first wait, then at its second, and so on until it runs through; each time its parts say what they still hold.
"""

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Generator
from contextlib import AsyncExitStack, asynccontextmanager
from math import inf
from typing import Any

import orjson
import pytest
import trustme
from prometheus_client import CollectorRegistry

from sluice.app import App, build
from sluice.config import Settings
from sluice.metrics import Metrics
from sluice.types import Endpoint
from sluice.upstream.connections import Connections
from sluice.worker import EngineLoad
from tests.support import scripts
from tests.support import vllm_shapes as vllm
from tests.support.raw_server import Connection, Request
from tests.support.scripted_worker import ScriptedWorker
from tests.unit.hot_path import ASK, CHAT, now, until

STREAM = ASK | {"stream": True}


class Steps:
    """Runs a coroutine and counts how often it waits. At the k-th time `act` is called while it does."""

    def __init__(self, coroutine: Coroutine[Any, Any, None], k: int, act: Callable[[], object]) -> None:
        self._coroutine = coroutine
        self._k = k
        self._act = act
        self.num_waits = 0

    def __await__(self) -> Generator[Any, Any, None]:
        error: BaseException | None = None
        while True:
            try:
                waits_for = self._coroutine.send(None) if error is None else self._coroutine.throw(error)
            except StopIteration:
                return
            self.num_waits += 1
            if self.num_waits == self._k:
                asyncio.get_running_loop().call_soon(self._act)
            error = None
            try:
                yield waits_for
            except BaseException as exc:  # noqa: BLE001 - whatever is thrown at the task is for the coroutine
                error = exc


class Visitor:
    """One request to the gateway, sent in two pieces, by a client that may leave."""

    def __init__(self, app: App, body: dict[str, Any]) -> None:
        data = orjson.dumps(body)
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(data))]
        self._app = app
        self._scope = {"type": "http", "http_version": "1.1", "method": "POST", "path": CHAT, "query_string": b"",
                       "headers": headers, "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 2)}  # fmt: skip
        self._pieces = [data[:10], data[10:]]
        self._gone = asyncio.Event()
        self.status = 0
        self.body = b""

    async def __call__(self, k: int = 0, how: str = "") -> bool:
        """Run to the end, or be stopped at the k-th wait. False: it was over before that."""
        task = asyncio.current_task()
        assert task is not None
        acts: dict[str, Callable[[], object]] = {"cancelled": task.cancel, "left": self._gone.set, "": lambda: None}
        steps = Steps(self._app.edge(self._scope, self._receive, self._send), k, acts[how])
        try:
            await steps
        except asyncio.CancelledError:
            assert how == "cancelled"
        return steps.num_waits >= k > 0

    async def _receive(self) -> dict[str, Any]:
        await asyncio.sleep(0)
        if self._gone.is_set() or not self._pieces:
            await self._gone.wait()
            return {"type": "http.disconnect"}
        return {"type": "http.request", "body": self._pieces.pop(0), "more_body": bool(self._pieces)}

    async def _send(self, message: Any) -> None:
        await asyncio.sleep(0)
        self.status = message.get("status", self.status)
        self.body += message.get("body", b"")


@asynccontextmanager
async def gateway(*workers: ScriptedWorker, hedge: dict[str, Any] | None = None, **workers_need: Any) -> AsyncIterator[App]:
    """A whole gateway without background loops, which asks its workers in their order."""
    urls = [worker.url for worker in workers]
    route = {"workers": {"static": urls} | workers_need, "policy": "tests.unit.hot_path:InOrder", "hedge": hedge or {}}
    settings = Settings.model_validate({"auth": {"mode": "open"}, "routes": {"smollm2": route}})
    app = build(settings, clock=now, log=None, metrics=Metrics(CollectorRegistry()))
    try:
        yield app
    finally:
        for connections in connections_of(app):
            connections.close()
        await until(lambda: all(repr(one).endswith("[0 open, 0 idle]>") for one in connections_of(app)))


def connections_of(app: App) -> list[Connections]:
    return [worker.connections for worker in app.routes["smollm2"].pool.workers]


def is_calm(connections: Connections) -> bool:
    """Every connection that is open is idle."""
    num_open, num_idle = repr(connections).partition("[")[2].removesuffix("]>").split(", ")
    return num_open.split()[0] == num_idle.split()[0]


async def holds_nothing(app: App, *workers: ScriptedWorker) -> None:
    assert repr(app.buffers).startswith("<Buffers 0 of ")
    assert repr(app.routes["smollm2"].pool).endswith(" 0 in flight]>")
    assert repr(app.routes["smollm2"].admission).endswith("[0 waiting | 0 started]>")
    await until(lambda: all(map(is_calm, connections_of(app))))
    for worker in workers:
        await worker.wait_idle()
    await until(lambda: asyncio.all_tasks() == {asyncio.current_task()})


# What a call may go through: each prepares the workers, and says what is asked and how often it waits at least.

Prepare = Callable[[App, list[ScriptedWorker]], Awaitable[None]]


async def fresh(app: App, workers: list[ScriptedWorker]) -> None:
    pass


async def reused(app: App, workers: list[ScriptedWorker]) -> None:
    """There is a kept connection."""
    await Visitor(app, ASK)()


async def replaced(app: App, workers: list[ScriptedWorker]) -> None:
    """There is a kept connection, and the worker resets it when it is used."""
    await reused(app, workers)
    workers[0].on_reuse = scripts.reset_before_any_byte


async def refused(app: App, workers: list[ScriptedWorker]) -> None:
    """The first worker is full."""
    workers[0].on(CHAT, scripts.queue_full())


async def queued(app: App, workers: list[ScriptedWorker]) -> None:
    """All slots are taken, until a moment later."""
    admission = app.routes["smollm2"].admission

    def grow(window: float) -> None:
        for worker in admission.pool.workers:
            worker.window = window
        admission.tick()

    grow(0)
    asyncio.get_running_loop().call_later(0.01, grow, inf)


async def broken(app: App, workers: list[ScriptedWorker]) -> None:
    """The stream breaks after two events, and goes on at the second worker."""
    workers[0].on(CHAT, scripts.chat_stream(after=2, ending="reset"))


async def broken_early(app: App, workers: list[ScriptedWorker]) -> None:
    """The stream breaks after its first event, which has no text, and begins anew at the second worker."""
    workers[0].on(CHAT, scripts.chat_stream(after=1, ending="reset"))


async def broken_twice(app: App, workers: list[ScriptedWorker]) -> None:
    """Nobody is left to continue it."""
    await broken(app, workers)
    workers[1].on(Endpoint.COMPLETIONS.value, scripts.reset_before_any_byte())


async def late(app: App, workers: list[ScriptedWorker]) -> None:
    """The first event is late at once, and the second copy the first to answer."""
    served = app.routes["smollm2"]
    assert served.hedging is not None
    workers[0].on(CHAT, scripts.never_answers())
    for _ in range(50):
        for bits in range(8):  # whatever the prompt is estimated at
            served.hedging.first_events.learn(2**bits, 0.0)
        served.hedging.count_call(now())
    for worker in served.pool.workers:
        worker.load = EngineLoad()


async def failing(app: App, workers: list[ScriptedWorker]) -> None:
    workers[0].on(CHAT, scripts.vllm_error(400))


async def trickling(app: App, workers: list[ScriptedWorker]) -> None:
    """Head, first event and the others each come on their own."""

    async def trickle(request: Request, connection: Connection) -> None:
        events = vllm.chat_events(vllm.content_deltas(), model="smollm2")
        for data in [scripts.head(200, scripts.STREAM_HEADERS), *map(scripts.chunk, events)]:
            await connection.send(data)
            for _ in range(10):
                await asyncio.sleep(0)
        await connection.send(b"0\r\n\r\n", last=True)

    workers[0].on(CHAT, trickle)


# Two waits for the body, one or two (by the event loop) to connect, one for the head and what comes with it, one to write.
CASES: list[tuple[Prepare, dict[str, Any], int, int]] = [
    (fresh, ASK, 200, 5),
    (fresh, STREAM, 200, 5),
    (trickling, STREAM, 200, 7),
    (reused, ASK, 200, 4),
    (replaced, ASK, 200, 6),
    (replaced, STREAM, 200, 6),
    (refused, ASK, 200, 7),
    (refused, STREAM, 200, 7),
    (queued, ASK, 200, 6),
    (queued, STREAM, 200, 6),
    (broken, STREAM, 200, 10),
    (broken_early, STREAM, 200, 7),
    (broken_twice, STREAM, 200, 10),
    (failing, ASK, 400, 5),
    (fresh, ASK | {"model": "nope"}, 404, 3),
]


@pytest.mark.parametrize("how", ["cancelled", "left"])
@pytest.mark.parametrize(("prepare", "body", "status", "min_waits"), CASES)
async def test_a_call_that_ends_at_any_wait_leaves_nothing_behind(prepare, body, status, min_waits, how):
    async with ScriptedWorker() as one, ScriptedWorker() as two, gateway(one, two) as app:
        num_waits = await stopped_everywhere(app, [one, two], prepare, body, status, how)
    assert num_waits >= min_waits


@pytest.mark.parametrize("how", ["cancelled", "left"])
async def test_nor_does_one_of_which_two_copies_are_on_their_way(how):
    async with ScriptedWorker() as one, ScriptedWorker() as two, gateway(one, two, hedge={"enabled": True}) as app:
        served = app.routes["smollm2"]
        assert served.hedging is not None
        assert await stopped_everywhere(app, [one, two], late, STREAM, 200, how) >= 6
        assert two.calls(CHAT)


async def test_nor_does_one_whose_worker_is_asked_over_tls(tmp_path):
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    async with AsyncExitStack() as stack:
        worker = await stack.enter_async_context(ScriptedWorker(tls=_server_tls(authority)))
        app = await stack.enter_async_context(gateway(worker, ca_file=tmp_path / "ca.pem"))
        for how in ("cancelled", "left"):
            assert await stopped_everywhere(app, [worker], fresh, ASK, 200, how) >= 5


async def stopped_everywhere(
    app: App, workers: list[ScriptedWorker], prepare: Prepare, body: dict[str, Any], status: int, how: str
) -> int:
    """Stop the call at its first wait, its second, and so on; how many there were."""
    k, is_stopped = 0, True
    while is_stopped:
        k += 1
        for connections in connections_of(app):
            connections.close()
        for worker in workers:
            await worker.until(lambda worker=worker: not worker.connections)
            worker.forget_scripts()
        for known in app.routes["smollm2"].pool.workers:
            known.ejection.reset()
            known.on_change()
        await prepare(app, workers)
        visitor = Visitor(app, body)
        is_stopped = await visitor(k, how)
        await holds_nothing(app, *workers)
    assert visitor.status == status
    return k - 1


def _server_tls(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    return context
