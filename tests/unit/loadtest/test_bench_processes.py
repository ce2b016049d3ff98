"""What is measured is started, read and stopped right; what does not start says why."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from loadtest.bench import meter
from loadtest.bench.answers import make_ask
from loadtest.bench.client import connected
from loadtest.bench.processes import (
    MODEL,
    SubjectFailed,
    gateway_config,
    process,
    reference,
    subject,
    workers,
)

CORE = min(os.sched_getaffinity(0))


def python(code: str) -> str:
    return f'{sys.executable} -c "{code}"'


async def failure_of(command: str, directory: Path) -> str:
    with pytest.raises(SubjectFailed) as failed:
        async with subject(command, [1], CORE, directory):
            raise AssertionError("it cannot have started")
    return str(failed.value)


async def test_a_subject_that_ends_at_once_is_an_error_with_its_last_words(tmp_path: Path) -> None:
    failure = await failure_of(python("import sys; sys.exit('no such thing')"), tmp_path)

    assert "has ended with exit code 1" in failure
    assert "no such thing" in failure


async def test_a_command_with_an_unknown_place_in_it_is_an_error_that_names_the_known_ones(tmp_path: Path) -> None:
    assert "{port}" in await failure_of("serve {prot}", tmp_path)


async def test_a_gateway_that_is_not_installed_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    assert "make install" in await failure_of(f"{tmp_path}/sluice serve --config {{config}}", tmp_path)


async def test_the_reference_starts_before_mock_workers_and_answers(tmp_path: Path) -> None:
    async with workers() as made, reference(made.ports, CORE, tmp_path) as least:
        async with connected(least.port, 2, lambda _, num_events: made.turns.seen(num_events)) as crew:
            await crew.ask(make_ask("here", least.key, MODEL, 9, stream=True), 2)

    assert least.running.returncode is not None


def test_the_gateways_configuration_has_keys_on_and_a_route_with_an_alias(tmp_path: Path) -> None:
    config = yaml.safe_load(yaml.safe_dump(gateway_config(8000, 8001, [8101, 8102], tmp_path)))

    assert config["auth"]["mode"] == "keys"
    assert config["routes"]["smollm2"]["aliases"] == ["gpt-4o-mini"]
    assert config["routes"]["smollm2"]["workers"]["static"] == ["http://127.0.0.1:8101", "http://127.0.0.1:8102"]


def test_a_process_runs_pinned_is_stopped_at_the_end_and_its_output_is_kept(tmp_path: Path) -> None:
    code = "import os, time; print(*os.sched_getaffinity(0), flush=True); time.sleep(60)"
    with process("probe", [sys.executable, "-c", code], CORE, tmp_path) as (running, log):
        deadline = time.monotonic() + 60
        while not log.read_text() and time.monotonic() < deadline:
            os.sched_yield()
        assert log.read_text().split() == [str(CORE)]

    assert running.returncode is not None


def test_the_cpu_of_a_process_is_counted_with_its_children() -> None:
    code = "sum(range(3_000_000)); print(flush=True); input()"
    outer = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {code!r}])"
    with subprocess.Popen([sys.executable, "-c", outer], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as running:
        assert running.stdout is not None
        running.stdout.readline()
        assert len(meter.family(running.pid)) == 2
        alone_s = time.clock_gettime((~running.pid << 3) | 2)
        assert meter.cpu_s(running.pid) > alone_s
        assert meter.rss_bytes(running.pid) > 5_000_000
        running.communicate(b"\n")

    assert meter.cpu_s(running.pid) == 0.0
    assert meter.rss_bytes(running.pid) == 0


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("123456,,instructions,1000,100.00,,\n", 123456.0),
        ("# note\n77,,instructions:u,1000,100.00,,\n", 77.0),
        ("<not supported>,,instructions,0,100.00,,\n", None),
        ("123,,cycles,0,100.00,,\n", None),
        ("", None),
    ],
)
def test_instructions_are_read_from_what_perf_prints_or_said_to_be_unknown(text: str, count: float | None) -> None:
    assert meter.parse_perf_stat(text) == count
