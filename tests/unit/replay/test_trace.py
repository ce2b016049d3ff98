"""Recorded traffic."""

import random
from pathlib import Path

import orjson
import pytest

from sluice.prefix import covered_bytes
from sluice.replay.trace import TraceError, conversations, read, request

LINES = [
    {"timestamp": 0, "input_length": 1100, "output_length": 5, "hash_ids": [0, 1, 2]},
    {"timestamp": 3000, "input_length": 1500, "output_length": 7, "hash_ids": [0, 1, 3]},
    {"timestamp": 6000, "input_length": 512, "output_length": 0, "hash_ids": [0]},
]
AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens\r\n2023-11-16 18:17:03.9799600,4808,10\r\n2023-11-16 18:17:04.9799600,30,8\r\n"


def mooncake(folder: Path, lines=LINES) -> Path:
    path = folder / "trace.jsonl"
    path.write_bytes(b"\n".join(map(orjson.dumps, lines)))
    return path


def test_mooncakes_trace_is_read(tmp_path):
    one, two, three = read(mooncake(tmp_path)).requests
    assert [one.at_s, two.at_s, three.at_s] == [0.0, 3.0, 6.0]
    assert (one.prompt_tokens, one.output_tokens, one.blocks) == (1100, 5, (0, 1))
    assert three.blocks == () and three.output_tokens == 1  # the last token of a prompt is never cached


def test_azures_trace_is_read_and_shares_nothing(tmp_path):
    path = tmp_path / "azure.csv"
    path.write_text(AZURE)
    one, two = read(path).requests
    assert (one.at_s, one.prompt_tokens, two.at_s, two.output_tokens) == (0.0, 4808, 1.0, 8)
    assert not set(one.prefix.hashes) & set(two.prefix.hashes)


def test_the_gateway_sees_of_shared_blocks_what_it_would_see_of_their_text(tmp_path):
    """Two blocks of 512 tokens are 4 KiB: four of the gateway's, the last of which ends where the trace's second does."""
    one, two, _ = read(mooncake(tmp_path)).requests
    equal = [a == b for a, b in zip(one.prefix.hashes, two.prefix.hashes, strict=False)]
    assert equal == [True] * 4
    assert len(two.prefix.hashes) == 5 and two.prefix.num_bytes == 6000


def test_a_long_prompt_has_coarse_blocks_further_on():
    blocks = list(range(100))
    long = request(0.0, 51_200, 1, blocks, 512)
    assert covered_bytes(len(long.prefix.hashes)) <= 51_200 * 4
    assert len(long.prefix.hashes) == 64 + (51_200 * 4 - 65_536) // 4096


def test_only_the_first_requests_are_read_where_few_are_wanted(tmp_path):
    assert len(read(mooncake(tmp_path), limit=2).requests) == 2


@pytest.mark.parametrize("name", ["trace.jsonl", "trace.csv"])
@pytest.mark.parametrize("content", ["", "nonsense\n", '{"timestamp": 1}\n', "[1]\n"])
def test_what_is_no_trace_is_told_in_one_line(tmp_path, name, content):
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(TraceError, match="not a trace: it must be") as caught:
        read(path)
    assert "\n" not in str(caught.value)


def test_a_wrong_number_of_blocks_is_no_trace(tmp_path):
    with pytest.raises(TraceError, match="3 blocks of 512 tokens for a prompt of 5000"):
        read(mooncake(tmp_path, [LINES[0] | {"input_length": 5000}]))


def test_a_trace_that_is_not_there_is_told(tmp_path):
    with pytest.raises(TraceError, match="No such file"):
        read(tmp_path / "none.jsonl")


def test_arrivals_bring_the_load_that_is_asked_for():
    trace = conversations(2000, seed=3)
    arrivals = trace.arrivals(tokens_per_s=5000.0, rng=random.Random(1))
    assert arrivals[0][0] == 0.0
    assert trace.prompt_tokens / arrivals[-1][0] == pytest.approx(5000.0)
    assert [at_s for at_s, _ in arrivals] == sorted(at_s for at_s, _ in arrivals)


def test_times_are_jittered_within_their_steps(tmp_path):
    trace = read(mooncake(tmp_path, [LINES[0]] * 200))
    seeds = [trace.arrivals(tokens_per_s=1000.0, rng=random.Random(seed)) for seed in (1, 1, 2)]
    assert seeds[0] == seeds[1] != seeds[2]
    assert len({at_s for at_s, _ in seeds[0]}) == 200


def test_made_up_chats_are_the_same_for_the_same_seed_and_share_beginnings():
    one, two = conversations(500, seed=1), conversations(500, seed=1)
    assert one.requests == two.requests != conversations(500, seed=2).requests
    seen: set[int] = set()
    num_known = 0
    for each in one.requests:
        num_known += len(seen.intersection(each.blocks))
        seen.update(each.blocks)
    assert 0.3 < num_known / sum(len(each.blocks) for each in one.requests) < 0.95
