"""python -m loadtest.bench: what the gateway costs beside a reference proxy, as a table with the bars it must meet.

Gateway and reference run at the same time on one core and are measured by turns; mock vLLM workers and the load
generator run on another. Cost is CPU time of the process (user + system); rounds in which the core ran slowly, as it does
beside a busy neighbour, are left out. Instructions are counted too where `perf stat` can. Every answer is checked.
"""

import argparse
import gc
import os
import resource
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import orjson
import uvloop
from rich.console import Console

from loadtest.bench import meter
from loadtest.bench.answers import WrongAnswer
from loadtest.bench.launch import raise_file_limit
from loadtest.bench.processes import Cores, SubjectFailed, reference, subject, workers
from loadtest.bench.report import Row, table
from loadtest.bench.scenarios import FULL, QUICK, SCENARIOS, Pair, Scenario
from loadtest.bench.speed import CoreSpeed

_WIDTH = 160  # of the table where there is no terminal
_QUIET_CORES = 0.1  # what others may use without doubt on the figures
_EPILOG = f"""scenarios: {", ".join(scenario.name for scenario in SCENARIOS)}

exit codes: 0 all bars met, 1 a bar missed or a wrong answer, 2 something did not start

examples:
  python -m loadtest.bench --quick
  python -m loadtest.bench --only chat --only paced-64 --json bench.json
  python -m loadtest.bench --subject 'my-proxy --listen {{port}} --to {{upstream}}'
"""


def _options() -> argparse.Namespace:
    gateway = Path(sys.executable).parent / "sluice"
    parser = argparse.ArgumentParser(
        prog="python -m loadtest.bench",
        description=__doc__.split(": ", 1)[1],
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--quick", action="store_true", help="a minute and a half, fewer rounds, smaller crowds")
    parser.add_argument(
        "--only",
        action="append",
        choices=[scenario.name for scenario in SCENARIOS],
        metavar="NAME",
        help="this scenario alone; may be repeated",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there too")
    parser.add_argument(
        "--subject",
        default=f"{gateway} serve --config {{config}}",
        metavar="CMD",
        help="what to measure instead of the gateway: a command with {port} and {upstream} (HOST:PORT) in it; one with "
        "{config} is given a gateway's configuration, and a key made by its `key new`",
    )
    parser.add_argument("--directory", type=Path, help="keep configuration and logs there (default: a temporary one)")
    return parser.parse_args()


async def _run(
    scenario: Scenario,
    options: argparse.Namespace,
    cores: Cores,
    speed: CoreSpeed,
    directory: Path,
    console: Console,
) -> list[Row]:
    """Everything anew for each scenario: none finds the memory that another one has grown."""
    async with (
        workers(scenario.pace_s) as made,
        reference(made.ports, cores.subject, directory) as least,
        subject(options.subject, made.ports, cores.subject, directory) as ours,
    ):
        pair = Pair(
            reference=least,
            subject=ours,
            turns=made.turns,
            speed=speed,
            scale=QUICK if options.quick else FULL,
            counts_instructions=meter.instructions_are_counted(),
            say=lambda line: console.print(f"  [dim]{line}[/]", highlight=False),
        )
        try:
            return await scenario.run(pair)
        except WrongAnswer as exc:
            raise WrongAnswer(f"{scenario.name}: {exc}\n  {ours.end_of_story()}") from exc
        except OSError as exc:  # it listens no more
            raise SubjectFailed(f"{scenario.name}: {exc}\n  {ours.end_of_story()}") from exc


def _measure(options: argparse.Namespace, directory: Path, console: Console) -> tuple[list[Row], list[WrongAnswer]]:
    """Figures, and what went wrong: a scenario with a wrong answer has no figures, and does not end the others."""
    cores = Cores.of_this_machine()
    if cores.are_shared:
        console.print("[yellow]only one core: load and subject share it, gaps and ratios mean little[/]")
    if not meter.instructions_are_counted():
        console.print("instructions: not counted here (`perf stat` cannot)", highlight=False)
    os.sched_setaffinity(0, {cores.load})
    gc.disable()  # collected between measurements; within one it would show as a gap
    chosen = [scenario for scenario in SCENARIOS if not options.only or scenario.name in options.only]
    speed = CoreSpeed(cores.subject)
    rows: list[Row] = []
    wrong: list[WrongAnswer] = []
    for number, scenario in enumerate(chosen, 1):
        console.print(f"[bold]{number}/{len(chosen)}[/] {scenario.what}", highlight=False)
        try:
            rows += uvloop.run(_run(scenario, options, cores, speed, directory, console))
        except WrongAnswer as exc:
            wrong.append(exc)
            console.print("  wrong answer", style="red")
    return rows, wrong


def _cpu_of_others(busy_s: float) -> float:
    """CPU seconds of `busy_s` that were neither ours nor our children's."""
    usages = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return max(0.0, busy_s - sum(usage.ru_utime + usage.ru_stime for usage in usages))


def main() -> int:
    options = _options()
    console = Console(width=None if sys.stdout.isatty() else _WIDTH)
    raise_file_limit()
    began_s, busy_s = time.monotonic(), meter.machine_busy_s()
    with ExitStack() as stack:
        if options.directory is None:
            directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
        else:
            directory = options.directory.resolve()
            directory.mkdir(parents=True, exist_ok=True)
        try:
            rows, wrong = _measure(options, directory, console)
        except SubjectFailed as exc:
            console.print(f"bench: {exc}", style="red", markup=False, highlight=False)
            return 2
    took_s = time.monotonic() - began_s
    others = _cpu_of_others(meter.machine_busy_s() - busy_s) / took_s
    console.print(table(rows, "cost beside the reference proxy: median of the rounds at full speed (lowest to highest)"))
    console.print(f"took {took_s:.0f} s; other work on this machine used {others:.2f} of a core", highlight=False)
    if others > _QUIET_CORES:
        console.print("[yellow]that is not a quiet machine: figures are off, ratios less so, gaps most of all[/]")
    for answer in wrong:
        console.print(f"wrong answer in {answer}", style="red", markup=False, highlight=False)
    if options.json is not None:
        report = {
            "rows": [row.as_json() for row in rows],
            "wrong_answers": list(map(str, wrong)),
            "took_s": took_s,
            "cores_of_others": others,
        }
        options.json.write_bytes(orjson.dumps(report, option=orjson.OPT_INDENT_2))
    return 1 if wrong or any(row.is_missed for row in rows) else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
