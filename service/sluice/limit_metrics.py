"""What limits and the ledger show of themselves at a scrape."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric


class LimitNumbers(NamedTuple):
    """What limits have done: refusals by limit, calls that passed or not without the store, by its `fail`, and the store."""

    refused: Mapping[str, int] = {}
    without_store: Mapping[str, int] = {}
    settlements_lost: int = 0
    is_store_up: bool = True


def shown_limits(numbers: LimitNumbers, ledger_rows_lost: int) -> Iterator[Metric]:
    refused = CounterMetricFamily("sluice_limits_refused", "Calls refused, by the limit they ran into.", labels=["limit"])
    for limit, count in numbers.refused.items():
        refused.add_metric([limit], count)
    without = CounterMetricFamily(
        "sluice_limits_without_store", "Calls whose limits did as their `fail` says, the store being away.", labels=["fail"]
    )
    for fail, count in numbers.without_store.items():
        without.add_metric([fail], count)
    yield from (refused, without)
    yield CounterMetricFamily(
        "sluice_limits_settlements_lost", "Settlements that never reached the store.", value=numbers.settlements_lost
    )
    yield CounterMetricFamily(
        "sluice_ledger_rows_lost", "Rows that could not be written to the ledger.", value=ledger_rows_lost
    )
    yield GaugeMetricFamily("sluice_limits_store_up", "1 while the store of limits answers.", value=numbers.is_store_up)
