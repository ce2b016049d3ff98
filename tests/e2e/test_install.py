"""The installer as make calls it, on a tree of its own with wheels of its own, in a real environment."""

import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path

import pytest

INSTALLER = Path(__file__).parents[2] / "deploy" / "locks" / "install.py"


class Tree:
    """A project with locks, and an environment in which pip knows one folder of wheels and no index."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.wheels = root / "wheels"
        self.wheels.mkdir()
        (root / "deploy" / "locks").mkdir(parents=True)
        shutil.copy(INSTALLER, root / "deploy" / "locks")
        self.lock("engine-cpu", "")

    def wheel(self, version: str) -> str:
        """Make a wheel of `tiny`; its hash."""
        path = self.wheels / f"tiny-{version}-py3-none-any.whl"
        with zipfile.ZipFile(path, "w") as wheel:
            wheel.writestr("tiny.py", f"VERSION = {version!r}\n")
            wheel.writestr(f"tiny-{version}.dist-info/METADATA", f"Metadata-Version: 2.1\nName: tiny\nVersion: {version}\n")
            wheel.writestr(f"tiny-{version}.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
            wheel.writestr(f"tiny-{version}.dist-info/RECORD", "")
        return sha256(path.read_bytes()).hexdigest()

    def lock(self, name: str, requirement: str) -> None:
        (self.root / "deploy" / "locks" / f"{name}.txt").write_text(f"{requirement}\n")

    def install(self, environment: str, **variables: str) -> subprocess.CompletedProcess[str]:
        base: Mapping[str, str] = {**os.environ, "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(self.wheels), "PATH": "/bin"}
        command = [sys.executable, str(self.root / "deploy" / "locks" / "install.py"), environment]
        return subprocess.run(command, env={**base, **variables}, capture_output=True, text=True, check=False)

    def installed(self, folder: str) -> str:
        python = self.root / folder / "bin" / "python"
        found = subprocess.run([python, "-c", "import tiny; print(tiny.VERSION)"], capture_output=True, text=True)
        return found.stdout.strip()


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Tree:
    """With one environment for all: to make it takes seconds."""
    tree = Tree(tmp_path_factory.mktemp("tree"))
    tree.lock("dev", "")
    done = tree.install("dev")
    assert "creating .venv with Python" in done.stdout, done.stderr
    (tree.root / ".venv-engine").symlink_to(".venv")
    return tree


def last_line(done: subprocess.CompletedProcess[str]) -> str:
    return done.stderr.strip().splitlines()[-1]


def test_what_the_lock_says_is_installed_into_the_environment_that_is_there(tree: Tree) -> None:
    for version in ("1.0", "2.0"):
        tree.lock("dev", f"tiny=={version} --hash=sha256:{tree.wheel(version)}")
        done = tree.install("dev")
        assert done.returncode == 0, done.stderr
        assert "creating" not in done.stdout
        assert tree.installed(".venv") == version


def test_a_file_of_another_checksum_is_said_and_not_installed(tree: Tree) -> None:
    tree.wheel("3.0")
    tree.lock("dev", f"tiny==3.0 --hash=sha256:{'0' * 64}")
    done = tree.install("dev")
    assert done.returncode == 1
    assert last_line(done).startswith("make dev: checksum mismatch: a package index serves another file")
    assert tree.installed(".venv") != "3.0"


def test_a_package_that_no_index_has_is_named(tree: Tree) -> None:
    tree.lock("dev", f"tiny==9.0 --hash=sha256:{'0' * 64}")
    done = tree.install("dev")
    assert done.returncode == 1
    assert last_line(done) == "make dev: pip failed: No matching distribution found for tiny==9.0"


def test_no_network_is_said_as_such(tree: Tree) -> None:
    tree.lock("dev", f"tiny==9.0 --hash=sha256:{'0' * 64}")
    nowhere = {"PIP_NO_INDEX": "0", "PIP_INDEX_URL": "http://127.0.0.1:9/", "PIP_EXTRA_INDEX_URL": "", "PIP_RETRIES": "1"}
    done = tree.install("dev", **nowhere)
    assert last_line(done) == "make dev: no network: pip cannot reach its package index; see `pip config list`, HTTPS_PROXY"


def test_torch_comes_from_pip_s_own_indexes_where_they_have_it(tree: Tree) -> None:
    tree.lock("torch-cpu", f"tiny==4.0 --hash=sha256:{tree.wheel('4.0')}")
    done = tree.install("engine", TORCH_INDEX="http://127.0.0.1:9/")
    assert done.returncode == 0, done.stderr
    assert tree.installed(".venv-engine") == "4.0"


def test_torch_comes_from_its_own_index_where_the_others_lack_it(tree: Tree) -> None:
    digest = tree.wheel("5.0")
    index = tree.root / "index" / "tiny"
    index.mkdir(parents=True)
    [wheel] = tree.wheels.glob("tiny-5.0-*")
    wheel.rename(index / wheel.name)
    (index / "index.html").write_text(f'<a href="{wheel.name}">{wheel.name}</a>')
    tree.lock("torch-cpu", f"tiny==5.0 --hash=sha256:{digest}")
    done = tree.install(
        "engine", TORCH_INDEX=f"file://{tree.root}/index", PIP_NO_INDEX="0", PIP_INDEX_URL=f"file://{tree.root}"
    )
    assert done.returncode == 0, done.stderr
    assert "torch is not on pip's configured indexes: trying file://" in done.stdout
    assert "ERROR" not in done.stderr
    assert tree.installed(".venv-engine") == "5.0"


def test_torch_that_nobody_has_is_said_with_what_to_set(tree: Tree) -> None:
    tree.lock("torch-cpu", f"tiny==8.0 --hash=sha256:{'0' * 64}")
    done = tree.install("engine", TORCH_INDEX=f"file://{tree.root}/index")
    assert done.returncode == 1
    assert last_line(done).startswith("make engine: torch is neither on pip's indexes nor to be had from TORCH_INDEX=file:")
