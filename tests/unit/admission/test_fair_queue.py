"""Who is next: shares of tenants and people, classes, deadlines, and who is shed first. Time is a number here."""

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from sluice.admission.fair_queue import KEPT_ROUNDS, MAX_IDLE_ACCOUNTS, OUTPUT_WEIGHT, FairQueue, Place
from sluice.types import Call
from tests.unit.admission.calls import a_call


def waiting(queue: FairQueue, call: Call, *, ahead: bool = False) -> Place:
    place = Place(call, is_ahead=ahead)
    queue.join(place)
    queue.wait(place)
    return place


def at_once(queue: FairQueue, call: Call) -> Place:
    """A call that need not wait."""
    place = Place(call)
    queue.join(place)
    queue.start(place)
    return place


def serve(queue: FairQueue, cost: float | None = None) -> Place:
    """Serve who is next, to the end."""
    place = queue.first()
    assert place is not None
    queue.leave(place)
    queue.start(place)
    queue.end(place, place.cost if cost is None else cost)
    return place


def served(queue: FairQueue, number: int) -> list[str]:
    return [serve(queue).call.tenant.name for _ in range(number)]


def test_one_tenant_is_served_in_order_of_arrival():
    queue = FairQueue()
    places = [waiting(queue, a_call()) for _ in range(5)]
    assert [serve(queue) for _ in range(5)] == places
    assert queue.first() is None and len(queue) == 0 and queue.waiting_cost == 0


def test_tenants_take_turns_however_much_one_of_them_has_waiting():
    queue = FairQueue()
    for _ in range(50):
        waiting(queue, a_call("heavy"))
    for _ in range(3):
        waiting(queue, a_call("light"))
    assert served(queue, 6).count("light") == 3


def test_a_weight_is_a_share():
    queue = FairQueue()
    for _ in range(40):
        waiting(queue, a_call("one", weight=1))
        waiting(queue, a_call("three", weight=3))
    assert served(queue, 40).count("three") == 30


def test_tokens_count_and_not_calls():
    queue = FairQueue()
    for _ in range(40):
        waiting(queue, a_call("long", tokens=300))
        waiting(queue, a_call("short", tokens=100))
    assert served(queue, 40).count("short") == 30


def test_tokens_of_the_answer_are_dearer():
    assert Place(a_call(tokens=10, output_tokens=5)).cost == 10 + OUTPUT_WEIGHT * 5
    assert Place(a_call(tokens=0)).cost == 1


def test_people_of_a_tenant_take_turns_within_its_share():
    queue = FairQueue()
    for _ in range(20):
        waiting(queue, a_call("team", "ann"))
        waiting(queue, a_call("solo"))
    for _ in range(5):
        waiting(queue, a_call("team", "bob"))
    order = [serve(queue).call for _ in range(20)]
    assert [call.tenant.name for call in order].count("solo") == 10
    assert [call.user for call in order].count("bob") == 5


def test_a_higher_class_goes_first_whoever_has_had_less():
    queue = FairQueue()
    waiting(queue, a_call("poor"))
    for _ in range(3):
        waiting(queue, a_call("rich", priority=1))
    assert served(queue, 4) == ["rich", "rich", "rich", "poor"]


def test_the_earliest_deadline_of_a_person_goes_first():
    queue = FairQueue()
    late, early, soon = (waiting(queue, a_call(deadline=deadline)) for deadline in (30.0, 20.0, 10.0))
    assert [serve(queue) for _ in range(3)] == [soon, early, late]


def test_who_comes_back_is_level_with_the_others_and_has_saved_nothing():
    queue = FairQueue()
    for _ in range(100):
        waiting(queue, a_call("busy"))
    served(queue, 50)
    for _ in range(50):
        waiting(queue, a_call("new"))
    assert 10 <= served(queue, 20).count("new") <= 11


def test_who_used_workers_that_nobody_else_wanted_does_not_pay_for_it_later():
    queue = FairQueue()
    for _ in range(1000):
        for tenant in ("busy",) * 10 + ("calm",):
            place = at_once(queue, a_call(tenant))
            queue.end(place, place.cost)
    for _ in range(20):
        waiting(queue, a_call("busy"))
        waiting(queue, a_call("calm"))
    assert 8 <= served(queue, 20).count("busy") <= 12


def test_what_a_call_took_in_the_end_is_what_is_charged():
    queue = FairQueue()
    for _ in range(40):
        waiting(queue, a_call("liar", tokens=1))
        waiting(queue, a_call("honest", tokens=100))
    order = [serve(queue, cost=100.0).call.tenant.name for _ in range(22)]
    assert abs(order.count("liar") - order.count("honest")) <= 2


def test_refunds_of_who_waits_do_not_put_others_behind():
    """Whoever asks for far more than is made of it has it back all the time, and is not before all others by that."""
    queue = FairQueue()
    for _ in range(200):
        waiting(queue, a_call("vague", "v", tokens=1000))
    running = []
    for _ in range(100):
        place = queue.first()
        assert place is not None
        queue.leave(place)
        queue.start(place)
        running.append(place)
    for place in running[:90]:
        queue.end(place, 10.0)
    waiting(queue, a_call("exact", "e", tokens=10))
    waiting(queue, a_call("vague", "w", tokens=10))
    assert {serve(queue).call.user for _ in range(4)} == {"v", "e", "w"}


def test_a_refund_from_before_a_return_from_idleness_gains_nothing():
    queue = FairQueue()
    hoard = at_once(queue, a_call("hoarder", "h", tokens=1_000))
    for _ in range(30):
        waiting(queue, a_call("other", tokens=1_000))
    served(queue, 20)
    waiting(queue, a_call("hoarder", "h"))
    before = hoard.tenant.tag
    assert before > 1_000  # level with the other by now
    queue.end(hoard, 0.0)
    assert hoard.tenant.tag == before
    kept = at_once(queue, a_call("hoarder", "h", tokens=10))
    queue.end(kept, 4.0)
    assert hoard.tenant.tag == before + 4


def test_a_call_that_leaves_is_not_next_and_costs_nothing():
    queue = FairQueue()
    first, second = waiting(queue, a_call()), waiting(queue, a_call())
    queue.leave(first)
    assert queue.first() is second and len(queue) == 1 and queue.waiting_cost == second.cost


def test_those_ahead_go_before_all_others_the_oldest_of_them_first():
    queue = FairQueue()
    old, new = a_call(), a_call()
    waiting(queue, a_call(priority=9))
    second, first = waiting(queue, new, ahead=True), waiting(queue, old, ahead=True)
    assert queue.ranking()[:2] == [first, second]
    third = Place(a_call(), is_ahead=True)
    queue.join(third)
    assert queue.cost_before(third) == 200
    assert [serve(queue) for _ in range(2)] == [first, second]


def test_the_last_call_of_the_heaviest_is_the_fairest_to_lose():
    queue = FairQueue()
    waiting(queue, a_call("light"))
    heavy = [waiting(queue, a_call("heavy")) for _ in range(3)]
    assert queue.last() is heavy[-1]
    vip, modest, greedy = Place(a_call("vip", priority=1)), Place(a_call("modest")), Place(a_call("heavy"))
    for place in (vip, modest, greedy):
        queue.join(place)
    assert queue.outweighs(heavy[-1], vip) and queue.outweighs(heavy[-1], modest)
    assert not queue.outweighs(heavy[-1], greedy)


def test_of_a_lower_class_is_lost_first_however_little_it_has():
    queue = FairQueue()
    waiting(queue, a_call("heavy", priority=1))
    waiting(queue, a_call("heavy", priority=1))
    low = waiting(queue, a_call("light"))
    assert queue.last() is low
    lower = Place(a_call("other", priority=-1))
    queue.join(lower)
    assert not queue.outweighs(low, lower)


def test_of_a_tenants_people_the_greediest_loses():
    queue = FairQueue()
    waiting(queue, a_call("team", "bob"))
    ann = [waiting(queue, a_call("team", "ann")) for _ in range(3)]
    assert queue.last() is ann[-1]
    cat = Place(a_call("team", "cat"))
    queue.join(cat)
    assert queue.outweighs(ann[-1], cat)


def test_accounts_that_are_idle_for_long_are_forgotten_once_they_hold_nothing_against_anybody():
    queue = FairQueue()

    def prune() -> str:
        for _ in range(KEPT_ROUNDS + 1):
            queue.prune()
        return repr(queue)

    for number in range(10):
        waiting(queue, a_call(f"t{number}", f"u{number}"))
    served(queue, 10)
    assert prune() == "<FairQueue [0 waiting | 10 tenants]>"  # each had one call: that still counts
    for _ in range(3):
        waiting(queue, a_call("t0"))
    served(queue, 3)
    for _ in range(KEPT_ROUNDS):
        queue.prune()
    assert repr(queue) == "<FairQueue [0 waiting | 1 tenants]>"


def in_flight(queue: FairQueue, number: int, *about: Any, **more: Any) -> Place:
    """So many calls that have started; the next one, which has joined."""
    for _ in range(number):
        at_once(queue, a_call(*about, **more))
    place = Place(a_call(*about, **more))
    queue.join(place)
    return place


def test_a_tenants_part_of_the_slots_is_by_weight_among_those_who_have_come_lately():
    queue = FairQueue()
    heavy = in_flight(queue, 6, "heavy", weight=2)
    assert not queue.is_over_share(heavy, 6)  # it is alone
    light = in_flight(queue, 2, "light")
    assert queue.is_over_share(heavy, 9) and not queue.is_over_share(heavy, 9.5)
    assert queue.is_over_share(light, 6) and not queue.is_over_share(light, 6.5)
    in_flight(queue, 0, "low", priority=-1)
    assert not queue.is_over_share(heavy, 9.5)  # a lower class has no part beside it


def test_of_a_tenant_that_is_alone_each_person_has_a_part():
    queue = FairQueue()
    ann, bob = in_flight(queue, 5, "team", "ann"), in_flight(queue, 4, "team", "bob")
    assert queue.is_over_share(ann, 10) and not queue.is_over_share(bob, 10)
    in_flight(queue, 0, "other")
    assert not queue.is_over_share(ann, 20) and queue.is_over_share(bob, 18)  # now it is one of two tenants


def test_slots_that_are_spared_go_by_turns_to_those_below_their_part_and_to_no_lower_class():
    queue = FairQueue()
    in_flight(queue, 9, "heavy")
    in_flight(queue, 1, "light")
    first = waiting(queue, a_call("heavy"))
    assert [*queue.in_turn(10)] == [] and [*queue.in_turn(None)] == [first]
    light = [waiting(queue, a_call("light")) for _ in range(2)]
    low = waiting(queue, a_call("low", priority=-1))
    assert [*queue.in_turn(10)] == light
    assert set(queue.in_turn(None)) == {first, *light, low}
    again = waiting(queue, a_call("heavy"), ahead=True)
    assert [*queue.in_turn(10)] == [again, *light]


def test_accounts_of_very_many_people_do_not_gather():
    queue = FairQueue()
    for number in range(MAX_IDLE_ACCOUNTS + 10):
        place = at_once(queue, a_call("team", f"u{number}"))
        queue.end(place, place.cost)
    queue.prune()
    assert repr(queue) == "<FairQueue [0 waiting | 0 tenants]>"


# Properties, over random loads

same_every_time = settings(derandomize=True, deadline=None, max_examples=80)
arrivals = st.lists(
    st.builds(
        a_call,
        st.sampled_from(["a", "b", "c"]),
        st.sampled_from(["", "x", "y"]),
        tokens=st.integers(1, 500),
        priority=st.sampled_from([0, 0, 0, 1]),
        deadline=st.floats(0, 100),
    ),
    min_size=1,
    max_size=40,
)


@same_every_time
@given(arrivals, st.data())
def test_everybody_is_served_once_and_the_ranking_begins_with_who_is_next(calls, data):
    queue = FairQueue()
    places = [waiting(queue, call) for call in calls]
    gone = data.draw(st.sets(st.sampled_from(range(len(places)))))
    for number in gone:
        queue.leave(places[number])
    left = [place for number, place in enumerate(places) if number not in gone]
    while len(queue):
        ranking = queue.ranking()
        assert sorted(map(id, ranking)) == sorted(map(id, left))
        place = serve(queue)
        assert place is ranking[0]
        left.remove(place)
    assert left == [] and queue.waiting_cost == 0 and queue.tenants() == []


@same_every_time
@given(arrivals)
def test_the_ranking_is_the_order_that_comes_to_be(calls):
    """As long as nobody comes and each takes what was expected; to within a call of each person, where two are level."""
    queue = FairQueue()
    for call in calls:
        waiting(queue, call)
    ranking = queue.ranking()
    order = [serve(queue) for _ in range(len(queue))]
    assert [place.call.tenant.priority for place in ranking] == [place.call.tenant.priority for place in order]
    before = {id(place): sum(other.cost for other in ranking[:number]) for number, place in enumerate(ranking)}
    for number, place in enumerate(order):
        assert abs(sum(other.cost for other in order[:number]) - before[id(place)]) <= 9 * 500


@same_every_time
@given(st.lists(st.tuples(st.sampled_from([1, 2, 5]), st.integers(1, 300)), min_size=2, max_size=5), st.integers(1, 200))
def test_tenants_who_always_want_more_get_what_their_weight_says(tenants, rounds):
    """To within what the largest call of each costs: the bound of start-time fair queueing."""
    queue = FairQueue()
    got = [0.0] * len(tenants)
    for number, (weight, tokens) in enumerate(tenants):
        for _ in range(2):
            waiting(queue, a_call(str(number), tokens=tokens, weight=weight))
    for _ in range(rounds):
        place = serve(queue)
        number = int(place.call.tenant.name)
        weight, tokens = tenants[number]
        got[number] += place.cost / weight
        waiting(queue, a_call(str(number), tokens=tokens, weight=weight))
    for a, (weight_a, tokens_a) in enumerate(tenants):
        for b, (weight_b, tokens_b) in enumerate(tenants):
            assert got[a] - got[b] <= tokens_a / weight_a + tokens_b / weight_b + 1e-6


@same_every_time
@given(arrivals, st.builds(a_call, st.sampled_from(["a", "d"]), st.sampled_from(["", "x"]), tokens=st.integers(1, 500)))
def test_what_is_before_a_newcomer_is_predicted(calls, newcomer):
    """To within a call of each person."""
    queue = FairQueue()
    for call in calls:
        waiting(queue, call)
    place = Place(newcomer)
    queue.join(place)
    predicted = queue.cost_before(place)
    queue.wait(place)
    before = 0.0
    while (one := serve(queue)) is not place:
        before += one.cost
    assert abs(before - predicted) <= 9 * 500
