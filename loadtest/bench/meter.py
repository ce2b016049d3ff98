"""What a process costs, read from the kernel: CPU time, memory, instructions where the machine counts them.

CPU is utime + stime of the process with all its threads and children, taken from its CPU clock (nanoseconds; the ticks
of /proc are 10 ms). Works on Linux alone.
"""

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_CLOCK_SCHED = 2  # see CPUCLOCK_SCHED in the kernel's posix-timers.h


def family(pid: int) -> list[int]:
    """The process and its living descendants."""
    pids = [pid]
    for parent in pids:
        for children in Path(f"/proc/{parent}/task").glob("*/children"):
            try:
                pids.extend(map(int, children.read_text().split()))
            except OSError:  # the thread ended meanwhile
                continue
    return pids


def cpu_s(pid: int) -> float:
    total = 0.0
    for member in family(pid):
        try:
            total += time.clock_gettime((~member << 3) | _CLOCK_SCHED)
        except OSError:  # ended meanwhile
            continue
    return total


def rss_bytes(pid: int) -> int:
    total = 0
    for member in family(pid):
        try:
            total += int(Path(f"/proc/{member}/statm").read_text().split()[1])
        except OSError:
            continue
    return total * os.sysconf("SC_PAGE_SIZE")


def machine_busy_s() -> float:
    """CPU time that all processes of the machine have used since it started."""
    fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
    user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, fields[:8])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def instructions_are_counted() -> bool:
    """Whether `perf stat` can count instructions here; most virtual machines cannot."""
    try:
        probe = subprocess.run(_perf_stat(["true"]), capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return parse_perf_stat(probe.stderr) is not None


def parse_perf_stat(text: str) -> float | None:
    """The count in `perf stat -x,`: `123456,,instructions:...`; None where it says `<not supported>` or nothing."""
    for line in text.splitlines():
        fields = line.split(",")
        if len(fields) > 2 and "instructions" in fields[2] and fields[0].replace(".", "").isdigit():
            return float(fields[0])
    return None


def _perf_stat(rest: list[str]) -> list[str]:
    return ["perf", "stat", "-x", ",", "-e", "instructions", *rest]


class InstructionCount:
    """Filled in when the block that counts has ended."""

    num_instructions: float | None = None


@contextmanager
def counted_instructions(pid: int) -> Iterator[InstructionCount]:
    """Counts what the process executes while the block runs, user and kernel."""
    count = InstructionCount()
    pids = ",".join(map(str, family(pid)))
    with subprocess.Popen(_perf_stat(["-p", pids]), stderr=subprocess.PIPE, text=True) as perf:
        try:
            time.sleep(0.2)  # perf says nothing when it has attached
            yield count
        finally:
            perf.send_signal(signal.SIGINT)
            count.num_instructions = parse_perf_stat(perf.communicate(timeout=10)[1])
