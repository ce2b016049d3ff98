"""A fleet: N workers in one process, and a control port that lists them and takes fault orders."""

import asyncio
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import zmq

from loadtest.simfleet import api
from loadtest.simfleet.config import WorkerConfig
from loadtest.simfleet.faults import BadOrder, Order, parse_chaos, parse_order
from loadtest.simfleet.http_server import HttpServer, Reply, Request
from loadtest.simfleet.orders import Desk, select
from loadtest.simfleet.text import Author, Style
from loadtest.simfleet.tokenizer import Tokenizer
from loadtest.simfleet.worker import KvEndpoints, State, Worker

_CLOSING_TURNS = 5


@dataclass(frozen=True)
class FleetConfig:
    """How many workers and where. A port of 0 takes free ones; else worker i has port + i."""

    worker: WorkerConfig
    num_workers: int = 1
    host: str = "127.0.0.1"
    port: int = 0
    control_port: int = 0
    kv_events_port: int | None = None  # None: no KV events
    kv_replay_port: int | None = None
    kv_topic: str = "kv"
    warp: float = 1.0
    seed: int = 0
    style: Style = Style()


class Fleet:
    """Up for as long as it is entered (`async with`)."""

    def __init__(self, config: FleetConfig, author: Author | None = None) -> None:
        """`author`: the model of a fleet with the same `style`, so as not to build its vocabulary again."""
        self.config = config
        self._author = Author(Tokenizer(), config.style) if author is None else author
        self.workers: list[Worker] = []
        self.desk = Desk(config.warp)
        self._zmq: zmq.Context[zmq.Socket[bytes]] | None = None
        self._control = HttpServer(self._handle_control, keep_alive_s=60.0)
        self._control_port = config.control_port

    async def __aenter__(self) -> Self:
        config = self.config
        if config.kv_events_port is not None:
            self._zmq = zmq.Context(io_threads=1)
        try:
            self._control_port = await self._control.open(config.host, config.control_port)
            for index in range(config.num_workers):
                worker = Worker(
                    index,
                    config.worker,
                    self._author,
                    host=config.host,
                    port=config.port + index if config.port else 0,
                    warp=config.warp,
                    seed=config.seed,
                    kv_endpoints=self._kv_endpoints(index),
                    handle=self._handle_worker,
                )
                self.workers.append(worker)
                await worker.start()
        except BaseException:
            self._close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()
        # Connections that were aborted, or accepted just now, are gone after a few turns of the loop.
        for _ in range(_CLOSING_TURNS):
            await asyncio.sleep(0)

    @property
    def control_url(self) -> str:
        return f"http://{self.config.host}:{self._control_port}"

    def describe(self) -> dict[str, Any]:
        """Where everything is: the ready line of the command, and `GET /sim/fleet`."""
        workers = []
        for worker in self.workers:
            entry: dict[str, Any] = {"index": worker.index, "url": worker.url}
            if worker.kv_endpoints is not None:
                entry["kv_events"] = worker.kv_endpoints.endpoint
                entry["kv_replay"] = worker.kv_endpoints.replay_endpoint
            workers.append(entry)
        return {"control": self.control_url, "model": self.config.worker.model_name, "workers": workers}

    def state(self) -> dict[str, Any]:
        """How everything is: `GET /sim/state`."""
        return {"workers": [state_of(worker) for worker in self.workers]}

    def _kv_endpoints(self, index: int) -> KvEndpoints | None:
        config = self.config
        if self._zmq is None or config.kv_events_port is None:
            return None

        def endpoint(port: int) -> str:
            return f"tcp://{config.host}:{port + index if port else '*'}"

        replay = None if config.kv_replay_port is None else endpoint(config.kv_replay_port)
        return KvEndpoints(self._zmq, endpoint(config.kv_events_port), replay, config.kv_topic)

    def _close(self) -> None:
        self.desk.close()
        self._control.close(reset=False)
        for worker in self.workers:
            if worker.state is not State.DOWN:
                worker.stop(reset=False)
        if self._zmq is not None:
            self._zmq.destroy(linger=0)

    def _handle_worker(self, worker: Worker, request: Request, reply: Reply) -> None:
        if not request.path.startswith("/sim/"):
            api.handle(worker, request, reply)
        elif (request.method, request.path) == ("POST", "/sim/fault"):
            self._order(request, reply, [worker])
        elif (request.method, request.path) == ("GET", "/sim/state"):
            reply.json(200, state_of(worker))
        else:
            reply.json(404, {"detail": "Not Found"})

    def _handle_control(self, request: Request, reply: Reply) -> None:
        route = (request.method, request.path)
        if route == ("POST", "/sim/fault"):
            self._order(request, reply, None)
        elif route == ("POST", "/sim/chaos"):
            self._unleash(request, reply)
        elif route == ("GET", "/sim/fleet"):
            reply.json(200, self.describe())
        elif route == ("GET", "/sim/state"):
            reply.json(200, self.state())
        elif route == ("GET", "/health"):
            reply.send(200, b"", None)
        else:
            reply.json(404, {"detail": "Not Found"})

    def _order(self, request: Request, reply: Reply, workers: list[Worker] | None) -> None:
        try:
            order = parse_order(request.body)
            chosen = select(order, self.workers) if workers is None else workers
        except BadOrder as error:
            reply.json(400, {"error": str(error)})
            return
        # Answered first: the order may be the end of this very connection.
        reply.json(200, {"ordered": order.kind, "workers": [worker.index for worker in chosen]})
        asyncio.get_running_loop().call_soon(self.desk.place, order, chosen)

    def place(self, order: Order) -> None:
        """Carry out an order that names its workers. BadOrder if there are none such."""
        self.desk.place(order, select(order, self.workers))

    def _unleash(self, request: Request, reply: Reply) -> None:
        try:
            chaos = parse_chaos(request.body)
        except BadOrder as error:
            reply.json(400, {"error": str(error)})
            return
        self.desk.unleash(chaos, self.workers)
        reply.json(200, {"ordered": chaos.order.kind, "times": int(chaos.for_s / chaos.every_s)})


def state_of(worker: Worker) -> dict[str, Any]:
    """One worker, for a console or a test."""
    scheduler, stats = worker.engine.scheduler, worker.engine.stats
    return {
        "index": worker.index,
        "url": worker.url,
        "state": worker.state.value,
        "faults": sorted(worker.suffering.orders),
        "replies": len(worker.replies),
        "running": len(scheduler.running),
        "waiting": len(scheduler.waiting),
        "kv_usage": round(worker.engine.cache.usage, 4),
        "cache_hit_rate": round(stats.cache_hits / max(stats.cache_queries, 1), 4),
        "generation_tokens": stats.generation_tokens,
        "preemptions": stats.num_preemptions,
        "num_starts": worker.num_starts,
        "num_asked": worker.num_asked,
        "worst_lag_ms": round(worker.driver.worst_lag_s * 1e3, 1),
    }
