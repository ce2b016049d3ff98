"""Broken streams that go on at another worker: to the letter, against a simulated fleet whose text depends on every token."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import orjson
import pytest

from loadtest.simfleet.fleet import Fleet
from sluice.relay import Relay
from sluice.types import Endpoint, Outcome
from tests.support import scripts
from tests.support import vllm_shapes as vllm
from tests.support.raw_http import event_data
from tests.support.scripted_worker import ScriptedWorker
from tests.unit.hot_path import PATIENCE_S, Client, Line, now
from tests.unit.loadtest.simfleet_client import fleet, order, unverified

CHAT, COMPLETIONS = Endpoint.CHAT, Endpoint.COMPLETIONS
ASK: dict[str, Any] = {"messages": [{"role": "user", "content": "Tell me of the sea."}], "max_tokens": 40, "temperature": 0}
TOOLS = [{"type": "function", "function": {"name": "look_up", "parameters": {"type": "object", "properties": {}}}}]


@dataclass
class Told:
    """A stream as its client got it."""

    body: bytes
    outcome: Outcome

    @property
    def data(self) -> list[Any]:
        return event_data(self.body)

    @property
    def events(self) -> list[dict[str, Any]]:
        return [event for event in self.data if event != "[DONE]"]

    @property
    def choices(self) -> list[dict[str, Any]]:
        return [choice for event in self.events for choice in event.get("choices", ())]

    @property
    def text(self) -> str:
        return "".join(one["text"] if "text" in one else one["delta"].get("content") or "" for one in self.choices)

    @property
    def finish_reasons(self) -> list[Any]:
        return [one["finish_reason"] for one in self.choices if one["finish_reason"]]

    @property
    def usage(self) -> Any:
        return self.events[-1].get("usage")

    @property
    def error(self) -> dict[str, Any]:
        assert self.data[-1] != "[DONE]"
        error: dict[str, Any] = self.events[-1]["error"]
        return error


@asynccontextmanager
async def sea(num_workers: int = 2, *, route: dict[str, Any] | None = None, **worker: Any) -> AsyncIterator[tuple[Line, Fleet]]:
    async with fleet(num_workers, worker=worker) as running:
        async with Line(*[worker.url for worker in running.workers], **(route or {})) as line:
            yield line, running


async def ask(line: Line, body: dict[str, Any], endpoint: Endpoint = CHAT, **members: Any) -> Told:
    """The stream through the gateway. Usage is asked for as the gateway itself does it."""
    asked = {"model": "smollm2", "stream": True, "stream_options": {"include_usage": True}} | body
    call = line.call(stream=True, endpoint=endpoint, path=endpoint.value, body=orjson.dumps(asked), **members)
    client = Client()
    async with asyncio.timeout(PATIENCE_S), client:
        outcome = await Relay(line.gateway, call, now).run(client)
    assert line.pool.in_flight == 0
    return Told(client.body, outcome)


async def cut(running: Fleet, worker: int, **members: Any) -> None:
    async with unverified(base_url=running.workers[worker].url) as http:
        await order(http, kind="cut", **members)


async def mend(line: Line, running: Fleet) -> None:
    """As if nothing had ever happened."""
    async with unverified(base_url=running.control_url) as http:
        await order(http, kind="clear")
    for worker in line.workers:
        worker.ejection.reset()
        worker.on_change()


def assert_same(told: Told, whole: Told) -> None:
    """Not to be told from a stream that never broke, but for its id and time."""
    assert told.outcome.status == 200
    assert told.data[-1] == "[DONE]"
    assert told.text == whole.text
    assert told.finish_reasons == whole.finish_reasons
    assert len({(event["id"], event["created"], event["model"], event["object"]) for event in told.events}) == 1
    assert [one.get("delta", {}).get("role") for one in told.choices].count("assistant") == whole.events[0]["object"].count(
        "chat"
    )
    if told.usage is not None:
        for name in ("prompt_tokens", "completion_tokens", "total_tokens"):
            assert told.usage[name] == whole.usage[name], name
    assert told.outcome.usage.completion_tokens == whole.outcome.usage.completion_tokens
    assert told.outcome.usage.prompt_tokens == whole.outcome.usage.prompt_tokens
    assert told.outcome.usage.exact


REQUESTS: dict[str, tuple[Endpoint, dict[str, Any]]] = {
    "chat": (CHAT, ASK),
    "chat to its own end": (CHAT, ASK | {"max_tokens": None, "max_completion_tokens": None}),
    "drawn at random": (CHAT, ASK | {"temperature": 0.8, "seed": 7}),
    "a stop string": (CHAT, ASK | {"stop": ["er the "], "max_tokens": 400}),
    "a stop string that shows": (CHAT, ASK | {"stop": "zzz", "include_stop_str_in_output": True}),
    "tools that are not called": (CHAT, ASK | {"tools": TOOLS, "tool_choice": "none"}),
    "tools that may be called": (CHAT, ASK | {"tools": TOOLS}),
    "a message that it continues": (
        CHAT,
        ASK
        | {
            "messages": [*ASK["messages"], {"role": "assistant", "content": "The sea"}],
            "add_generation_prompt": False,
            "continue_final_message": True,
        },
    ),
    "completions of text": (COMPLETIONS, {"prompt": "Tell me of the sea.", "max_tokens": 40}),
    "completions of ids": (COMPLETIONS, {"prompt": [600, 700, 800], "max_tokens": 40}),
    "completions of one list": (COMPLETIONS, {"prompt": ["Tell me of the sea."]}),
}


@pytest.mark.parametrize("name", REQUESTS)
async def test_a_stream_that_breaks_anywhere_goes_on_to_the_letter(name):
    endpoint, body = REQUESTS[name]
    async with sea() as (line, running):
        whole = await ask(line, body, endpoint)
        assert whole.outcome.status == 200, whole.body
        num_words = len(whole.choices) - 1  # the last one ends it
        for num_events in range(1, num_words, max(1, num_words // 12)):
            await cut(running, 0, events=num_events)
            told = await ask(line, body, endpoint)
            assert told.outcome.num_resumes == 1, num_events
            assert_same(told, whole)
            await mend(line, running)


async def question(line: Line, is_wanted: Callable[[Told], bool], **members: Any) -> tuple[dict[str, Any], Told]:
    """A question whose answer is as wanted, and the answer."""
    for number in range(200):
        body = ASK | {"messages": [{"role": "user", "content": f"Question {number}"}]} | members
        if is_wanted(whole := await ask(line, body)):
            return body, whole
    raise AssertionError("no answer is as wanted")


@pytest.mark.parametrize("trim_template", [False, True])
async def test_an_answer_that_begins_with_a_line_end_goes_on_to_the_letter(trim_template):
    async with sea(trim_template=trim_template) as (line, running):
        body, whole = await question(line, lambda told: told.text.startswith("\n"), max_tokens=12)
        for num_events in range(1, 12):
            await cut(running, 0, events=num_events)
            assert_same(await ask(line, body), whole)
            await mend(line, running)


async def test_a_character_of_several_tokens_is_neither_lost_nor_doubled():
    async with sea() as (line, running):
        body, whole = await question(line, lambda told: bool(empty(told)), max_tokens=100)
        for num_events in {at + shift for at in empty(whole) for shift in (-1, 0, 1, 2)}:
            await cut(running, 0, events=num_events)
            assert_same(await ask(line, body), whole)
            await mend(line, running)


def empty(told: Told) -> list[int]:
    """Which events in the middle have no text: tokens that are part of a character."""
    return [at for at, choice in enumerate(told.choices) if 2 < at < 90 and not choice["delta"].get("content")]


async def test_a_template_that_trims_ends_a_stream_that_may_yet_call_a_tool():
    async with sea(trim_template=True) as (line, running):
        tools = {"tools": TOOLS, "max_tokens": 12}
        body, whole = await question(line, lambda told: told.text.startswith("\n"), **tools)
        await cut(running, 0, events=5)
        told = await ask(line, body)
        assert told.outcome.status == 502
        assert told.error["message"].endswith("its template does not keep the beginning of an answer as it is.")
        assert whole.text.startswith(told.text)
        told = await ask(line, body | {"tool_choice": "none"})  # where no call can come, ids will do
        assert_same(told, await ask(line, body | {"tool_choice": "none"}))


async def test_a_stream_may_break_again_and_again():
    async with sea(6) as (line, running):
        body = ASK | {"max_tokens": 60, "ignore_eos": True}
        whole = await ask(line, body)
        for worker in range(5):
            await cut(running, worker, events=8)
        told = await ask(line, body)
        assert_same(told, whole)
        assert (told.outcome.num_resumes, told.outcome.attempts) == (5, 6)


@pytest.mark.parametrize("hides", [False, True])
async def test_usage_is_that_of_one_worker_and_what_was_computed_twice_is_told_apart(hides):
    async with sea() as (line, running):
        whole = await ask(line, ASK, wants_usage=not hides)
        await cut(running, 0, events=20)
        told = await ask(line, ASK, wants_usage=not hides)
        assert_same(told, whole)
        assert (told.events[-1]["choices"] == []) is not hides
        assert whole.outcome.tokens_wasted == 0
        assert told.outcome.tokens_wasted >= whole.outcome.usage.prompt_tokens


# How a stream may break


@pytest.mark.parametrize(
    "fault",
    [
        {"kind": "cut", "how": "reset"},
        {"kind": "cut", "how": "close"},
        {"kind": "garbage", "how": "chunk"},
    ],
)
async def test_whatever_breaks_it(fault):
    async with sea() as (line, running):
        whole = await ask(line, ASK)
        async with unverified(base_url=running.workers[0].url) as http:
            await order(http, events=9, **fault)
        assert_same(await ask(line, ASK), whole)


@pytest.mark.parametrize("how", ["error", "abort", "hang", "engine_dead", "stall", "kill"])
async def test_whatever_becomes_of_its_worker(how):
    faults = {
        "error": {"kind": "drain", "timeout_s": 0, "how": "error"},
        "abort": {"kind": "drain", "timeout_s": 0, "how": "abort"},
        "hang": {"kind": "drain", "timeout_s": 0, "how": "hang"},
    }
    body = ASK | {"max_tokens": 1500, "ignore_eos": True}
    silence_s = 1 if how in ("stall", "hang") else 15
    async with sea(4, route={"timeouts": {"silence_s": silence_s}}) as (line, running):
        whole = await ask(line, body)
        async with unverified(base_url=running.workers[0].url) as http:
            await order(http, kind="slow", factor=50)  # so that its answer is not over before it is disturbed
            asked = {"model": "smollm2", "stream": True, "stream_options": {"include_usage": True}} | body
            call = line.call(stream=True, body=orjson.dumps(asked))
            client = Client()
            async with asyncio.timeout(PATIENCE_S), client:
                running_call = asyncio.create_task(Relay(line.gateway, call, now).run(client))
                await client.read_until(b"data: ", times=20)
                await order(http, **faults.get(how, {"kind": how}))
                outcome = await running_call
        told = Told(client.body, outcome)
        assert told.outcome.num_resumes >= 1  # on a machine that is busy others may seem silent too
        assert_same(told, whole)


# What cannot go on without being wrong


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "several answers": ({"n": 2, "temperature": 1}, "holds several answers"),
    "probabilities": ({"logprobs": True, "top_logprobs": 1}, "carries logprobs"),
    "structure": ({"response_format": {"type": "json_object"}}, "sets `response_format`"),
    "structure, vLLM's": ({"structured_outputs": {"choice": ["a"]}}, "sets `structured_outputs`"),
    "a penalty": ({"presence_penalty": 0.5}, "sets `presence_penalty`"),
    "least tokens": ({"min_tokens": 3}, "sets `min_tokens`"),
    "a forced tool": ({"tools": TOOLS, "tool_choice": "required"}, "forces a tool"),
    "what nobody knows": ({"of_tomorrow": 1}, "sets `of_tomorrow`"),
    "documents": ({"documents": [{"text": "x"}]}, "sets `documents`"),
    "effort": ({"reasoning_effort": "low"}, "sets `reasoning_effort`"),
}


@pytest.mark.parametrize("name", REFUSED)
async def test_what_would_be_wrong_ends_with_an_error_that_says_so(name):
    members, said = REFUSED[name]
    async with sea() as (line, running):
        await cut(running, 0, events=9)
        told = await ask(line, ASK | members)
        assert said in told.error["message"], told.body
        assert "could not be continued on another worker" in told.error["message"]
        assert (told.outcome.status, told.outcome.num_resumes) == (502, 0)
        assert told.outcome.attempts == 1


async def test_members_that_ask_for_nothing_do_not_forbid_it():
    harmless = {"n": 1, "presence_penalty": 0, "logprobs": False, "stop": None, "response_format": {"type": "text"}}
    async with sea() as (line, running):
        whole = await ask(line, ASK)
        await cut(running, 0, events=9)
        assert_same(await ask(line, ASK | harmless | {"metadata": {"a": "b"}, "user": "me"}), whole)


async def test_before_any_text_every_call_is_begun_anew():
    body = ASK | {"logprobs": True, "top_logprobs": 1, "min_tokens": 3, "response_format": {"type": "json_object"}}
    async with sea() as (line, running):
        whole = await ask(line, body)
        await cut(running, 0, events=1)  # the role alone has gone down
        told = await ask(line, body)
        assert_same(told, whole)
        assert [choice["logprobs"] for choice in told.choices] == [choice["logprobs"] for choice in whole.choices]


@pytest.mark.parametrize(
    ("route", "said"),
    [
        ({"resume": {"enabled": False}}, None),
        ({"resume": {"max_resumes": 0}}, "it has been 0 times"),
        ({"resume": {"max_bytes": 1024}}, "longer than what is kept of a stream"),
    ],
)
async def test_as_the_route_allows(route, said):
    async with sea(route=route) as (line, running):
        await cut(running, 0, events=300)
        told = await ask(line, ASK | {"max_tokens": 400, "ignore_eos": True})
        assert told.outcome.status == 502
        assert (said or "in the middle of its answer.") in told.error["message"]
        assert ("another worker" in told.error["message"]) is (said is not None)


async def test_a_worker_that_failed_the_call_is_not_asked_again():
    async with sea(2) as (line, running):
        for worker in range(2):
            await cut(running, worker, events=9)
        told = await ask(line, ASK)
        assert told.outcome.status == 502
        assert (told.outcome.num_resumes, told.outcome.attempts) == (1, 2)
        assert "No worker of smollm2 can take this request now." in told.error["message"]


async def test_a_call_that_workers_die_of_is_not_handed_round():
    async with sea(9, route={"max_retries": 1}) as (line, running):
        await cut(running, 0, events=9)
        for worker in range(1, 9):
            async with unverified(base_url=running.workers[worker].url) as http:
                await order(http, kind="garbage", how="not_http")
        told = await ask(line, ASK)
        assert told.outcome.status == 502
        assert sum(worker.ejection.num_failures for worker in line.workers) == 3


async def test_a_worker_that_refuses_the_rest_is_followed_by_another():
    async with sea(4) as (line, running):
        whole = await ask(line, ASK)
        await cut(running, 0, events=9)
        async with unverified(base_url=running.workers[1].url) as http:
            await order(http, kind="storm")
        async with unverified(base_url=running.workers[2].url) as http:
            await order(http, kind="kill")
        told = await ask(line, ASK)
        assert_same(told, whole)
        assert told.outcome.worker == running.workers[3].url


# The seam, where it may lie inside a token


def text_events(*texts: str, finish: bool = True) -> list[bytes]:
    """A stream of /v1/completions."""
    head = {"id": "cmpl-1", "object": "text_completion", "created": 1, "model": "smollm2"}
    events = [vllm.sse(head | {"choices": [{"index": 0, "text": text, "finish_reason": None}]}) for text in texts]
    events.append(vllm.sse(head | {"choices": [{"index": 0, "text": "", "finish_reason": "stop"}]}))
    events.append(vllm.sse(head | {"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 3, "total_tokens": 12}}))
    return [*events, vllm.DONE] if finish else events[: len(texts)]


async def test_where_the_last_word_is_not_made_again_the_text_is_continued_as_it_is():
    async with ScriptedWorker() as one, ScriptedWorker() as two, Line(one, two) as here:
        words = ["The", " sea", " is", " ca", "lm"]
        one.on(CHAT.value, scripts.chat_stream(words, after=5, ending="reset"))
        two.on(
            COMPLETIONS.value,
            scripts.stream(text_events(" wild")),  # and not the " ca" that the client has
            scripts.stream(text_events("lm", ".")),
        )
        told = await ask(here, ASK | {"stop": "xx"})
        assert told.text == "The sea is calm."
        assert told.data[-1] == "[DONE]"
        first, second = two.calls(COMPLETIONS.value)
        assert len(second.json()["prompt"]) > len(first.json()["prompt"])
        assert here.workers[1].ejection.num_failures == 0


async def test_the_last_word_is_made_again_and_not_written_again():
    async with ScriptedWorker() as one, ScriptedWorker() as two, Line(one, two) as here:
        one.on(CHAT.value, scripts.chat_stream(["The", " sea", " is", " ca", "lm"], after=5, ending="reset"))
        two.on(COMPLETIONS.value, scripts.stream(text_events(" calm", ".")))
        told = await ask(here, ASK | {"stop": "xx"})
        assert told.text == "The sea is calm."
        assert len(two.calls(COMPLETIONS.value)) == 1


@pytest.mark.parametrize("after", [8, 9])
async def test_a_stream_that_only_lacks_its_end_gets_it(after):
    async with ScriptedWorker() as one, ScriptedWorker() as two, Line(one, two) as here:
        events = vllm.chat_events(vllm.content_deltas(), model="smollm2", include_usage=True)
        finished = next(at for at, event in enumerate(events) if b'"finish_reason":"stop"' in event) + 1
        one.on(CHAT.value, scripts.stream(events, after=finished + (after == 9), ending="reset"))
        told = await ask(here, ASK)
        assert told.data[-1] == "[DONE]"
        assert told.finish_reasons == ["stop"]
        assert told.usage is not None and sum(event["choices"] == [] for event in told.events) == 1
        assert not two.calls(COMPLETIONS.value) and not two.calls(CHAT.value)


# Meanwhile, the client


async def test_a_client_that_reads_too_slowly_is_not_flooded_by_the_next_worker():
    body = ASK | {"max_tokens": 1500, "ignore_eos": True}
    async with sea() as (line, running):
        whole = await ask(line, body)
        await cut(running, 0, events=9)
        asked = {"model": "smollm2", "stream": True, "stream_options": {"include_usage": True}} | body
        client = Client()
        client.is_paused = True
        async with asyncio.timeout(PATIENCE_S), client:
            relay = Relay(line.gateway, line.call(stream=True, body=orjson.dumps(asked)), now)
            relaying = asyncio.create_task(relay.run(client))
            await client.read_until(b"data: ", times=10)  # the first words of the second worker
            assert await asyncio.wait({relaying}, timeout=0.3) == (set(), {relaying})
            client.is_paused = False
            client.on_resume()
            outcome = await relaying
        assert_same(Told(client.body, outcome), whole)


async def test_a_client_that_waits_for_the_next_worker_gets_comments():
    gate = asyncio.Event()
    async with ScriptedWorker() as one, ScriptedWorker() as two, Line(one, two, keep_alive_s=0.05) as here:
        one.on(CHAT.value, scripts.chat_stream(after=3, ending="reset"))
        tokens = {"count": 1, "max_model_len": 100, "tokens": [1]}
        two.on("/tokenize", scripts.reply(200, tokens, gate=gate))
        two.on(COMPLETIONS.value, scripts.stream(text_events(" on")))
        client = Client()
        async with asyncio.timeout(PATIENCE_S), client:
            relaying = asyncio.create_task(Relay(here.gateway, here.call(stream=True), now).run(client))
            await client.read_until(b": keep-alive\n\n", times=2)
            gate.set()
            outcome = await relaying
        assert (outcome.num_resumes, Told(client.body, outcome).data[-1]) == (1, "[DONE]")


async def test_a_client_that_leaves_then_takes_everything_with_it():
    async with ScriptedWorker() as one, ScriptedWorker() as two, Line(one, two) as here:
        one.on(CHAT.value, scripts.chat_stream(after=3, ending="reset"))
        two.on("/tokenize", scripts.never_answers())
        client = Client()
        async with client:
            relaying = asyncio.create_task(_leaving(here, client))
            await two.wait_calls(1, "/tokenize")
            client.leave()
            outcome = await relaying
        assert (outcome.status, outcome.code) == (499, "client_left")
        assert here.pool.in_flight == 0
        await two.wait_aborted(1)


async def _leaving(here: Line, client: Client) -> Outcome:
    async with client:
        return await Relay(here.gateway, here.call(stream=True), now).run(client)


async def test_a_worker_that_does_not_tokenise_as_vllm_does_cannot_continue():
    async with ScriptedWorker() as one, ScriptedWorker() as two, Line(one, two) as here:
        one.on(CHAT.value, scripts.chat_stream(after=3, ending="reset"))
        for answer, said in [(scripts.reply(200, {}), "tokenise as vLLM does"), (scripts.detail_error(404), "/tokenize")]:
            two.on("/tokenize", answer)
            told = await ask(here, ASK)
            assert told.outcome.status == 502
            assert said in told.error["message"]
