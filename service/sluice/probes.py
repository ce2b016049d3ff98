"""Background loops that learn the health of workers: is it up, does it serve the model we send to it, and is it awake."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from sluice.asking import ask, ask_json
from sluice.config import Probes
from sluice.http_json import HttpJsonError
from sluice.worker import ModelInfo, Worker

SLOW_PROBES = 3  # so many in a row make a healthy worker ill: a busy one, above all on a CPU, may miss one
MODELS_EVERY = 10  # probes; the list of models changes rarely (adapters)
MAX_MODELS = 1000
MAX_NAME = 256
# What says that a worker lets calls wait; there only with VLLM_SERVER_DEV_MODE=1. `/health` is 200 then, too.
PAUSES = {"/is_sleeping": "is_sleeping", "/is_paused": "is_paused"}

logger = logging.getLogger("sluice.probes")

Sleep = Callable[[float], Awaitable[Any]]


class Prober:
    """Probes one worker until cancelled: `/health` each time, `/v1/models` when it comes up and now and then.

    Healthy means that both answered and the served model is in the list: vLLM's `/health` alone says nothing of the model.
    Where the worker can tell, it is asked each time whether it sleeps or is paused.
    Whatever a worker answers, or does not answer, ends as a judgement; a probe never raises.
    """

    def __init__(self, worker: Worker, settings: Probes, *, served_model: str) -> None:
        self._worker = worker
        self._settings = settings
        self._served_model = served_model
        self._until_models = 0
        self._num_slow = 0  # probes in a row without an answer in time
        self._pauses = tuple(PAUSES)  # those that it knows

    async def run(self, sleep: Sleep = asyncio.sleep) -> None:
        while True:
            await self.probe()
            await sleep(self._settings.health_interval_s)

    async def probe(self) -> None:
        """One look at the worker, and a line in the log where its health has changed."""
        worker, before, timeout_s = self._worker, self._worker.is_healthy, self._settings.timeout_s
        try:
            await ask(worker, "/health", timeout_s)
            self._until_models -= 1
            if not worker.is_healthy or self._until_models <= 0:
                models = parse_models(await ask_json(worker, "/v1/models", timeout_s))
                self._until_models = MODELS_EVERY
                if not worker.is_healthy:
                    self._pauses = tuple(PAUSES)
                await self._look_for_pauses()
                self._judge_models(models)
            else:
                await self._look_for_pauses()
            self._num_slow = 0
        except HttpJsonError as exc:
            self._num_slow = self._num_slow + 1 if exc.kind == "timeout" else 0
            if not worker.is_healthy or exc.kind != "timeout" or self._num_slow >= SLOW_PROBES:
                worker.judge(is_healthy=False, trouble=str(exc))
        if worker.is_healthy != before:
            state = "is healthy" if worker.is_healthy else f"is not healthy: {worker.trouble}"
            logger.warning("worker %s %s", worker.url, state)

    async def _look_for_pauses(self) -> None:
        """A worker that does not know a question is not asked it again before it comes up anew."""
        for path in self._pauses:
            try:
                answer = await ask_json(self._worker, path, self._settings.timeout_s)
            except HttpJsonError as exc:
                if exc.kind != "status":
                    raise
                self._pauses = tuple(other for other in self._pauses if other != path)
                self._worker.mark_asleep(path, False)
            else:
                self._worker.mark_asleep(path, isinstance(answer, dict) and answer.get(PAUSES[path]) is True)

    def _judge_models(self, models: tuple[ModelInfo, ...]) -> None:
        if any(model.id == self._served_model for model in models):
            self._worker.judge(is_healthy=True, models=models)
            return
        served = ", ".join(model.id for model in models[:5]) or "nothing"
        trouble = f"it does not serve {self._served_model} but {served}; set the route's served_model"
        self._worker.judge(is_healthy=False, trouble=trouble, models=models)


def parse_models(answer: Any) -> tuple[ModelInfo, ...]:
    """A worker's `/v1/models`; raises `HttpJsonError` (garbage) where it is none.

    Entries without a name that a route could have are left out: names go into our log and to clients.
    """
    data = answer.get("data") if isinstance(answer, dict) else None
    if not isinstance(data, list):
        raise HttpJsonError("garbage", "/v1/models is not a list of models")
    return tuple(
        ModelInfo(
            id=entry["id"],
            created=_int(entry.get("created")) or 0,
            max_model_len=_int(entry.get("max_model_len")),
            parent=entry["parent"] if _is_name(entry.get("parent")) else None,
        )
        for entry in data[:MAX_MODELS]
        if isinstance(entry, dict) and _is_name(entry.get("id"))
    )


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and 0 < len(value) <= MAX_NAME and value.isprintable()


def _int(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None
