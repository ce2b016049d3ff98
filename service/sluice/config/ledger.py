"""The section of the ledger: where it is kept what each call has cost."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field

from sluice.config.base import Positive, Section


class LedgerSettings(Section):
    """One SQLite file a month and replica; no ledger where no folder is named."""

    folder: Path | None = None
    replica: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")] | None = None  # None: the host's name
    keep_months: Positive = 13
