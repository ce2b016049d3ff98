"""`sluice check`: asks every worker whether it is up and serves what its route says, and says what to do where not.

Workers are believed in nothing: what they answer is bounded in time, size and shape, and only printable names are shown.
"""

import asyncio
import time
from collections.abc import Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass

from rich.table import Table
from rich.text import Text

from sluice.asking import ask, ask_json
from sluice.config import Probes, Route, Settings
from sluice.discovery import discovery_of
from sluice.fleet import WorkerMaker
from sluice.http_json import HttpJsonError
from sluice.policies import policy_class
from sluice.probes import parse_models
from sluice.worker import Worker

MAX_MODELS_SHOWN = 4
FIND_S = 8.0


@dataclass(frozen=True, slots=True)
class Finding:
    """What one worker of one route answered. `advice` is empty where there is nothing to do."""

    route: str
    worker: str
    health: str
    models: tuple[str, ...] = ()
    max_model_len: int | None = None
    advice: str = ""


async def examine(settings: Settings, environment: Mapping[str, str]) -> list[Finding]:
    """A finding for each worker of each route, in the file's order; `ConfigError` where a policy cannot be loaded."""
    for name, route in settings.routes.items():
        policy_class(name, route.policy)
    routes = [_route(name, route, settings.probes, environment) for name, route in settings.routes.items()]
    return [finding for findings in await asyncio.gather(*routes) for finding in findings]


async def _route(name: str, route: Route, probes: Probes, environment: Mapping[str, str]) -> Sequence[Finding]:
    """Find the workers as the gateway would, and examine each."""
    discovery = discovery_of(name, route.workers, time.monotonic)
    try:
        async with asyncio.timeout(FIND_S), aclosing(discovery.watch()) as sets:
            found = await anext(sets)
    except TimeoutError:
        why = discovery.trouble or f"no answer within {FIND_S:g} s"
        return [Finding(name, "-", "-", advice=f"its workers cannot be found: {why}")]
    if not found:
        return [Finding(name, "-", "-", advice="it has no worker now: is the name right, and is anything ready there?")]
    make_worker = WorkerMaker(route, probes, environment)
    workers = [make_worker(one) for one in discovery.initial or sorted(found, key=lambda one: one.url)]
    try:
        return await asyncio.gather(*[_worker(worker, name, route, probes.timeout_s) for worker in workers])
    finally:
        for worker in workers:
            worker.connections.close()


async def _worker(worker: Worker, name: str, route: Route, timeout_s: float) -> Finding:
    url = worker.url
    try:
        await ask(worker, "/health", timeout_s)
    except HttpJsonError as exc:
        return Finding(name, url, _short(exc), advice=_health_advice(exc, timeout_s))
    try:
        answer = await ask_json(worker, "/v1/models", timeout_s)
        models = {model.id: model.max_model_len for model in parse_models(answer)}
    except HttpJsonError as exc:
        return Finding(name, url, "up", advice=_models_advice(exc, route.workers.api_key_env))
    served = route.served_model or name
    missing = [wanted for wanted in (served, *route.named_adapters) if wanted not in models]
    advice = ""
    if served in missing:
        advice = f"does not list {served!r}, but {_list(tuple(models))}: set served_model to one of these"
    elif missing:
        advice = f"does not list {_list(tuple(missing))}: load it there, or take it out of the route's adapters"
    return Finding(name, url, "up", tuple(models), models.get(served), advice)


def _short(exc: HttpJsonError) -> str:
    return str(exc.status) if exc.status is not None else exc.kind


def _health_advice(exc: HttpJsonError, timeout_s: float) -> str:
    if "certificate could not be verified" in str(exc):
        return "its certificate is not from a known authority: set ca_file to that authority's certificate"
    if exc.kind == "refused":
        return f"is it running, and are host and port right? ({exc})"
    if exc.kind == "timeout":
        return f"silent for {timeout_s:g} s: it hangs, or is still loading its model; see its log"
    if exc.kind == "status":
        return f"/health says {exc.status}: its engine is down or still loading its model; see its log"
    return f"does not speak plain HTTP as vLLM does: http or https, and the right port? ({exc})"


def _models_advice(exc: HttpJsonError, variable: str | None) -> str:
    if exc.status in (401, 403):
        if variable:
            return f"refuses the key in {variable}: it must be the one that vLLM was started with (--api-key)"
        return "wants a key: put vLLM's --api-key into an environment variable and its name into api_key_env"
    return f"has no list of models: is this vLLM? ({exc})"


def _list(names: Sequence[str]) -> str:
    """The first few names, each cut: printable they are, or `parse_models` would have left them out."""
    shown = [one[:80] for one in names[:MAX_MODELS_SHOWN]]
    more = [f"and {len(names) - MAX_MODELS_SHOWN} more"] if len(names) > MAX_MODELS_SHOWN else []
    return ", ".join(shown + more) or "nothing"


def as_table(findings: Sequence[Finding]) -> Table:
    table = Table("route", "worker", "health", "models", "max_model_len", "verdict")
    for one in findings:
        length = "-" if one.max_model_len is None else str(one.max_model_len)
        models = _list(one.models) if one.models else "-"
        cells = [one.route, one.worker, one.health, models, length, "bad" if one.advice else "good"]
        table.add_row(*(Text(cell) for cell in cells))
    return table
