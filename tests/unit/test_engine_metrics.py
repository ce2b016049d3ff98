"""The few lines of a worker's metrics page that say how busy its engine is."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sluice.engine_metrics import Reading, cache_size, read

OWN = 'engine="0",model_name="a} 7"'
PAGE = f"""\
# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{{{OWN}}} 3.0
# TYPE vllm:num_requests_waiting gauge
vllm:num_requests_waiting{{{OWN}}} 4.0
# TYPE vllm:num_requests_waiting_by_reason gauge
vllm:num_requests_waiting_by_reason{{{OWN},reason="capacity"}} 1.0
vllm:num_requests_waiting_by_reason{{{OWN},reason="deferred"}} 3.0
# TYPE vllm:engine_sleep_state gauge
vllm:engine_sleep_state{{{OWN},sleep_state="awake"}} 1.0
vllm:engine_sleep_state{{{OWN},sleep_state="weights_offloaded"}} 0.0
# TYPE vllm:kv_cache_usage_perc gauge
vllm:kv_cache_usage_perc{{{OWN}}} 0.25
# TYPE vllm:prompt_tokens_total counter
vllm:prompt_tokens_total{{{OWN}}} 1.0e+06
# TYPE vllm:generation_tokens_total counter
vllm:generation_tokens_total{{{OWN}}} 17.0
vllm:generation_tokens_created{{{OWN}}} 1.7e+09
# TYPE vllm:cache_config_info gauge
vllm:cache_config_info{{block_size="16",cache_dtype="auto",engine="0",num_cpu_blocks="None",num_gpu_blocks="1000"}} 1.0
"""
GOOD = Reading(3, 4, 1, 0.25, is_asleep=False, num_tokens=1_000_017)


def page(old: str = "", new: str = "") -> bytes:
    assert old in PAGE
    return PAGE.replace(old, new).encode()


def two_ranks() -> bytes:
    lines = []
    for line in PAGE.splitlines():
        lines.append(line)
        if not line.startswith("#"):
            lines.append(line.replace('engine="0"', 'engine="1"'))
    return ("\n".join(lines) + "\n").encode()


def test_the_load_is_read():
    assert read(page()) == GOOD


def test_ranks_are_added_up_and_their_caches_averaged():
    assert read(two_ranks()) == Reading(6, 8, 2, 0.25, is_asleep=False, num_tokens=2_000_034)
    assert cache_size(two_ranks()) == (16, 2000)


def test_one_rank_that_sleeps_is_enough():
    asleep = two_ranks().replace(b'sleep_state="awake"} 1.0', b'sleep_state="awake"} 0.0', 1)
    reading = read(asleep)
    assert reading is not None and reading.is_asleep


@pytest.mark.parametrize(
    ("old", "new", "changed"),
    [
        ("kv_cache_usage_perc{", "gpu_cache_usage_perc{", {}),
        ("num_requests_waiting_by_reason{", "other{", {"num_waiting_for_capacity": 4}),
        ("engine_sleep_state{", "other{", {}),
        ("kv_cache_usage_perc{", "other{", {"kv_usage": 0}),
        ('reason="capacity"} 1.0', 'reason="capacity"} 9.0', {"num_waiting_for_capacity": 4}),
    ],
)
def test_versions_that_have_other_names_or_fewer(old, new, changed):
    assert read(page(old, new)) == GOOD._replace(**changed)


@pytest.mark.parametrize("text", [b"", b"# nothing\n", b"\nvllm:num_requests_running_total{} 1\n", b"<html>"])
def test_a_page_without_a_load_has_none(text):
    assert read(text) is None


@pytest.mark.parametrize("number", ["-1.0", "NaN", "+Inf", "-Inf", "1e9", "x", ""])
@pytest.mark.parametrize(
    ("name", "good"), [("num_requests_running", 3.0), ("num_requests_waiting", 4.0), ("kv_cache_usage_perc", 0.25)]
)
def test_numbers_that_cannot_be_are_refused(name, good, number):
    with pytest.raises(ValueError):
        read(
            page(
                f"{name}{{{OWN}}} {'0.25' if 'perc' in name else '3.0' if 'running' in name else '4.0'}",
                f"{name}{{{OWN}}} {number}",
            )
        )


@pytest.mark.parametrize("size", ["None", "0", "-1", "1" * 20, "x"])
def test_a_cache_without_a_size_has_none(size):
    assert cache_size(page('num_gpu_blocks="1000"', f'num_gpu_blocks="{size}"')) is None


@given(st.integers(0, len(PAGE)), st.binary(max_size=20))
def test_any_damage_is_a_reading_or_none_or_refused(at, damage):
    whole = page()
    try:
        reading = read(whole[:at] + damage + whole[at:])
    except ValueError:
        return
    assert reading is None or 0 <= reading.num_running <= 10**6
