"""Compiles the path of a call ahead of time with mypyc: the same Python, at about half the cost.

Done where a C compiler and Python's headers are found; `SLUICE_COMPILE=0` leaves it out, `1` insists on it.
"""

import os
import shutil
import sys
import sysconfig
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent
# What each call passes through.
COMPILED = """
    types asgi outbox timers middleware directory keys attempt exchange relay pool worker backlog ejection retry_budget
    prefix metrics gateway/exchanging gateway/served
    api/access api/bodies api/calls api/openai api/steering
    admission/entry admission/route admission/fair_queue admission/window admission/drain admission/shedding
    limits/base limits/rules limits/limiter limits/memory limits/estimate
    policies/prefix_affinity policies/least_inflight policies/mirrors
    server/protocol server/pump upstream/connection upstream/connections
    wire/requests wire/shapes wire/members wire/media wire/prompt_size wire/replies wire/events
"""


def can_compile() -> bool:
    """Whether this machine has what it takes; says what it lacks."""
    wish = os.environ.get("SLUICE_COMPILE", "")
    if wish in ("0", "1"):
        return wish == "1"
    compiler = (sysconfig.get_config_var("CC") or "cc").split()[0]
    lacking = [] if shutil.which(compiler) else [f"C compiler ({compiler})"]
    if not (Path(sysconfig.get_path("include")) / "Python.h").exists():
        lacking.append("Python.h (Debian: python3-dev)")
    if lacking:
        print(f"no {' and no '.join(lacking)}: sluice runs as plain Python, at about twice the cost", file=sys.stderr)
    return not lacking


class Build(build_ext):
    """Compiles as many files at once as there are cores, only those that have changed, and says how far it is."""

    def build_extensions(self) -> None:
        compile_one = self.compiler.compile

        def compile_all(sources: Sequence[str], output_dir: str, *args: Any, **options: Any) -> list[str]:
            objects = self.compiler.object_filenames(sources, output_dir=output_dir)
            # Headers are shared by all: one that is newer makes everything old.
            newest = max((header.stat().st_mtime for header in (ROOT / "build").rglob("*.h")), default=0.0)
            stale = [
                source
                for source, made in zip(sources, map(Path, objects), strict=True)
                if not made.exists() or made.stat().st_mtime < max(newest, Path(source).stat().st_mtime)
            ]
            with ThreadPoolExecutor(os.cpu_count()) as threads:
                done = threads.map(lambda source: compile_one([source], output_dir, *args, **options), stale)
                for number, _ in enumerate(done, 1):
                    if len(stale) > 2 and (number % 10 == 0 or number == len(stale)):
                        print(f"compiled {number} of {len(stale)} files", flush=True)
            return list(objects)

        self.compiler.compile = compile_all  # type: ignore[method-assign, assignment]
        super().build_extensions()


def extensions() -> list[Extension]:
    if not can_compile():
        return []
    from mypyc.build import mypycify  # noqa: PLC0415  # needed, and to be had, only here

    os.chdir(ROOT)
    print("compiling the path of a call: a minute, the first time", flush=True)
    os.environ["MYPYPATH"] = "service"
    files = [f"service/sluice/{name}.py" for name in COMPILED.split()]
    return mypycify(["--config-file=", "--ignore-missing-imports", *files], opt_level="2", debug_level="0", multi_file=True)


setup(ext_modules=extensions(), cmdclass={"build_ext": Build})
