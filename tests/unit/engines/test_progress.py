import os
from io import StringIO
from pathlib import Path

from rich.console import Console

from sluice.engines.base import Job
from sluice.engines.progress import WorkerDisplay
from sluice.engines.vllm_log import VllmLog

JOB = Job("worker 1 (mine)", ("true",), os.environ, "", Path("/logs/[1].log"), VllmLog())


def shown(*, is_terminal: bool, stages: tuple[str, ...]) -> str:
    out = StringIO()
    launched: list[int] = []
    display = WorkerDisplay(Console(file=out, force_terminal=is_terminal, width=80), lambda job, pid: launched.append(pid))
    with display:
        display.launched(JOB, 42)
        for stage in stages:
            display.stage(JOB, stage)
        display.healthy(JOB, 25.4)
    assert launched == [42]
    return out.getvalue()


def test_elsewhere_than_on_a_terminal_each_stage_is_one_line() -> None:
    assert shown(is_terminal=False, stages=("loading", "loading", "warming up")) == (
        "worker 1 (mine): loading\nworker 1 (mine): warming up\nworker 1 (mine): healthy after 25 s, log in /logs/[1].log\n"
    )


def test_a_terminal_shows_the_stage_while_it_lasts() -> None:
    text = shown(is_terminal=True, stages=("loading", "warming up"))
    assert "worker 1 (mine): warming up" in text
    assert "worker 1 (mine): healthy after 25 s, log in /logs/[1].log\n" in text


def test_a_crash_is_said_and_the_next_start_is_shown_anew() -> None:
    out = StringIO()
    display = WorkerDisplay(Console(file=out), lambda job, pid: None)
    for _ in range(2):
        display.launched(JOB, 42)
        display.stage(JOB, "loading")
        display.crashed(JOB, "worker 1 exit code 3; starting it again")
    assert out.getvalue().splitlines() == 2 * ["worker 1 (mine): loading", "worker 1 exit code 3; starting it again"]


def test_a_crash_of_a_healthy_worker_is_said() -> None:
    out = StringIO()
    display = WorkerDisplay(Console(file=out), lambda job, pid: None)
    display.launched(JOB, 42)
    display.healthy(JOB, 1.0)
    display.crashed(JOB, "gone")
    assert out.getvalue().endswith("gone\n")
