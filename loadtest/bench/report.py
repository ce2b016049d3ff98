"""What was measured beside what was asked for: rows, bars, the table, the JSON."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from rich.table import Table


class Kind(Enum):
    """What a bar holds the subject to."""

    RATIO = "ratio"  # subject / reference
    EXCESS = "excess"  # subject - reference, in the row's unit
    VALUE = "value"  # the subject's figure itself


@dataclass(frozen=True)
class Bar:
    kind: Kind
    limit: float | None  # None: printed, not judged
    moonshot: float | None = None


@dataclass(frozen=True)
class Row:
    """One line of the table. The figures are one for each round that counts; their medians are compared.

    What else goes on in a machine makes some rounds dearer and others cheaper (a proxy that is held up finds more to do at
    once), so neither the best nor the mean would be fair.
    """

    name: str
    unit: str
    reference: Sequence[float]
    subject: Sequence[float]
    bar: Bar

    @property
    def judged(self) -> float:
        """The figure that the bar is held against."""
        theirs, ours = statistics.median(self.reference), statistics.median(self.subject)
        match self.bar.kind:
            case Kind.VALUE:
                return ours
            case Kind.EXCESS:
                return ours - theirs
            case Kind.RATIO:
                return ours / theirs if theirs else float("inf")

    @property
    def verdict(self) -> str:
        if self.bar.limit is None:
            return "-"
        if self.judged > self.bar.limit:
            return "MISSED"
        return "moonshot" if self.bar.moonshot is not None and self.judged <= self.bar.moonshot else "ok"

    @property
    def is_missed(self) -> bool:
        return self.verdict == "MISSED"

    def as_json(self) -> dict[str, object]:
        return {
            "name": self.name,
            "unit": self.unit,
            "reference": list(self.reference),
            "subject": list(self.subject),
            "bar": {"kind": self.bar.kind.value, "limit": self.bar.limit, "moonshot": self.bar.moonshot},
            "judged": self.judged,
            "verdict": self.verdict,
        }


def percentile(figures: Sequence[float], share: float) -> float:
    """The smallest figure that at least `share` of them do not exceed."""
    if not figures:
        raise ValueError("no figures")
    ranked = sorted(figures)
    return ranked[max(0, math.ceil(share * len(ranked)) - 1)]


def table(rows: Sequence[Row], title: str) -> Table:
    out = Table(title=title, title_justify="left", caption_justify="left")
    out.add_column("what", min_width=30)
    for heading in ("unit", "reference", "subject", "judged", "bar (moonshot)", ""):
        out.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        style = {"MISSED": "bold red", "ok": "green", "moonshot": "bold green"}.get(row.verdict, "dim")
        out.add_row(
            row.name,
            row.unit,
            _cell(row.reference),
            _cell(row.subject),
            _judged(row.bar.kind, row.judged, row.unit),
            _limit(row),
            f"[{style}]{row.verdict}[/]",
        )
    return out


def _cell(figures: Sequence[float]) -> str:
    """The median, and the extremes of the rounds where there were several."""
    middle = _number(statistics.median(figures))
    return middle if len(figures) == 1 else f"{middle} ({_number(min(figures))} to {_number(max(figures))})"


def _judged(kind: Kind, figure: float, unit: str) -> str:
    if kind is Kind.RATIO:
        return f"{figure:.2f} x"
    return f"{'+' if kind is Kind.EXCESS and figure > 0 else ''}{_number(figure)} {unit}"


def _limit(row: Row) -> str:
    if row.bar.limit is None:
        return "-"
    moonshot = "" if row.bar.moonshot is None else f" ({row.bar.moonshot:g})"
    return f"<= {_judged(row.bar.kind, row.bar.limit, row.unit)}{moonshot}"


def _number(figure: float) -> str:
    return f"{figure:,.0f}" if abs(figure) >= 1000 else f"{figure:.3g}" if abs(figure) < 100 else f"{figure:.0f}"
