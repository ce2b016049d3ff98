"""Where the workers of a route are: one file a way to find them, taken from the route's `workers`."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

from sluice.config import Workers
from sluice.discovery.base import Discovery
from sluice.discovery.managed import ManagedDiscovery
from sluice.discovery.static import StaticDiscovery
from sluice.loading import load

# Loaded where they are used: they bring libraries with them.
DNS = "sluice.discovery.dns:DnsDiscovery"
KUBERNETES = "sluice.discovery.kubernetes:KubernetesDiscovery"


def discovery_of(route: str, workers: Workers, clock: Callable[[], float]) -> Discovery:
    """What finds the workers of a route; raises `ConfigError` where that cannot work here at all."""
    name = f"routes.{route}.workers"
    if workers.static is not None:
        return StaticDiscovery(name, workers.static)
    if workers.managed is not None:
        return ManagedDiscovery(name, route, workers.managed, clock)
    if workers.dns is not None:
        return cast(Discovery, load(DNS, setting=name)(name, workers.dns, clock))
    return cast(Discovery, load(KUBERNETES, setting=name)(name, workers.kubernetes, clock))
