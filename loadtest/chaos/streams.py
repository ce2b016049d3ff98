"""Clients that ask for streams, one after the other, and check every answer to the letter."""

import asyncio
import random
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import httptools
import orjson

from loadtest.simfleet.answer import Answer, Ending
from loadtest.simfleet.chat_template import ChatTemplate
from loadtest.simfleet.text import Author, Style, filler
from loadtest.simfleet.tokenizer import Tokenizer
from loadtest.stack import MODEL

MAX_SHOWN = 5


class Oracle:
    """What a worker that nobody disturbs would say."""

    def __init__(self) -> None:
        self._tokenizer = Tokenizer()
        self._author = Author(self._tokenizer, Style())
        self._template = ChatTemplate(MODEL, trim=False)

    def text(self, messages: list[dict[str, Any]], num_tokens: int) -> str:
        prompt = self._template.render(messages, None, add_generation_prompt=True, continue_final_message=False)
        draft = self._author.begin(self._tokenizer.encode(prompt), may_end=False)
        answer = Answer(draft, self._tokenizer, Ending(num_tokens, ignore_eos=True))
        answer.reach(num_tokens)
        return answer.text(num_tokens)


@dataclass
class Tally:
    """How the answers were."""

    num_good: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    wrong: Counter[str] = field(default_factory=Counter)
    durations_s: list[float] = field(default_factory=list)

    @property
    def num_failed(self) -> int:
        return self.failed.total()

    @property
    def num_wrong(self) -> int:
        return self.wrong.total()

    @property
    def num_answers(self) -> int:
        return self.num_good + self.num_failed + self.num_wrong

    def complaints(self) -> Sequence[str]:
        """What went wrong, the most frequent first."""
        return [f"{count} x {said}" for said, count in (self.failed + self.wrong).most_common(MAX_SHOWN)]


class Crowd:
    """So many clients; each asks again as soon as it is answered, until its time is up, and then ends what it has begun."""

    def __init__(self, url: str, key: str, oracle: Oracle, *, num_tokens: tuple[int, int], seed: int = 0) -> None:
        parts = urlsplit(url)
        self._host, self._port = parts.hostname, parts.port
        self._key = key
        self._oracle = oracle
        self._num_tokens = num_tokens
        self._lot = random.Random(seed)
        self._number = seed * 1_000_000
        self.tally = Tally()

    async def run(self, num_clients: int, for_s: float, *, spread_s: float = 1.0) -> None:
        ends_at = time.monotonic() + for_s
        async with asyncio.TaskGroup() as tasks:
            for number in range(num_clients):
                tasks.create_task(self._client(number * spread_s / num_clients, ends_at))

    async def _client(self, after_s: float, ends_at: float) -> None:
        await asyncio.sleep(after_s)
        while time.monotonic() < ends_at:
            await self._ask()

    async def _ask(self) -> None:
        self._number += 1
        num_tokens = self._lot.randint(*self._num_tokens)
        messages = [{"role": "user", "content": f"Question {self._number}:{filler(self._number, 20)}"}]
        began_at = time.monotonic()
        try:
            status, body = await self._exchange({"messages": messages, "max_tokens": num_tokens})
        except (OSError, asyncio.IncompleteReadError, httptools.HttpParserError) as exc:
            self.tally.failed[f"{type(exc).__name__}: {exc}"] += 1
            return
        self.tally.durations_s.append(time.monotonic() - began_at)
        if (said := failure(status, body)) is not None:
            self.tally.failed[said] += 1
        elif (said := fault(body, self._oracle.text(messages, num_tokens), num_tokens)) is not None:
            self.tally.wrong[said] += 1
        else:
            self.tally.num_good += 1

    async def _exchange(self, members: dict[str, Any]) -> tuple[int, bytes]:
        asked = {"model": MODEL, "stream": True, "ignore_eos": True, "stream_options": {"include_usage": True}} | members
        body = orjson.dumps(asked)
        head = (
            f"POST /v1/chat/completions HTTP/1.1\r\nhost: {self._host}\r\nauthorization: Bearer {self._key}\r\n"
            f"content-type: application/json\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n"
        )
        reader, writer = await asyncio.open_connection(self._host, self._port)
        try:
            writer.write(head.encode() + body)
            answer = _Answer()
            while not answer.is_complete and (data := await reader.read(65_536)):
                answer.parser.feed_data(data)
            if not answer.is_complete:
                raise ConnectionError("the answer was cut")
            return answer.parser.get_status_code(), b"".join(answer.parts)
        finally:
            writer.close()


class _Answer:
    """An HTTP answer as it comes."""

    def __init__(self) -> None:
        self.parts: list[bytes] = []
        self.is_complete = False
        self.on_body = self.parts.append
        self.parser = httptools.HttpResponseParser(self)

    def on_message_complete(self) -> None:
        self.is_complete = True


def failure(status: int, body: bytes) -> str | None:
    """Why a call has failed, as its client would see it; None where it has not."""
    if status != 200:
        return f"status {status}: {body[:200].decode(errors='replace')}"
    if not body.endswith(b"data: [DONE]\n\n"):
        return f"no [DONE]: {body[-300:].decode(errors='replace')}"
    return None


def fault(body: bytes, expected: str, num_tokens: int) -> str | None:
    """What is wrong with a stream; None where it could have come from one worker that nobody disturbed."""
    events = [orjson.loads(line[6:]) for line in body.splitlines() if line.startswith(b"data: {")]
    choices = [choice for event in events for choice in event["choices"]]
    text = "".join([choice["delta"].get("content") or "" for choice in choices])
    if text != expected:
        at = next((i for i, (a, b) in enumerate(zip(text, expected, strict=False)) if a != b), min(len(text), len(expected)))
        return f"wrong text from character {at} of {len(expected)}: {text[at : at + 40]!r} for {expected[at : at + 40]!r}"
    if len({(event["id"], event["created"], event["model"]) for event in events}) != 1:
        return "more than one id, model or creation time"
    if [choice["finish_reason"] for choice in choices if choice["finish_reason"]] != ["length"]:
        return "not finished once"
    if sum("role" in choice["delta"] for choice in choices) != 1:
        return "not begun once"
    if events[-1].get("usage", {}).get("completion_tokens") != num_tokens:
        return f"usage {events[-1].get('usage')} for {num_tokens} tokens"
    return None
