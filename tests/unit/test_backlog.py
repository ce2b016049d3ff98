"""How long a worker will be busy with its prompts."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sluice.backlog import FIRST_TOKENS_PER_S, Backlog


def test_prompts_are_computed_one_after_the_other():
    backlog = Backlog()
    backlog.send(5000, 10.0, shows_first_event=True)
    assert backlog.ends_at == pytest.approx(11.0)
    backlog.send(10_000, 10.5, shows_first_event=True)
    assert backlog.ends_at == pytest.approx(13.0)


def test_a_first_event_says_that_all_before_it_is_done():
    backlog = Backlog()
    backlog.send(5000, 0.0, shows_first_event=True)
    mark = backlog.send(5000, 0.0, shows_first_event=True)
    backlog.send(2000, 0.0, shows_first_event=True)
    backlog.began(mark, 1.0)  # twice as fast as was believed
    assert backlog.ends_at == pytest.approx(1.0 + 2000 * backlog.s_per_token)
    assert repr(backlog) == f"<Backlog 2000 tokens, {1 / backlog.s_per_token:.0f} a second>"


@pytest.mark.parametrize("tokens_per_s", [100.0, 1500.0, 60_000.0])
def test_the_speed_is_learnt_from_first_events(tokens_per_s):
    backlog, now = Backlog(), 0.0
    for _ in range(300):
        one = backlog.send(700, now, shows_first_event=True)
        two = backlog.send(300, now, shows_first_event=True)
        now += 700 / tokens_per_s
        backlog.began(one, now)
        now += 300 / tokens_per_s
        backlog.began(two, now)
        now += 1.0  # idle for a while, which is not the engine's fault
    assert 1 / backlog.s_per_token == pytest.approx(tokens_per_s, rel=0.02)


def test_what_shows_no_first_event_goes_by_the_speed_that_is_known():
    backlog = Backlog()
    backlog.send(5000, 0.0, shows_first_event=False)
    mark = backlog.send(5000, 30.0, shows_first_event=True)  # by then the other one is done
    backlog.began(mark, 31.0)
    assert 1 / backlog.s_per_token == pytest.approx(FIRST_TOKENS_PER_S)


def test_what_has_its_whole_answer_is_done():
    backlog = Backlog()
    mark = backlog.send(50_000, 0.0, shows_first_event=False)
    backlog.send(5000, 0.0, shows_first_event=False)
    backlog.ended(mark, 1.0)
    assert backlog.ends_at == pytest.approx(2.0)
    backlog.ended(mark, 5.0)  # later than was believed anyway
    assert backlog.ends_at == pytest.approx(2.0)


def test_a_prompt_that_nobody_waits_for_any_more_is_taken_off():
    backlog = Backlog()
    backlog.send(5000, 0.0, shows_first_event=True)
    mark = backlog.send(10_000, 0.0, shows_first_event=True)
    backlog.left(10_000, mark, 0.5)
    assert backlog.ends_at == pytest.approx(1.0)


def test_a_first_event_out_of_turn_teaches_nothing():
    backlog = Backlog()
    one = backlog.send(1000, 0.0, shows_first_event=True)
    two = backlog.send(1000, 0.0, shows_first_event=True)
    backlog.began(two, 1.0)
    before = backlog.s_per_token, backlog.ends_at
    backlog.began(one, 1.5)
    assert (backlog.s_per_token, backlog.ends_at) == before


STEPS = st.lists(st.tuples(st.sampled_from(["send", "began", "left"]), st.integers(0, 20_000), st.floats(0, 5)), max_size=60)


@given(steps=STEPS)
def test_whatever_happens_time_and_speed_are_sane(steps):
    backlog, now, open_ = Backlog(), 0.0, []
    for what, tokens, later_s in steps:
        now += later_s
        if what == "send" or not open_:
            open_.append((tokens, backlog.send(tokens, now, shows_first_event=True)))
        elif what == "began":
            backlog.began(open_.pop(tokens % len(open_))[1], now)
        else:
            backlog.left(*open_.pop(tokens % len(open_)), now)
        assert backlog.s_per_token > 0
        assert backlog.ends_at >= 0
        assert open_ or backlog.ends_at <= now + 20_000 * len(steps) * backlog.s_per_token
