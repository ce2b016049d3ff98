"""All workers of all routes: how each is made, and what runs beside it as long as it is there."""

from __future__ import annotations

import os
from collections.abc import Callable, Coroutine, Iterator, Mapping
from functools import partial
from importlib import import_module
from typing import Any

from sluice.config import Probes, Route, Settings
from sluice.discovery import discovery_of
from sluice.discovery.base import Found
from sluice.fleet_metrics import PoolRow, WorkerRow
from sluice.membership import Membership
from sluice.policies import policy_class
from sluice.pool import Pool
from sluice.probes import Prober
from sluice.scraper import Scraper
from sluice.upstream.connections import Connections, tls_context
from sluice.worker import Worker

KV_EVENTS = "sluice.kv_events"  # imported where it is used: it brings ZeroMQ


class WorkerMaker:
    """Makes the workers of one route. What they share is made once: to read the system's authorities takes 0.1 s.

    Raises `ConfigError` where the route's `ca_file` is none.
    """

    def __init__(self, route: Route, probes: Probes, environment: Mapping[str, str]) -> None:
        self._workers = route.workers
        self._asks_orca = probes.ask_orca
        self._connect_s = route.timeouts.connect_s
        variable = route.workers.api_key_env
        self._api_key = environment.get(variable) if variable else None
        ways = (self._workers.dns, self._workers.kubernetes)
        urls = [*(self._workers.static or ()), *(way.scheme for way in ways if way is not None)]
        is_tls = any(url.startswith("https") for url in urls)
        self._tls = tls_context(self._workers.ca_file) if is_tls else None

    def __call__(self, found: Found) -> Worker:
        server_name = self._workers.server_name
        if server_name is None and self._workers.dns is not None and self._workers.dns.record != "srv":
            server_name = self._workers.dns.name.rstrip(".")
        connections = Connections(
            found.url, api_key=self._api_key, tls=self._tls, server_name=server_name, connect_s=self._connect_s
        )
        worker = Worker(found.url, connections, identity=found.identity)
        worker.asks_orca = self._asks_orca
        return worker


class Fleet:
    """The memberships of all routes. Raises `ConfigError` where the settings name what is not there."""

    def __init__(self, settings: Settings, clock: Callable[[], float], environment: Mapping[str, str] = os.environ) -> None:
        self._probes = settings.probes
        self._clock = clock
        self._environment = environment
        self._zmq: Any = None  # ZeroMQ's context, where somebody wants events
        self.memberships = {name: self._membership(name, route) for name, route in settings.routes.items()}

    @property
    def pools(self) -> Iterator[Pool]:
        return (membership.pool for membership in self.memberships.values())

    def close(self) -> None:
        """Cut every connection to a worker."""
        for pool in self.pools:
            for worker in pool.workers:
                worker.connections.close()
        if self._zmq is not None:
            self._zmq.destroy(linger=0)

    def worker_rows(self) -> Iterator[WorkerRow]:
        """For the metrics."""
        for pool in self.pools:
            for worker in pool.workers:
                load = worker.load
                told = (None, None, None) if load is None else (load.num_running, load.num_waiting, load.kv_usage)
                row = WorkerRow(pool.route, worker.url, worker.in_flight, bool(worker.is_healthy), worker.state, *told)
                yield row._replace(num_tokens=worker.num_tokens, num_tokens_charged=worker.num_tokens_charged)

    def pool_rows(self) -> Iterator[PoolRow]:
        """For the metrics."""
        for membership in self.memberships.values():
            pool, discovery = membership.pool, membership.discovery
            age_s = None if discovery.confirmed_at is None else self._clock() - discovery.confirmed_at
            yield PoolRow(pool.route, age_s, discovery.num_failures, len(membership.doubted), pool.uses_ejected)

    def _membership(self, name: str, route: Route) -> Membership:
        pool = Pool(name, (), policy_class(name, route.policy)(), self._clock)
        discovery = discovery_of(name, route.workers, self._clock)
        return Membership(
            pool,
            discovery,
            WorkerMaker(route, self._probes, self._environment),
            partial(self._companions, route, pool),
            self._clock,
        )

    def _companions(self, route: Route, pool: Pool, worker: Worker) -> Iterator[Coroutine[Any, Any, None]]:
        """What runs beside a worker."""
        probes, clock = self._probes, self._clock
        yield Prober(worker, probes, served_model=route.served_model or pool.route).run()
        forget = partial(pool.forget, worker)

        def sized(block_size: int, num_blocks: int) -> None:
            worker.cache = worker.cache._replace(block_size=block_size, num_blocks=num_blocks)
            pool.cache_changed(worker)

        if probes.load_interval_s is not None:
            yield Scraper(worker, probes, clock, on_restart=forget, on_cache=sized).run()
        if route.workers.kv_events:
            kv_events = import_module(KV_EVENTS)
            self._zmq = self._zmq or kv_events.new_context()
            told = partial(pool.cache_changed, worker)
            yield kv_events.KvEvents(worker, self._zmq, route.workers, probes, clock, on_empty=forget, on_rates=told).run()
