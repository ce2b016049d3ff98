"""How many calls may be at a worker, by what its engine says of itself."""

from math import ceil, inf

from hypothesis import given, settings
from hypothesis import strategies as st

from sluice.admission.window import FAST_ROUNDS, PROBE_ROUNDS, RAN_ROUNDS, TRIED_ROUNDS, Window
from sluice.worker import Worker
from tests.unit.admission.calls import a_worker, load, queue


class Engine:
    """One that runs `room` calls at most; the others that were sent to it wait. `looks` is a scrape a second."""

    def __init__(self, room: int, num_replicas: int = 1, **settings: object) -> None:
        self.room = room
        self.now = 0.0
        self.kv = 0.0
        self.share = 1 / num_replicas
        self.workers = [a_worker(number) for number in range(num_replicas)]
        self.windows = [Window(worker, queue(**settings), self.share) for worker in self.workers]

    def looks(self, *, wanted: list[float] | None = None) -> list[float]:
        """Each replica has as many calls as it may, or as it wants; then the engine is asked, a second later and twice."""
        self.now += 1
        for number, worker in enumerate(self.workers):
            window = worker.window if worker.window != inf else 10_000
            worker.in_flight = int(min(window, wanted[number] if wanted else inf))
        total = sum(worker.in_flight for worker in self.workers)
        for number, (worker, window) in enumerate(zip(self.workers, self.windows, strict=True)):
            short = wanted is None or wanted[number] >= worker.window
            for at in (self.now - 0.5, self.now):
                worker.load = load(min(total, self.room), max(0, total - self.room), kv=self.kv, at=at)
                window.look(self.share, had_waiting=short)
        return [worker.window for worker in self.workers]


def settled(engine: Engine, seconds: int, **options: list[float]) -> list[float]:
    windows: list[float] = []
    for _ in range(seconds):
        windows = engine.looks(**options)
    return windows


def test_an_engine_that_says_nothing_has_no_window_unless_it_is_set():
    worker = a_worker()
    Window(worker, queue(), 1).look(1, had_waiting=True)
    assert worker.window == inf
    Window(worker, queue(max_in_flight=10), 0.5).look(0.5, had_waiting=True)
    assert worker.window == 5


def test_the_window_finds_what_the_engine_has_room_for_and_is_wanted_to_wait():
    for room in (1, 8, 100, 256, 2000):
        engine = Engine(room)
        [window] = settled(engine, 15)
        assert room <= window <= room + 2, (room, window)
    [window] = settled(Engine(100, engine_waiting=3), 15)
    assert window == 103


def test_it_follows_when_there_is_less_room_and_when_there_is_more():
    engine = Engine(100)
    settled(engine, 10)
    engine.room, engine.kv = 20, 0.9  # calls have become larger
    [window] = settled(engine, 3)
    assert 20 <= window <= 21
    engine.room = 60
    [window] = settled(engine, FAST_ROUNDS + 10)
    assert 60 <= window <= 62


def test_an_engine_that_computes_long_prompts_has_the_room_that_it_has_shown():
    engine = Engine(100)
    settled(engine, 10, wanted=[30.0])  # and so many have run there
    engine.room = 4  # all others stand behind one prompt
    [window] = settled(engine, RAN_ROUNDS - 10)
    assert window == 30
    [window] = settled(engine, 20)  # a minute later that shows nothing any more
    assert 4 <= window <= 6


def test_while_one_call_more_is_tried_nothing_is_spared_and_a_queue_ends_it_at_once():
    engine = Engine(16)
    [window] = settled(engine, 10)
    assert window == 16
    assert not engine.windows[0].is_tried
    worker, seen = engine.workers[0], engine.windows[0]
    for _ in range(PROBE_ROUNDS):  # a tenant below its share has the spared slot, others wait
        if worker.window == 17:
            break
        engine.now += 1
        worker.in_flight = 16
        for at in (engine.now - 0.5, engine.now):
            worker.load = load(16, 0, at=at)
            seen.look(1, had_waiting=True, spared=1)
    assert worker.window == 17
    assert seen.is_tried
    assert settled(engine, 2) == [16]
    assert not seen.is_tried
    for _ in range(PROBE_ROUNDS + TRIED_ROUNDS):  # the next one: what waits in the engine comes and goes, and stands nowhere
        was_tried = seen.is_tried
        engine.now += 1
        worker.in_flight = int(worker.window)
        for at, ran in ((engine.now - 0.5, 16), (engine.now, 15)):
            worker.load = load(ran, int(worker.window) - 16 if ran == 16 else 0, at=at)
            seen.look(1, had_waiting=True)
    assert was_tried
    assert worker.window == 16
    engine.room = 1000
    while not seen.is_tried:
        engine.looks()
    assert [engine.looks() and seen.is_tried for _ in range(TRIED_ROUNDS)][-1] is False


def test_a_try_that_nobody_made_use_of_is_taken_back():
    engine = Engine(16)
    while not engine.windows[0].is_tried:
        [window] = engine.looks()
    assert window == 17
    assert settled(engine, TRIED_ROUNDS, wanted=[3.0]) == [16]  # the others have left just now


def test_more_calls_than_the_engine_has_shown_yet_give_it_no_more_room():
    worker = a_worker()
    window = Window(worker, queue(start_in_flight=100), 1)
    worker.in_flight = 24  # of which one has come since the engine was asked
    for at in (1.0, 2.0):
        worker.load = load(16, 7, at=at)
        window.look(1, had_waiting=True)
    assert worker.window == 16


def test_it_does_not_grow_while_nobody_waits_for_it():
    engine = Engine(1000, start_in_flight=10)
    assert settled(engine, 20, wanted=[5.0]) == [10]


def test_all_it_has_may_be_bounded():
    engine = Engine(1000, start_in_flight=8, max_in_flight=50)
    assert settled(engine, 30) == [50]


def test_replicas_come_to_have_equal_parts():
    engine = Engine(60, num_replicas=3)
    engine.windows[0]._size = 200.0
    windows = settled(engine, 60)
    assert 60 <= sum(windows) <= 63
    assert max(windows) - min(windows) <= 6


def test_a_replica_with_little_to_do_leaves_its_part_to_the_other():
    engine = Engine(60, num_replicas=2)
    engine.now = 0.0
    most = [max(settled(engine, 1, wanted=[1000.0, 5.0])[0] for _ in range(10)) for _ in range(10)][-1]
    assert 55 <= most <= 56


def test_a_full_cache_means_fewer_calls():
    worker = a_worker()
    window = Window(worker, queue(start_in_flight=100), 1)
    worker.in_flight = 80
    worker.load = load(80, 0, kv=0.97)
    window.look(1, had_waiting=True)
    assert worker.window == ceil(80 * 0.9)


def test_an_engine_that_runs_nothing_is_not_full():
    worker = a_worker()
    window = Window(worker, queue(start_in_flight=100), 1)
    worker.load = load(100, 0)
    window.look(1, had_waiting=False)
    for at in range(2, 10):
        worker.load = load(0, 50, at=float(at))
        window.look(1, had_waiting=True)
    assert worker.window == 100


def test_the_same_word_of_an_engine_is_heard_once():
    worker = a_worker()
    window = Window(worker, queue(start_in_flight=100), 1)
    worker.load = load(10, 0)
    window.look(1, had_waiting=True)
    window.look(1, had_waiting=True)
    assert worker.window == 200
    for at in (1.5, 1.9):  # no round yet
        worker.load = load(10, 0, at=at)
        window.look(1, had_waiting=True)
    assert worker.window == 200
    worker.load = None
    window.look(1, had_waiting=True)
    assert worker.window == 200


def test_a_refusal_of_the_engine_takes_as_much_as_it_has_but_at_most_half_in_a_round():
    worker = a_worker()
    window = Window(worker, queue(start_in_flight=100), 1)
    window.refused()
    assert worker.window == inf  # nothing is known of it, so it would not grow again
    worker.load = load(100, 0, at=1.0)
    window.look(1, had_waiting=False)
    worker.in_flight = 80
    window.refused()
    assert worker.window == 80
    worker.in_flight = 10
    window.refused()
    assert worker.window == 80
    for at in (2.0, 3.0):
        worker.load = load(10, 0, at=at)
        window.look(1, had_waiting=False)
    window.refused()
    assert worker.window == 40


same_every_time = settings(derandomize=True, deadline=None, max_examples=80)
loads = st.builds(load, st.integers(0, 500), st.integers(0, 5000), kv=st.floats(0, 1))


@same_every_time
@given(st.lists(st.tuples(loads, st.integers(0, 500), st.booleans()), max_size=50), st.sampled_from([1.0, 0.5, 0.1]))
def test_whatever_an_engine_says_one_call_may_go_there(said, share):
    worker: Worker = a_worker()
    window = Window(worker, queue(start_in_flight=1), share)
    for number, (one, in_flight, had_waiting) in enumerate(said):
        worker.in_flight = in_flight
        worker.load = load(one.num_running, one.num_waiting, kv=one.kv_usage, at=float(number))
        window.look(share, had_waiting=had_waiting)
        assert worker.window >= 1


def test_calls_that_wait_for_the_next_step_are_no_queue():
    worker = a_worker()
    window = Window(worker, queue(start_in_flight=100), 1)
    worker.load = load(100, 0, at=1.0)
    window.look(1, had_waiting=False)
    for number, waiting in enumerate([9, 5, 0, 7] * 5):
        worker.load = load(100 - waiting, waiting, at=1.25 + number / 4)
        window.look(1, had_waiting=False)
    assert worker.window == 100


def test_an_idle_time_is_no_sign_of_room():
    engine = Engine(20)
    settled(engine, 10)
    settled(engine, 60, wanted=[5.0])
    assert engine.looks()[0] <= 22


def test_room_is_found_at_once_where_the_cache_has_become_emptier():
    worker = a_worker()
    window = Window(worker, queue(start_in_flight=100), 1)
    worker.in_flight = 100
    for at in (1.0, 2.0):
        worker.load = load(40, 60, kv=0.9, at=at)
        window.look(1, had_waiting=True)
    assert worker.window == 40
    worker.in_flight = 40
    for at in (3.0, 4.0):
        worker.load = load(40, 0, kv=0.85, at=at)
        window.look(1, had_waiting=True)
    assert worker.window == 40
    for at in (5.0, 6.0):
        worker.load = load(40, 0, kv=0.4, at=at)
        window.look(1, had_waiting=True)
    assert worker.window == 80


def test_a_queue_that_is_not_seen_because_calls_come_and_go_is_no_sign_of_much_more_room():
    engine = Engine(16)
    [window] = settled(engine, 10)
    for _ in range(FAST_ROUNDS + 30):
        engine.now += 1
        for at, waiting in ((engine.now - 0.5, 1), (engine.now, 0)):
            engine.workers[0].load = load(16, waiting, at=at)
            engine.windows[0].look(1, had_waiting=True)
    assert engine.workers[0].window <= window + 3


def test_calls_that_wait_because_slots_are_spared_do_not_make_the_window_grow_beyond_the_engines_room():
    engine = Engine(16)
    [window] = settled(engine, 10)
    worker, seen = engine.workers[0], engine.windows[0]
    for in_flight, grows in ((int(window) - 1, False), (int(window), True)):
        most = 0.0
        for _ in range(FAST_ROUNDS):
            engine.now += 1
            worker.in_flight = in_flight
            for at in (engine.now - 0.5, engine.now):
                worker.load = load(min(16, in_flight), 0, at=at)
                seen.look(1, had_waiting=True, spared=1)
            most = max(most, worker.window)
        assert (most > window) is grows  # if only for a try
