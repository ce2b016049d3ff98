"""Create a virtual environment and install locked packages into it: `python3 install.py gateway|dev|engine`. `sluice`
compiles the project itself and puts it into the gateway's environment.

Called by the Makefile, before anything of ours is installed: the standard library alone, and a syntax that a Python too
old to run Sluice still reads, so that it can say so. pip runs with --require-hashes throughout; what it prints goes
through as it comes, and what makes it fail is said in one line at the end, with what to do. Exit code 1 then.
"""

import argparse
import glob
import os
import shutil
import subprocess
import sys

LOCKS = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(LOCKS))
WHEEL = os.path.join(ROOT, "build", "wheel")
TORCH_INDEX = "https://download.pytorch.org/whl/cpu"
OLDEST_PYTHON, NEWEST_ENGINE_PYTHON = (3, 11), (3, 14)
GB = 1e9
NEEDED_BYTES = {"gateway": 0.3 * GB, "dev": 0.6 * GB, "engine-cpu": 5 * GB, "engine-gpu": 25 * GB}

NETWORK_SIGNS = ("NewConnectionError", "Connection refused", "name resolution", "Name or service not known")
NETWORK_SIGNS += ("Network is unreachable", "ConnectTimeout", "Read timed out", "ProxyError", "Connection broken")
# pip says this of every package for each of its local indexes that lacks it.
NOISE = "is ignored: it is neither a file nor a directory"


class Failed(Exception):
    """What went wrong and what to do about it, in one line."""


def check_python(environment):
    version = sys.version_info[:2]
    spelled = f"{version[0]}.{version[1]}"
    if version < OLDEST_PYTHON:
        raise Failed(f"this is Python {spelled}; 3.11 or newer is needed: make PYTHON=/path/to/python3.12")
    if environment == "engine" and version > NEWEST_ENGINE_PYTHON:
        raise Failed(f"vLLM has no wheels for Python {spelled}; use 3.11 to 3.14: make PYTHON=/path/to/python3.12")
    if environment == "engine" and not sys.platform.startswith("linux"):
        raise Failed("vLLM's wheels are for Linux; here, point `sluice serve` at workers that run elsewhere")


def check_disk(needed):
    free = shutil.disk_usage(ROOT).free
    if free < needed:
        raise Failed(f"{free / GB:.1f} GB free in {ROOT} and {needed / GB:.1f} GB needed: make room")


def has_nvidia_gpu():
    try:
        return subprocess.call(["nvidia-smi", "-L"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) == 0
    except OSError:
        return False


def has_pip(python):
    try:
        return subprocess.call([python, "-m", "pip", "--version"], stdout=subprocess.DEVNULL) == 0
    except OSError:
        return False


def create(folder):
    """The environment's Python; one that was left half made or whose Python is gone is made anew."""
    python = os.path.join(folder, "bin", "python")
    if not has_pip(python):
        print(f"creating {os.path.relpath(folder, ROOT)} with Python {sys.version.split()[0]}", flush=True)
        if subprocess.call([sys.executable, "-m", "venv", "--clear", folder]) != 0:
            raise Failed("this Python cannot create environments: install its venv module (Debian: python3-venv)")
    return python


def pip(python, *arguments, **options):
    """Run pip, let what it says through, and raise its failure as one line."""
    say_errors = options.get("say_errors", True)
    command = [python, "-m", "pip", "install", "--no-deps", "--disable-pip-version-check"]
    command += ["--progress-bar", "on"] + list(arguments)
    lines = []
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, universal_newlines=True) as process:
        for line in process.stderr:
            lines.append(line)
            if NOISE not in line and (say_errors or not line.startswith("ERROR")):
                sys.stderr.write(line)
                sys.stderr.flush()
    if process.returncode != 0:
        raise Failed(reason("".join(lines)))


def reason(said):
    if "No space left on device" in said:
        return f"the disk is full: make room in {ROOT} or in TMPDIR (now {os.environ.get('TMPDIR', '/tmp')})"
    if "DO NOT MATCH THE HASHES" in said:
        return "checksum mismatch: a package index serves another file than deploy/locks records; it was not installed"
    if any(sign in said for sign in NETWORK_SIGNS):
        return "no network: pip cannot reach its package index; see `pip config list`, HTTPS_PROXY"
    errors = [line[len("ERROR: ") :].strip() for line in said.splitlines() if line.startswith("ERROR: ")]
    return "pip failed: " + (errors[-1] if errors else "see above")


def install_torch(python):
    """From the indexes that pip is configured with; PyTorch's own, which few mirrors carry, only when they lack it."""
    lock = os.path.join(LOCKS, "torch-cpu.txt")
    try:
        pip(python, "--require-hashes", "-r", lock, say_errors=False)
        return
    except Failed as failure:
        if "No matching distribution" not in str(failure) and not str(failure).startswith("no network"):
            raise
    index = os.environ.get("TORCH_INDEX") or TORCH_INDEX
    print(f"torch is not on pip's configured indexes: trying {index}", flush=True)
    try:
        pip(python, "--require-hashes", "--index-url", index, "-r", lock)
    except Failed as failure:
        raise Failed(f"torch is neither on pip's indexes nor to be had from TORCH_INDEX={index}: {failure}") from None


def install(environment):
    check_python(environment)
    lock = environment
    if environment == "engine":
        lock = "engine-gpu" if has_nvidia_gpu() else "engine-cpu"
    check_disk(NEEDED_BYTES[lock])
    python = create(os.path.join(ROOT, ".venv-engine" if environment == "engine" else ".venv"))
    if lock == "engine-cpu":
        install_torch(python)
    pip(python, "--require-hashes", "-r", os.path.join(LOCKS, lock + ".txt"))


def build_sluice():
    """Compiled where that can be (see setup.py); as plain Python where it cannot, which says so."""
    python = os.path.join(ROOT, ".venv", "bin", "python")
    if not make_wheel(python):
        if os.environ.get("SLUICE_COMPILE") == "1":
            raise Failed("it could not be compiled; see above")
        print("it could not be compiled (see above): sluice runs as plain Python, at about twice the cost", flush=True)
        os.environ["SLUICE_COMPILE"] = "0"
        if not make_wheel(python):
            raise Failed("it could not be built; see above")
    pip(python, "--quiet", "--force-reinstall", *glob.glob(os.path.join(WHEEL, "*.whl")))


def make_wheel(python):
    """Not by pip, which keeps to itself how far it is. What was deleted since the last time must not be in it."""
    for stale in (*glob.glob(os.path.join(ROOT, "build", "lib*")), WHEEL):
        shutil.rmtree(stale, ignore_errors=True)
    os.makedirs(WHEEL)
    build = "import sys, setuptools.build_meta as b; b.build_wheel(sys.argv[1], {'--global-option': '--quiet'})"
    return subprocess.call([python, "-c", build, WHEEL], cwd=ROOT) == 0


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("environment", choices=["gateway", "dev", "engine", "sluice"])
    environment = parser.parse_args().environment
    try:
        if environment == "sluice":
            build_sluice()
        else:
            install(environment)
    except Failed as failure:
        sys.exit(f"\nmake {environment if environment in ('dev', 'engine') else 'install'}: {failure}")
    except KeyboardInterrupt:
        sys.exit("\ninterrupted; the same command goes on where it was")


if __name__ == "__main__":
    main()
