"""A load test of two minutes from nothing: a simulated fleet, a gateway, locust, a report, and exit code 1 for a missed SLO.

python -m loadtest                                        # what `make loadtest` runs
python -m loadtest --users 200 --time 10m --shape spike
python -m loadtest --fault kind=slow,worker=0,factor=20   # see the SLOs fail
python -m loadtest --trace mooncake_conversation.jsonl --trace-speed 5 --trace-scale 0.05
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from rich.console import Console

from loadtest.stack import REPOSITORY, StackFailed, fleet, gateway, routes

SLO = "error_ratio<=0.001,StreamUser.ttft_p95_ms<=1500,ConversationUser.ttft_p95_ms<=2500,gap_p99_ms<=250,goodput>=0.95"
TRACE_SLO = "error_ratio<=0.001"
REPORT = REPOSITORY / "loadtest" / "reports" / "loadtest.html"


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m loadtest", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--users", type=int, default=40, help="how many people and apps call at once (default 40)")
    parser.add_argument("--time", default="2m", help="how long, as 90s or 10m (default 2m)")
    parser.add_argument("--workers", type=int, default=4, help="simulated vLLM workers (default 4)")
    parser.add_argument("--profile", default="h100-llama-3.1-8b", help="of the simulated engine; see docs/simfleet.md")
    parser.add_argument("--fault", action="append", default=[], metavar="kind=K,...", help="of the fleet, from the start")
    parser.add_argument("--shape", choices=["ramp", "spike", "soak"], help="a load that changes")
    parser.add_argument("--slo", help=f"conditions, set apart by commas (default {SLO})")
    parser.add_argument(
        "--report", type=Path, default=REPORT, help="the page with plots (default loadtest/reports/loadtest.html)"
    )
    parser.add_argument("--trace", type=Path, help="replay this trace instead: Mooncake's .jsonl or Azure's .csv")
    parser.add_argument("--trace-speed", type=float, default=5.0, help="seconds of the trace in a second (default 5)")
    parser.add_argument("--trace-scale", type=float, default=0.05, help="share of each prompt that is sent (default 0.05)")
    return parser.parse_args(arguments)


def _locust(options: argparse.Namespace, host: str) -> list[str]:
    files = "loadtest/replay.py" if options.trace else "loadtest/locustfile.py"
    if options.shape and not options.trace:
        files += f",loadtest/shapes/{options.shape}.py"
    command = [
        sys.executable,
        "-m",
        "locust",
        "-f",
        files,
        "--host",
        host,
        "--headless",
        "--only-summary",
        "--loglevel",
        "WARNING",
    ]
    command += ["-u", str(1 if options.trace else options.users), "-r", str(max(1, options.users // 10)), "-t", options.time]
    command += ["--model", "sim", "--report", str(options.report.resolve())]
    command += ["--slo", options.slo or (TRACE_SLO if options.trace else SLO)]
    if options.trace:
        command += ["--trace", str(options.trace.resolve()), "--trace-speed", str(options.trace_speed)]
        return [*command, "--trace-scale", str(options.trace_scale)]
    return [*command, "--embedding-model", "sim", "--with-retrieval"]


def main(arguments: Sequence[str] | None = None) -> int:
    options = _options(arguments)
    console = Console()
    faults = [word for fault in options.fault for word in ("--fault", fault)]
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="loadtest-")))
        try:
            console.print(f"starting {options.workers} simulated workers and a gateway", highlight=False)
            workers = stack.enter_context(fleet(folder, "-n", str(options.workers), "--profile", options.profile, *faults))
            keys = {"people": (), "abuser": ("--concurrency", "2")}
            ours = stack.enter_context(gateway(folder, routes(workers), keys=keys))
        except StackFailed as exc:
            console.print(f"loadtest: {exc}", style="red", markup=False, highlight=False)
            return 2
        console.print(f"loading {ours.url} with {options.users} users for {options.time}", highlight=False)
        secrets = {"SLUICE_KEY": ours.keys["people"], "SLUICE_ABUSIVE_KEY": ours.keys["abuser"]}
        return subprocess.run(_locust(options, ours.url), cwd=REPOSITORY, env=os.environ | secrets, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
