"""Who calls: each class is one kind of client, as `locust` lists and picks them.

All of them count what they see in one `Samples`, and tell locust too: rows of type `TTFT`, `gap`, `tokens/s` and `goodput`
stand beside the calls themselves. (Locust shows every figure as milliseconds; those of `tokens/s` are tokens a second.)
"""

from __future__ import annotations

import random
import time
from typing import Any, ClassVar

from gevent.pool import Pool
from locust import User, task
from locust.exception import StopUser

from loadtest.simfleet.text import filler
from loadtest.users.protocol import CHAT, NETWORK_ERRORS, Client, code_of
from loadtest.users.samples import Sample, Samples

SYSTEM_TOKENS = 1500  # of the system prompt that all conversations share
LONG_PROMPT_TOKENS = (2000, 6000)
MAX_TURNS = 6
NUM_INPUTS = 16  # of one embeddings call
FLOOD_CALLS = 32  # of one abusive user, at a time
FLOOD_EVERY_S = 0.01
QUESTIONS = (
    *("What is a sluice?", "Write a poem about the sea.", "Explain TCP slow start to a child.", "How does a heat pump work?"),
    *("什么是水闸？", "请写一首关于大海的诗。", "用简单的话解释一下什么是缓存。", "怎样泡一杯好茶？"),
)
DOCUMENT = "".join(
    f"# Lock {number}\n\nThe gate of lock {number} opens at {number % 24} o'clock. 第{number}号船闸在{number % 24}点开启。\n\n"
    for number in range(1, 200)
)


class Person(User):
    """One client with a key of its own choice, thinking between calls."""

    abstract = True

    def on_start(self) -> None:
        options = self.environment.parsed_options
        self.samples: Samples = self.environment.samples  # type: ignore[attr-defined]
        self.options = options
        self.random = random.Random()
        host = self.environment.host or self.host
        self.client = Client(host, self.key(), timeout_s=options.timeout_s, num_connections=self.num_connections())

    def on_stop(self) -> None:
        self.client.close()

    def wait_time(self) -> float:
        return self.random.expovariate(1 / self.options.think_s) if self.options.think_s > 0 else 0.0

    def key(self) -> str:
        key: str = self.environment.parsed_options.key
        return key

    def num_connections(self) -> int:
        return 1

    def ask(self, *messages: dict[str, str], **more: Any) -> dict[str, Any]:
        asked = {"model": self.options.model, "messages": list(messages), "max_tokens": self.options.max_tokens}
        return asked | more

    def question(self) -> dict[str, str]:
        """Never the same twice, so that no cache answers."""
        return {"role": "user", "content": f"{self.random.choice(QUESTIONS)} ({self.random.getrandbits(32):x})"}

    def stream(self, body: dict[str, Any], *, leave_after: int | None = None) -> Sample:
        sample = self.client.stream(type(self).__name__, body, self.samples.started_at, leave_after=leave_after)
        self.tell(sample, f"{CHAT} (stream)")
        return sample

    def whole(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """A call whose answer comes in one piece; {} where it failed."""
        began = time.perf_counter()
        error, was_refused, answer = None, False, {}
        try:
            status, answer = self.client.post(path, body)
            was_refused = status == 429
            if status != 200 and not was_refused:
                error, answer = f"{status} {code_of(answer)}", {}
        except (*NETWORK_ERRORS, ValueError) as exc:
            error = str(exc) or type(exc).__name__
        now = time.perf_counter()
        usage = answer.get("usage") or {}
        sample = Sample(
            at_s=now - self.samples.started_at,
            kind=type(self).__name__,
            duration_s=now - began,
            num_tokens=int(usage.get("completion_tokens") or 0),
            error=error,
            was_refused=was_refused,
        )
        self.tell(sample, path)
        return answer

    def tell(self, sample: Sample, name: str) -> None:
        """Keep the sample, and show it in locust's own table."""
        self.samples.add(sample)
        error = sample.error or ("429" if sample.was_refused else None)
        self._fire("POST", name, sample.duration_s * 1000, error)
        if sample.ttft_s is not None:
            self._fire("TTFT", name, sample.ttft_s * 1000)
        if sample.gap_s is not None:
            self._fire("gap", name, sample.gap_s * 1000)
        if sample.num_tokens and sample.duration_s > 0:
            self._fire("tokens/s", name, sample.num_tokens / sample.duration_s)
        if not sample.was_refused and not sample.has_left:
            missed = None if self.samples.goal.is_met(sample) else "goal missed"
            self._fire("goodput", name, sample.duration_s * 1000, missed)

    def _fire(self, kind: str, name: str, figure: float, error: str | None = None) -> None:
        self.environment.events.request.fire(
            request_type=kind,
            name=name,
            response_time=figure,
            response_length=0,
            exception=Exception(error) if error else None,
            context={},
        )


class ChatUser(Person):
    """An app that takes whole answers."""

    weight = 3

    @task
    def chat(self) -> None:
        self.whole(CHAT, self.ask(self.question()))


class StreamUser(Person):
    """A person at a chat window."""

    weight = 6

    @task
    def chat(self) -> None:
        self.stream(self.ask(self.question()))


class LongPromptUser(Person):
    """Somebody who pastes documents."""

    weight = 1

    @task
    def summarise(self) -> None:
        text = filler(self.random.getrandbits(31), self.random.randint(*LONG_PROMPT_TOKENS))
        self.stream(self.ask({"role": "user", "content": f"Summarise:{text}"}))


class ConversationUser(Person):
    """A conversation behind a system prompt that everybody shares: what a prefix cache is for."""

    weight = 4
    SYSTEM: ClassVar[dict[str, str]] = {"role": "system", "content": filler(1, SYSTEM_TOKENS)}

    @task
    def converse(self) -> None:
        history = [self.SYSTEM]
        for _ in range(self.random.randint(2, MAX_TURNS)):
            history.append(self.question())
            sample = self.stream(self.ask(*history))
            if sample.error or sample.was_refused:
                return
            history.append({"role": "assistant", "content": filler(sample.num_tokens, sample.num_tokens)})
            self.wait()


class RagUser(Person):
    """Asks about a file that it has uploaded, and expects the sources it was answered from."""

    weight = 1

    def on_start(self) -> None:
        super().on_start()
        name = f"locks-{self.random.getrandbits(32):x}.md"
        status, file = self.client.upload("/v1/files", name, DOCUMENT.encode(), {"purpose": "assistants"})
        made, store = self.client.post("/v1/vector_stores", {"name": name, "file_ids": [file.get("id")]})
        if status != 200 or made != 200:
            self.tell(
                Sample(0.0, type(self).__name__, error=f"no store: {code_of(file)} {code_of(store)}"), "/v1/vector_stores"
            )
            raise StopUser
        self.store = store["id"]

    @task
    def ask_the_file(self) -> None:
        question = {"role": "user", "content": f"When does the gate of lock {self.random.randint(1, 199)} open?"}
        tool = {"type": "file_search", "vector_store_ids": [self.store]}
        answer = self.whole(CHAT, self.ask(question, tools=[tool]))
        if answer.get("choices") and not answer["choices"][0]["message"].get("context"):
            self.tell(Sample(0.0, type(self).__name__, error="an answer without its sources"), "citations")


class EmbeddingsUser(Person):
    """An indexer."""

    weight = 1

    @task
    def embed(self) -> None:
        texts = [filler(self.random.getrandbits(31), 64) for _ in range(NUM_INPUTS)]
        self.whole("/v1/embeddings", {"model": self.options.embedding_model, "input": texts})


class LeavingUser(Person):
    """Somebody who presses stop: the answer's generation must end with them."""

    weight = 1

    @task
    def leave(self) -> None:
        self.stream(self.ask(self.question()), leave_after=self.random.randint(1, 5))


class AbusiveUser(Person):
    """A tenant that asks for far more than its share, many calls at a time, and never waits as it is told."""

    weight = 1

    def on_start(self) -> None:
        super().on_start()
        self.calls = Pool(FLOOD_CALLS)

    def on_stop(self) -> None:
        self.calls.kill()
        super().on_stop()

    def key(self) -> str:
        key: str = self.environment.parsed_options.abusive_key
        return key

    def num_connections(self) -> int:
        return FLOOD_CALLS

    def wait_time(self) -> float:
        return FLOOD_EVERY_S

    @task
    def flood(self) -> None:
        """One call more, beside those that are not answered yet; where too many are not, once one is."""
        self.calls.spawn(self.stream, self.ask(self.question(), max_tokens=4 * self.options.max_tokens))
