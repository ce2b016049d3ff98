"""What the installer knows before pip runs, and what it makes of pip's words; tests/e2e/test_install.py runs it whole."""

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

INSTALLER = Path(__file__).parents[3] / "deploy" / "locks" / "install.py"


@pytest.fixture(scope="module")
def installer() -> ModuleType:
    spec = importlib.util.spec_from_file_location("install", INSTALLER)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ("ERROR: Could not install: [Errno 28] No space left on device", "the disk is full: make room in "),
        ("ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE.", "checksum mismatch: "),
        (
            "WARNING: Retrying after connection broken by 'NewConnectionError(...)'\nERROR: No matching distribution found",
            "no network: pip cannot reach its package index",
        ),
        ("ERROR: one\nERROR: No matching distribution found for x==1", "pip failed: No matching distribution found for x"),
        ("", "pip failed: see above"),
    ],
)
def test_what_pip_says_becomes_one_line(installer: ModuleType, said: str, reason: str) -> None:
    assert installer.reason(said).startswith(reason)
    assert "\n" not in installer.reason(said)


def test_a_disk_without_room_is_refused(installer: ModuleType) -> None:
    with pytest.raises(installer.Failed, match=r"GB free in .* and 1000000000.0 GB needed: make room"):
        installer.check_disk(1e18)


@pytest.mark.parametrize(
    ("version", "environment", "said"),
    [
        ((3, 9), "gateway", "make install: this is Python 3.9; 3.11 or newer is needed: make PYTHON="),
        ((3, 15), "engine", "make engine: vLLM has no wheels for Python 3.15; use 3.11 to 3.14: make PYTHON="),
    ],
)
def test_a_python_of_the_wrong_age_is_told_which_one_to_take(version: tuple[int, int], environment: str, said: str) -> None:
    pretend = f"import sys, runpy; sys.version_info = {(*version, 0)}; sys.argv = ['i', {environment!r}]\n"
    pretend += f"runpy.run_path({str(INSTALLER)!r}, run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", pretend], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.strip().startswith(said)
