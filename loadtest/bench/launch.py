"""Start a program on given cores, with every open file the machine allows, that ends when we end: execs, keeps the pid.

python -m loadtest.bench.launch CORES PROGRAM [ARGUMENT ...]      # CORES like 0 or 0,2
"""

import ctypes
import os
import resource
import signal
import sys

_PR_SET_PDEATHSIG = 1


def raise_file_limit() -> int:
    """The soft limit on open files becomes the hard one; returns it."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def main() -> None:
    cores, program = sys.argv[1], sys.argv[2:]
    os.sched_setaffinity(0, set(map(int, cores.split(","))))
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    raise_file_limit()
    os.execvp(program[0], program)


if __name__ == "__main__":
    main()
