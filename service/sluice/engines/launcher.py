"""Run one command so that no process of it outlives its launcher, or whoever started the launcher.

    python -I -S launcher.py --log FILE [--grace-s 8] [--cpus 0,1] -- COMMAND...

A script for any Python, with the standard library alone, so that it starts in milliseconds. vLLM is a tree of processes
(API server, EngineCore, its workers) and a kill -9 anywhere in it must leave nothing behind:

* whoever starts the launcher holds the other end of its standard input. When that end closes, for whatever reason, a
  kill -9 of the holder included, the whole tree is killed at once;
* the launcher is a session of its own and a child subreaper: what loses its parent becomes its child, so that its tree is
  complete, and when the command itself ends all the rest is killed;
* the kernel kills the command when the launcher dies (PR_SET_PDEATHSIG). Its children are then found by their session,
  whose id is the launcher's pid (`processes.kill_session`).

SIGTERM and SIGINT are passed to the command alone, which ends its children in its own way; after the grace, or at a second
signal, the tree is killed. The exit code is the command's, 128 + n for signal n, 127 when it cannot be started.
"""

import argparse
import ctypes
import os
import select
import signal
import sys
import time

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
LIFELINE = 0
SELF_ENDING_GRACE_S = 2.0


def prctl(option: int, value: int) -> None:
    if ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), f"prctl({option}) failed")


def start(command: list[str], log: int) -> int:
    launcher = os.getpid()
    child = os.fork()
    if child != 0:
        return child
    try:
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != launcher:  # it died before the line above
            os._exit(127)
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # Python ignores it, and an ignored signal survives the exec
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.execvp(command[0], command)
    except OSError as error:
        os.write(2, f"cannot start {command[0]}: {error.strerror}\n".encode())
    finally:
        os._exit(127)


def reap(child: int) -> int | None:
    """Collect whatever has ended. Returns the command's exit code once it is among them."""
    code = None
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return code
        if pid == 0:
            return code
        if pid == child:
            code = os.waitstatus_to_exitcode(status)


def wait(child: int, grace_s: float) -> int:
    """Until the command has ended, or has to. Returns its exit code, negative for a signal."""
    wakeup, wakeup_end = os.pipe()
    os.set_blocking(wakeup_end, False)
    signal.set_wakeup_fd(wakeup_end)
    for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: None)

    watched = [LIFELINE, wakeup]
    num_asked = 0
    kill_at: float | None = None
    while (code := reap(child)) is None:
        timeout_s = None if kill_at is None else max(0.0, kill_at - time.monotonic())
        readable, _, _ = select.select(watched, [], [], timeout_s)
        if wakeup in readable:
            num_asked += sum(number != signal.SIGCHLD for number in os.read(wakeup, 64))
        is_orphaned = LIFELINE in readable and not os.read(LIFELINE, 64)
        if is_orphaned or not readable or num_asked > 1:
            os.kill(child, signal.SIGKILL)
            watched, kill_at = [wakeup], None
        elif num_asked == 1 and kill_at is None:
            os.kill(child, signal.SIGTERM)
            kill_at = time.monotonic() + grace_s
    return code


def descendants() -> dict[int, str]:
    """Every living process below this one, with its command line."""
    children: dict[int, list[int]] = {}
    for name in filter(str.isdecimal, os.listdir("/proc")):
        try:
            with open(f"/proc/{name}/stat") as stat:
                state, parent = stat.read().rpartition(")")[2].split()[:2]
        except OSError:  # it has ended meanwhile
            continue
        if state != "Z":
            children.setdefault(int(parent), []).append(int(name))
    found: dict[int, str] = {}
    level = children.get(os.getpid(), [])
    while level:
        found.update({pid: command_line(pid) for pid in level})
        level = [child for pid in level for child in children.get(pid, [])]
    return found


def command_line(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as line:
            return line.read().decode(errors="replace")
    except OSError:
        return ""


def kill_the_rest() -> None:
    """Kill what the command left. Python's resource tracker may end by itself: it removes the tree's shared memory."""
    deadline = time.monotonic() + SELF_ENDING_GRACE_S
    while rest := descendants():
        may_wait = time.monotonic() < deadline
        for pid, line in rest.items():
            if not (may_wait and "resource_tracker" in line):
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    pass
        reap(0)
        time.sleep(0.01)


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--log", required=True)
    parser.add_argument("--grace-s", type=float, default=8.0)
    parser.add_argument("--cpus", default="")
    parser.add_argument("command", nargs="+")
    args = parser.parse_args()

    os.setsid()
    prctl(PR_SET_CHILD_SUBREAPER, 1)
    if args.cpus:
        os.sched_setaffinity(0, {int(cpu) for cpu in args.cpus.split(",")})
    log = os.open(args.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    code = wait(start(args.command, log), args.grace_s)
    kill_the_rest()
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(main())
