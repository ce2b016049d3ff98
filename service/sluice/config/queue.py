"""The sections of what waits in front of a route's workers, and of how many gateways share them."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from sluice.config.base import Count, Positive, Seconds, Section


class Queue(Section):
    """The calls of a route that wait here, in our order, so that few wait in the engines, in theirs."""

    max_waiting: Count = 1000
    max_waiting_tokens: Positive = 10_000_000  # of the prompt, and twice those of the answer
    timeout_s: Seconds = 60
    engine_waiting: Count = 0  # how many may wait in an engine all the time, over all replicas
    start_in_flight: Positive = 256  # calls at one worker over all replicas, before its load was seen to be too high
    max_in_flight: Positive | None = None  # the same, whatever its load is
    spared_slots: Count = 1  # at each worker, by each gateway, for tenants who have fewer than their part
    max_kv_usage: Annotated[float, Field(ge=0, le=1)] = 0.95
    comments_s: Seconds | None = None  # tell waiting streams their place; commits a 200 early: later failures are events
    engine_priority: bool = False  # the workers run with --scheduling-policy priority


class Replicas(Section):
    """How many gateways share the workers: each takes its part of them."""

    count: Positive = 1
    dns: str | None = None  # a name with an address for each replica, such as a headless service
    refresh_s: Seconds = 10
    share_placements: bool = True  # where limits are in Redis: tell each other which prompts went where

    @property
    def are_several(self) -> bool:
        return self.count > 1 or self.dns is not None
