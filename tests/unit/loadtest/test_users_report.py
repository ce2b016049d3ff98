"""The page and the table at the end of a run."""

import io
import json
from pathlib import Path

from rich.console import Console

from loadtest.users.report import print_table, write_report
from loadtest.users.samples import Goal, Sample, Samples
from loadtest.users.slo import parse_slos


def gathered() -> Samples:
    samples = Samples(Goal(1.0, 0.1), users=[(0.0, 1), (1.0, 2)])
    for at_s in (0.5, 1.5, 2.5):
        samples.add(Sample(at_s, "StreamUser", ttft_s=0.2, gap_s=0.01, duration_s=0.4, num_tokens=20))
    samples.add(Sample(2.9, "ChatUser", duration_s=0.1, error="<script>"))
    return samples


def test_the_page_stands_alone_and_has_every_figure_and_verdict(tmp_path: Path):
    path = tmp_path / "new" / "report.html"
    slos = parse_slos("StreamUser.ttft_p95_ms<=250,error_ratio<=0.1")

    write_report(gathered(), slos, path, title="A & B")

    page = path.read_text()
    assert page.count("<svg") == 4 and "A &amp; B" in page and "<script>" not in page and "&lt;script&gt;" in page
    assert 'class="met">StreamUser.ttft_p95_ms&lt;=250: 200 met' in page
    assert 'class="missed">error_ratio&lt;=0.1: 0.25 MISSED' in page
    assert "src=" not in page and "href=" not in page.replace("xlink:href=", "")
    figures = json.loads(path.with_suffix(".json").read_text())
    assert figures["figures"]["StreamUser"]["ttft_p95_ms"] == 200
    assert [slo["met"] for slo in figures["slos"]] == [True, False]


def test_a_run_without_a_call_has_a_page_too(tmp_path: Path):
    write_report(Samples(Goal(1, 1)), [], tmp_path / "empty.html", title="nothing")

    assert "<svg" in (tmp_path / "empty.html").read_text()


def test_the_table_says_which_service_level_was_missed():
    console = Console(width=140, record=True, file=io.StringIO())
    print_table(gathered(), parse_slos("error_ratio<=0.1"), console)

    text = console.export_text()
    assert "StreamUser" in text and "1 x ChatUser: <script>" in text and "MISSED" in text
