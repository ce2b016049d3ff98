"""Workers that the configuration names: always the same."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterable

from sluice.discovery.base import Discovery, Found


class StaticDiscovery(Discovery):
    def __init__(self, name: str, urls: Iterable[str]) -> None:
        super().__init__(name)
        self.initial = tuple(Found(url) for url in urls)

    async def watch(self) -> AsyncGenerator[frozenset[Found], None]:
        yield frozenset(self.initial)
        await asyncio.Event().wait()
