"""Two real vLLM workers: a prompt whose beginning one of them has computed goes to that one, and is answered at once."""

import time
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import orjson
import pytest

from tests.e2e import gateway
from tests.e2e.conftest import StartWorker, say
from tests.support.raw_http import RawClient, request_bytes

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="session")]

CHAT = "/v1/chat/completions"
LONG = "The ship's log of that day says that the sea was calm and the sky was grey. " * 165  # some 3,000 tokens


class Answered(NamedTuple):
    worker: str
    num_cached: int  # tokens that it found in its cache
    ttft_s: float


async def ask(running: gateway.RunningGateway, system: str, question: str) -> Answered:
    messages = [{"role": "system", "content": system}, {"role": "user", "content": question}]
    body = {
        "model": "smollm2",
        "messages": messages,
        "max_tokens": 4,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    headers = [("authorization", f"Bearer {running.key}")]
    async with RawClient(running.url) as client:
        begun = time.perf_counter()
        await client.send(request_bytes("POST", CHAT, json=body, headers=headers))
        head, data = await client.read_head(), await client.read_chunk()
        ttft_s = time.perf_counter() - begun
        while piece := await client.read_chunk():
            data += piece
    assert head.status == 200
    events = [orjson.loads(line[6:]) for line in data.split(b"\n") if line.startswith(b"data: {")]
    [usage] = [event["usage"] for event in events if event.get("usage")]
    return Answered(head.header("x-sluice-worker") or "", usage["prompt_tokens_details"]["cached_tokens"], ttft_s)


async def anything_goes_elsewhere(running: gateway.RunningGateway, *, than: str) -> bool:
    """An unknown prompt goes to either worker, by a hash over their (random) ports: one of 30 surely to the other."""
    for k in range(30):
        if (await ask(running, f"{k} is how this log begins.", "How was the sea?")).worker != than:
            return True
    return False


async def test_a_prompt_goes_to_the_worker_that_has_computed_its_beginning(
    start_worker: StartWorker, chat_model: Path, tmp_path: Path
):
    with ExitStack() as stack:
        started = [stack.enter_context(start_worker(chat_model, "smollm2", max_model_len=4096, cpus=(cpu,))) for cpu in (0, 1)]
        urls = [one.ready().url for one in started]
        settings = {"routes": {"smollm2": {"workers": {"static": urls}, "explain": {"headers": True}}}}
        async with gateway.serving(tmp_path, settings) as running:
            for word in ("one", "two", "three", "four"):  # what is slow only once: each worker's first steps
                await ask(running, word, "Say hi.")
            cold = await ask(running, LONG, "How was the sea?")
            assert cold.num_cached == 0
            assert await anything_goes_elsewhere(running, than=cold.worker)  # so what follows is not for want of another
            warm = await ask(running, LONG, "How was the sky, and was there wind?")
            assert warm.worker == cold.worker and warm.num_cached > 2500
            say(f"first token of a 3,000-token prompt: cold after {cold.ttft_s:.2f} s, warm after {warm.ttft_s:.2f} s")
