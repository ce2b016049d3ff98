"""How well the gateway routes, on a recorded trace, beside an oracle: what `make study` runs.

python -m loadtest.study                                   # all, on the trace in the folder SLUICE_TRACES; half an hour
python -m loadtest.study --short                           # under a minute, on made-up chats, in virtual time alone

First in virtual time, over the same policy code: `sluice replay` for each load and cache size, and for two gateways. Then
through a real gateway process in front of a simulated fleet, scraping included. Pictures go to loadtest/reports/.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console

from loadtest.limits_study import Redis
from loadtest.stack import REPOSITORY, SLUICE, StackFailed, fleet, gateway, routes
from loadtest.study.live import Failed, Outcome, replay
from loadtest.users.trace import Arrival, read_trace

REPORTS = REPOSITORY / "loadtest" / "reports"
TRACE = "mooncake_conversation.jsonl"
NUM_WORKERS = 8
PREFILL_TOKENS_PER_S = 8000.0
KV_BLOCKS = ("1000", "4000")
LOADS = ("0.5", "0.7", "0.85", "0.95")
POLICIES = ("prefix_affinity", "least_inflight", "round_robin", "oracle")
SEVERAL = (
    ("two-telling", "2", "calls go to either, and they tell each other, 5 ms late", ["--notes-late-ms", "5"]),
    ("two-telling-late", "2", "the same, 200 ms late", ["--notes-late-ms", "200"]),
    ("four-telling", "4", "calls go to any, and they tell each other, 5 ms late", ["--notes-late-ms", "5"]),
    ("two-sticky", "2", "they tell nothing, conversations stay with one", ["--sticky"]),
    ("two-silent", "2", "they tell nothing, calls go to either", []),
)
# The engine of `sluice replay`, in the words of the simulated fleet.
PROFILE = {
    "name": "replay",
    "source": "NOT MEASURED. The engine model of `sluice replay`, for studies of routing.",
    "block_size": 512,
    "num_kv_blocks": 1000,
    "max_num_seqs": 256,
    "max_num_batched_tokens": 2048,
    "max_model_len": 131072,
    "request_overhead_ms": 0.0,
    "prefill_tokens_per_s": PREFILL_TOKENS_PER_S,
    "step_ms": [[0, 8.0], [1, 8.25], [256, 72.0]],
}

console = Console(width=None if sys.stdout.isatty() else 200, highlight=False)


def main(arguments: Sequence[str] | None = None) -> int:
    options = _options(arguments)
    REPORTS.mkdir(exist_ok=True)
    try:
        if options.short:
            virtual("synthetic", "short", "--kv-blocks", "300", "--load", "0.7", "--load", "0.9", "--seeds", "3")
            return 0
        trace = _trace(options.trace)
        if not options.live_only:
            in_virtual_time(trace, options.seeds)
        through_a_gateway(trace, options)
    except (StackFailed, Failed, OSError, ValueError) as exc:
        console.print(f"study: {exc}", style="red", markup=False)
        return 2
    return 0


def in_virtual_time(trace: Path, seeds: int) -> None:
    sizes = [word for size in KV_BLOCKS for word in ("--kv-blocks", size)]
    loads = [word for load in LOADS for word in ("--load", load)]
    console.rule("one gateway")
    virtual(trace, "one", *sizes, *loads, "--seeds", str(seeds))
    console.rule("what a pick costs among a hundred workers")
    virtual(trace, "pick", "--workers", "100", "--requests", "1000", "--kv-blocks", "1000", "--pick-cost")
    few = str(min(seeds, 3))
    for name, num, title, more in SEVERAL:
        console.rule(f"{num} gateways; {title}")
        virtual(trace, name, *sizes, *loads, "--seeds", few, "--gateways", num, *more)


def virtual(trace: Path | str, name: str, *words: str) -> list[dict[str, Any]]:
    """`sluice replay`, whose table goes to our output; its rows."""
    policies = [word for policy in POLICIES for word in ("--policy", policy)]
    rows = REPORTS / f"study-{name}.json"
    plot = REPORTS / f"study-{name}.svg"
    common = ["--json", str(rows), "--plot", str(plot)]
    workers = [] if "--workers" in words else ["--workers", str(NUM_WORKERS)]
    done = subprocess.run([str(SLUICE), "replay", str(trace), *workers, *policies, *common, *words], check=False)
    if done.returncode:
        raise StackFailed(f"sluice replay ended with exit code {done.returncode}")
    found: list[dict[str, Any]] = json.loads(rows.read_text())
    return found


def through_a_gateway(trace: Path, options: argparse.Namespace) -> None:
    """The same load on a real gateway and a fleet whose time is warped, and the oracle's figures for it in virtual time."""
    console.rule(f"through a gateway process: {options.requests} calls at load {options.load}, {options.kv_blocks} KV blocks")
    words = ["--kv-blocks", str(options.kv_blocks), "--load", str(options.load), "--requests", str(options.requests)]
    rows = virtual(trace, "live", *words, "--seeds", "3")
    oracle = next(row for row in rows if row["policy"] == "oracle")
    ratios = []
    for run in range(options.runs):
        outcome = live(trace, options, run)
        ratios.append(outcome.mean_s / oracle["mean_s"])
        p50_s, p90_s, p99_s = map(outcome.quantile_s, (0.5, 0.9, 0.99))
        console.print(
            f"run {run + 1}: hit rate {outcome.hit_rate:.3f}, TTFT mean {outcome.mean_s:.2f} p50 {p50_s:.2f} p90 {p90_s:.2f} "
            f"p99 {p99_s:.2f} s; mean / oracle {ratios[-1]:.2f}, p90 / oracle {p90_s / oracle['p90_s']:.2f}; "
            f"sent at most {outcome.worst_lag_s * 1e3:.0f} ms late"
        )
    console.print(f"median of {options.runs}: mean / oracle {median(ratios):.2f}")


def live(trace: Path, options: argparse.Namespace, seed: int) -> Outcome:
    arrivals = _at_load(read_trace(trace)[: options.requests], options.load, seed)
    route = {"policy": options.policy, "bounds": {"ignore_eos": True}}
    with tempfile.TemporaryDirectory(prefix="study-") as name:
        folder = Path(name)
        profile = folder / "profile.json"
        profile.write_text(json.dumps(PROFILE | {"num_kv_blocks": options.kv_blocks}))
        words = ["-n", str(NUM_WORKERS), "--profile", str(profile), "--time-warp", str(options.time_warp)]
        with ExitStack() as stack:
            workers = stack.enter_context(fleet(folder, *words))
            settings = routes(workers, **route)
            if options.gateways > 1:
                redis = Redis(folder)
                stack.callback(redis.kill)
                redis.start()
                settings["limits"] = {"store": f"redis://127.0.0.1:{redis.port}/0"}
            ours = [stack.enter_context(gateway(folder, settings))]
            for number in range(2, options.gateways + 1):
                one = gateway(folder, settings, name=f"gateway-{number}", made_keys=ours[0].keys)
                ours.append(stack.enter_context(one))
            urls = [one.url for one in ours]
            return asyncio.run(replay(urls, ours[0].keys["people"], arrivals, warp=options.time_warp, seed=seed))


def _at_load(arrivals: Sequence[Arrival], load: float, seed: int) -> list[Arrival]:
    """The calls at times that bring this share of what the workers could compute without a cache, jittered by the seed."""
    rng = random.Random(seed)
    tokens_per_s = load * NUM_WORKERS * PREFILL_TOKENS_PER_S
    first_s, last_s = arrivals[0].at_s, arrivals[-1].at_s
    warp = sum(arrival.prompt_tokens for arrival in arrivals) / tokens_per_s / (last_s - first_s)
    moved = [replace(arrival, at_s=(arrival.at_s - first_s + rng.random()) * warp) for arrival in arrivals]
    return sorted(moved, key=lambda arrival: arrival.at_s)


def _trace(asked: Path | None) -> Path:
    if asked is None and not os.environ.get("SLUICE_TRACES"):
        raise ValueError(
            f"set SLUICE_TRACES to the folder that has {TRACE}, or give --trace FILE, or --short for made-up chats"
        )
    return asked or Path(os.environ["SLUICE_TRACES"]) / TRACE


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m loadtest.study", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--short", action="store_true", help="under a minute, on made-up chats")
    parser.add_argument("--trace", type=Path, help=f"Mooncake's conversation trace (default: {TRACE} in $SLUICE_TRACES)")
    parser.add_argument("--seeds", type=int, default=10, help="of the runs in virtual time (default 10)")
    parser.add_argument("--live-only", action="store_true", help="only through the gateway process")
    parser.add_argument("--policy", default="prefix_affinity", help="of the gateway process")
    parser.add_argument("--requests", type=int, default=1500, help="that go through it, each run (default 1500)")
    parser.add_argument("--load", type=float, default=0.7, help="(default 0.7)")
    parser.add_argument("--kv-blocks", type=int, default=1000, help="(default 1000)")
    parser.add_argument("--runs", type=int, default=3, help="(default 3)")
    parser.add_argument("--gateways", type=int, default=1, help="processes on one Redis, calls go to any (default 1)")
    parser.add_argument("--time-warp", type=float, default=3.0, help="seconds of the fleet in one of ours (default 3)")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
