"""A route with all that serves it: its workers, its queue, and what is learnt of its calls."""

from __future__ import annotations

from dataclasses import dataclass, field

from sluice.admission.route import Admission
from sluice.config import Route
from sluice.hedge import Hedging
from sluice.limits.estimate import RouteEstimate
from sluice.pool import Pool
from sluice.retry_budget import RetryBudget


@dataclass(frozen=True, slots=True)
class Served:
    """A route as the gateway runs it."""

    settings: Route
    pool: Pool
    admission: Admission
    estimate: RouteEstimate = field(default_factory=RouteEstimate)
    retries: RetryBudget = field(default_factory=RetryBudget)
    hedging: Hedging | None = None

    @property
    def served_model(self) -> str:
        return self.settings.served_model or self.pool.route
