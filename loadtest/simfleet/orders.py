"""Carries out fault orders: now or later, on one worker or several, and takes them back when their time is over."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from random import Random

from loadtest.simfleet.faults import BadOrder, Chaos, Order
from loadtest.simfleet.worker import State, Worker

_RETRY_WALL_S = 0.2
_FLUSH_WALL_S = 0.05
_ENGINE_DEATH_WALL_S = 0.2


class Desk:
    """Where orders are placed. Its state: the timers and starts under way; `close` ends them."""

    def __init__(self, warp: float) -> None:
        self._warp = warp
        self._loop = asyncio.get_running_loop()
        self._timers: set[asyncio.TimerHandle] = set()
        self._starts: set[asyncio.Task[None]] = set()
        self._starting: set[Worker] = set()
        self._begin: dict[str, Callable[[Worker, Order], None]] = {
            "kill": self._kill,
            "restart": self._restart,
            "slow_start": self._slow_start,
            "drain": self._drain,
            "engine_dead": self._engine_dead,
            "stall": lambda worker, order: worker.driver.stop(),
            "slow": lambda worker, order: self._slow(worker, order.factor),
            "cut": self._cut_running,
            "garbage": self._cut_running,
            "clear": self._clear,
        }
        self._undo: dict[str, Callable[[Worker], None]] = {
            "stall": lambda worker: worker.driver.go_on(),
            "slow": lambda worker: self._slow(worker, 1.0),
        }

    def place(self, order: Order, workers: Sequence[Worker]) -> None:
        """Carry an order out on these workers, after its delay."""
        for worker in workers:
            if order.after_s > 0:
                self._later(order.after_s, partial(self._carry_out, worker, order))
            else:
                self._carry_out(worker, order)

    def unleash(self, chaos: Chaos, workers: Sequence[Worker]) -> None:
        """Order the same again and again, of workers chosen by lot."""
        lot = Random(chaos.seed)
        rounds = int(chaos.for_s / chaos.every_s)

        def strike(left: int) -> None:
            up = [worker for worker in workers if worker.state is State.UP]
            if len(up) > 1:
                self.place(chaos.order, [lot.choice(up)])
            if left > 1:
                self._later(chaos.every_s, partial(strike, left - 1))

        if rounds > 0:
            self._later(chaos.every_s, partial(strike, rounds))

    def close(self) -> None:
        """Forget what was still to come."""
        for timer in self._timers:
            timer.cancel()
        for start in self._starts:
            start.cancel()

    def _carry_out(self, worker: Worker, order: Order) -> None:
        if worker.state is State.DOWN and order.kind not in ("restart", "slow_start", "clear"):
            return
        # Those that end a life are over with it; the others are in force until they are taken back.
        if order.kind not in ("kill", "restart", "drain", "engine_dead", "clear"):
            worker.suffering.orders[order.kind] = order
            if order.for_s is not None:
                self._later(order.for_s, lambda: self._take_back(worker, order))
        if order.kind in self._begin:
            self._begin[order.kind](worker, order)

    def _take_back(self, worker: Worker, order: Order) -> None:
        if worker.suffering.orders.get(order.kind) is not order:
            return  # ordered anew meanwhile, or cleared
        del worker.suffering.orders[order.kind]
        if order.kind == "stale_metrics":
            worker.suffering.frozen_metrics = None
        if order.kind in self._undo and worker.state is not State.DOWN:
            self._undo[order.kind](worker)

    def _clear(self, worker: Worker, order: Order) -> None:
        for current in list(worker.suffering.orders.values()):
            self._take_back(worker, current)
        if worker.state is State.DOWN:
            self._start(worker)

    def _kill(self, worker: Worker, order: Order) -> None:
        worker.stop(reset=order.how == "reset")
        self._start_later(worker, order.for_s)

    def _restart(self, worker: Worker, order: Order) -> None:
        if worker.state is not State.DOWN:
            worker.stop(reset=True)
        self._start_later(worker, order.for_s or 0.0)

    def _slow_start(self, worker: Worker, order: Order) -> None:
        if worker.state is not State.DOWN:
            worker.stop(reset=True)
        # Closed for that long, or open and unhealthy for that long.
        self._start_later(worker, order.for_s or 0.0 if order.how == "closed" else 0.0)

    def _drain(self, worker: Worker, order: Order) -> None:
        """SIGTERM. With time left replies go on, the port stays open and new ones are refused."""
        timeout_s = worker.config.shutdown_timeout_s if order.timeout_s is None else order.timeout_s
        exit_ = self._exit_of_this_life(worker, State.DRAINING, order)

        def time_is_up() -> None:
            if not exit_.is_due():
                return
            worker.server.stop_listening()
            if order.how == "hang":
                worker.driver.stop()
                worker.when_alone(exit_)
                return
            if order.how == "abort":
                worker.abort_all()
            else:
                worker.fail_all()
            self._later_wall(_FLUSH_WALL_S, exit_)

        worker.state = State.DRAINING
        if timeout_s == 0:
            time_is_up()
        else:
            self._later(timeout_s, time_is_up)
            worker.when_idle(lambda: self._later_wall(_FLUSH_WALL_S, exit_))

    def _engine_dead(self, worker: Worker, order: Order) -> None:
        """kill -9 of the engine's process: errors at once, and the server ends a little later."""
        worker.state = State.ENGINE_DEAD
        worker.fail_all()
        self._later_wall(_ENGINE_DEATH_WALL_S, self._exit_of_this_life(worker, State.ENGINE_DEAD, order))

    def _exit_of_this_life(self, worker: Worker, state: State, order: Order) -> "_Exit":
        def act() -> None:
            worker.stop(reset=False)
            self._start_later(worker, order.for_s)

        return _Exit(worker, state, worker.num_starts, act)

    def _slow(self, worker: Worker, factor: float) -> None:
        worker.engine.slowdown = factor

    def _cut_running(self, worker: Worker, order: Order) -> None:
        """Streams that run already are hit as well."""
        for reply in list(worker.replies):
            reply.expect(worker.suffering.mischief())

    def _start_later(self, worker: Worker, for_s: float | None) -> None:
        if for_s is not None:
            self._later(for_s, lambda: self._start(worker))

    def _start(self, worker: Worker) -> None:
        async def start() -> None:
            while worker.state is State.DOWN:
                try:
                    await worker.start()
                except OSError:
                    # Someone has the port for the moment: a client's own end of a connection may.
                    await asyncio.sleep(_RETRY_WALL_S)
            self._starting.discard(worker)

        if worker in self._starting:
            return
        self._starting.add(worker)
        task = self._loop.create_task(start())
        self._starts.add(task)
        task.add_done_callback(self._starts.discard)

    def _later(self, virtual_s: float, act: Callable[[], None]) -> None:
        self._later_wall(virtual_s / self._warp, act)

    def _later_wall(self, wall_s: float, act: Callable[[], None]) -> None:
        def run() -> None:
            self._timers.discard(timer)
            act()

        timer = self._loop.call_later(wall_s, run)
        self._timers.add(timer)


@dataclass(frozen=True)
class _Exit:
    """The end of a worker's process, if it is still the same one and still in that state."""

    worker: Worker
    state: State
    life: int
    act: Callable[[], None]

    def is_due(self) -> bool:
        return self.worker.num_starts == self.life and self.worker.state is self.state

    def __call__(self) -> None:
        if self.is_due():
            self.act()


def select(order: Order, workers: Sequence[Worker]) -> list[Worker]:
    """The workers an order is for."""
    if order.worker == "all":
        return list(workers)
    wanted = [order.worker] if isinstance(order.worker, int) else order.worker
    assert isinstance(wanted, list)
    if wrong := [index for index in wanted if not 0 <= index < len(workers)]:
        raise BadOrder(f"no worker {wrong[0]}: there are 0 to {len(workers) - 1}")
    return [workers[index] for index in wanted]
