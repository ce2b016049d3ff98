"""Several real vLLM workers: a prompt finds the one that has computed its beginning, and a stream outlives the one it is on."""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.e2e.conftest import RunningWorker, StartWorker, say
from tests.e2e.gateway import RunningGateway, serving
from tests.support.raw_http import RawClient, event_data, request_bytes

pytestmark = pytest.mark.e2e

CHAT = "/v1/chat/completions"
MESSAGES = [{"role": "user", "content": "Write a long poem about the sea, the wind and the stars."}]
NUM_TOKENS = 160
ASK: dict[str, Any] = {"model": "smollm2", "messages": MESSAGES, "temperature": 0, "max_tokens": NUM_TOKENS, "ignore_eos": True}
STREAM = ASK | {"stream": True, "stream_options": {"include_usage": True}}
SEAM_TOKENS = 12  # that a worker may have sent between our look at the stream and its death


@pytest.fixture(scope="module")
def three_workers(start_worker: StartWorker, chat_model: Path) -> Iterator[list[RunningWorker]]:
    """Two of them are killed."""
    with ExitStack() as stack:
        details = ("--enable-prompt-tokens-details",)
        made = [
            stack.enter_context(start_worker(chat_model, "smollm2", 4096, cpus=(number % 2,), extra_args=details))
            for number in range(3)
        ]
        yield [one.ready() for one in made]


@pytest.fixture(scope="module")
def alive(three_workers: list[RunningWorker]) -> list[RunningWorker]:
    """Those that no test has killed yet."""
    return list(three_workers)


def settings_for(workers: list[RunningWorker], **members: Any) -> dict[str, Any]:
    route = {"workers": {"static": [worker.url for worker in workers]}, "bounds": {"ignore_eos": True}}
    return {"routes": {"smollm2": route | members}}


def asked(worker: RunningWorker, path: str, body: dict[str, Any]) -> Any:
    """What the worker itself says."""
    response = httpx.post(worker.url + path, json=body | {"model": worker.model}, timeout=120)
    assert response.status_code == 200, response.text
    return response.json()


def is_streaming(worker: RunningWorker) -> bool:
    page = httpx.get(f"{worker.url}/metrics", timeout=30).text
    [line] = [line for line in page.splitlines() if line.startswith("vllm:num_requests_running{")]
    return float(line.split()[-1]) > 0


def engine_core_of(worker: RunningWorker) -> int:
    """The process that holds the model."""
    for child in Path(f"/proc/{worker.pid}/task/{worker.pid}/children").read_text().split():
        if b"EngineCore" in Path(f"/proc/{child}/cmdline").read_bytes():
            return int(child)
    raise AssertionError("the API server has no engine process")


def text_of(body: bytes) -> str:
    choices = [choice for event in event_data(body) if event != "[DONE]" for choice in event["choices"]]
    return "".join(choice["delta"].get("content") or "" for choice in choices)


def dechunked(body: bytes) -> bytes:
    """The data of a chunked body, as far as it goes."""
    out, at = b"", 0
    while (end := body.find(b"\r\n", at)) >= 0:
        size = int(body[at:end], 16)
        out += body[end + 2 : end + 2 + size]
        at = end + 2 + size + 2
    return out


def assert_seam(text: str, seen: str, first: str, second: RunningWorker) -> None:
    """Somewhere soon after what was seen the first worker's words end, and the second goes on as it itself would."""
    prompt = asked(second, "/tokenize", {"messages": MESSAGES})["tokens"]
    made = asked(second, "/tokenize", {"prompt": text, "add_special_tokens": False})["tokens"]
    num_seen = len(asked(second, "/tokenize", {"prompt": seen, "add_special_tokens": False})["tokens"])
    for count in range(num_seen, min(num_seen + SEAM_TOKENS, len(made))):
        beginning = asked(second, "/detokenize", {"tokens": made[:count]})["prompt"]
        if not first.startswith(beginning):
            break
        body = {"prompt": prompt + made[:count], "temperature": 0, "max_tokens": NUM_TOKENS - count, "ignore_eos": True}
        if beginning + asked(second, "/v1/completions", body)["choices"][0]["text"] == text:
            return
    raise AssertionError(f"no seam between {first!r} and {text!r}")


async def first_event_s(gateway: RunningGateway, content: str) -> tuple[float, dict[str, Any]]:
    """How long a stream takes to its first event, and its usage."""
    body = STREAM | {"messages": [{"role": "user", "content": content}], "max_tokens": 4}
    async with RawClient(gateway.url) as client:
        headers = [("authorization", f"Bearer {gateway.key}"), ("connection", "close")]
        began_at = time.monotonic()
        await client.send(request_bytes("POST", CHAT, json=body, headers=headers))
        begun = await client.read_until(b"data: ")
        took_s = time.monotonic() - began_at
        rest = begun + await client.read_rest(within_s=60)
    usage: dict[str, Any] = event_data(dechunked(rest[rest.index(b"\r\n\r\n") + 4 :]))[-2]["usage"]
    return took_s, usage


async def test_a_long_beginning_that_comes_again_goes_where_it_was_computed(tmp_path: Path, alive: list[RunningWorker]):
    beginning = "".join(f"Line {number} of the log says that all is well with the sea. " for number in range(200))
    async with serving(tmp_path, settings_for(alive, policy="prefix_affinity")) as gateway:
        await first_event_s(gateway, "Hello")  # so that nothing is done for the first time
        cold_s, usage = await first_event_s(gateway, beginning + "What does line 7 say?")
        assert usage["prompt_tokens"] > 3000
        for question in ("What does line 8 say?", "Is all well?", "How many lines are there?"):
            warm_s, usage = await first_event_s(gateway, beginning + question)
            assert usage["prompt_tokens_details"]["cached_tokens"] > 2800
            say(f"first event after {cold_s:.2f} s cold, {warm_s:.2f} s warm")


@pytest.mark.parametrize("victim", ["API server", "engine"])
async def test_a_stream_outlives_its_worker(tmp_path: Path, alive: list[RunningWorker], victim: str):
    pair = alive[:2]
    async with serving(tmp_path, settings_for(pair)) as gateway, RawClient(gateway.url) as client:
        key = ("authorization", f"Bearer {gateway.key}")
        await client.send(request_bytes("POST", CHAT, json=STREAM, headers=[key, ("connection", "close")]))
        head = await client.read_until(b"\r\n\r\n")
        begun = await client.read_until(b'"content":" the"')
        lost, heir = pair if is_streaming(pair[0]) else pair[::-1]
        os.kill(lost.pid if victim == "API server" else engine_core_of(lost), signal.SIGKILL)
        alive.remove(lost)
        body = dechunked(begun + await client.read_rest(within_s=60))

    assert head.startswith(b"HTTP/1.1 200")
    events = event_data(body)
    assert events[-1] == "[DONE]", events[-1]
    assert len({(event["id"], event["created"], event["model"]) for event in events[:-1]}) == 1
    first = asked(heir, CHAT, ASK)  # both hold the same model: what the first would have said
    usage = events[-2]["usage"]
    assert usage["prompt_tokens"] == first["usage"]["prompt_tokens"] and usage["completion_tokens"] == NUM_TOKENS
    seen = dechunked(begun)
    assert_seam(text_of(body), text_of(seen[: seen.rindex(b"\n\n") + 2]), first["choices"][0]["message"]["content"], heir)
