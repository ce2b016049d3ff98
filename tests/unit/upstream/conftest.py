"""These tests run on both event loops: uvloop is what serves, asyncio's own is what everything else is tested on."""

import uvloop

from tests.support.patient_loop import PatientLoop


def pytest_asyncio_loop_factories():
    return {"asyncio": PatientLoop, "uvloop": uvloop.new_event_loop}
