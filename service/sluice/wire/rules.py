"""What a route lets its clients ask, and what a request is once that has been applied."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Self

from sluice.config import Bounds, ConfigError, Route
from sluice.types import Prefix, PromptSize
from sluice.wire.cuts import Cut, cut
from sluice.wire.media import MediaHosts
from sluice.wire.sources import Ask

NO_STEERING: Mapping[str, str | int] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Rules:
    """What a route lets its clients ask; built once, at start."""

    bounds: Bounds = Bounds()
    media_hosts: MediaHosts = MediaHosts(())
    responses_store: bool = False

    @classmethod
    def of(cls, name: str, route: Route) -> Self:
        """The rules of the route called `name`; raises `ConfigError` for a media host that is none."""
        try:
            media_hosts = MediaHosts(route.media_hosts)
        except ValueError as exc:
            raise ConfigError(f"routes.{name}.media_hosts: {exc}") from exc
        return cls(route.bounds, media_hosts, route.responses_store)


@dataclass(slots=True)
class Prepared:
    """A request as it goes up, and what its cost is estimated by."""

    data: bytes  # as the client wrote it, but for the cuts
    cuts: tuple[Cut, ...]
    content_type: str
    stream: bool
    wants_usage: bool  # False: the usage event was our wish, the client must not see it
    num_prompts: int
    num_choices: int  # of each prompt
    max_tokens: int | None  # of each choice; None: as many as fit the context
    size: PromptSize
    user: str  # for whom the call is, as the client says; "" where it does not
    prefix: Prefix = Prefix()  # of the prompt, where it was asked for
    ask: Ask | None = None  # of retrieval, and where in the body its sources go

    @property
    def body(self) -> bytes:
        """What goes up: the very bytes of the client where nothing has to change."""
        return cut(self.data, self.cuts) if self.cuts else self.data
