"""The end of a run for people: a table in the terminal, and a page with plots that needs nothing but a browser."""

from __future__ import annotations

import html
import io
import json
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from loadtest.users.samples import Figures, Sample, Samples, percentile
from loadtest.users.slo import Slo

matplotlib.use("svg")

COLUMNS: Sequence[tuple[str, Callable[[Figures], str]]] = (
    ("calls", lambda f: str(f.num_calls)),
    ("failed", lambda f: str(f.num_failed)),
    ("429", lambda f: str(f.num_refused)),
    ("TTFT p50 ms", lambda f: _number(f.ttft_p50_ms)),
    ("p95", lambda f: _number(f.ttft_p95_ms)),
    ("p99", lambda f: _number(f.ttft_p99_ms)),
    ("gap p50 ms", lambda f: _number(f.gap_p50_ms)),
    ("p99", lambda f: _number(f.gap_p99_ms)),
    ("tokens/s", lambda f: _number(f.tokens_per_s)),
    ("goodput", lambda f: "-" if math.isnan(f.goodput) else f"{f.goodput:.1%}"),
)


def print_table(samples: Samples, slos: Sequence[Slo], console: Console) -> None:
    table = Table(title="by kind of user", title_justify="left")
    table.add_column("user")
    for heading, _ in COLUMNS:
        table.add_column(heading, justify="right")
    for name, figures in _rows(samples):
        table.add_row(name, *(show(figures) for _, show in COLUMNS))
    console.print(table)
    for error, count in _errors(samples):
        console.print(f"  {count} x {error}", style="red", markup=False, highlight=False)
    for slo in slos:
        verdict = "[green]met[/]" if slo.is_met(samples) else "[bold red]MISSED[/]"
        console.print(f"  SLO {slo}: {_number(slo.figure(samples))} {verdict}", highlight=False)


def write_report(samples: Samples, slos: Sequence[Slo], path: Path, *, title: str) -> None:
    """A page at `path`, and all figures beside it as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figures = {name: asdict(row) for name, row in _rows(samples)}
    verdicts = [{"slo": str(slo), "figure": slo.figure(samples), "met": slo.is_met(samples)} for slo in slos]
    path.with_suffix(".json").write_text(json.dumps({"figures": figures, "slos": verdicts}, indent=1))
    parts = [f"<h1>{html.escape(title)}</h1>", _slo_list(samples, slos), _table(samples), _error_list(samples)]
    parts += [_plot(samples, heading, unit, lines) for heading, unit, lines in PLOTS]
    path.write_text(PAGE.format(title=html.escape(title), body="\n".join(parts)), encoding="utf-8")


def _rows(samples: Samples) -> list[tuple[str, Figures]]:
    return [*((kind, samples.figures(kind)) for kind in samples.kinds()), ("all", samples.figures())]


def _errors(samples: Samples) -> list[tuple[str, int]]:
    return Counter(f"{sample.kind}: {sample.error}" for sample in samples.samples if sample.error).most_common(10)


def _table(samples: Samples) -> str:
    head = "".join(f"<th>{html.escape(heading)}</th>" for heading, _ in COLUMNS)
    body = "".join(
        f"<tr><td>{html.escape(name)}</td>{''.join(f'<td>{html.escape(show(figures))}</td>' for _, show in COLUMNS)}</tr>"
        for name, figures in _rows(samples)
    )
    return f"<table><tr><th>user</th>{head}</tr>{body}</table>"


def _slo_list(samples: Samples, slos: Sequence[Slo]) -> str:
    items = (
        f'<li class="{"met" if slo.is_met(samples) else "missed"}">{html.escape(str(slo))}: '
        f"{_number(slo.figure(samples))} {'met' if slo.is_met(samples) else 'MISSED'}</li>"
        for slo in slos
    )
    return f"<ul>{''.join(items)}</ul>" if slos else ""


def _error_list(samples: Samples) -> str:
    errors = _errors(samples)
    items = "".join(f"<li>{count} x {html.escape(error)}</li>" for error, count in errors)
    return f"<h2>What failed</h2><ul>{items}</ul>" if errors else ""


Line = tuple[str, Callable[[Sequence[Sample]], float]]


def _ttft(share: float) -> Callable[[Sequence[Sample]], float]:
    return lambda samples: percentile((s.ttft_s for s in samples if s.ttft_s is not None), share) * 1000


def _gap(share: float) -> Callable[[Sequence[Sample]], float]:
    return lambda samples: percentile((s.gap_s for s in samples if s.gap_s is not None), share) * 1000


PLOTS: Sequence[tuple[str, str, Sequence[Line]]] = (
    ("Time to first token", "ms", (("p50", _ttft(0.5)), ("p95", _ttft(0.95)))),
    ("Gap between events", "ms", (("p50", _gap(0.5)), ("p95", _gap(0.95)))),
    (
        "Calls that ended",
        "a second",
        (
            ("answered", lambda s: sum(not x.error and not x.was_refused for x in s)),
            ("refused (429)", lambda s: sum(x.was_refused for x in s)),
            ("failed", lambda s: sum(x.error is not None for x in s)),
        ),
    ),
    ("Tokens of calls that ended", "a second", (("tokens", lambda s: sum(x.num_tokens for x in s)),)),
)


def _plot(samples: Samples, heading: str, unit: str, lines: Sequence[Line]) -> str:
    """One picture over the time of the run, with the number of users behind it."""
    seconds = samples.by_second()
    last = max(seconds, default=0)
    figure = Figure(figsize=(9, 2.6), layout="constrained")
    axes = figure.subplots()
    for label, value in lines:
        axes.plot(range(last + 1), [value(seconds.get(second, ())) for second in range(last + 1)], label=label, linewidth=1.2)
    axes.set_ylabel(unit)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("s")
    axes.legend(loc="upper left", fontsize="small")
    if samples.users:
        behind = axes.twinx()
        behind.step(*zip(*samples.users, strict=True), where="post", color="0.8", linewidth=1)
        behind.set_ylabel("users", color="0.6")
    out = io.StringIO()
    figure.savefig(out, format="svg")
    svg = out.getvalue()
    return f"<h2>{html.escape(heading)}</h2>{svg[svg.index('<svg') :]}"


def _number(figure: float) -> str:
    if math.isnan(figure):
        return "-"
    return f"{figure:,.0f}" if abs(figure) >= 100 else f"{figure:.3g}"


PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>{title}</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #222 }}
table {{ border-collapse: collapse; font-variant-numeric: tabular-nums }}
td, th {{ padding: .2rem .7rem; text-align: right; border-bottom: 1px solid #ddd }}
td:first-child, th:first-child {{ text-align: left }}
.met {{ color: #176b2c }} .missed {{ color: #b00020; font-weight: bold }}
svg {{ width: 100%; height: auto }}
</style>
{body}
</html>
"""
