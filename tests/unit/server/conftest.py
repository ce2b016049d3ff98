"""Every test of the server runs on both event loops: uvloop's transports differ from asyncio's where it matters here.

The clock of uvloop cannot be held up, as that of `PatientLoop` is while the machine is busy: what is over after a fraction
of a second is left to the other one.
"""

import asyncio
from collections.abc import Callable, Mapping

import pytest
import uvloop

from tests.support.patient_loop import PatientLoop


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    return {"asyncio": PatientLoop, "uvloop": uvloop.new_event_loop}
