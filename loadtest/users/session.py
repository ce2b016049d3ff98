"""What ties users to a run of locust: options, samples (gathered from all of locust's processes), gates, the report."""

from __future__ import annotations

import logging
import sys
import time
from pathlib import Path
from typing import Any

import gevent
from locust import events
from locust.runners import MasterRunner, WorkerRunner
from rich.console import Console

from loadtest.users import options
from loadtest.users.people import AbusiveUser, EmbeddingsUser, RagUser
from loadtest.users.report import print_table, write_report
from loadtest.users.samples import Goal, Sample, Samples
from loadtest.users.slo import parse_slos

WIDTH = 140  # of the table where there is no terminal

logger = logging.getLogger("loadtest")


def install() -> None:
    """Hook everything into locust; for a locustfile, once."""
    events.init_command_line_parser.add_listener(options.add_to)
    events.init.add_listener(_begin)
    events.quitting.add_listener(_end)


def _begin(environment: Any, **_: Any) -> None:
    asked = environment.parsed_options
    environment.samples = Samples(Goal(asked.goal_ttft_ms / 1000, asked.goal_gap_ms / 1000))
    try:
        environment.slos = parse_slos(asked.slo)
    except ValueError as exc:
        logger.error("--slo: %s", exc)
        sys.exit(2)
    needs = {
        AbusiveUser: (asked.abusive_key, "--abusive-key"),
        EmbeddingsUser: (asked.embedding_model, "--embedding-model"),
        RagUser: (asked.with_retrieval, "--with-retrieval"),
    }
    for user, (has, option) in needs.items():
        if user in environment.user_classes and not has:
            environment.user_classes.remove(user)
            logger.info("no %s without %s", user.__name__, option)

    _watch(environment)
    _share(environment)


def _watch(environment: Any) -> None:
    """Note when the run began, and how many users there were."""

    def count_users() -> None:
        while environment.runner.state not in ("stopped", "cleanup"):
            samples.users.append((time.perf_counter() - samples.started_at, environment.runner.user_count))
            gevent.sleep(1)

    def started(**_: Any) -> None:
        samples.started_at = time.perf_counter()
        samples.samples.clear()
        samples.users.clear()
        gevent.spawn(count_users)

    samples: Samples = environment.samples
    environment.events.test_start.add_listener(started)


def _share(environment: Any) -> None:
    """With several processes of locust: the master gathers the samples of all."""
    samples: Samples = environment.samples

    def hand_over(client_id: str, data: dict[str, Any]) -> None:
        data["samples"], samples.samples = [tuple(sample) for sample in samples.samples], []

    def take_over(client_id: str, data: dict[str, Any]) -> None:
        for sample in data.get("samples", ()):
            samples.add(Sample(*sample))

    if isinstance(environment.runner, WorkerRunner):
        environment.events.report_to_master.add_listener(hand_over)
    elif isinstance(environment.runner, MasterRunner):
        environment.events.worker_report.add_listener(take_over)


def _end(environment: Any, **_: Any) -> None:
    if isinstance(environment.runner, WorkerRunner):
        return
    samples, slos = environment.samples, environment.slos
    console = Console(width=None if sys.stdout.isatty() else WIDTH)
    print_table(samples, slos, console)
    if environment.parsed_options.report:
        path = Path(environment.parsed_options.report)
        write_report(samples, slos, path, title=f"Load test of {environment.host}")
        console.print(f"report: {path}", highlight=False)
    if any(not slo.is_met(samples) for slo in slos):
        environment.process_exit_code = 1
    elif slos:
        environment.process_exit_code = 0
