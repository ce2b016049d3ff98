"""Workers that a name resolves to: A, AAAA or SRV records, asked for again when they expire.

A resolver that does not answer, or answers with an error, keeps the last set. One that says that there is no such name or
no such record has spoken: nobody is there. (Then the workers are dropped once their probes agree: see `Membership`.)
Priority and weight of SRV records are not read: the route's policy knows more. The hosts file is not read either.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any

import dns.asyncresolver
import dns.exception
import dns.nameserver
import dns.resolver

from sluice.config import Dns
from sluice.config.base import split_address
from sluice.config.workers import HOST_NAME
from sluice.discovery.base import Discovery, Found

SHORTEST_S = 1.0  # between two questions, however short records live
LIFETIME_S = 5.0  # for one question to all nameservers
MAX_WORKERS = 1000


class DnsDiscovery(Discovery):
    def __init__(
        self,
        name: str,
        settings: Dns,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[Any]] = asyncio.sleep,
    ) -> None:
        super().__init__(name, clock)
        self._settings = settings
        self._sleep = sleep
        self._resolver = dns.asyncresolver.Resolver(configure=settings.nameserver is None)
        self._resolver.lifetime = LIFETIME_S
        if settings.nameserver is not None:
            host, port = split_address(settings.nameserver, 53)
            self._resolver.nameservers = [dns.nameserver.Do53Nameserver(host, port)]

    async def watch(self) -> AsyncGenerator[frozenset[Found], None]:
        while True:
            wait_s = self._settings.interval_s
            try:
                found, ttl_s = await self._resolved()
            except (dns.exception.DNSException, OSError) as exc:
                self.failed(f"{self._settings.name}: {_first_line(exc)}")
            else:
                self.confirmed()
                yield found
                wait_s = max(SHORTEST_S, min(wait_s, ttl_s))
            await self._sleep(wait_s * random.uniform(0.9, 1.1))

    async def _resolved(self) -> tuple[frozenset[Found], float]:
        """Who is there, and for how long that is good. Raises what dnspython raises where nobody could tell."""
        settings = self._settings
        try:
            answer = await self._resolver.resolve(settings.name, settings.record.upper(), search=True)
        except (dns.resolver.NXDOMAIN, dns.resolver.NoAnswer):
            return frozenset(), settings.interval_s
        urls = set()
        for record in list(answer)[:MAX_WORKERS]:
            if settings.record != "srv":
                urls.add(f"{settings.scheme}://{_host(record.address)}:{settings.port}")
            elif record.port and HOST_NAME.fullmatch(target := record.target.to_text(omit_final_dot=True)):  # "." is nobody
                urls.add(f"{settings.scheme}://{target}:{record.port}")
        return frozenset(Found(url) for url in urls), float(answer.chaining_result.minimum_ttl)


def _host(address: str) -> str:
    return f"[{address}]" if ":" in address else address


def _first_line(exc: BaseException) -> str:
    return (str(exc).splitlines() or [type(exc).__name__])[0][:200]
