"""A table of the fleet that renews itself, for `--console`."""

import asyncio

from rich.live import Live
from rich.table import Table

from loadtest.simfleet.fleet import Fleet

_COLUMNS = ("port", "state", "faults", "replies", "running", "waiting", "kv", "hit rate", "tokens", "starts", "lag ms")
_REFRESH_S = 0.5


async def show(fleet: Fleet) -> None:
    """Show the fleet until cancelled."""
    with Live(_table(fleet), auto_refresh=False) as live:
        while True:
            await asyncio.sleep(_REFRESH_S)
            live.update(_table(fleet), refresh=True)


def _table(fleet: Fleet) -> Table:
    table = Table(*_COLUMNS, title=f"control {fleet.control_url}", title_justify="left")
    for state in fleet.state()["workers"]:
        table.add_row(
            state["url"].rpartition(":")[2],
            state["state"],
            ", ".join(state["faults"]),
            *(str(state[name]) for name in ("replies", "running", "waiting")),
            f"{state['kv_usage']:.0%}",
            f"{state['cache_hit_rate']:.0%}",
            *(str(state[name]) for name in ("generation_tokens", "num_starts", "worst_lag_ms")),
        )
    return table
