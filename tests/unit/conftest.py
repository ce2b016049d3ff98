"""What holds for every unit test: time and chance do not depend on the machine or the day.

Tests run on a loop that does not count how slow the machine is, unless their folder says otherwise, and hypothesis tries
the same examples every time. For others: `--hypothesis-profile=default`. Programs that tests start run the source too, unless
PYTHONPATH says what else.
"""

import gc
import os
from pathlib import Path

from hypothesis import HealthCheck, settings

from tests.support.patient_loop import PatientLoop

os.environ.setdefault("PYTHONPATH", str(Path(__file__).parents[2] / "service"))
settings.register_profile("same", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("same")


def pytest_asyncio_loop_factories():
    return {"patient": PatientLoop}


def pytest_collection_finish():
    gc.freeze()  # modules and tests stay: no collection has to look at them again
