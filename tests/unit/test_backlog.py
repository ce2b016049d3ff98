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


def test_a_worker_that_has_had_small_prompts_does_not_look_slow_for_a_large_one():
    """An engine of 3,000 tokens a second, with steps of 80 ms."""
    times_s = []
    for usual in (200, 2000):
        backlog, now = Backlog(), 0.0
        for _ in range(300):
            mark = backlog.send(usual, now, shows_first_event=True)
            now += 0.08 + usual / 3000
            backlog.began(mark, now)
        times_s.append(backlog.time_s(2000))
        assert backlog.time_s(usual) == pytest.approx(0.08 + usual / 3000, rel=0.01)
    assert times_s[0] == pytest.approx(times_s[1], rel=0.05)


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
    backlog.left(mark, 0.5)
    assert backlog.ends_at == pytest.approx(1.0)


def test_a_first_event_out_of_turn_teaches_nothing():
    backlog = Backlog()
    one = backlog.send(1000, 0.0, shows_first_event=True)
    two = backlog.send(1000, 0.0, shows_first_event=True)
    backlog.began(two, 1.0)
    before = backlog.s_per_token, backlog.ends_at
    backlog.began(one, 1.5)
    assert (backlog.s_per_token, backlog.ends_at) == before


WHAT = ["send", "began", "left", "ended", "sent_elsewhere", "began_elsewhere"]
STEPS = st.lists(st.tuples(st.sampled_from(WHAT), st.integers(0, 20_000), st.floats(0, 5)), max_size=60)


@given(steps=STEPS)
def test_whatever_happens_time_and_speed_are_sane(steps):
    backlog, now, streams, whole = Backlog(), 0.0, [], []
    for what, number, later_s in steps:
        now += later_s
        late = max(0.0, now - number / 10_000)
        if what == "began" and streams:
            backlog.began(streams.pop(number % len(streams)), now)
        elif what == "left" and streams:
            backlog.left(streams.pop(number % len(streams)), now)
        elif what == "ended" and whole:
            backlog.ended(whole.pop(number % len(whole)), now)
        elif what == "sent_elsewhere":
            backlog.sent_elsewhere(number, late)
        elif what == "began_elsewhere":
            backlog.began_elsewhere(late, now)
        elif what in ("send", "ended"):
            is_stream = what == "send"
            (streams if is_stream else whole).append(backlog.send(number, now, shows_first_event=is_stream))
        assert backlog.s_per_token > 0
        assert 0 <= backlog.ends_at <= now + 20_000 * len(steps) * backlog.s_per_token
        assert "-" not in repr(backlog)


def test_what_others_have_sent_before_a_prompt_of_ours_is_done_with_it():
    backlog = Backlog()
    backlog.send(3000, 0.0, shows_first_event=True)
    ours = backlog.send(1000, 0.5, shows_first_event=True)
    backlog.sent_elsewhere(2000, 0.4)  # heard late: it is before our second one
    backlog.sent_elsewhere(4000, 0.6)
    assert backlog.ends_at == pytest.approx(10_000 / FIRST_TOKENS_PER_S)
    backlog.began(ours, 1.2)  # 6,000 tokens are done, at the speed that was believed
    assert backlog.s_per_token == pytest.approx(1 / FIRST_TOKENS_PER_S)
    assert backlog.ends_at == pytest.approx(1.2 + 4000 / FIRST_TOKENS_PER_S)


def test_what_others_saw_begin_is_done_and_all_before_it():
    backlog = Backlog()
    backlog.send(1000, 0.0, shows_first_event=True)
    backlog.sent_elsewhere(1000, 0.1)
    backlog.send(3000, 0.2, shows_first_event=True)
    backlog.began_elsewhere(0.1, 0.4)
    assert backlog.ends_at == pytest.approx(0.4 + 3000 / FIRST_TOKENS_PER_S)
    assert (backlog.seen_mark, backlog.seen_at) == (0.0, 0.0)  # that is not for us to tell


@pytest.mark.parametrize("is_heard_in_time", [True, False])
def test_what_others_sent_counts_for_the_speed_however_late_it_is_heard(is_heard_in_time):
    backlog, now = Backlog(), 0.0
    for _ in range(300):
        sent_at, now = now, now + 1.0  # at 2,000 tokens a second
        ours = backlog.send(500, sent_at + 0.01, shows_first_event=True)
        if is_heard_in_time:
            backlog.sent_elsewhere(1500, sent_at)
        backlog.began(ours, now)
        if not is_heard_in_time:
            backlog.sent_elsewhere(1500, sent_at)
        backlog.began_elsewhere(sent_at, now - 0.25)
    assert 1 / backlog.s_per_token == pytest.approx(2000, rel=0.05)


def test_a_worker_that_is_idle_has_nothing_left_of_anybody():
    backlog = Backlog()
    backlog.sent_elsewhere(5000, 0.0)
    assert backlog.ends_at == pytest.approx(1.0)
    backlog.sent_elsewhere(5000, 10.0)
    assert backlog.ends_at == pytest.approx(11.0)
    mark = backlog.send(5000, 20.0, shows_first_event=True)
    assert backlog.ends_at == pytest.approx(21.0)
    assert repr(backlog).startswith("<Backlog 5000 tokens")
    backlog.began(mark, 21.0)
    assert backlog.ends_at == pytest.approx(21.0)
