"""What light tenants notice of a heavy one, in virtual time: a queue before slots that each serve one call after another."""

import heapq
import random
from collections.abc import Iterator

import pytest

from sluice.admission.fair_queue import FairQueue, Place
from tests.unit.admission.calls import a_call

NUM_SLOTS, SERVICE_S = 32, 1.0  # so that 32 calls a second are all there is
MAX_WAITING = 100


def arrivals(rate: float, seconds: float, seed: int) -> Iterator[float]:
    chance, at = random.Random(seed), 0.0
    while (at := at + chance.expovariate(rate)) < seconds:
        yield at


class Simulation:
    """Calls that come, wait in the queue, and are served by slots; who finds it full may displace another, or is shed."""

    def __init__(self) -> None:
        self._queue = FairQueue()
        self._free = NUM_SLOTS
        self._ends: list[tuple[float, int, Place]] = []
        self._came: dict[Place, tuple[str, float]] = {}
        self.waits: dict[str, list[float]] = {}
        self.num_shed: dict[str, int] = {}

    def run(self, loads: dict[str, tuple[str, float]], seconds: float) -> None:
        """`loads`: by client its tenant and calls a second."""
        events = [(at, who) for number, (who, (_, rate)) in enumerate(loads.items()) for at in arrivals(rate, seconds, number)]
        for at, who in sorted(events):
            self._serve_until(at)
            place = Place(a_call(loads[who][0], tokens=100))
            self._came[place] = (who, at)
            self._queue.join(place)
            if len(self._queue) >= MAX_WAITING:
                last = self._queue.last()
                assert last is not None
                if not self._queue.outweighs(last, place):
                    self._shed(place)
                    continue
                self._queue.leave(last)
                self._shed(last)
            self._queue.wait(place)
            self._fill(at)

    def _shed(self, place: Place) -> None:
        who = self._came[place][0]
        self.num_shed[who] = self.num_shed.get(who, 0) + 1

    def _serve_until(self, now: float) -> None:
        while self._ends and self._ends[0][0] <= now:
            at, _, place = heapq.heappop(self._ends)
            self._queue.end(place, place.cost)
            self._free += 1
            self._fill(at)

    def _fill(self, now: float) -> None:
        while self._free and (place := self._queue.first()) is not None:
            self._queue.leave(place)
            self._queue.start(place)
            self._free -= 1
            who, came_at = self._came[place]
            self.waits.setdefault(who, []).append(now - came_at)
            lasts_s = SERVICE_S * (0.5 + int(came_at * 1e6) % 1000 / 1000)
            heapq.heappush(self._ends, (now + lasts_s, id(place), place))


def p95(values: list[float]) -> float:
    return sorted(values)[int(0.95 * len(values))]


def test_a_tenant_that_sends_fifty_times_its_share_is_not_noticed_by_the_others():
    """Ten tenants share: each could have 3.2 calls a second, and one sends 160."""
    fair, alone, first_come = Simulation(), Simulation(), Simulation()
    fair.run({"heavy": ("heavy", 160), "light": ("light", 1.6)}, 120)
    alone.run({"light": ("light", 1.6)}, 120)
    first_come.run({"heavy": ("all", 160), "light": ("all", 1.6)}, 120)
    assert p95(alone.waits["light"]) == 0
    assert p95(fair.waits["light"]) < 4 / NUM_SLOTS  # a slot becomes free every 1/32 s
    assert fair.num_shed.get("light", 0) == 0
    assert p95(first_come.waits["light"]) > 2.5 and first_come.num_shed["light"] > 100
    assert len(fair.waits["heavy"]) > 0.93 * NUM_SLOTS * 120  # what the light one leaves


@pytest.mark.parametrize("num_light", [1, 3, 9])
def test_all_of_the_slots_are_used_and_each_tenant_gets_what_it_asks_up_to_its_share(num_light):
    simulation = Simulation()
    share = NUM_SLOTS / (num_light + 1)
    loads = {f"light-{number}": (f"light-{number}", share / 2) for number in range(num_light)}
    simulation.run(loads | {"heavy": ("heavy", 200.0)}, 60)
    for number in range(num_light):
        assert p95(simulation.waits[f"light-{number}"]) < 0.6
        assert simulation.num_shed.get(f"light-{number}", 0) == 0
    assert sum(map(len, simulation.waits.values())) > 0.95 * NUM_SLOTS * 60
