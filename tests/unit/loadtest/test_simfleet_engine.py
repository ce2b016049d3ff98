from collections.abc import Iterator
from random import Random

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from loadtest.simfleet.engine import Engine, QueueFull
from loadtest.simfleet.job import Job
from loadtest.simfleet.profile import Profile
from loadtest.simfleet.scheduler import Paused
from tests.unit.loadtest.simfleet_client import PLAIN, Text, job, run

NEVER = float("inf")


def times(*jobs: Job) -> list[float]:
    return [round(each.first_token_s or -1.0, 6) for each in jobs]


def test_a_prompt_takes_its_prefill_and_each_token_a_step() -> None:
    alone = job(1, 100, 5)
    run(Engine(PLAIN), alone)
    assert times(alone) == [0.110]
    assert alone.last_token_s == pytest.approx(0.110 + 4 * 0.010)


def test_a_long_prompt_is_prefilled_in_pieces() -> None:
    alone = job(1, 300, 1)
    engine = Engine(PLAIN)
    run(engine, alone)
    assert engine.stats.num_steps == 3
    assert times(alone) == [0.330]


def test_prompts_share_the_budget_of_a_step_in_order_of_arrival() -> None:
    first, second, third = job(1, 100, 1), job(2, 100, 1), job(3, 20, 1)
    run(Engine(PLAIN), first, second, third)
    # 128 tokens: the first whole and 28 of the second; then the rest of it, and the third.
    assert times(first, second, third) == [0.138, 0.240, 0.240]


def test_those_that_decode_go_on_while_another_is_prefilled() -> None:
    engine, first, second = Engine(PLAIN), job(1, 16, 30), job(2, 500, 1)
    engine.add(first, 0.0)
    engine.advance(0.1)
    generated = first.num_generated
    engine.add(second, 0.1)
    engine.advance(0.5)
    assert second.num_generated == 0 and second.num_computed > 0
    assert first.num_generated > generated + 1


def test_a_bigger_batch_takes_longer_a_step() -> None:
    profile = PLAIN.changed(step_ms=((0, 10.0), (1, 10.0), (8, 45.0)))
    jobs = [job(n, 1, 11) for n in range(8)]
    run(Engine(profile), *jobs)
    decoding_s = (jobs[0].last_token_s or 0.0) - (jobs[0].first_token_s or 0.0)
    assert decoding_s == pytest.approx(10 * 0.045)


def test_context_and_long_prompts_take_longer_where_the_profile_says_so() -> None:
    quick, slow = job(1, 1000, 11), job(1, 1000, 11)
    run(Engine(PLAIN), quick)
    run(Engine(PLAIN.changed(context_ns=1000.0, prefill_context_ns=100.0)), slow)
    # 1,000 to 1,009 tokens of context at 1 us each, 500,000 pairs at 100 ns.
    assert (slow.first_token_s or 0) - (quick.first_token_s or 0) == pytest.approx(0.05)
    decoding_s = (slow.last_token_s or 0.0) - (slow.first_token_s or 0.0)
    assert decoding_s == pytest.approx(10 * 0.010 + sum(range(1000, 1010)) * 1e-6)


def test_more_than_max_num_seqs_wait_and_come_in_order() -> None:
    engine = Engine(PLAIN.changed(max_num_seqs=2))
    jobs = [job(n, 10, 10) for n in range(5)]
    for each in jobs:
        engine.add(each, 0.0)
    engine.advance(0.05)
    assert (len(engine.scheduler.running), len(engine.scheduler.waiting)) == (2, 3)
    engine.advance(NEVER)
    assert times(*jobs) == sorted(times(*jobs))
    assert engine.num_unfinished == 0


def test_a_cached_prefix_is_not_computed_again_whole_blocks_only() -> None:
    engine, cold, warm = Engine(PLAIN), job(1, 100, 1), job(1, 100, 1)
    run(engine, cold)
    run(engine, warm, now_s=10.0)
    assert (cold.num_cached_tokens, warm.num_cached_tokens) == (0, 96)
    assert times(warm) == [10.014]
    assert (engine.stats.cache_queries, engine.stats.cache_hits) == (200, 96)


def test_of_a_prompt_that_is_cached_to_its_end_the_last_block_is_computed_again() -> None:
    engine, cold, warm = Engine(PLAIN), job(1, 64, 1), job(1, 64, 1)
    run(engine, cold)
    run(engine, warm, now_s=10.0)
    assert warm.num_cached_tokens == 48


def test_blocks_of_an_answer_are_cached_like_those_of_a_prompt() -> None:
    engine, first, follow_up = Engine(PLAIN), job(1, 64, 65), job(1, 200, 1)
    run(engine, first)
    run(engine, follow_up, now_s=10.0)
    assert follow_up.num_cached_tokens == 128


def test_what_does_not_fit_the_cache_any_more_is_computed_again() -> None:
    engine = Engine(PLAIN.changed(num_kv_blocks=128))
    run(engine, job(1, 1024, 1))
    run(engine, job(2, 1600, 1), now_s=10.0)
    again = job(1, 1024, 1)
    run(engine, again, now_s=20.0)
    # 128 blocks: 100 of the second, and so the first 28 of the first.
    assert again.num_cached_tokens == 28 * 16


def test_a_prompt_waits_until_all_of_it_has_room() -> None:
    engine = Engine(PLAIN.changed(num_kv_blocks=128))
    big, next_ = job(1, 1600, 20), job(2, 600, 1)
    engine.add(big, 0.0)
    engine.add(next_, 0.0)
    engine.advance(1.0)
    assert len(engine.scheduler.waiting) == 1
    engine.advance(NEVER)
    assert (next_.first_token_s or 0) > (big.last_token_s or 0)


def test_without_blocks_the_latest_is_preempted_and_answers_in_full_later() -> None:
    engine = Engine(PLAIN.changed(num_kv_blocks=128))
    jobs = [job(n, 500, 400) for n in range(4)]
    run(engine, *jobs)
    assert engine.stats.num_preemptions > 0
    assert jobs[0].num_preemptions == 0 < jobs[3].num_preemptions
    assert [each.num_generated for each in jobs] == [400] * 4
    assert engine.cache.num_free == 128


def test_a_preempted_job_comes_before_those_that_waited_already() -> None:
    engine = Engine(PLAIN.changed(num_kv_blocks=128))
    first, preempted, waiting = job(1, 1000, 900), job(2, 900, 200), job(3, 600, 1)
    run(engine, first, preempted, waiting)
    assert preempted.num_preemptions > 0
    # There was room for the third as soon as the second had given up its blocks, but not for the second.
    assert (waiting.first_token_s or 0) > (first.last_token_s or NEVER)


def test_cached_blocks_that_a_prompt_is_about_to_use_are_no_room_for_the_rest_of_it() -> None:
    engine = Engine(PLAIN.changed(num_kv_blocks=128))
    run(engine, job(1, 960, 1))
    running, follow_up = job(2, 900, 40), job(1, 1160, 1)
    run(engine, running, follow_up, now_s=10.0)
    # 60 blocks cached, 57 in use: 11 are left, and the follow-up needs 13.
    assert (follow_up.first_token_s or 0) > (running.last_token_s or NEVER)


def test_an_aborted_job_gives_everything_back_wherever_it_was() -> None:
    engine = Engine(PLAIN.changed(max_num_seqs=1, request_overhead_ms=50.0), max_num_queued_tokens=10_000)
    running, waiting, arriving = (job(n, 100, 50) for n in range(3))
    engine.add(running, 0.0)
    engine.add(waiting, 0.0)
    engine.advance(0.2)
    engine.add(arriving, 0.2)
    for each in (running, waiting, arriving):
        engine.abort(each)
    assert engine.num_unfinished == 0
    assert engine.cache.num_free == 256
    engine.check_room()
    assert engine.advance(NEVER) == []
    assert engine.stats.finished["abort"] == 3


def test_a_full_queue_refuses_with_nothing_computed() -> None:
    engine = Engine(PLAIN, max_num_queued_reqs=2)
    engine.add(job(1, 10, 10), 0.0)
    engine.check_room(1)
    with pytest.raises(QueueFull, match="max_num_queued_reqs"):
        engine.check_room(2)
    assert engine.stats.rejected["max_num_queued_reqs"] == 1


def test_a_full_prefill_backlog_refuses_until_there_are_first_tokens() -> None:
    engine = Engine(PLAIN, max_num_queued_tokens=150)
    engine.add(job(1, 160, 10), 0.0)
    with pytest.raises(QueueFull, match="max_num_queued_tokens"):
        engine.check_room()
    engine.advance(0.5)
    engine.check_room()


def test_a_paused_engine_takes_in_and_answers_after_waking() -> None:
    engine, asked = Engine(PLAIN), job(1, 10, 3)
    engine.pause(Paused.NEW, 0.0)
    engine.add(asked, 1.0)
    assert engine.advance(5.0) == []
    assert len(engine.scheduler.waiting) == 1
    assert engine.next_event_s() == NEVER
    engine.pause(Paused.NO, 7.0)
    engine.advance(NEVER)
    assert times(asked) == [7.020]


def test_pausing_for_new_ones_lets_the_running_end_and_pausing_for_all_does_not() -> None:
    for paused, ends in ((Paused.NEW, True), (Paused.ALL, False)):
        engine, running = Engine(PLAIN), job(1, 10, 50)
        engine.add(running, 0.0)
        engine.advance(0.1)
        engine.pause(paused, 0.1)
        engine.advance(NEVER)
        assert running.done is ends


def test_adapters_beyond_max_loras_are_passed_over() -> None:
    engine = Engine(PLAIN, max_loras=1)
    first, other, base = job(1, 10, 20, "a"), job(2, 10, 20, "b"), job(3, 10, 20)
    for each in (first, other, base):
        engine.add(each, 0.0)
    engine.advance(0.1)
    assert engine.scheduler.num_deferred == 1
    engine.advance(NEVER)
    assert (other.first_token_s or 0) >= (first.last_token_s or 0) > (base.first_token_s or 0)


def test_a_slowed_engine_takes_longer() -> None:
    engine, asked = Engine(PLAIN), job(1, 100, 1)
    engine.slowdown = 3.0
    run(engine, asked)
    assert times(asked) == [0.330]


def test_a_prompt_that_leaves_no_room_for_an_answer_is_refused() -> None:
    with pytest.raises(ValueError, match="2048"):
        Engine(PLAIN).add(job(1, 2048, 1), 0.0)


def arrivals(seed: int) -> Iterator[tuple[float, Job]]:
    luck, now_s = Random(seed), 0.0
    for _ in range(30):
        now_s += luck.expovariate(8)
        content = Text(luck.randrange(4), luck.randrange(1, 60), own_from=luck.randrange(1, 20))
        yield now_s, Job(content, luck.randrange(1, 700))


def play(profile: Profile, seed: int, times_between: int) -> list[tuple[float | None, float | None, int, int]]:
    """Drive an engine with this many looks at it between arrivals."""
    engine, jobs, before_s = Engine(profile), [], 0.0
    for now_s, each in arrivals(seed):
        for look in range(times_between):
            engine.advance(before_s + (now_s - before_s) * (look + 1) / (times_between + 1))
        engine.advance(now_s)
        engine.add(each, now_s)
        jobs.append(each)
        before_s = now_s
    engine.advance(NEVER)
    assert engine.cache.num_free == profile.num_kv_blocks
    return [(j.first_token_s, j.last_token_s, j.num_cached_tokens, j.num_preemptions) for j in jobs]


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 1000), st.sampled_from([128, 160, 256]))
@example(282, 160)  # blocks are evicted in the middle of steps that are reckoned at once
@example(446, 160)
def test_what_happens_does_not_depend_on_how_often_one_looks(seed: int, num_blocks: int) -> None:
    profile = PLAIN.changed(num_kv_blocks=num_blocks, context_ns=500.0)
    assert play(profile, seed, 0) == play(profile, seed, 7)


def test_inter_token_latencies_are_counted_for_every_token_but_the_first() -> None:
    engine = Engine(PLAIN)
    run(engine, job(1, 10, 100), job(2, 30, 50))
    assert engine.stats.inter_token_s.count == 148
    assert engine.stats.inter_token_s.sum == pytest.approx(148 * 0.010)
    assert engine.stats.generation_tokens == 150
    assert engine.stats.step_tokens.sum == pytest.approx(40 + 148)
