"""ORCA: a report in an answer's headers refreshes a load that is known."""

import pytest

from sluice.orca import hear
from sluice.upstream.connections import Connections
from sluice.worker import EngineLoad, Worker

LOAD = EngineLoad(num_running=4, num_waiting=3, num_waiting_for_capacity=2, kv_usage=0.5, read_at=1.0)
GOOD = "TEXT named_metrics.kv_cache_usage_perc=0.4, named_metrics.num_requests_waiting=7.0"


def heard(report: str | None, load: EngineLoad | None = LOAD) -> EngineLoad | None:
    worker = Worker("http://a", Connections("http://a"))
    worker.load = load
    with worker.lease():
        hear(worker, {} if report is None else {"endpoint-load-metrics": report}, 2.0)
    return worker.load


@pytest.mark.parametrize("report", [GOOD, "TEXT named_metrics.num_requests_waiting=7.0, named_metrics.kv_cache_usage_perc=0.4"])
def test_a_report_refreshes_what_it_tells(report):
    assert heard(report) == EngineLoad(4, 7, 6, 0.4, 2.0, num_ours=1)


def test_it_makes_no_load_known_that_is_not():
    assert heard(GOOD, None) is None


@pytest.mark.parametrize(
    "report",
    [
        None,
        "",
        "JSON {}",
        "TEXT ",
        GOOD.removeprefix("TEXT "),
        GOOD.replace("0.4", "4"),
        GOOD.replace("7.0", "-7"),
        GOOD.replace("7.0", "nan"),
        GOOD.replace("7.0", "1e99"),
        GOOD.replace("0.4", "0.4.4"),
        GOOD.partition(",")[0],
        GOOD[: len(GOOD) // 2],
    ],
)
def test_anything_else_is_passed_over(report):
    assert heard(report) == LOAD
