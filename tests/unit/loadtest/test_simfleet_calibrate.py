import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import pytest

from loadtest.simfleet.calibrate import Measurement, compare, fit, main, measure, simulate
from loadtest.simfleet.profile import PROFILES_DIR, ProfileError, load, parse
from tests.unit.loadtest.simfleet_client import PLAIN, fleet

SEEN = Measurement(
    model="m",
    block_size=16,
    num_kv_blocks=1000,
    max_model_len=8192,
    overhead_ms=5.0,
    first_token_ms={16: 35.0, 256: 230.0, 1024: 950.0, 2000: 2200.0, 4000: 6000.0},
    cached_first_token_ms=100.0,
    step_ms={1: 20.0, 2: 21.0, 4: 25.0, 8: 31.0, 16: 40.0},
    long_step_ms=45.0,
)
LIMITS = {"max_num_seqs": 64, "max_num_batched_tokens": 2048}


@pytest.mark.parametrize("name", sorted(path.stem for path in PROFILES_DIR.glob("*.json")))
def test_shipped_profiles_load_and_say_where_their_figures_are_from(name: str) -> None:
    profile = load(name)
    assert profile.name == name
    assert len(profile.source) > 20
    assert parse(profile.to_json()) == profile


def test_a_fitted_profile_simulates_what_was_measured() -> None:
    ratios = compare(fit(SEEN, "fitted", "made up", **LIMITS), SEEN)
    assert set(ratios) >= {"first_token_ms[4000]", "step_ms[16]", "cached_first_token_ms", "long_step_ms"}
    for name, ratio in ratios.items():
        if name != "cached_first_token_ms":  # which nothing was fitted to
            assert 0.9 < ratio < 1.1, (name, ratio)


def test_fitting_what_a_profile_simulates_gives_the_profile_back() -> None:
    profile = fit(SEEN, "fitted", "made up", **LIMITS)
    again = fit(simulate(profile, SEEN), "fitted", "made up", **LIMITS)
    assert again.prefill_tokens_per_s == pytest.approx(profile.prefill_tokens_per_s, rel=0.05)
    assert again.step_ms[-1][1] == pytest.approx(profile.step_ms[-1][1], rel=0.05)
    assert again.context_ns == pytest.approx(profile.context_ns, rel=0.1)


def test_a_simulation_that_is_twice_as_slow_has_a_ratio_of_two() -> None:
    profile = fit(SEEN, "fitted", "made up", **LIMITS)
    slow = profile.changed(step_ms=tuple((batch, 2 * ms) for batch, ms in profile.step_ms))
    assert compare(slow, SEEN)["step_ms[16]"] == pytest.approx(2 * compare(profile, SEEN)["step_ms[16]"], rel=0.1)


async def test_a_simulated_worker_is_measured_as_what_it_is() -> None:
    profile = PLAIN.changed(
        num_kv_blocks=1024, max_num_seqs=64, max_model_len=8192, max_num_batched_tokens=2048, prefill_tokens_per_s=10_000.0
    )
    async with fleet(warp=10.0, worker={"profile": profile, "enable_per_request_metrics": True}) as running:
        seen = await measure(running.workers[0].url, seed=1, rounds=1)
    assert (seen.model, seen.block_size, seen.num_kv_blocks, seen.max_model_len) == ("smollm2", 16, 1024, 8192)
    assert all(ms > 0 for ms in seen.step_ms.values())
    # Ten times as fast as the profile, and a shared machine can only be slower than that.
    assert seen.first_token_ms[4000] > 40


def test_what_is_no_profile_is_refused_with_the_reason(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ProfileError, match="no profile 'nope'"):
        load("nope")
    with pytest.raises(ProfileError, match="unknown members"):
        parse(json.dumps({**json.loads(PLAIN.to_json()), "speed": 3}))
    with pytest.raises(ProfileError, match="rising from 0"):
        PLAIN.changed(step_ms=((1, 10.0), (8, 10.0)))
    with pytest.raises(ProfileError, match="hold no prompt"):
        PLAIN.changed(max_model_len=10**6)
    assert main(["--url", "http://127.0.0.1:1"]) == 1
    assert "not a vLLM worker" in capsys.readouterr().err


@contextmanager
def command(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    """The command as a process, ended whatever happens."""
    whole = [sys.executable, "-m", "loadtest.simfleet", *arguments]
    with subprocess.Popen(whole, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def test_the_command_says_where_everything_is_takes_orders_and_ends_at_sigterm() -> None:
    with command("-n", "2") as fleet_process, httpx.Client(verify=False, timeout=60) as http:
        assert fleet_process.stdout is not None
        ready = json.loads(fleet_process.stdout.readline())
        assert http.get(ready["workers"][1]["url"] + "/health").status_code == 200
        with command("--order", "kind=storm,worker=1", "--control", ready["control"]) as order:
            assert json.loads(order.communicate(timeout=60)[0]) == {"ordered": "storm", "workers": [1]}
        assert http.get(ready["control"] + "/sim/state").json()["workers"][1]["faults"] == ["storm"]
        fleet_process.terminate()
        assert fleet_process.wait(60) == 0


def test_a_bad_command_line_is_one_line_and_exit_code_3() -> None:
    for arguments, said in ((["--fault", "kind=nope"], "nope"), (["--profile", "nope"], "no profile 'nope'")):
        with command(*arguments) as process:
            _, complaint = process.communicate(timeout=60)
        assert process.returncode == 3
        assert said in complaint and complaint.count("\n") == 1
