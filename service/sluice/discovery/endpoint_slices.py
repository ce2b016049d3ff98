"""What the EndpointSlices of a Service say of its pods, merged to one set of workers.

A slice may hold a part of the pods, pods may stand in two slices while they move, and a dual-stack Service lists every pod
once a family. What a slice says wrongly is left out: the API server is trusted, but versions differ.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping
from typing import Any

from sluice.config import Kubernetes
from sluice.discovery.base import Found

MAX_ENDPOINTS = 10_000


def merged(slices: Iterable[Mapping[str, Any]], settings: Kubernetes) -> frozenset[Found]:
    """One worker a pod, at its IPv4 address where it has two.

    A pod that terminates or is not ready drains: running calls stay, nothing new comes. Of two pods at one address the one
    that takes calls is meant; of two entries of one pod, the one that says it is ready.
    """
    by_url: dict[str, Found] = {}
    url_of_pod: dict[str, str] = {}
    for found, _ in sorted(_endpoints(slices, settings), key=lambda one: (one[1], one[0].is_draining, one[0].url)):
        if found.identity and url_of_pod.setdefault(found.identity, found.url) != found.url:
            continue
        by_url.setdefault(found.url, found)
    return frozenset(by_url.values())


def _endpoints(slices: Iterable[Mapping[str, Any]], settings: Kubernetes) -> list[tuple[Found, bool]]:
    found: list[tuple[Found, bool]] = []
    for one in slices:
        port = settings.port or _port(one.get("ports"), settings.port_name)
        if port is None:
            continue
        for endpoint in _list(one.get("endpoints"))[: MAX_ENDPOINTS - len(found)]:
            conditions = _mapping(endpoint.get("conditions"))
            is_draining = conditions.get("terminating") is True or conditions.get("ready") is False
            uid = _mapping(endpoint.get("targetRef")).get("uid")
            for address in _addresses(endpoint):
                host = f"[{address}]" if address.version == 6 else str(address)
                url = f"{settings.scheme}://{host}:{port}"
                found.append((Found(url, uid if isinstance(uid, str) else "", is_draining), address.version == 6))
    return found


def _port(ports: Any, name: str | None) -> int | None:
    """The port of that name; the first one where no name is asked for."""
    for port in _list(ports):
        number = port.get("port")
        is_meant = port.get("protocol", "TCP") == "TCP" and name in (None, port.get("name"))
        if is_meant and type(number) is int and 0 < number < 65_536:
            return number
    return None


def _addresses(endpoint: Mapping[str, Any]) -> list[ipaddress.IPv4Address | ipaddress.IPv6Address]:
    """The first one: the others are promised to be the same pod."""
    addresses = endpoint.get("addresses")
    try:
        # Without a scope: one that is local to a link is nowhere we could send to.
        return [ipaddress.ip_address(str(addresses[0]).partition("%")[0])] if isinstance(addresses, list) else []
    except (ValueError, IndexError):
        return []


def _list(value: Any) -> list[Mapping[str, Any]]:
    return [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}
