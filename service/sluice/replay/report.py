"""What a study found, as a table for people and as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import orjson
from rich.table import Table

from sluice.replay.study import BOUND, Row

PANEL_INCHES = 4.5


class PlotError(Exception):
    """No picture can be drawn; the message says what is missing."""


def table_of(rows: Sequence[Row]) -> Table:
    table = Table("KV blocks", "load", "policy", title="time to first token in seconds, medians over the seeds")
    for name in ("hit rate", "mean", "p50", "p90", "p99", "max/mean busy", "mean / oracle", "p90 / oracle"):
        table.add_column(name, justify="right")
    before = None
    for row in rows:
        if before is not None and before != (row.kv_blocks, row.load):
            table.add_section()
        before = row.kv_blocks, row.load
        figures = row.figures
        cells = [f"{figures.hit_rate:.3f}"]
        if row.policy != BOUND:
            cells += [f"{seconds:.2f}" for seconds in (figures.mean_s, figures.p50_s, figures.p90_s, figures.p99_s)]
            cells.append(f"{figures.imbalance:.2f}")
            cells += ["-" if ratio is None else f"{ratio:.2f}" for ratio in (row.mean_ratio, row.p90_ratio)]
        table.add_row(str(row.kv_blocks), f"{row.load:g}", row.policy, *cells)
    return table


def as_json(rows: Sequence[Row]) -> bytes:
    """The same figures for programs: a list of objects."""
    return orjson.dumps(
        [
            {"kv_blocks": row.kv_blocks, "load": row.load, "policy": row.policy}
            | row.figures._asdict()
            | {"mean_ratio": row.mean_ratio, "p90_ratio": row.p90_ratio}
            for row in rows
        ],
        option=orjson.OPT_INDENT_2,
    )


def draw(rows: Sequence[Row], path: Path) -> None:
    """Mean and p90 time to first token, and hit rate, over the load: a row of panels for each cache size.

    Raises `PlotError` without matplotlib, or where the picture cannot be written.
    """
    figure = _pyplot_figure()
    sizes = sorted({row.kv_blocks for row in rows})
    figure.set_size_inches(3 * PANEL_INCHES, len(sizes) * PANEL_INCHES * 0.8)
    panels = figure.subplots(len(sizes), 3, squeeze=False)
    for size, line in zip(sizes, panels, strict=True):
        for panel, name, title in zip(
            line, ("mean_s", "p90_s", "hit_rate"), ("mean TTFT, s", "p90 TTFT, s", "hit rate"), strict=True
        ):
            for policy in dict.fromkeys(row.policy for row in rows):
                if policy == BOUND and name != "hit_rate":
                    continue
                points = [
                    (row.load, getattr(row.figures, name)) for row in rows if (row.kv_blocks, row.policy) == (size, policy)
                ]
                panel.plot(*zip(*points, strict=True), marker="o", label=policy)
            panel.set_title(f"{title}, {size} KV blocks a worker")
            panel.set_xlabel("load without a cache")
            if name != "hit_rate":
                panel.set_yscale("log")
            panel.grid(alpha=0.3)
    panels[0][0].legend()
    figure.tight_layout()
    try:
        figure.savefig(path)
    except ValueError as exc:  # a kind of picture that it does not know
        raise PlotError(f"cannot write {path}: {exc}") from exc


def _pyplot_figure() -> Any:
    try:
        from matplotlib.figure import Figure  # noqa: PLC0415 -- an extra that most installations do without
    except ImportError as exc:
        raise PlotError("a plot needs matplotlib: pip install 'sluice[plots]'") from exc
    return Figure()
