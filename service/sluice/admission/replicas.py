"""How many gateways share the workers: what the configuration says, or as many as a name has addresses.

Where the name cannot be resolved the last number that was known stays, and the log says so once. Too small a number costs
order (calls wait in the engines instead of here), too large a one costs nothing but time: windows grow beyond their share
where the engines have room.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable

from sluice.config import Replicas

logger = logging.getLogger("sluice.admission")

Resolve = Callable[[str], Awaitable[set[str]]]


class ReplicaCount:
    """The number of gateways, this one included."""

    def __init__(self, settings: Replicas) -> None:
        self._settings = settings
        self._is_lost = False
        self.number = settings.count

    @property
    def share(self) -> float:
        return 1 / self.number

    async def watch(self, sleep: Callable[[float], Awaitable[object]] = asyncio.sleep, resolve: Resolve | None = None) -> None:
        """Follow the name until cancelled; where there is none, there is nothing to follow."""
        name = self._settings.dns
        while name is not None:
            await self.refresh(name, resolve or addresses_of)
            await sleep(self._settings.refresh_s)

    async def refresh(self, name: str, resolve: Resolve) -> None:
        try:
            found = await resolve(name)
        except OSError as exc:
            if not self._is_lost:
                logger.warning("replicas: %s is not resolved, still counting %d: %s", name, self.number, exc)
            self._is_lost = True
            return
        self._is_lost = False
        self.number = max(1, len(found))


async def addresses_of(name: str) -> set[str]:
    found = await asyncio.get_running_loop().getaddrinfo(name, None, type=socket.SOCK_STREAM)
    return {str(address[0]) for *_, address in found}
