"""Workers that are killed, restarted, refuse and lie behind a real gateway process, and clients that notice nothing."""

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.e2e


def test_no_client_notices(tmp_path: Path):
    command = [sys.executable, "-m", "loadtest.chaos", "--short", "--logs", str(tmp_path)]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    log = (tmp_path / "gateway.log").read_text()
    assert "Traceback" not in log, log[log.index("Traceback") :][:4000]
