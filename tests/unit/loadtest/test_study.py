"""The study of routing: what it sends through a gateway, and what it reads of the answers."""

import asyncio
import json

import pytest

from loadtest.study.__main__ import NUM_WORKERS, PREFILL_TOKENS_PER_S, _at_load, main
from loadtest.study.live import Failed, Outcome, _read, body_of
from loadtest.users.trace import Arrival

CALLS = [Arrival(float(k), 1024 + k, 5, (0, 2 * k + 1, 2 * k + 2)) for k in range(200)]
GOOD = (
    b"HTTP/1.1 200 OK\r\n\r\n"
    b'data: {"choices":[]}\n\n'
    b'data: {"usage":{"prompt_tokens":100,"prompt_tokens_details":{"cached_tokens":60}}}\n\ndata: [DONE]\n\n'
)


def test_calls_bring_the_load_that_is_asked_for():
    arrivals = _at_load(CALLS, 0.5, seed=1)
    capacity = arrivals[-1].at_s * NUM_WORKERS * PREFILL_TOKENS_PER_S
    assert sum(arrival.prompt_tokens for arrival in arrivals) / capacity == pytest.approx(0.5, rel=0.02)
    assert [one.at_s for one in arrivals] == sorted(one.at_s for one in arrivals)
    assert [one.at_s for one in arrivals] != [one.at_s for one in _at_load(CALLS, 0.5, seed=2)]


def test_the_same_blocks_are_the_same_text():
    one, two = (json.loads(body_of(arrival))["messages"][0]["content"] for arrival in CALLS[:2])
    shared = next(at for at, (a, b) in enumerate(zip(one, two, strict=False)) if a != b)
    assert 0.45 < shared / len(one) < 0.55


async def read(data: bytes) -> Outcome:
    reader, outcome = asyncio.StreamReader(), Outcome()
    reader.feed_data(data)
    reader.feed_eof()
    await _read(reader, 0.0, 3.0, outcome)
    return outcome


async def test_an_answers_first_event_and_usage_are_noted():
    outcome = await read(GOOD)
    assert len(outcome.ttft_s) == 1 and outcome.hit_rate == 0.6
    assert outcome.mean_s == outcome.quantile_s(0.5)


@pytest.mark.parametrize("data", [b"HTTP/1.1 429 Too Many\r\n\r\n{}", GOOD.replace(b"data: [DONE]", b"")])
async def test_an_answer_that_is_not_good_ends_the_study(data):
    with pytest.raises(Failed):
        await read(data)


def test_without_a_trace_it_says_what_to_do(monkeypatch, capsys):
    monkeypatch.delenv("SLUICE_TRACES", raising=False)
    assert main([]) == 2
    assert "set SLUICE_TRACES to the folder" in " ".join(capsys.readouterr().out.split())
