"""What the tests of the hot path share: a route over scripted workers, a call, and a client that a test plays itself.

The workers are real HTTP servers on loopback; the policy picks them in their order, so that a test knows who is asked.
"""

import asyncio
import socket
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Self

import orjson

from sluice.admission.route import Admission
from sluice.asgi import Headers
from sluice.config import Route
from sluice.gateway import Gateway, Served
from sluice.hedge import Hedging
from sluice.policies.base import RoutingPolicy
from sluice.pool import Pool
from sluice.retry_budget import RetryBudget
from sluice.types import Call, Endpoint, Tenant
from sluice.upstream.connections import Connections
from sluice.worker import Worker
from tests.support.raw_server import RawServer
from tests.support.scripted_worker import ScriptedWorker

CHAT = Endpoint.CHAT.value
MODEL = "smollm2"
ASK = {"model": MODEL, "messages": [{"role": "user", "content": "Say hi"}]}
PATIENCE_S = 60.0


class InOrder(RoutingPolicy):
    """A policy that takes the first candidate."""

    def pick(self, candidates: Sequence[Worker], call: Call, now: float) -> Worker:
        return candidates[0]


class Line:
    """One route over `workers`, and the gateway that serves it. `settings` are those of the route."""

    def __init__(
        self,
        *workers: RawServer | str,
        policy: RoutingPolicy | None = None,
        retries: RetryBudget | None = None,
        **settings: Any,
    ) -> None:
        urls = [worker if isinstance(worker, str) else worker.url for worker in workers]
        self.settings = Route.model_validate({"workers": {"static": urls}} | settings)
        connect_s = self.settings.timeouts.connect_s
        self.workers = [Worker(url, Connections(url, connect_s=connect_s)) for url in urls]
        self.pool = Pool(MODEL, self.workers, policy or InOrder(), now)
        self.admission = Admission(self.pool, self.settings.queue, now)
        self.hedging = Hedging(self.settings.hedge) if self.settings.hedge.enabled else None
        self.served = Served(self.settings, self.pool, self.admission, retries=retries or RetryBudget(), hedging=self.hedging)
        self.routes = {MODEL: self.served}
        self.gateway = Gateway(self.routes, now)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        for worker in self.workers:
            worker.connections.close()
        await until(lambda: all("[0 open" in repr(worker.connections) for worker in self.workers))

    def call(self, *, stream: bool = False, **members: Any) -> Call:
        """A chat request of a client; `members` are the call's own."""
        asked = ASK | ({"stream": True, "stream_options": {"include_usage": True}} if stream else {})
        started_at = now()
        whole = {
            "id": "req-1",
            "tenant": Tenant("acme", "k1"),
            "route": MODEL,
            "endpoint": Endpoint.CHAT,
            "path": CHAT,
            "model": MODEL,
            "body": orjson.dumps(asked),
            "stream": stream,
            "started_at": started_at,
            "deadline": started_at + self.settings.timeouts.total_s,
        }
        return Call(**(whole | members))

    @property
    def held(self) -> list[str]:
        """What the line holds, as its parts say themselves."""
        return [repr(self.pool), *(repr(worker.connections) for worker in self.workers)]


@asynccontextmanager
async def line(num_workers: int = 1, **settings: Any) -> AsyncIterator[tuple[Line, *tuple[ScriptedWorker, ...]]]:
    """A line over so many scripted workers, and the workers."""
    workers = [ScriptedWorker() for _ in range(num_workers)]
    for worker in workers:
        await worker.start()
    try:
        async with Line(*workers, **settings) as made:
            yield made, *workers
    finally:
        for worker in workers:
            await worker.__aexit__()


class Client:
    """The way to a client that a test plays: it notes what came, may leave, and may stop reading."""

    def __init__(self, *, takes_chunks: bool = False) -> None:
        self.started = False
        self.is_gone = False
        self.is_paused = False
        self.on_pause: Callable[[], None] = _nothing
        self.on_resume: Callable[[], None] = _nothing
        self.write_chunk = self._unframe if takes_chunks else None
        self.num_chunks = 0  # of HTTP, that came as the worker framed them
        self._owner: asyncio.Task[Any] | None = None
        self._waiters: list[asyncio.Future[None]] = []
        # What came
        self.status = 0
        self.headers: Headers = []
        self.writes: list[bytes] = []
        self._body = bytearray()
        self.is_complete = False

    async def __aenter__(self) -> Self:
        self._owner = asyncio.current_task()
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._owner = None

    def respond(self, status: int, headers: Headers, body: bytes) -> None:
        self.start(status, headers, body)
        self.finish()

    def start(self, status: int, headers: Headers, first: bytes) -> None:
        assert not self.started, "started twice"
        self.started = True
        self.status, self.headers = status, headers
        self.write(first)

    def write(self, data: bytes) -> None:
        assert self.started and not self.is_complete, f"written at the wrong time: {data!r}"
        self.writes.append(data)
        self._body += data
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    def _unframe(self, chunk: bytes) -> None:
        size, data = chunk.removesuffix(b"\r\n").split(b"\r\n", 1)
        assert int(size, 16) == len(data)
        self.num_chunks += 1
        self.write(data)

    def finish(self, last: bytes = b"") -> None:
        assert self.started and not self.is_complete
        if last:
            self.write(last)
        self.is_complete = True

    # What tests do
    @property
    def body(self) -> bytes:
        return bytes(self._body)

    def leave(self) -> None:
        assert self._owner is not None
        self.is_gone = True
        self._owner.cancel()

    async def read_until(self, marker: bytes, times: int = 1) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while self._body.count(marker) < times:
                waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
                self._waiters.append(waiter)
                await waiter

    def json(self) -> Any:
        return orjson.loads(self.body)

    def header(self, name: str) -> str | None:
        return next((value.decode() for key, value in self.headers if key == name.encode()), None)


def now() -> float:
    """The clock of calls and of the event loop."""
    return asyncio.get_running_loop().time()


async def until(condition: Callable[[], object]) -> None:
    """Let the event loop turn until `condition()` holds: for what no event of a client or worker tells."""
    ends_at = now() + PATIENCE_S
    while not condition():
        assert now() < ends_at, "never"
        await asyncio.sleep(0)


@contextmanager
def full_backlog() -> Iterator[int]:
    """The port of a listener that has no room for one more connection."""
    with socket.socket() as listener, socket.socket() as first, socket.socket() as second:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for filler in (first, second):
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
        yield listener.getsockname()[1]


def _nothing() -> None:
    pass
