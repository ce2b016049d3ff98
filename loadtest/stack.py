"""Starts what a study loads: a simulated fleet and gateways in front of it, as their users start them, on free ports.

    with fleet(folder, "-n", "8") as workers, gateway(folder, routes(workers), keys={"people": ["--rpm", "600"]}) as ours:
        ...ours.url, ours.keys["people"], workers.order(kind="kill", worker=2, for_s=5)

Everything is stopped at the end of its block, also on an error. What does not come up is a `StackFailed` with the last lines of
its log.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import yaml

from loadtest.bench.processes import free_port, last_lines

REPOSITORY = Path(__file__).parents[1]
SLUICE = Path(sys.executable).parent / "sluice"
MODEL = "sim"
START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 30.0


class StackFailed(Exception):
    """Something did not start or did not end well; the message says which, why, and shows the end of its log."""


@dataclass(frozen=True)
class Workers:
    """A simulated fleet that runs."""

    urls: Sequence[str]
    control: str
    pid: int

    def order(self, **members: Any) -> None:
        """A fault, as docs/simfleet.md lists them; raises `httpx.HTTPError` where the fleet does not take it."""
        httpx.post(f"{self.control}/sim/fault", json=members, timeout=10).raise_for_status()

    def chaos(self, order: Mapping[str, Any], *, every_s: float, for_s: float) -> None:
        asked = {"order": dict(order), "every_s": every_s, "for_s": for_s}
        httpx.post(f"{self.control}/sim/chaos", json=asked, timeout=10).raise_for_status()

    def state(self) -> dict[str, Any]:
        found: dict[str, Any] = httpx.get(f"{self.control}/sim/state", timeout=10).json()
        return found


@dataclass(frozen=True)
class Gateway:
    """A gateway that is ready."""

    url: str
    metrics_url: str
    keys: Mapping[str, str]
    config: Path
    log: Path
    process: subprocess.Popen[bytes]

    @property
    def pid(self) -> int:
        return self.process.pid


def routes(workers: Workers, **members: Any) -> dict[str, Any]:
    """The settings of a gateway with one route to all workers; `members` are of the route."""
    return {"routes": {MODEL: {"workers": {"static": list(workers.urls)}, **members}}}


@contextmanager
def fleet(directory: Path, *options: str) -> Iterator[Workers]:
    """A simulated fleet with these options of its command line."""
    log = directory / "fleet.log"
    ready = directory / "fleet.json"
    ready.unlink(missing_ok=True)
    command = [sys.executable, "-m", "loadtest.simfleet", "--ready-file", str(ready), *options]
    with _process(command, log) as running:
        _until(lambda: ready.exists() and ready.read_text().endswith("\n"), "the simulated fleet", running, log)
        found = json.loads(ready.read_text())
        yield Workers([worker["url"] for worker in found["workers"]], found["control"], running.pid)


@contextmanager
def gateway(
    directory: Path,
    settings: Mapping[str, Any],
    *,
    name: str = "gateway",
    keys: Mapping[str, Sequence[str]] | None = None,
    environment: Mapping[str, str] | None = None,
    made_keys: Mapping[str, str] | None = None,
) -> Iterator[Gateway]:
    """`sluice serve` with these settings, and a key for each tenant in `keys`, made with the options given there.

    A second replica takes the keys of the first (`made_keys`), from the same keys file.
    """
    server = {"host": "127.0.0.1", "port": free_port(), "metrics_port": free_port()} | dict(settings.get("server", {}))
    config = directory / f"{name}.yaml"
    auth = {"mode": "keys", "keys_file": str(directory / "keys.yaml")} | dict(settings.get("auth", {}))
    config.write_text(yaml.safe_dump(dict(settings) | {"server": server, "auth": auth}, sort_keys=False))
    made = (
        dict(made_keys) if made_keys else {t: _new_key(config, t, options) for t, options in (keys or {"people": ()}).items()}
    )
    log = directory / f"{name}.log"
    with _process([str(SLUICE), "serve", "--config", str(config)], log, environment) as running:
        url = f"http://127.0.0.1:{server['port']}"
        _until(lambda: _answers(f"{url}/readyz"), name, running, log)
        yield Gateway(url, f"http://127.0.0.1:{server['metrics_port']}/metrics", made, config, log, running)


@contextmanager
def _process(
    command: Sequence[str], log: Path, environment: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("ab") as out:
        running = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            cwd=REPOSITORY,
            env=os.environ | dict(environment or {}),
        )
    try:
        yield running
    finally:
        if running.poll() is None:
            running.send_signal(signal.SIGTERM)
        try:
            running.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            running.kill()
            running.wait()


def _new_key(config: Path, tenant: str, options: Sequence[str]) -> str:
    command = [str(SLUICE), "key", "new", "--config", str(config), "--tenant", tenant, *options]
    try:
        made = subprocess.run(command, capture_output=True, text=True, timeout=START_TIMEOUT_S, check=False)
    except OSError as exc:
        raise StackFailed(f"cannot run {SLUICE}: {exc.strerror}; `make install` makes it") from exc
    if made.returncode:
        raise StackFailed(f"no key for {tenant} (exit code {made.returncode}): {made.stderr.strip()}")
    return made.stdout.split()[-1]


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=2).status_code == 200
    except httpx.TransportError:
        return False


def _until(is_so: Any, name: str, running: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while not is_so():
        if running.poll() is not None or time.monotonic() > deadline:
            state = "does not answer" if running.poll() is None else f"ended with exit code {running.poll()}"
            raise StackFailed(f"{name} {state}; the end of its log:\n{last_lines(log)}")
        time.sleep(0.05)
