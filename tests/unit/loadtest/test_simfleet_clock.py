from loadtest.simfleet.clock import WorkerClock


class Wall:
    """A clock on the wall that is moved by hand."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_so_many_seconds_pass_in_one() -> None:
    wall = Wall()
    clock = WorkerClock(wall, 10.0)
    wall.now += 2.0
    assert clock.now() == 20.0
    assert clock.wall_at(50.0) == 1005.0


def test_a_stopped_clock_stands_still_and_goes_on_from_there() -> None:
    wall = Wall()
    clock = WorkerClock(wall, 10.0)
    wall.now += 1.0
    clock.stop()
    wall.now += 5.0
    clock.stop()
    assert (clock.now(), clock.is_stopped) == (10.0, True)
    clock.go_on()
    wall.now += 1.0
    assert (clock.now(), clock.is_stopped) == (20.0, False)
