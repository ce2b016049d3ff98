"""The images of the gateway and of the simulated worker, built without Docker and run as a cluster would run them: without a
network of their own, which they do not need here, but read-only, as a number, and without a single capability.

Debian's own packages make the base (mmdebstrap), buildah builds, umoci unpacks, runc runs. The base is kept in .tools/image.
"""

import json
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from loadtest.bench.processes import free_port
from loadtest.stack import MODEL, Workers, fleet
from tests.deploy.tools import ROOT, TOOLS, need_root, run, tool, until

STORE = TOOLS / "image"
BASE = "localhost/sluice-base:bookworm"
BUILD_BASE = "localhost/sluice-build-base:bookworm"
PACKAGES = "python3,python3-venv,ca-certificates"
COMPILER = "gcc,libc6-dev,python3-dev"
CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")


def buildah(*command: str | Path) -> str:
    where = ["--root", STORE / "store", "--runroot", STORE / "run", "--storage-driver", "vfs"]
    done = run(tool("buildah"), *where, *command, timeout=900)
    assert done.returncode == 0, f"buildah {command[0]}:\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout.strip()


@pytest.fixture(scope="session")
def base() -> str:
    """A Debian with Python, as the image's base; made once, and kept."""
    need_root()
    for name in ("buildah", "mmdebstrap", "skopeo", "umoci", "runc"):
        tool(name)
    return debian(BASE, PACKAGES)


@pytest.fixture(scope="session")
def build_base(base: str) -> str:
    """The same with what compiles."""
    return debian(BUILD_BASE, f"{PACKAGES},{COMPILER}")


def debian(image: str, packages: str) -> str:
    STORE.mkdir(parents=True, exist_ok=True)
    root = STORE / f"{image.partition('/')[2].partition(':')[0]}.tar"
    if not root.exists():
        part = STORE / "part.tar"
        done = run(tool("mmdebstrap"), "--variant=minbase", f"--include={packages}", "bookworm", part, timeout=900)
        if done.returncode != 0:
            pytest.skip(
                f"NO BASE FOR THE IMAGE, for Debian's packages are not to be had: {done.stderr.strip().splitlines()[-1]}"
            )
        part.rename(root)
    if image not in buildah("images", "--format", "{{.Name}}:{{.Tag}}").splitlines():
        container = buildah("from", "scratch")
        buildah("add", "--quiet", container, root, "/")
        buildah("commit", "--quiet", container, image)
        buildah("rm", container)
    return image


def pip_of_this_machine() -> list[str]:
    """Mounts by which pip in the build finds its packages where pip on this machine does: mirrors, folders, authorities."""
    listed = run(sys.executable, "-m", "pip", "config", "list").stdout
    settings = dict(re.findall(r"^(?:global|:env:)\.(\S+?)='(.*)'$", listed, re.MULTILINE))
    config = STORE / "pip.conf"
    config.write_text("[global]\n" + "".join(f"{name} = {value}\n" for name, value in settings.items()))
    named = {Path(word.removeprefix("file://")) for value in settings.values() for word in value.split()}
    there = {path for path in named if path.is_absolute() and path.exists()} | {
        path for path in [CERTIFICATES] if path.exists()
    }
    there = {path.parent if path.name == "simple" else path for path in there}  # a local index has its files beside it
    mounts = [f"{config}:/etc/pip.conf:ro", *(f"{path}:{path}:ro" for path in sorted(there))]
    return [part for mount in mounts for part in ("--volume", mount)]


def built(base: str, build_base: str, file: str, name: str) -> Path:
    """An image as an OCI layout. Layers are kept, so that what two images have in common is built once."""
    how = ["--pull-never", "--isolation", "chroot", "--layers", "--build-arg", f"BASE_IMAGE={base}"]
    how += ["--build-arg", f"BUILD_IMAGE={build_base}", *pip_of_this_machine()]
    buildah("bud", *how, "--file", ROOT / "deploy/docker" / file, "--tag", f"localhost/{name}:test", ROOT)
    layout = STORE / f"{name}-oci"
    shutil.rmtree(layout, ignore_errors=True)
    buildah("push", "--quiet", f"localhost/{name}:test", f"oci:{layout}:test")
    return layout


def unpacked(layout: Path) -> Path:
    """An image unpacked, for runc."""
    bundle = layout.with_name(layout.name.replace("-oci", "-bundle"))
    shutil.rmtree(bundle, ignore_errors=True)
    done = run(tool("umoci"), "unpack", "--image", f"{layout}:test", bundle)
    assert done.returncode == 0, done.stderr
    shutil.copy(bundle / "config.json", bundle / "of-the-image.json")
    return bundle


@pytest.fixture(scope="session")
def layout(base: str, build_base: str) -> Path:
    return built(base, build_base, "Dockerfile.gateway", "sluice")


@pytest.fixture(scope="session")
def bundle(layout: Path) -> Path:
    return unpacked(layout)


def hardened(spec: dict[str, Any], mounts: list[dict[str, Any]], arguments: list[str] | None) -> dict[str, Any]:
    """The image's own specification, tightened as Pod Security "restricted" and the chart do it."""
    process, linux = spec["process"], spec["linux"]
    process |= {"terminal": False, "noNewPrivileges": True, "capabilities": {}}
    if arguments is not None:
        process["args"] = arguments
    spec["root"]["readonly"] = True
    spec["mounts"] = [mount for mount in spec["mounts"] if mount["type"] != "cgroup"] + mounts
    linux["namespaces"] = [space for space in linux["namespaces"] if space["type"] not in ("network", "cgroup")]
    linux.pop("cgroupsPath", None)
    linux.pop("resources", None)
    return spec


@contextmanager
def running(bundle: Path, folder: Path, *, arguments: list[str] | None = None) -> Iterator[subprocess.Popen[bytes]]:
    """A container with `folder` as its /etc/sluice/config and a /tmp in memory, and nothing else that is not of the image."""
    tmp = {"destination": "/tmp", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "nodev", "mode=1777", "size=64m"]}
    config = {"destination": "/etc/sluice/config", "type": "bind", "source": str(folder), "options": ["rbind", "ro"]}
    spec = json.loads((bundle / "of-the-image.json").read_text())
    (bundle / "config.json").write_text(json.dumps(hardened(spec, [tmp, config], arguments)))
    name = f"sluice-test-{free_port()}"
    with (folder / "container.log").open("wb") as log:
        started = subprocess.Popen(
            [tool("runc"), "run", "--bundle", bundle, name], stdout=log, stderr=log, stdin=subprocess.DEVNULL
        )
    try:
        yield started
    finally:
        if started.poll() is None:
            run(tool("runc"), "kill", name, "KILL")
        started.wait(timeout=30)


@dataclass(frozen=True)
class Served:
    url: str
    metrics_url: str
    process: subprocess.Popen[bytes]
    folder: Path

    def said(self) -> str:
        return (self.folder / "container.log").read_text()


@pytest.fixture
def workers(tmp_path: Path) -> Iterator[Workers]:
    with fleet(tmp_path) as found:
        yield found


@pytest.fixture
def served(bundle: Path, workers: Workers, tmp_path: Path) -> Iterator[Served]:
    """The image's own entry point and command, in front of a simulated worker."""
    folder = tmp_path / "config"
    folder.mkdir()
    port, metrics_port = free_port(), free_port()
    config = {
        "server": {"port": port, "metrics_port": metrics_port},
        "auth": {"mode": "open"},
        "routes": {MODEL: {"workers": {"static": list(workers.urls)}}},
    }
    (folder / "sluice.yaml").write_text(yaml.safe_dump(config))
    with running(bundle, folder) as process:
        ours = Served(f"http://127.0.0.1:{port}", f"http://127.0.0.1:{metrics_port}", process, folder)
        until(lambda: process.poll() is not None or status(f"{ours.metrics_url}/readyz") == 200, "ready", ours.said)
        assert process.poll() is None, ours.said()
        yield ours


def status(url: str) -> int | None:
    try:
        return httpx.get(url, timeout=2).status_code
    except httpx.TransportError:
        return None


def test_the_image_says_how_it_is_run(layout: Path) -> None:
    done = run(tool("skopeo"), "inspect", "--config", f"oci:{layout}:test")
    config = json.loads(done.stdout)["config"]
    assert config["User"] == "10001:10001"
    assert config["Entrypoint"] == ["/opt/sluice/bin/sluice"]
    assert config["Cmd"] == ["serve", "--config", "/etc/sluice/config/sluice.yaml"]
    assert config["StopSignal"] == "SIGTERM"
    assert {port.removesuffix("/tcp") for port in config["ExposedPorts"]} == {"8000", "8001"}
    assert config["Labels"]["org.opencontainers.image.title"] == "sluice"
    names = {variable.split("=")[0] for variable in config["Env"]}
    assert names == {"PATH", "PYTHONUNBUFFERED", "PYTHONDONTWRITEBYTECODE"}, "no secret, and nothing of the build"


def test_the_image_has_no_installer_in_it(bundle: Path) -> None:
    installed = {path.name for path in (bundle / "rootfs/opt/sluice").glob("lib/python3*/site-packages/*")}
    assert "sluice" in installed
    assert not {"pip", "setuptools", "mypy", "mypyc"} & installed


def test_the_path_of_a_call_is_compiled_in_it(bundle: Path, tmp_path: Path) -> None:
    with running(bundle, tmp_path, arguments=["/opt/sluice/bin/sluice", "version"]) as process:
        assert process.wait(timeout=60) == 0, (tmp_path / "container.log").read_text()
    assert (tmp_path / "container.log").read_text().strip().endswith("compiled")


def test_it_cannot_write_its_root_and_has_no_power(bundle: Path, tmp_path: Path) -> None:
    script = """
import os
print(os.getuid(), os.getgid())
print([line for line in open("/proc/self/status") if line.startswith(("CapEff", "CapBnd", "NoNewPrivs"))])
for path in ("/x", "/opt/sluice/x"):
    try:
        open(path, "w")
    except OSError as exc:
        print(path, exc.strerror)
open("/tmp/x", "w")
print("done")
"""
    with running(bundle, tmp_path, arguments=["/opt/sluice/bin/python", "-c", script]) as process:
        assert process.wait(timeout=60) == 0, (tmp_path / "container.log").read_text()
    said = (tmp_path / "container.log").read_text()
    assert said.startswith("10001 10001\n")
    assert "CapEff:\\t0000000000000000" in said and "CapBnd:\\t0000000000000000" in said and "NoNewPrivs:\\t1" in said
    assert said.count("Read-only file system") == 2
    assert said.endswith("done\n")


def test_it_answers_probes_and_calls(served: Served) -> None:
    assert [status(f"{served.metrics_url}{path}") for path in ("/livez", "/readyz", "/metrics")] == [200, 200, 200]
    body = {"model": MODEL, "messages": [{"role": "user", "content": "hello"}], "max_tokens": 4}
    reply = httpx.post(f"{served.url}/v1/chat/completions", json=body, timeout=30)
    assert reply.status_code == 200
    assert reply.json()["usage"]["completion_tokens"] == 4


def test_sigterm_lets_a_stream_come_to_its_end_and_exits_with_0(served: Served) -> None:
    body = {"model": MODEL, "messages": [{"role": "user", "content": "hello"}], "max_tokens": 100, "min_tokens": 100}
    with httpx.stream("POST", f"{served.url}/v1/chat/completions", json={**body, "stream": True}, timeout=60) as reply:
        lines = reply.iter_lines()
        seen = [next(lines) for _ in range(6)]
        served.process.send_signal(signal.SIGTERM)
        until(lambda: status(f"{served.metrics_url}/readyz") == 503, "not ready while it drains", served.said)
        seen += lines
    events = [line for line in seen if line.startswith("data: ")]
    assert events[-1] == "data: [DONE]"
    assert len(events) > 50
    assert served.process.wait(timeout=30) == 0, served.said()
    assert "Traceback" not in served.said()


def test_the_simulated_workers_image_answers_as_the_gateways_worker_would_and_ends_when_it_is_told(
    base: str, build_base: str, bundle: Path, tmp_path: Path
) -> None:
    """After the gateway's, with which it shares what takes long to build."""
    worker = unpacked(built(base, build_base, "Dockerfile.simulated-worker", "simulated-worker"))
    of_the_image = json.loads((worker / "of-the-image.json").read_text())["process"]
    assert of_the_image["user"] | {"additionalGids": None} == {"uid": 10001, "gid": 10001, "additionalGids": None}
    assert of_the_image["args"][-2:] == ["--port", "8000"]
    url = f"http://127.0.0.1:{(port := free_port())}"
    arguments = [*of_the_image["args"][:-1], str(port)]
    with running(worker, tmp_path, arguments=arguments) as process:
        said = (tmp_path / "container.log").read_text
        until(lambda: process.poll() is not None or status(f"{url}/health") == 200, "healthy", said)
        assert process.poll() is None, said()
        body = {"model": MODEL, "messages": [{"role": "user", "content": "hello"}], "max_tokens": 4}
        reply = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=30)
        assert reply.status_code == 200 and reply.json()["usage"]["completion_tokens"] == 4
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == 0, said()
