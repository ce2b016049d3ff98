"""Service levels as conditions on figures: `ttft_p95_ms<=2000,error_ratio<=0.01,StreamUser.goodput>=0.95`."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

from loadtest.users.samples import Figures, Samples

CONDITION = re.compile(r"(?:(?P<kind>\w+)\.)?(?P<name>\w+)\s*(?P<sign><=|>=|<|>)\s*(?P<bound>[0-9.eE+-]+)")
NAMES = tuple(field.name for field in fields(Figures))
SIGNS: dict[str, Callable[[float, float], bool]] = {
    "<=": lambda figure, bound: figure <= bound,
    ">=": lambda figure, bound: figure >= bound,
    "<": lambda figure, bound: figure < bound,
    ">": lambda figure, bound: figure > bound,
}


@dataclass(frozen=True)
class Slo:
    """One condition. A figure that nobody measured (NaN) does not meet it: silence is no proof."""

    kind: str | None
    name: str
    sign: str
    bound: float

    def __str__(self) -> str:
        return f"{self.kind + '.' if self.kind else ''}{self.name}{self.sign}{self.bound:g}"

    def figure(self, samples: Samples) -> float:
        return float(getattr(samples.figures(self.kind), self.name))

    def is_met(self, samples: Samples) -> bool:
        figure = self.figure(samples)
        return not math.isnan(figure) and SIGNS[self.sign](figure, self.bound)


def parse_slos(text: str) -> Sequence[Slo]:
    """The conditions in `text`, set apart by commas; raises `ValueError` with what is wrong and what would be right."""
    slos = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        found = CONDITION.fullmatch(part)
        if found is None or found["name"] not in NAMES:
            raise ValueError(f"{part!r} is no condition: write [UserClass.]FIGURE<=NUMBER, FIGURE one of {', '.join(NAMES)}")
        try:
            bound = float(found["bound"])
        except ValueError as exc:
            raise ValueError(f"{part!r}: {found['bound']!r} is no number") from exc
        slos.append(Slo(found["kind"], found["name"], found["sign"], bound))
    return slos
