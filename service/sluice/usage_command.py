"""`sluice usage`: what was used, from the ledger's files, as a table, as JSON, or as a picture."""

from __future__ import annotations

import argparse
import json
import sqlite3
import sys
from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from sluice.config import ConfigError, load
from sluice.ledger_file import GROUPS, SUMS, report
from sluice.loading import load as load_object

EXAMPLE = (
    "sluice usage\nsluice usage --by tenant,route --since 2026-11-01 --json\nsluice usage --by tenant,day --plot usage.png"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--folder", type=Path, metavar="DIR", help="of the ledger (default: the configuration's)")
    parser.add_argument("--by", type=_groups, default=("tenant", "day"), metavar="A,B", help=f"of {', '.join(GROUPS)}")
    parser.add_argument("--since", type=date.fromisoformat, metavar="DAY", help="the first day (default: 29 before the last)")
    parser.add_argument("--until", type=date.fromisoformat, metavar="DAY", help="the last day (default: today, UTC)")
    parser.add_argument("--tenant", help="of this one alone")
    parser.add_argument("--json", action="store_true", help="as JSON, for machines")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw tokens a day (needs matplotlib: the extra `plots`)")


def run(args: argparse.Namespace) -> int:
    folder = args.folder or load(args.config, environment=None).ledger.folder
    if folder is None:
        print("sluice: there is no ledger: set ledger.folder, or name one with --folder", file=sys.stderr)
        return 1
    until = args.until or datetime.now(UTC).date()
    since = args.since or until - timedelta(days=29)
    by = tuple(dict.fromkeys((*args.by, "day"))) if args.plot else args.by
    try:
        found = report(folder, by=by, since=since, until=until, tenant=args.tenant)
    except sqlite3.Error as exc:
        print(f"sluice: the ledger in {folder} cannot be read: {exc}", file=sys.stderr)
        return 1
    print(f"sluice: {since} to {until}, of {', '.join(found.replicas) or 'no replica'}", file=sys.stderr)
    if args.plot:
        _plot(args.plot, found.rows, tuple(name for name in by if name != "day"), since, until)
    elif args.json:
        print(json.dumps({"replicas": found.replicas, "data": found.rows}))
    else:
        _show(found.rows, by)
    return 0


def _show(rows: Sequence[dict[str, Any]], by: Sequence[str]) -> None:
    table = Table(*by)
    for name, _ in SUMS:
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(*(Text(str(row[name])) for name in (*by, *(name for name, _ in SUMS))))
    Console(width=None if sys.stdout.isatty() else 240).print(table)


def _plot(path: Path, rows: Sequence[dict[str, Any]], by: Sequence[str], since: date, until: date) -> None:
    """Tokens a day, one band for each group. Without matplotlib it is a `ConfigError` that says what to install."""
    try:
        figure_class = load_object("matplotlib.figure:Figure", setting="--plot")
    except ConfigError as exc:
        raise ConfigError("--plot needs matplotlib: pip install 'sluice[plots]'") from exc
    days = [(since + timedelta(days=n)).isoformat() for n in range((until - since).days + 1)]
    bands: dict[str, dict[str, int]] = {}
    for row in rows:
        label = " / ".join(str(row[name]) or "-" for name in by) or "all"
        bands.setdefault(label, {})[row["day"]] = row["tokens"]
    figure = figure_class(figsize=(10, 5), layout="constrained")
    axes = figure.subplots()
    below = [0] * len(days)
    for label, tokens in sorted(bands.items()):
        heights = [tokens.get(day, 0) for day in days]
        axes.bar(days, heights, bottom=below, label=label)
        below = [low + height for low, height in zip(below, heights, strict=True)]
    axes.set_ylabel("tokens a day")
    axes.set_xticks(days[:: max(1, len(days) // 10)])
    axes.tick_params(axis="x", rotation=30)
    if bands:
        axes.legend(fontsize="small")
    figure.savefig(path)


def _groups(text: str) -> tuple[str, ...]:
    names = tuple(part.strip() for part in text.split(","))
    if not set(names) <= set(GROUPS):
        raise argparse.ArgumentTypeError(f"a list of {', '.join(GROUPS)}")
    return names
