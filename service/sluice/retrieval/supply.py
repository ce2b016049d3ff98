"""Brings vectors to the retrieval process: takes texts that wait there, has a route of this gateway embed them, puts them.

Every gateway that has an embedding route does so; a batch goes to one of them. A text that the model refuses ends the waiting
of its file; a route or process that is down is asked again later, and nothing is lost by that.
"""

from __future__ import annotations

import asyncio
import logging
from array import array
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from sluice.errors import GatewayError, RetrievalUnavailable
from sluice.http_json import HttpJsonError
from sluice.retrieval import wire
from sluice.retrieval.base import Embedder
from sluice.retrieval.process import Process
from sluice.types import Tenant

WAIT_S = 20.0  # for texts, at the process
LOOK_S = 1.0  # for whether there is anything at all
ANSWER_S = 30.0
MAX_ATTEMPTS = 5  # with one batch, before it is given back
MAX_PAUSE_S = 15.0

logger = logging.getLogger(__name__)


class VectorSupply:
    """The loop of one gateway."""

    def __init__(
        self,
        process: Process,
        embedder: Embedder,
        *,
        timeout_s: float,
        clock: Callable[[], float],
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        self._process = process
        self._embedder = embedder
        self._timeout_s = timeout_s
        self._clock = clock
        self._sleep = sleep

    async def run(self) -> None:
        """Until cancelled."""
        failures = 0
        while True:
            try:
                if not self._process.has_data():
                    await self._sleep(LOOK_S)
                    continue
                await self.turn()
                failures = 0
            except RetrievalUnavailable as exc:
                failures += 1
                if failures == 1:
                    logger.warning("vectors: %s", exc)
                await self._sleep(min(MAX_PAUSE_S, 2.0**failures))

    async def turn(self) -> None:
        """One batch, if one comes. Raises `RetrievalUnavailable` where process or route cannot serve now."""
        taken = await self._ask(wire.TAKE_PATH, wire.TakeBody(self._embedder.model_id, WAIT_S), wire.TakenBody | None)
        if taken is None:
            return
        for attempt in range(1, MAX_ATTEMPTS + 1):
            try:
                vectors = await self._embed(taken.tenant, taken.texts)
                break
            except RetrievalUnavailable:
                if attempt == MAX_ATTEMPTS:
                    raise
                await self._sleep(min(MAX_PAUSE_S, 2.0**attempt))
            except _Refused:
                await self._one_by_one(taken)
                return
        await self._put(taken.store_id, taken.ids, vectors)

    async def _one_by_one(self, taken: wire.TakenBody) -> None:
        """Some text of the batch is refused: find out which, so that the others' files come to their end."""
        for id, text in zip(taken.ids, taken.texts, strict=True):
            try:
                vectors = await self._embed(taken.tenant, (text,))
            except _Refused:
                await self._fail(taken.store_id, (id,))
            else:
                await self._put(taken.store_id, (id,), vectors)

    async def _embed(self, tenant: str, texts: tuple[str, ...]) -> list[list[float]]:
        deadline = self._clock() + self._timeout_s
        who = Tenant(name=tenant, key_id="ingestion")
        try:
            return await self._embedder.embed(texts, tenant=who, kind="passage", deadline=deadline)
        except GatewayError as exc:
            if exc.status in (400, 413, 422):
                raise _Refused from exc
            raise RetrievalUnavailable(f"the embedding route does not serve: {exc.message}") from exc

    async def _put(self, store_id: str, ids: tuple[int, ...], vectors: list[list[float]]) -> None:
        rows = array("f", (value for row in vectors for value in row))
        try:
            await self._ask(wire.PUT_PATH, wire.PutBody(store_id, ids, rows.tobytes()), Any)
        except _Refused:
            await self._fail(store_id, ids)  # vectors of another length than the store's

    async def _fail(self, store_id: str, ids: tuple[int, ...]) -> None:
        await self._ask(wire.FAIL_PATH, wire.PutBody(store_id, ids), Any)

    async def _ask(self, path: str, body: msgspec.Struct, kind: Any) -> Any:
        reach = await self._process.reach()
        content = msgspec.json.encode(body)
        try:
            async with (
                asyncio.timeout(WAIT_S + ANSWER_S),
                reach.http.stream(
                    "POST", f"{reach.url}{path}", headers=reach.headers, content=content, idle_s=WAIT_S + ANSWER_S
                ) as answer,
            ):
                data = b"".join([chunk async for chunk in answer.body])
            if answer.status == 400:
                raise _Refused
            if answer.status != 200:
                raise RetrievalUnavailable(f"the retrieval process answered {answer.status}")
            return msgspec.json.decode(data, type=kind)
        except (TimeoutError, HttpJsonError, msgspec.MsgspecError) as exc:
            raise RetrievalUnavailable("the retrieval process cannot be reached") from exc


class _Refused(Exception):
    """The model, or the store, does not take these texts or vectors, and never will."""
