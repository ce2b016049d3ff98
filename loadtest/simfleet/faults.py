"""Faults: what may be ordered, and what a worker that suffers from some of them does differently."""

from dataclasses import dataclass, field
from random import Random
from typing import Literal, TypeVar

import msgspec

from loadtest.simfleet.metrics import Reading
from loadtest.simfleet.replies import Mischief

_T = TypeVar("_T")
Kind = Literal[
    "kill",
    "restart",
    "slow_start",
    "drain",
    "engine_dead",
    "stall",
    "slow",
    "slow_first_token",
    "cut",
    "garbage",
    "storm",
    "stale_metrics",
    "lying_metrics",
    "hanging_metrics",
    "clear",
]


class Order(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """`POST /sim/fault`. Times are the worker's own seconds, that is before time warp."""

    kind: Kind
    worker: int | list[int] | Literal["all"] = "all"  # only the control port reads it
    after_s: float = 0.0  # not at once
    for_s: float | None = None  # then it is over by itself; for a worker that goes down: then it is back
    share: float = 1.0  # of the requests concerned (cut, garbage, storm, slow_first_token)
    events: int = 5  # cut, garbage: after so many events
    # cut: reset | close. kill: reset | close. slow_start: closed | unhealthy.
    # drain, what becomes of a reply that does not end in time: error (event) | abort (`finish_reason`) | hang
    # garbage: not_http (instead of a reply) | chunk (bytes that are no chunk) | broken_json (an event that is no JSON)
    how: str | None = None
    delay_s: float = 5.0  # slow_first_token
    factor: float = 4.0  # slow: every step takes so many times as long
    timeout_s: float | None = None  # drain: 0 aborts what runs, as SIGTERM does without --shutdown-timeout
    # lying_metrics
    running: float = 0.0
    waiting: float = 0.0
    kv_usage: float = 0.0


_HOW: dict[str, tuple[str, ...]] = {
    "cut": ("reset", "close"),
    "kill": ("reset", "close"),
    "slow_start": ("closed", "unhealthy"),
    "drain": ("error", "abort", "hang"),
    "garbage": ("not_http", "chunk", "broken_json"),
}


class Chaos(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """`POST /sim/chaos`: the same order to one worker after the other, chosen by lot among those that are up; the last
    one that is up is spared. Times as in `Order`."""

    order: Order
    every_s: float = 2.0
    for_s: float = 60.0
    seed: int = 0


class BadOrder(ValueError):
    """An order that makes no sense; the message says why."""


def parse_order(data: bytes) -> Order:
    """An order from JSON."""
    return _check(_decode(data, Order))


def parse_chaos(data: bytes) -> Chaos:
    """Chaos from JSON."""
    chaos = _decode(data, Chaos)
    if chaos.every_s <= 0:
        raise BadOrder(f"every_s is {chaos.every_s}: must be above 0")
    return msgspec.structs.replace(chaos, order=_check(chaos.order))


def parse_words(text: str) -> Order:
    """An order as one writes it on a command line: `kind=stall,worker=3,for_s=5`."""
    members: dict[str, object] = {}
    for pair in text.split(","):
        name, equals, value = pair.partition("=")
        if not equals:
            raise BadOrder(f"{pair!r} in {text!r} is not NAME=VALUE")
        members[name.strip()] = _number_or_text(value.strip())
    return parse_order(msgspec.json.encode(members))


def _number_or_text(value: str) -> object:
    for kind in (int, float):
        try:
            return kind(value)
        except ValueError:
            continue
    return value


def _decode(data: bytes, kind: type[_T]) -> _T:
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.ValidationError, msgspec.DecodeError) as error:
        raise BadOrder(str(error)) from error


def _check(order: Order) -> Order:
    ways = _HOW.get(order.kind, ())
    if order.how is not None and order.how not in ways:
        raise BadOrder(f"how={order.how!r} does not go with {order.kind}: one of {', '.join(ways) or 'none'}")
    if not 0 <= order.share <= 1 or order.factor <= 0 or order.after_s < 0 or (order.for_s or 0) < 0:
        raise BadOrder("share must be from 0 to 1, factor above 0, times not below 0")
    if order.how is None and ways:
        order = msgspec.structs.replace(order, how=ways[0])
    return order


@dataclass(slots=True)
class Suffering:
    """The faults in force on one worker; a kind that is ordered again replaces itself."""

    random: Random
    orders: dict[str, Order] = field(default_factory=dict)
    frozen_metrics: bytes | None = None

    def has(self, kind: Kind) -> bool:
        """Whether this fault is in force."""
        return kind in self.orders

    def hits(self, kind: Kind) -> Order | None:
        """The fault, if it is in force and hits the request at hand."""
        order = self.orders.get(kind)
        if order is None or (order.share < 1 and self.random.random() >= order.share):
            return None
        return order

    def mischief(self) -> Mischief | None:
        """What is to happen to a new stream."""
        if (order := self.hits("cut")) is not None:
            return Mischief(order.events, order.how or "reset")
        if (order := self.hits("garbage")) is not None and order.how != "not_http":
            return Mischief(order.events, order.how or "chunk")
        return None

    def delay_s(self) -> float:
        """How much later a new request reaches the engine."""
        order = self.hits("slow_first_token")
        return 0.0 if order is None else order.delay_s

    def reading(self, truth: Reading) -> Reading:
        """The load to report."""
        lie = self.orders.get("lying_metrics")
        return truth if lie is None else Reading(lie.running, lie.waiting, 0.0, lie.kv_usage)
