"""python -m loadtest.overload: fairness and overload of `sluice serve` over a simulated fleet, with one replica and with two.

The capacity C of the fleet is measured first; all loads are multiples of it. Prints a table; `--json FILE` writes it too.
`--only` and `--replicas` run a part of it, none of which takes three minutes.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

import orjson
import uvloop
from rich.console import Console
from rich.table import Table

from loadtest.bench.launch import raise_file_limit
from loadtest.overload.client import Crowd
from loadtest.overload.study import FLEET, KEYS, QUEUE, Figure, Study
from loadtest.stack import MODEL, Gateway, StackFailed, fleet, gateway, routes

SCENARIOS = ("fairness", "fifo", "order", "overload", "retrieval")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m loadtest.overload",
        description=__doc__.split(": ", 1)[1],
        epilog="exit codes: 0 all bars met, 1 a bar missed, 2 something did not start",
    )
    parser.add_argument("--quick", action="store_true", help="a third of the time")
    parser.add_argument("--replicas", type=int, action="append", choices=(1, 2), help="this many; default: 1, then 2")
    parser.add_argument("--only", action="append", choices=SCENARIOS)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there too")
    return parser.parse_args()


async def _run(study: Study, chosen: list[str]) -> list[Figure]:
    await study.measure_capacity()
    for name in chosen:
        await getattr(study, name)()
        await asyncio.sleep(2)
    return study.figures


def _measure(num_replicas: int, options: argparse.Namespace, console: Console) -> list[Figure]:
    """A fleet and gateways of their own, with the settings that operators would give them."""
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="overload-")))
        workers = stack.enter_context(fleet(directory, *FLEET))
        settings = routes(workers, queue=QUEUE, bounds={"ignore_eos": True}) | {"replicas": {"count": num_replicas}}
        made: list[Gateway] = []
        for number in range(num_replicas):
            own = {"retrieval": {"path": f"data-{number}", "on_call": {"max_concurrent_searches": 64}}}
            known = made[0].keys if made else None
            replica = gateway(directory, settings | own, name=f"gateway-{number}", keys=KEYS, made_keys=known)
            made.append(stack.enter_context(replica))
        study = Study(
            Crowd(MODEL, [one.url for one in made], made[0].keys),
            [one.url for one in made],
            [one.pid for one in made],
            made[0].keys,
            1 / 3 if options.quick else 1.0,
            lambda line: console.print(line, highlight=False),
        )
        return uvloop.run(_run(study, options.only or list(SCENARIOS)))


def _table(num_replicas: int, figures: list[Figure]) -> Table:
    table = Table(title=f"{num_replicas} replica(s)", title_justify="left")
    for name in ("what", "seen", "bar", ""):
        table.add_column(name)
    for one in figures:
        table.add_row(one.name, one.seen, one.bar, {None: "", True: "ok", False: "MISSED"}[one.is_met])
    return table


def main() -> int:
    options = _options()
    console = Console(width=None if sys.stdout.isatty() else 190)
    raise_file_limit()
    found: dict[int, list[Figure]] = {}
    for num_replicas in options.replicas or (1, 2):
        console.print(f"[bold]{num_replicas} replica(s)[/]")
        try:
            found[num_replicas] = _measure(num_replicas, options, console)
        except StackFailed as exc:
            console.print(str(exc), style="red", markup=False, highlight=False)
            return 2
    for num_replicas, figures in found.items():
        console.print(_table(num_replicas, figures))
    if options.json is not None:
        report = {str(number): [asdict(one) for one in figures] for number, figures in found.items()}
        options.json.write_bytes(orjson.dumps(report, option=orjson.OPT_INDENT_2))
    return 1 if any(one.is_met is False for figures in found.values() for one in figures) else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
