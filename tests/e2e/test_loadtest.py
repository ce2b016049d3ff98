"""Load tests as a user runs them: from nothing, and with locust's own command; their gates and their page."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from loadtest.stack import fleet

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).parents[2]
TIMEOUT_S = 120


def run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
    )


def test_a_load_test_from_nothing_meets_its_service_levels_and_leaves_a_page(tmp_path: Path):
    slo = "error_ratio<=0,StreamUser.num_calls>=1,goodput>=0.5"

    done = run("loadtest", "--time", "10s", "--users", "20", "--slo", slo, "--report", str(tmp_path / "out.html"))

    assert done.returncode == 0, done.stdout + done.stderr
    assert "<svg" in (tmp_path / "out.html").read_text()
    figures = json.loads((tmp_path / "out.json").read_text())["figures"]
    assert {"AbusiveUser", "ChatUser", "ConversationUser", "EmbeddingsUser", "StreamUser"} <= set(figures)
    abuser = figures["AbusiveUser"]  # its key has two calls at a time
    assert abuser["refused_ratio"] > 0.5 and abuser["num_calls"] > 50 and abuser["num_failed"] == 0, abuser
    assert figures["StreamUser"]["ttft_p50_ms"] > 0 and figures["all"]["tokens_per_s"] > 0


def test_a_fault_makes_a_service_level_miss_and_the_exit_code_says_so(tmp_path: Path):
    faults = ("--fault", "kind=cut,worker=0,events=3", "--fault", "kind=cut,worker=1,events=3", "--workers", "2")

    done = run("loadtest", "--time", "6s", "--users", "5", *faults, "--report", str(tmp_path / "out.html"))

    assert done.returncode == 1, done.stdout + done.stderr
    assert "SLO error_ratio<=0.001" in done.stdout and "MISSED" in done.stdout


def test_locust_runs_the_users_and_shapes_by_its_own_command(tmp_path: Path):
    with fleet(tmp_path, "-n", "1", "--profile", "h100-llama-3.1-8b") as workers:
        files = "loadtest/locustfile.py,loadtest/shapes/ramp.py"
        options = ("--host", workers.urls[0], "--headless", "-u", "4", "-t", "5s", "--only-summary")
        done = run("locust", "-f", files, *options, "StreamUser", "LeavingUser", "--slo", "error_ratio<=0")
        bad = run("locust", "-f", files, *options, "--slo", "ttft<1")

    assert done.returncode == 0, done.stdout + done.stderr
    assert "TTFT" in done.stdout and "ChatUser" not in done.stdout
    assert bad.returncode == 2 and "is no condition" in bad.stderr


def test_a_trace_is_replayed_to_its_end(tmp_path: Path):
    lines = [{"timestamp": 300 * n, "input_length": 600, "output_length": 5, "hash_ids": [0, n]} for n in range(10)]
    trace = tmp_path / "trace.jsonl"
    trace.write_text("".join(json.dumps(line) + "\n" for line in lines))
    options = ("--trace", str(trace), "--trace-scale", "0.1", "--time", "60s", "--report", str(tmp_path / "out.html"))

    done = run("loadtest", "--workers", "1", *options)

    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads((tmp_path / "out.json").read_text())["figures"]["TraceUser"]["num_calls"] == 10
