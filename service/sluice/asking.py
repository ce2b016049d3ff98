"""One question to a worker over the connections that its calls take: what probes cost every gateway, many times a second.

It is a fiftieth of what the plain client costs. Whoever answers may be slow, absent, lying or hostile: a question ends within
its time-out, reads a bounded answer, and fails only as `HttpJsonError`.
"""

from __future__ import annotations

import asyncio
from typing import Any

import orjson

from sluice.errors import GatewayError, WorkerRefused
from sluice.http_json import HttpJsonError
from sluice.worker import Worker

MAX_ANSWER_BYTES = 1_048_576


async def ask(worker: Worker, path: str, timeout_s: float, limit_bytes: int = MAX_ANSWER_BYTES) -> bytes:
    """The body of what the worker answers to `GET path`; raises `HttpJsonError` where that is no 200."""
    connections, url = worker.connections, worker.url + path.partition("?")[0]
    head = connections.head("GET", path, content_type="application/json", length=0, request_id="probe")
    try:
        async with asyncio.timeout(timeout_s), connections.send(head, b"") as sending:
            answer = await sending.head()
            body = await answer.read(limit_bytes)
    except TimeoutError as exc:
        raise HttpJsonError("timeout", f"{url}: no answer within {timeout_s:g} s") from exc
    except WorkerRefused as exc:
        raise HttpJsonError("refused", f"{url}: {exc.message}") from exc
    except GatewayError as exc:
        raise HttpJsonError("garbage", f"{url}: {exc.message}") from exc
    if answer.status != 200:
        raise HttpJsonError("status", f"{url}: answered {answer.status}", status=answer.status)
    return body


async def ask_json(worker: Worker, path: str, timeout_s: float) -> Any:
    try:
        return orjson.loads(await ask(worker, path, timeout_s))
    except orjson.JSONDecodeError as exc:
        raise HttpJsonError("garbage", f"{worker.url}{path}: the answer is not JSON") from exc
