"""python -m loadtest.chaos: workers are killed, restarted, refuse and lie, and no client may notice.

A real gateway process in front of a simulated fleet; every stream is compared to the letter with what one undisturbed worker
would have said. Prints a table; exit code 0 if every bar holds, 1 if not, 2 if something did not start.
"""

import argparse
import asyncio
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Table

from loadtest.bench.launch import raise_file_limit
from loadtest.chaos.scenarios import FULL, SCENARIOS, SHORT, Result, Scene, Size
from loadtest.chaos.streams import Oracle
from loadtest.stack import StackFailed, fleet, gateway, routes


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m loadtest.chaos", description=__doc__.split(": ", 1)[1])
    parser.add_argument("--short", action="store_true", help="a few seconds, fewer workers and streams")
    parser.add_argument("--only", action="append", choices=sorted(SCENARIOS), help="this scenario alone; may be repeated")
    parser.add_argument("--policy", help="the route's policy (default: the gateway's)")
    parser.add_argument("--logs", type=Path, help="keep the logs of gateway and fleet there")
    return parser.parse_args()


def run(directory: Path, size: Size, names: list[str], policy: str | None = None) -> list[Result]:
    """Play these scenarios one after the other; raises `StackFailed`."""
    options = ["-n", str(size.num_workers), "--time-warp", str(size.warp), "--num-gpu-blocks", "8192"]
    settings = {"bounds": {"ignore_eos": True}} | ({"policy": policy} if policy else {})
    oracle = Oracle()
    results = []
    with fleet(directory, *options) as workers, gateway(directory, routes(workers, **settings)) as ours:
        for number, name in enumerate(names, 1):
            print(f"{number}/{len(names)} {name}", file=sys.stderr, flush=True)
            results.append(asyncio.run(SCENARIOS[name](Scene(workers, ours, oracle, size))))
            tally = results[-1].tally
            print(
                f"  {tally.num_answers} answers, {tally.num_failed} failed, {tally.num_wrong} wrong",
                file=sys.stderr,
                flush=True,
            )
    return results


def show(results: list[Result], console: Console) -> None:
    table = Table(title="what clients noticed")
    for column in ("scenario", "what", "measured", ""):
        table.add_column(column, justify="right" if column == "measured" else "left")
    for result in results:
        for number, (what, measured, holds) in enumerate(result.bars):
            table.add_row(result.name if number == 0 else "", what, measured, "" if holds else "[red]FAILED[/red]")
    console.print(table)
    for result in results:
        for complaint in result.tally.complaints():
            console.print(f"{result.name}: {complaint}", markup=False, soft_wrap=True)


def main() -> int:
    options = _options()
    raise_file_limit()
    with tempfile.TemporaryDirectory() as folder:
        directory = options.logs or Path(folder)
        directory.mkdir(parents=True, exist_ok=True)
        try:
            results = run(directory, SHORT if options.short else FULL, options.only or list(SCENARIOS), options.policy)
        except StackFailed as exc:
            sys.stderr.write(f"{exc}\n")
            return 2
    show(results, Console(width=None if sys.stdout.isatty() else 160))
    return 0 if all(result.is_passed for result in results) else 1


if __name__ == "__main__":
    sys.exit(main())
