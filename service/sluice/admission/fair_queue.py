"""Who is next among the calls that wait for one route. No clock, no I/O, nothing awaited: a plain data structure.

Priority classes are strict: while a call of a higher class waits, none of a lower class is next. Within a class it is
the turn of the tenant who has had the least, and of the person of theirs who has had the least: virtual token counters
(Sheng et al., "Fairness in serving large language models", OSDI 2024) with the tags of start-time fair queueing (Goyal et
al., 1996). What one has had is tokens: those of the prompt that had to be computed, and those of the answer at twice the
price, over the tenant's weight. It is charged by estimate when a call starts and set right while it runs and at its end,
so a lie about `max_tokens` gains nothing. Who was away comes back level with those who are served now: nobody saves up,
and nobody pays for hours in which nobody else wanted the workers. Among the calls of one person the earliest deadline is
first, then the earliest arrival.

Where slots are scarce, the last few are spared for whoever has fewer than their part (`is_over_share`): a turn is worth little
to one who has to wait until somebody else's call is over.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator
from math import inf

from sluice.types import Call

OUTPUT_WEIGHT = 2  # what a token of the answer costs the engine, in tokens of a prompt
MAX_IDLE_ACCOUNTS = 10_000
KEPT_ROUNDS = 12  # of pruning, in which an idle account still has its part


class Account:
    """What somebody has had: the tag at which the next call would start."""

    __slots__ = ("idle_rounds", "in_flight", "lifts", "num_waiting", "tag", "waiting_cost")

    def __init__(self) -> None:
        self.tag = 0.0
        self.idle_rounds = 0
        self.lifts = 0  # how often it was brought level; a refund from before is worth nothing after
        self.in_flight = 0
        self.num_waiting = 0
        self.waiting_cost = 0.0  # of those that wait for their turn, and not ahead of all others

    @property
    def is_idle(self) -> bool:
        return not self.in_flight and not self.num_waiting

    def is_forgettable(self, too_many: bool, level: float) -> bool:
        """Whether it may be forgotten: idle for long, and with nothing to be held against it."""
        self.idle_rounds += self.is_idle
        return self.is_idle and (too_many or (self.tag <= level and self.idle_rounds > KEPT_ROUNDS))

    def lift(self, level: float) -> None:
        if self.tag < level:
            self.tag = level
            self.lifts += 1


class Person(Account):
    """A person of a tenant, or the tenant itself where it names nobody."""

    __slots__ = ("waiting",)

    def __init__(self) -> None:
        super().__init__()
        self.waiting: list[Place] = []  # in order


class Tenant(Account):
    __slots__ = ("level", "name", "people", "priority", "weight")

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        self.weight = 1
        self.priority = 0  # of the call that came last
        self.level = 0.0  # the tag of the person who was served last
        self.people: dict[str, Person] = {}

    @property
    def waiting(self) -> list[Person]:
        return [person for person in self.people.values() if person.waiting]


class Place:
    """A call's place: in the queue, and then among those that have started."""

    __slots__ = ("_lifts", "call", "charged", "cost", "is_ahead", "order", "person", "tenant")

    tenant: Tenant
    person: Person

    def __init__(self, call: Call, *, is_ahead: bool = False) -> None:
        self.call = call
        self.cost = float(call.prompt_tokens + OUTPUT_WEIGHT * call.output_tokens or 1)
        self.is_ahead = is_ahead
        self.charged = 0.0
        self.order: tuple[int, float, int] = (0, 0.0, 0)  # among the calls of its person
        self._lifts = (0, 0)

    def charge(self, cost: float) -> None:
        """Set right what it was charged; a refund does not outlive a return from idleness."""
        more = cost - self.charged
        self.charged = cost
        if more > 0 or self.tenant.lifts == self._lifts[0]:
            self.tenant.tag += more / self.tenant.weight
        if more > 0 or self.person.lifts == self._lifts[1]:
            self.person.tag += more

    def begin(self) -> None:
        self._lifts = (self.tenant.lifts, self.person.lifts)
        self.charge(self.cost)


class FairQueue:
    """The places of one route, and the accounts of those who hold them.

    Rule of use: `join` first, then `start`, or `wait` and later `leave` (and then perhaps `start`). Who has started ends by
    `end`. Only `ranking` looks at every call that waits; the rest looks at tenants and people.
    """

    def __init__(self) -> None:
        self._tenants: dict[str, Tenant] = {}
        self._ahead: list[Place] = []  # retried and resumed calls: they have waited already
        self._level = 0.0  # the tag of the tenant who was served last
        self._weights: dict[int, int] = {}  # by class: of all tenants who have come lately and are not below it
        self._num_waits = 0
        self._num_waiting = 0
        self.waiting_cost = 0.0

    def __repr__(self) -> str:
        return f"<FairQueue [{self._num_waiting} waiting | {len(self._tenants)} tenants]>"

    def __len__(self) -> int:
        return self._num_waiting

    def join(self, place: Place) -> None:
        """Find the accounts of the call. Who has nothing waiting becomes level with the others."""
        name = place.call.tenant.name
        tenant = self._tenants.get(name)
        if tenant is None:
            tenant = self._tenants[name] = Tenant(name)
            self._weights.clear()
        weight, priority = place.call.tenant.weight, place.call.tenant.priority
        if tenant.weight != weight or tenant.priority != priority:
            tenant.weight, tenant.priority = weight, priority
            self._weights.clear()
        tenant.idle_rounds = 0
        if not tenant.waiting_cost:
            tenant.lift(self._level if not self._num_waiting else _level(self._tenants.values(), self._level))
        person = tenant.people.get(place.call.user)
        if person is None:
            person = tenant.people[place.call.user] = Person()
        person.idle_rounds = 0
        if not person.waiting_cost:
            person.lift(tenant.level if not tenant.num_waiting else _level(tenant.people.values(), tenant.level))
        place.tenant, place.person = tenant, person

    def wait(self, place: Place) -> None:
        self._num_waits += 1
        call = place.call
        place.order = (-call.tenant.priority, call.started_at if place.is_ahead else call.deadline, self._num_waits)
        insort(self._ahead if place.is_ahead else place.person.waiting, place, key=_order)
        self._count(place, 1)

    def leave(self, place: Place) -> None:
        """It waits no more."""
        (self._ahead if place.is_ahead else place.person.waiting).remove(place)
        self._count(place, -1)

    def start(self, place: Place) -> None:
        """It is served now, and charged what it is expected to take."""
        tenant, person = place.tenant, place.person
        self._level = max(self._level, tenant.tag)
        tenant.level = max(tenant.level, person.tag)
        tenant.in_flight += 1
        person.in_flight += 1
        place.begin()

    def end(self, place: Place, cost: float) -> None:
        """It has taken `cost` in the end."""
        place.charge(cost)
        place.tenant.in_flight -= 1
        place.person.in_flight -= 1

    def first(self) -> Place | None:
        """Who is next."""
        if self._ahead:
            return self._ahead[0]
        best: Place | None = None
        best_key: tuple[float, float, int] = (inf, inf, 0)
        for tenant in self._tenants.values():
            if tenant.waiting_cost:
                head = min((person.waiting[0] for person in tenant.waiting), key=_turn)
                key = (head.order[0], tenant.tag, head.order[2])
                if key < best_key:
                    best, best_key = head, key
        return best

    def in_turn(self, num_slots: float | None) -> Iterator[Place]:
        """Those who wait, the next one first; where the slots that are left of `num_slots` are spared, those who may have them,
        of whom none is of a lower class than who is next."""
        first = self.first()
        if first is None:
            return
        if num_slots is None:
            yield first
            yield from [place for place in self.ranking() if place is not first]
        elif first.is_ahead or any(self._has_modest(tenant, num_slots) for tenant in self._tenants.values()):
            for place in self.ranking():
                if place.is_ahead or (place.order[0] <= first.order[0] and not self.is_over_share(place, num_slots)):
                    yield place

    def is_over_share(self, place: Place, num_slots: float) -> bool:
        """Whether its tenant has its part of so many slots: by weight, among all who have come lately and are not of a lower
        class. Of a tenant beside whom there is nobody: whether its person has."""
        tenant = place.tenant
        weights = self._weight_from(tenant.priority)
        if weights > tenant.weight:
            return tenant.in_flight * weights >= num_slots * tenant.weight
        return len(tenant.people) > 1 and place.person.in_flight * len(tenant.people) >= num_slots

    def ranking(self) -> list[Place]:
        """All that wait, in the order in which they would start if nobody came, and each took what is expected of it."""
        ranked: list[tuple[float, float, int, Place]] = []
        for tenant in self._tenants.values():
            own = []
            for person in tenant.waiting:
                tag = person.tag
                for place in person.waiting:
                    own.append((place.order[0], tag, place.order[2], place))
                    tag += place.cost
            tag = tenant.tag
            for rank, _, number, place in sorted(own):
                ranked.append((rank, tag, number, place))
                tag += place.cost / tenant.weight
        return [*self._ahead, *[place for *_, place in sorted(ranked)]]

    def cost_before(self, place: Place) -> float:
        """What would be served before `place`, which has joined and does not wait yet: where it would stand, in tokens."""
        if place.is_ahead:
            return sum(other.cost for other in self._ahead)
        rank = -place.call.tenant.priority
        before = sum(other.cost for other in self._ahead)
        own, shares = 0.0, []
        for tenant in self._tenants.values():
            if tenant.waiting_cost:
                higher, same = _by_rank(tenant, rank)
                before += higher
                if tenant is place.tenant:
                    own = _own_before(place, rank)
                else:
                    shares.append((tenant.tag + higher / tenant.weight, same, tenant.weight))
        mine = place.tenant.tag + own / place.tenant.weight
        return before + own + sum(min(same, max(0.0, (mine - tag) * weight)) for tag, same, weight in shares)

    def last(self) -> Place | None:
        """Whose loss is the fairest, of those in the lowest class: the last call of whoever has the most waiting."""
        best: Place | None = None
        best_key: tuple[float, ...] = ()
        for tenant in self._tenants.values():
            for person in tenant.waiting:
                tail = person.waiting[-1]
                key = (tail.order[0], tenant.waiting_cost / tenant.weight, person.waiting_cost, tail.order[2])
                if best is None or key > best_key:
                    best, best_key = tail, key
        return best

    def outweighs(self, last: Place, place: Place) -> bool:
        """Whether it is fairer to lose `last` than `place`, which has joined and does not wait yet."""
        if last.order[0] != -place.call.tenant.priority:
            return last.order[0] > -place.call.tenant.priority
        if last.tenant is not place.tenant:
            mine = (place.tenant.waiting_cost + place.cost) / place.tenant.weight
            return last.tenant.waiting_cost / last.tenant.weight > mine
        return last.person.waiting_cost > place.person.waiting_cost + place.cost

    def tenants(self) -> list[Tenant]:
        """Those who have calls here, waiting or started."""
        return [tenant for tenant in self._tenants.values() if not tenant.is_idle]

    def prune(self) -> None:
        """Forget accounts that are idle for long and hold nothing against anybody; all idle ones, where they are too many."""
        too_many = sum(1 + len(tenant.people) for tenant in self._tenants.values()) > MAX_IDLE_ACCOUNTS
        for tenant in list(self._tenants.values()):
            for name, person in list(tenant.people.items()):
                if person.is_forgettable(too_many, tenant.level):
                    del tenant.people[name]
            if tenant.is_forgettable(too_many, self._level):
                del self._tenants[tenant.name]
                self._weights.clear()

    def _weight_from(self, priority: int) -> int:
        """Of all tenants in this class and above; reckoned anew when one has come, has changed or is forgotten."""
        if priority not in self._weights:
            self._weights[priority] = sum(one.weight for one in self._tenants.values() if one.priority >= priority)
        return self._weights[priority]

    def _has_modest(self, tenant: Tenant, num_slots: float) -> bool:
        """Whether one of its calls that wait might have a spared slot."""
        return bool(tenant.waiting_cost) and any(not self.is_over_share(one.waiting[0], num_slots) for one in tenant.waiting)

    def _count(self, place: Place, number: int) -> None:
        self._num_waiting += number
        cost = place.cost * number
        self.waiting_cost += cost
        for account in (place.tenant, place.person):
            account.num_waiting += number
            if not place.is_ahead:
                account.waiting_cost += cost


def _level(accounts: Iterable[Account], last: float) -> float:
    """What is level with the others: with who was served last, and with those who wait.

    What calls did not take after all is given back, which brings those who wait below who was served last.
    """
    level = last
    for account in accounts:
        if account.waiting_cost and account.tag < level:
            level = account.tag
    return level


def _order(place: Place) -> tuple[int, float, int]:
    return place.order


def _turn(place: Place) -> tuple[int, float, int]:
    """By what it is a person's turn among those of a tenant."""
    return place.order[0], place.person.tag, place.order[2]


def _by_rank(tenant: Tenant, rank: int) -> tuple[float, float]:
    """What the tenant has waiting in classes above that of `rank`, and in that one."""
    higher = same = 0.0
    for person in tenant.waiting:
        first, last = person.waiting[0].order[0], person.waiting[-1].order[0]
        if first == last:  # nearly always
            higher += person.waiting_cost if first < rank else 0
            same += person.waiting_cost if first == rank else 0
        else:
            higher += sum(place.cost for place in person.waiting if place.order[0] < rank)
            same += sum(place.cost for place in person.waiting if place.order[0] == rank)
    return higher, same


def _own_before(place: Place, rank: int) -> float:
    """What of its own class the tenant of `place` would have served before it."""
    mine = place.person.waiting
    end = bisect_left(mine, (rank, place.call.deadline, inf), key=_order)
    own = sum(other.cost for other in mine[:end] if other.order[0] == rank)
    reach = place.person.tag + own
    for person in place.tenant.waiting:
        if person is not place.person:
            same = sum(other.cost for other in person.waiting if other.order[0] == rank)
            own += min(same, max(0.0, reach - person.tag))
    return own
