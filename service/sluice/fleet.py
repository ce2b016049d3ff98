"""All workers of all routes: how each is made, and what runs beside it as long as it is there."""

from __future__ import annotations

import os
import ssl
from collections.abc import Callable, Coroutine, Iterator, Mapping
from typing import Any

from sluice.config import Probes, Route, Settings
from sluice.discovery import discovery_of
from sluice.discovery.base import Found
from sluice.membership import Membership
from sluice.policies import policy_class
from sluice.pool import Pool
from sluice.probes import Prober
from sluice.upstream.connections import Connections, tls_context
from sluice.worker import Worker


class WorkerMaker:
    """Makes the workers of one route. What they share is made once: to read the system's authorities takes 0.1 s."""

    def __init__(self, route: Route, environment: Mapping[str, str]) -> None:
        self._workers = route.workers
        self._connect_s = route.timeouts.connect_s
        variable = route.workers.api_key_env
        self._api_key = environment.get(variable) if variable else None
        self._tls: ssl.SSLContext | None = None

    def __call__(self, found: Found) -> Worker:
        if found.url.startswith("https") and self._tls is None:
            self._tls = tls_context(self._workers.ca_file)
        server_name = self._workers.server_name
        if server_name is None and self._workers.dns is not None and self._workers.dns.record != "srv":
            server_name = self._workers.dns.name.rstrip(".")
        connections = Connections(
            found.url, api_key=self._api_key, tls=self._tls, server_name=server_name, connect_s=self._connect_s
        )
        return Worker(found.url, connections, identity=found.identity)


class Fleet:
    """The memberships of all routes. Raises `ConfigError` where the settings name what is not there."""

    def __init__(self, settings: Settings, clock: Callable[[], float], environment: Mapping[str, str] = os.environ) -> None:
        self.memberships = {
            name: _membership(name, route, settings.probes, clock, environment) for name, route in settings.routes.items()
        }

    @property
    def pools(self) -> Iterator[Pool]:
        return (membership.pool for membership in self.memberships.values())

    def close(self) -> None:
        """Cut every connection to a worker."""
        for pool in self.pools:
            for worker in pool.workers:
                worker.connections.close()


def _membership(
    name: str, route: Route, probes: Probes, clock: Callable[[], float], environment: Mapping[str, str]
) -> Membership:
    pool = Pool(name, (), policy_class(name, route.policy)(), clock)

    def companions(worker: Worker) -> Iterator[Coroutine[Any, Any, None]]:
        yield Prober(worker, probes, served_model=route.served_model or name).run()

    return Membership(pool, discovery_of(name, route.workers, clock), WorkerMaker(route, environment), companions)
