"""A bar is held against the right figure, and a missed one is seen."""

import io

import pytest
from rich.console import Console

from loadtest.bench.report import Bar, Kind, Row, percentile, table


def row(kind: Kind, limit: float | None, moonshot: float | None = None, name: str = "chat") -> Row:
    return Row(name, "us", [12.0, 10.0, 20.0], [36.0, 30.0, 40.0], Bar(kind, limit, moonshot))


@pytest.mark.parametrize(("kind", "judged"), [(Kind.RATIO, 3.0), (Kind.EXCESS, 24.0), (Kind.VALUE, 36.0)])
def test_what_is_judged_is_the_median_over_the_rounds_of_what_the_bar_says(kind: Kind, judged: float) -> None:
    assert row(kind, 1).judged == judged


@pytest.mark.parametrize(
    ("limit", "moonshot", "verdict"),
    [(2.9, None, "MISSED"), (3.0, None, "ok"), (3.0, 2.0, "ok"), (4.0, 3.0, "moonshot"), (None, None, "-")],
)
def test_a_bar_is_met_up_to_and_at_its_limit(limit: float | None, moonshot: float | None, verdict: str) -> None:
    judged = row(Kind.RATIO, limit, moonshot)

    assert judged.verdict == verdict
    assert judged.is_missed is (verdict == "MISSED")


def test_a_reference_that_costs_nothing_does_not_hide_a_subject_that_does() -> None:
    assert Row("x", "us", [0.0], [1.0], Bar(Kind.RATIO, 7)).is_missed


@pytest.mark.parametrize(("share", "expected"), [(0.5, 50), (0.99, 99), (1.0, 100), (0.001, 1)])
def test_a_percentile_is_the_figure_that_so_many_do_not_exceed(share: float, expected: int) -> None:
    assert percentile(list(range(100, 0, -1)), share) == expected


def test_a_percentile_of_nothing_is_an_error() -> None:
    with pytest.raises(ValueError, match="no figures"):
        percentile([], 0.99)


def test_the_table_shows_both_figures_the_ratio_the_bar_and_the_verdict() -> None:
    console = Console(file=io.StringIO(), width=140)
    console.print(table([row(Kind.RATIO, 2.5, 2.0), row(Kind.RATIO, None, name="alias")], "cost"))
    missed, alias = (line for line in console.file.getvalue().splitlines() if "chat" in line or "alias" in line)

    assert [cell.strip() for cell in missed.split("│")[1:-1]] == [
        *("chat", "us", "12 (10 to 20)", "36 (30 to 40)", "3.00 x", "<= 2.50 x (2)", "MISSED")
    ]
    assert "MISSED" not in alias


def test_the_json_says_what_the_table_says() -> None:
    as_json = row(Kind.EXCESS, 5.0).as_json()

    assert as_json["bar"] == {"kind": "excess", "limit": 5.0, "moonshot": None}
    assert as_json["subject"] == [36.0, 30.0, 40.0]
    assert as_json["judged"] == 24.0
    assert as_json["verdict"] == "MISSED"
