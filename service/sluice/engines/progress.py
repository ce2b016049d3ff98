"""Shows a person what the workers are doing: a spinner each on a terminal, plain lines elsewhere."""

from collections.abc import Callable
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from sluice.engines.base import Job


class WorkerDisplay:
    """`Notices` for people. As a context manager it shows the start; what happens later is a line each.

    `on_launch` is told every job that is started, and the pid of its launcher.
    """

    def __init__(self, console: Console, on_launch: Callable[[Job, int], None]) -> None:
        self._console = console
        self._on_launch = on_launch
        columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
        self._progress = Progress(*columns, console=console, transient=True)
        self._tasks: dict[str, TaskID] = {}  # of the workers that are loading
        self._stages: dict[str, str] = {}

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None) -> None:
        if self._console.is_terminal:
            self._progress.stop()

    def launched(self, job: Job, pid: int) -> None:
        self._on_launch(job, pid)
        self._tasks[job.name] = self._progress.add_task(job.name)

    def stage(self, job: Job, stage: str) -> None:
        if self._stages.get(job.name) == stage:
            return
        self._stages[job.name] = stage
        self._progress.update(self._tasks[job.name], description=f"{job.name}: {stage}", refresh=True)
        if not self._console.is_terminal:
            self._say(f"{job.name}: {stage}")

    def healthy(self, job: Job, after_s: float) -> None:
        self._forget(job)
        self._say(f"{job.name}: healthy after {after_s:.0f} s, log in {job.log_path}")

    def crashed(self, job: Job, line: str) -> None:
        self._forget(job)
        self._say(line)

    def _forget(self, job: Job) -> None:
        self._stages.pop(job.name, None)
        task = self._tasks.pop(job.name, None)
        if task is not None:
            self._progress.remove_task(task)

    def _say(self, line: str) -> None:
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)
