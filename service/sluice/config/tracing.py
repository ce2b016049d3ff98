"""The section that sends traces to a collector."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from sluice.config.base import CollectorUrl, Section


class TracingSettings(Section):
    """OpenTelemetry traces; none where no endpoint is named."""

    endpoint: CollectorUrl | None = None
    sample_ratio: Annotated[float, Field(ge=0, le=1)] = 0.01
    follow_parent: bool = True
    service_name: str = "sluice"
    capture_content: bool = False
