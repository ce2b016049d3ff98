"""The command `sluice replay`: a trace, some policies, and how they compare."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console

from sluice.config import ConfigError
from sluice.policies import POLICIES, policy_class
from sluice.replay.engine import EngineModel
from sluice.replay.pick_cost import pick_costs_us
from sluice.replay.references import REFERENCES
from sluice.replay.report import PlotError, as_json, draw, table_of
from sluice.replay.study import Study, rows_of, run_all
from sluice.replay.trace import Trace, TraceError, conversations, read

SYNTHETIC = "synthetic"
EXAMPLE = """sluice replay trace.jsonl --policy prefix_affinity --policy least_inflight --policy oracle
sluice replay synthetic --workers 4 --load 0.7 --load 0.9 --seeds 3 --plot routing.svg"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("trace", metavar="TRACE", help="Mooncake's .jsonl, Azure's .csv, or `synthetic` for made-up chats")
    known = ", ".join((*POLICIES, *REFERENCES))
    parser.add_argument("--policy", action="append", metavar="NAME", help=f"one of {known}, or module:attribute (default: all)")
    parser.add_argument("--workers", type=_positive, default=8, metavar="N", help="default: 8")
    parser.add_argument("--kv-blocks", type=_positive, action="append", metavar="N", help="of each worker (default: 1000)")
    parser.add_argument("--load", type=_load, action="append", metavar="SHARE", help="of prefill capacity (default: 0.7)")
    parser.add_argument(
        "--seeds", type=_positive, default=1, metavar="N", help="how often, each with other jitter (default: 1)"
    )
    parser.add_argument("--gateways", type=_positive, default=1, metavar="N", help="replicas (default: 1)")
    parser.add_argument("--sticky", action="store_true", help="conversations stay with their gateway")
    parser.add_argument(
        "--notes-late-ms",
        type=float,
        metavar="MS",
        help="they tell each other what went where, heard so late (default: they do not)",
    )
    parser.add_argument("--requests", type=_positive, metavar="N", help="only the first so many")
    parser.add_argument("--prefill-tokens-per-s", type=float, default=8000.0, metavar="N", help="of a worker (default: 8000)")
    parser.add_argument("--pick-cost", action="store_true", help="also print what a pick of each policy takes")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the table as JSON too")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw a picture, .png or .svg")


def run(args: argparse.Namespace) -> int:
    """0, or 1 with a line that says what is wrong."""
    try:
        study = _study(args)
        begun = time.monotonic()
        rows = list(rows_of(study, run_all(study)))
        Console(width=None if sys.stdout.isatty() else 200).print(table_of(rows))
        num_runs = len(study.policies) * len(study.loads) * len(study.kv_blocks) * study.num_seeds
        print(f"{num_runs} runs of {len(study.trace.requests)} requests in {time.monotonic() - begun:.0f} s")
        if args.pick_cost:
            print(_costs(pick_costs_us(study.trace, [one for one in study.policies if one not in REFERENCES], args.workers)))
        if args.json is not None:
            args.json.write_bytes(as_json(rows))
        if args.plot is not None:
            draw(rows, args.plot)
    except OSError as exc:
        print(f"sluice: cannot write {exc.filename}: {exc.strerror}", file=sys.stderr)
        return 1
    except (ConfigError, TraceError, PlotError) as exc:
        print(f"sluice: {exc}", file=sys.stderr)
        return 1
    return 0


def _costs(costs_us: Mapping[str, float]) -> str:
    base = costs_us.get("least_inflight")
    return "a pick takes " + ", ".join(
        f"{policy} {us:.1f} us" + (f" ({us / base:.2f} x least_inflight)" if base and policy != "least_inflight" else "")
        for policy, us in costs_us.items()
    )


def _study(args: argparse.Namespace) -> Study:
    policies: Sequence[str] = args.policy or [*POLICIES, *REFERENCES]
    for policy in policies:
        if policy not in REFERENCES:
            policy_class("NAME", policy)
    trace = _trace(args.trace, args.requests)
    model = EngineModel(block_tokens=trace.block_tokens, prefill_tokens_per_s=args.prefill_tokens_per_s)
    kv_blocks = args.kv_blocks or [model.kv_blocks]
    longest = max(-(-(one.prompt_tokens + one.output_tokens) // trace.block_tokens) for one in trace.requests)
    if min(kv_blocks) < longest:
        raise TraceError(f"--kv-blocks {min(kv_blocks)} cannot hold the longest request, which needs {longest}")
    return Study(
        trace=trace,
        model=model,
        policies=list(dict.fromkeys(policies)),
        loads=args.load or [0.7],
        kv_blocks=kv_blocks,
        num_workers=args.workers,
        num_gateways=args.gateways,
        sticky=args.sticky,
        notes_late_s=None if args.notes_late_ms is None else args.notes_late_ms / 1e3,
        num_seeds=args.seeds,
    )


def _trace(name: str, limit: int | None) -> Trace:
    return conversations(limit or 3000, seed=1) if name == SYNTHETIC else read(Path(name), limit=limit)


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return value


def _load(text: str) -> float:
    value = float(text)
    if not 0 < value <= 2:
        raise argparse.ArgumentTypeError("must be over 0 and at most 2: 0.7 is 70 % of what the workers could compute")
    return value
