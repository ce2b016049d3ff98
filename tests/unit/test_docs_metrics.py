"""docs/metrics.md lists every metric as the code declares it, and nothing else."""

import re
from pathlib import Path

from prometheus_client import CollectorRegistry

from sluice.metrics import Metrics

DOC = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text(encoding="utf-8")
ROW = re.compile(r"^\| `(\w+)` \| (\w+) \| ([^|]*) \| (.+) \|$", re.MULTILINE)


def declared() -> list[str]:
    """The rows as the code would have them; counters by the name that Prometheus shows."""
    rows = []
    for family in Metrics(CollectorRegistry()).collect():
        name = f"{family.name}_total" if family.type == "counter" else family.name
        labels = ", ".join(f"`{label}`" for label in family._labelnames) or "-"
        rows.append(f"| `{name}` | {family.type} | {labels} | {family.documentation} |")
    return rows


def test_every_metric_stands_there_with_its_type_labels_and_meaning():
    assert [found[0] for found in ROW.finditer(DOC)] == declared()


def test_every_metric_that_the_text_names_exists():
    names = {found[1] for found in ROW.finditer(DOC)}
    parts = {name + suffix for name in names for suffix in ("_bucket", "_sum", "_count")}

    assert set(re.findall(r"\bsluice_\w+", DOC)) <= names | parts
