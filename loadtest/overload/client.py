"""Open-loop clients: calls go out when their time has come, however many are still unanswered, as a crowd's do."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import orjson

from loadtest.overload.sources import QUESTION
from loadtest.simfleet.text import filler

PATIENCE_S = 90.0


@dataclass(frozen=True)
class Shape:
    """What one call asks for: tokens of prompt and (on average) answer, the time that it gives, and whether it retrieves."""

    prompt_tokens: int
    answer_tokens: int
    timeout_ms: int | None = None
    searches: bool = False


@dataclass(frozen=True, slots=True)
class Result:
    """One call as its client saw it. Times count from when the request was written."""

    who: str
    asked_at: float
    status: int  # 0: no answer that one could call so
    first_s: float | None
    done_s: float
    is_whole: bool
    answer_tokens: int
    retry_after_s: float | None


class Crowd:
    """Clients of one or more gateways, in turn; each call has a connection and a prompt of its own."""

    def __init__(self, model: str, urls: Sequence[str], keys: Mapping[str, str], seed: int = 0) -> None:
        self._model = model
        self._urls = list(urls)
        self._keys = keys
        self._chance = random.Random(seed)
        self._num_asked = 0
        self.stores: Mapping[tuple[str, str], str] = {}  # by gateway and tenant, for calls that retrieve
        self._fillers: dict[int, str] = {}

    async def poisson(self, who: str, shape: Shape, *, rate: float, seconds: float) -> list[Result]:
        """So many calls a second, at random times, for so long; then all answers are waited for."""
        began, at, tasks = time.perf_counter(), 0.0, []
        while (at := at + self._chance.expovariate(rate)) < seconds:
            await asyncio.sleep(max(0.0, began + at - time.perf_counter()))
            tasks.append(asyncio.create_task(self.ask(who, shape)))
        return list(await asyncio.gather(*tasks))

    async def closed(self, who: str, shape: Shape, *, clients: int, seconds: float) -> list[Result]:
        """So many clients, each asking again as soon as it is answered; a moment later where it is refused."""
        ends_at, results = time.perf_counter() + seconds, list[Result]()

        async def client() -> None:
            while time.perf_counter() < ends_at:
                results.append(await self.ask(who, shape))
                await asyncio.sleep(0 if results[-1].status == 200 else 0.1)

        await asyncio.gather(*(client() for _ in range(clients)))
        return results

    async def ask(self, who: str, shape: Shape) -> Result:
        self._num_asked += 1
        number = self._num_asked
        gateway = self._urls[number % len(self._urls)]
        url = urlsplit(gateway)
        # Answers of one length would end together, and the fleet would work in waves.
        answer_tokens = self._chance.randint(shape.answer_tokens // 2, shape.answer_tokens * 3 // 2)
        request = self._request(who, shape, answer_tokens, number, gateway)
        try:
            async with asyncio.timeout(PATIENCE_S):
                reader, writer = await asyncio.open_connection(url.hostname, url.port)
                try:
                    return await _answer(reader, writer, request, who, answer_tokens)
                finally:
                    writer.close()
        except (OSError, TimeoutError, asyncio.IncompleteReadError):
            return Result(who, time.perf_counter(), 0, None, 0.0, False, 0, None)

    def _request(self, who: str, shape: Shape, answer_tokens: int, number: int, gateway: str) -> bytes:
        asked: dict[str, Any] = {
            "model": self._model,
            "messages": [{"role": "user", "content": f"{number}{self._filler(shape.prompt_tokens)}"}],
            "stream": True,
            "max_tokens": answer_tokens,
            "min_tokens": answer_tokens,
            "ignore_eos": True,
        }
        if shape.searches:
            asked["messages"].append({"role": "user", "content": QUESTION})
            asked["tools"] = [{"type": "file_search", "vector_store_ids": [self.stores[gateway, who]], "max_num_results": 2}]
        body = orjson.dumps(asked)
        host = urlsplit(gateway).netloc
        timeout = f"x-request-timeout-ms: {shape.timeout_ms}\r\n" if shape.timeout_ms else ""
        head = (
            f"POST /v1/chat/completions HTTP/1.1\r\nhost: {host}\r\nauthorization: Bearer {self._keys[who]}\r\n"
            f"content-type: application/json\r\ncontent-length: {len(body)}\r\n{timeout}connection: close\r\n\r\n"
        )
        return head.encode() + body

    def _filler(self, num_tokens: int) -> str:
        """Text made once: what is before it makes each prompt another one."""
        if num_tokens not in self._fillers:
            self._fillers[num_tokens] = filler(num_tokens, num_tokens)
        return self._fillers[num_tokens]


async def _answer(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes, who: str, answer_tokens: int
) -> Result:
    asked_at = time.perf_counter()
    writer.write(request)
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
    status, first_s, tail = int(head.split(" ", 2)[1]), None, b""
    while data := await reader.read(65_536):
        if first_s is None and status == 200 and b"data:" in data:
            first_s = time.perf_counter() - asked_at
        tail = (tail + data)[-64:]
    done_s = time.perf_counter() - asked_at
    is_whole = status == 200 and b"[DONE]" in tail
    waits = head.partition("retry-after-ms: ")[2].partition("\r\n")[0]
    return Result(
        who, asked_at, status, first_s, done_s, is_whole, answer_tokens * is_whole, int(waits) / 1000 if waits else None
    )


async def watch_livez(urls: Sequence[str], into_s: list[float], every_s: float = 0.02) -> None:
    """Ask every gateway whether it lives, over and over, until cancelled; how long each answer took."""
    await asyncio.gather(*(_watch_one(urlsplit(url), into_s, every_s) for url in urls))


async def _watch_one(url: object, into_s: list[float], every_s: float) -> None:
    host, port = url.hostname, url.port  # type: ignore[attr-defined]
    request = f"GET /livez HTTP/1.1\r\nhost: {host}:{port}\r\nconnection: close\r\n\r\n".encode()
    while True:
        reader, writer = await asyncio.open_connection(host, port)
        began = time.perf_counter()
        writer.write(request)
        await reader.read()
        into_s.append(time.perf_counter() - began)
        writer.close()
        await asyncio.sleep(every_s)


def quantile(values: Sequence[float], q: float) -> float:
    """NaN of nothing."""
    ranked = sorted(values)
    return ranked[min(len(ranked) - 1, int(q * len(ranked)))] if ranked else float("nan")


def firsts(results: Sequence[Result], keep: Callable[[Result], bool] = lambda result: True) -> list[float]:
    """Times to the first token of those that had one."""
    return [result.first_s for result in results if result.first_s is not None and keep(result)]
