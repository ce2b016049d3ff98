"""What calls are estimated to cost, and how estimates learn."""

import random
from dataclasses import replace

from sluice.limits.estimate import FIRST_OUTPUT_TOKENS, RouteEstimate
from sluice.types import Call, Endpoint, PromptSize, Tenant, Usage


def call(size: PromptSize, *, max_tokens: int | None = 16, num_choices: int = 1) -> Call:
    asked = {"size": size, "max_tokens": max_tokens, "num_choices": num_choices}
    return Call("req-1", Tenant("acme", "k1"), "smollm2", Endpoint.CHAT, "/v1/chat/completions", **asked)


def test_a_route_learns_what_its_tokenizer_makes_of_each_class_of_characters():
    estimate, drawn = RouteEstimate(), random.Random(1)
    before = estimate.prompt_tokens(PromptSize(ascii=4000, cjk=1000, messages=3))

    for _ in range(3000):
        size = PromptSize(drawn.randrange(8000), drawn.randrange(4000), drawn.randrange(500), messages=drawn.randrange(1, 20))
        told = int(size.ascii * 0.22 + size.cjk * 1.4 + size.other * 0.9 + size.messages * 5)
        estimate.learn(call(size), Usage(told, 8, exact=True), 1.0)

    after = estimate.prompt_tokens(PromptSize(ascii=4000, cjk=1000, messages=3))
    assert before < 1900 and abs(after - (880 + 1400 + 15)) < 120


def test_token_ids_are_what_they_are():
    assert RouteEstimate().prompt_tokens(PromptSize(token_ids=77)) == 77


def test_a_worker_that_lies_bends_an_estimate_within_bounds():
    estimate = RouteEstimate()
    for _ in range(1000):
        estimate.learn(call(PromptSize(ascii=100)), Usage(10**9, 1, exact=True), 1.0)
    assert estimate.prompt_tokens(PromptSize(ascii=100)) == 200


def test_a_stream_that_was_left_costs_its_prompt_and_the_events_that_were_counted():
    left = replace(call(PromptSize(ascii=100)), stream=True, prompt_tokens=30)
    assert RouteEstimate().spent(left, Usage(completion_tokens=7), 5.0) == Usage(30, 7, exact=False)


def test_a_whole_answer_that_was_left_costs_what_its_worker_will_have_done_by_then():
    estimate = RouteEstimate()
    for _ in range(100):
        estimate.learn(call(PromptSize(ascii=100)), Usage(30, 10, exact=True), 1.0)
    left = replace(call(PromptSize(ascii=100), num_choices=2), prompt_tokens=30, output_tokens=32)
    assert estimate.spent(left, Usage(), 0.55) == Usage(30, 10, exact=False)
    assert estimate.spent(left, Usage(), 60.0) == Usage(30, 32, exact=False)


def test_the_output_is_what_was_asked_for_times_the_answers_within_the_context():
    estimate = RouteEstimate()
    assert estimate.output_tokens(100, 3, 50, None) == 300
    assert estimate.output_tokens(100, 3, 50, 120) == 210
    assert estimate.output_tokens(100, 1, 500, 120) == 0
    assert estimate.output_tokens(None, 1, 50, None) == FIRST_OUTPUT_TOKENS


def test_without_a_bound_the_output_is_the_90th_percentile_of_the_last_answers_that_had_none():
    estimate = RouteEstimate()
    for tokens in range(1, 101):
        estimate.learn(call(PromptSize(ascii=8), max_tokens=None), Usage(4, tokens, exact=True), 1.0)
        estimate.learn(call(PromptSize(ascii=8), max_tokens=1), Usage(4, 1, exact=True), 1.0)
    assert 85 <= estimate.p90_output_tokens <= 95
    assert "p90" in repr(estimate)
