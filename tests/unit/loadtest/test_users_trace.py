"""Traces as recorded become arrivals: their times, lengths, and texts that share what the trace says they share."""

import json
from pathlib import Path

import pytest

from loadtest.users.trace import STEP_S, Arrival, read_trace


def mooncake(path: Path, *requests: tuple[int, int, list[int]]) -> Path:
    file = path / "trace.jsonl"
    names = ("timestamp", "input_length", "output_length", "hash_ids")
    file.write_text(
        "".join(json.dumps(dict(zip(names, (at, length, 7, ids), strict=True))) + "\n" for at, length, ids in requests)
    )
    return file


def test_arrivals_of_one_step_are_spread_within_it_and_stay_in_order(tmp_path: Path):
    file = mooncake(tmp_path, (0, 600, [0, 1]), (0, 600, [0, 2]), (0, 600, [0, 3]), (3000, 100, [0]))

    arrivals = read_trace(file)

    times = [arrival.at_s for arrival in arrivals]
    assert times == sorted(times) and len(set(times)) == 4
    assert 0 <= times[0] and times[2] < STEP_S and times[3] == 3.0
    assert [arrival.blocks for arrival in arrivals] == [(0, 1), (0, 2), (0, 3), (0,)]
    assert read_trace(file) == arrivals


def test_equal_blocks_are_equal_text_and_the_last_one_is_cut_to_the_length():
    first, second = Arrival(0.0, 600, 1, (5, 6)), Arrival(1.0, 700, 1, (5, 9))

    a, b = first.text(1.0), second.text(1.0)

    assert len(a.split()) == 600 and len(b.split()) == 700
    assert a.split()[:512] == b.split()[:512] and a.split()[512:600] != b.split()[512:600]


def test_a_scale_shortens_blocks_and_keeps_what_they_share():
    first, second = Arrival(0.0, 1024, 1, (5, 6)).text(0.1), Arrival(0.0, 1024, 1, (5, 7)).text(0.1)

    assert len(first.split()) == 102 and first.split()[:51] == second.split()[:51] != first.split()[51:]


def test_azures_arrivals_begin_at_0_and_have_lengths_alone(tmp_path: Path):
    file = tmp_path / "trace.csv"
    rows = "2023-11-16 18:17:03.9799600,374,44", "2023-11-16 18:17:04.9799600,396,109"
    file.write_text("TIMESTAMP,ContextTokens,GeneratedTokens\r\n" + "\r\n".join(rows) + "\r\n")

    assert read_trace(file) == [Arrival(0.0, 374, 44), Arrival(1.0, 396, 109)]


@pytest.mark.parametrize(
    "name, text",
    [("t.jsonl", ""), ("t.jsonl", "{"), ("t.jsonl", "[]\n"), ("t.jsonl", "{}\n"), ("t.csv", "A,B\n1,2\n"), ("t.csv", "")],
)
def test_what_is_no_trace_is_said_so(tmp_path: Path, name: str, text: str):
    (tmp_path / name).write_text(text)

    with pytest.raises(ValueError, match="no request|not an? .* trace"):
        read_trace(tmp_path / name)
