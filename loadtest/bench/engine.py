"""A mock vLLM worker, cheap enough that it is never what a benchmark measures.

A raw `asyncio.Protocol`. `POST /v1/chat/completions` answers in vLLM's bytes (`shape.py`); the body's `max_tokens` is
how many tokens come. A paced worker keeps an absolute schedule for each stream (a late event does not delay the next),
and starts are spread over one pace so that streams do not tick together; streams that go flat out take turns, see
`Turns`. Each event is a write of its own. A client that leaves ends its stream.

A body over `READ_BODY_BYTES` is not read: it gets a reply of `TOKENS_UNREAD` tokens that is not streamed, so that a
huge body does not hold up the streams of others. A body that is not a chat is a 400 in vLLM's manner.
"""

import argparse
import asyncio
import time
from collections import deque
from typing import Any

import httptools
import orjson
import uvloop

from loadtest.bench.shape import STREAM_HEAD, StreamParts, chat_reply, chat_stream, http_reply

READ_BODY_BYTES = 1_048_576
TOKENS_UNREAD = 16
_MAX_MODEL_LEN = 16_777_216  # no prompt of the benchmark is too long
_GOLDEN = 0.6180339887498949  # multiples of it, modulo 1, are spread evenly however many there are


class Turns:
    """The streams that go flat out. They write in turn, one event each, as long as fewer events are on their way than
    there are streams; `seen` says how many have come to the client.

    Without that bound it would be chance how many events of a stream a gateway finds in one read, and a slow gateway
    would find more of them and look cheap. Where nobody is there to call `seen`, one event goes out each turn of the loop.
    """

    def __init__(self, *, is_told: bool) -> None:
        self._is_told = is_told
        self._streams: deque[Streaming] = deque()
        self.num_unseen = 0

    def join(self, stream: "Streaming") -> None:
        self._streams.appendleft(stream)  # it has nothing on its way yet
        self._advance()

    def leave(self, stream: "Streaming") -> None:
        if stream in self._streams:
            self._streams.remove(stream)
        if not self._streams:
            self.num_unseen = 0

    def seen(self, num_events: int) -> None:
        self.num_unseen = max(0, self.num_unseen - num_events)
        self._advance()

    def _advance(self) -> None:
        bound = len(self._streams) if self._is_told else 1
        while self._streams and self.num_unseen < bound:
            stream = self._streams.popleft()
            self.num_unseen += 1
            if stream.write_next():
                self._streams.append(stream)
            else:
                self.num_unseen += 1  # [DONE], which goes with the last event
            if not self._is_told:
                asyncio.get_running_loop().call_soon(self.seen, self.num_unseen)


class Worker:
    """What the connections of one mock worker share. `pace_s` is the time from one event of a stream to the next; with 0
    they go flat out, by turns.
    """

    def __init__(self, model: str, turns: Turns, pace_s: float = 0.0) -> None:
        self.model = model
        self.turns = turns
        self.pace_s = pace_s
        self.num_running = 0
        self.num_replies = 0
        self.open: set[Connection] = set()

    def close(self) -> None:
        for connection in list(self.open):
            connection.transport.abort()

    def reply_id(self, request_id: str) -> str:
        self.num_replies += 1
        return f"chatcmpl-{request_id}" if request_id else f"chatcmpl-{self.num_replies:016x}"

    def start_delay_s(self) -> float:
        return self.pace_s * (self.num_replies * _GOLDEN % 1.0)

    def models_page(self) -> bytes:
        created = int(time.time())
        card = {"id": self.model, "object": "model", "created": created, "owned_by": "vllm", "root": self.model}
        card |= {"parent": None, "max_model_len": _MAX_MODEL_LEN, "permission": []}
        return http_reply(orjson.dumps({"object": "list", "data": [card]}))

    def metrics_page(self) -> bytes:
        labels = f'{{engine="0",model_name="{self.model}"}}'
        lines = [
            "# TYPE vllm:num_requests_running gauge",
            f"vllm:num_requests_running{labels} {self.num_running}.0",
            "# TYPE vllm:num_requests_waiting gauge",
            f"vllm:num_requests_waiting{labels} 0.0",
            "# TYPE vllm:kv_cache_usage_perc gauge",
            f"vllm:kv_cache_usage_perc{labels} 0.0",
            "# TYPE vllm:cache_config_info gauge",
            'vllm:cache_config_info{block_size="128",engine="0",num_gpu_blocks="4096"} 1.0',
            "",
        ]
        return http_reply("\n".join(lines).encode(), content_type="text/plain; version=0.0.4; charset=utf-8")


class Connection(asyncio.Protocol):
    """One client of a mock worker; at most one reply at a time."""

    transport: asyncio.Transport  # from `connection_made` on

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._parser = httptools.HttpRequestParser(self)
        self._streaming: Streaming | None = None
        self._begin_request()

    def _begin_request(self) -> None:
        self._url = b""
        self._request_id = ""
        self._body: list[bytes] = []
        self._body_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self.transport = transport
        self._worker.open.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._worker.open.discard(self)
        if self._streaming is not None:
            self._streaming.stop()

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self.transport.write(http_reply(b"Invalid HTTP request received.", "400 Bad Request", "text/plain"))
            self.transport.close()

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if len(name) == 12 and name.lower() == b"x-request-id":  # vLLM makes its own id of it
            self._request_id = value.decode("latin-1")

    def on_body(self, body: bytes) -> None:
        self._body_bytes += len(body)
        if self._body_bytes <= READ_BODY_BYTES:
            self._body.append(body)

    def on_message_complete(self) -> None:
        path = self._url.partition(b"?")[0]
        if path == b"/v1/chat/completions":
            self._chat()
        elif path == b"/health":
            self.transport.write(http_reply(b""))
        elif path == b"/v1/models":
            self.transport.write(self._worker.models_page())
        elif path == b"/metrics":
            self.transport.write(self._worker.metrics_page())
        else:
            self.transport.write(http_reply(b'{"detail":"Not Found"}', "404 Not Found"))
        self._begin_request()

    def _chat(self) -> None:
        worker = self._worker
        reply_id = worker.reply_id(self._request_id)
        created = int(time.time())
        if self._body_bytes > READ_BODY_BYTES:
            self.transport.write(chat_reply(reply_id, created, worker.model, TOKENS_UNREAD))
            return
        try:
            ask: dict[str, Any] = orjson.loads(b"".join(self._body))
            model, num_tokens = str(ask["model"]), int(ask.get("max_tokens") or ask["max_completion_tokens"])
        except (orjson.JSONDecodeError, KeyError, TypeError, ValueError) as exc:
            error = {"message": f"1 validation error: {exc!r}", "type": "Bad Request", "param": None, "code": 400}
            self.transport.write(http_reply(orjson.dumps({"error": error}), "400 Bad Request"))
            return
        if not ask.get("stream"):
            self.transport.write(chat_reply(reply_id, created, model, num_tokens))
            return
        include_usage = bool((ask.get("stream_options") or {}).get("include_usage"))
        parts = chat_stream(reply_id, created, model, num_tokens, include_usage)
        self.transport.write(STREAM_HEAD)  # vLLM sends it before the first token
        self._streaming = Streaming(self, worker, parts, num_tokens)

    def streamed(self) -> None:
        self._streaming = None


class Streaming:
    """One stream on its way out: a timer for each event, or its place among the `Turns`."""

    __slots__ = ("_connection", "_due", "_loop", "_next", "_num_tokens", "_parts", "_timer", "_worker")

    def __init__(self, connection: Connection, worker: Worker, parts: StreamParts, num_tokens: int) -> None:
        self._connection = connection
        self._worker = worker
        self._parts = parts
        self._num_tokens = num_tokens
        self._next = -1  # the role chunk; then the number of a token
        self._loop = asyncio.get_running_loop()
        self._due = self._loop.time() + worker.start_delay_s()
        self._timer: asyncio.TimerHandle | None = None
        worker.num_running += 1
        if worker.pace_s:
            self._timer = self._loop.call_at(self._due, self._tick)
        else:
            worker.turns.join(self)

    def _tick(self) -> None:
        if self.write_next():
            self._due += self._worker.pace_s
            self._timer = self._loop.call_at(self._due, self._tick)

    def write_next(self) -> bool:
        """Write one event; whether more will come."""
        number = self._next
        self._next = number + 1
        transport = self._connection.transport
        if number == self._num_tokens - 1:
            transport.write(self._parts.end)
            self._worker.num_running -= 1
            self._connection.streamed()
            return False
        transport.write(self._parts.role if number < 0 else self._parts.deltas[number % len(self._parts.deltas)])
        return True

    def stop(self) -> None:
        """The client has left."""
        self._worker.num_running -= 1
        if self._timer is not None:
            self._timer.cancel()
        else:
            self._worker.turns.leave(self)


async def serve(port: int, worker: Worker) -> asyncio.Server:
    loop = asyncio.get_running_loop()
    return await loop.create_server(lambda: Connection(worker), "127.0.0.1", port, backlog=4096)


async def _main(port: int, model: str, pace_s: float) -> None:
    async with await serve(port, Worker(model, Turns(is_told=False), pace_s)):
        await asyncio.Event().wait()  # until a signal ends the process


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m loadtest.bench.engine", description="A mock vLLM worker.")
    parser.add_argument("--port", type=int, required=True, help="where to listen, on 127.0.0.1")
    parser.add_argument("--model", default="smollm2", help="the served name (default %(default)s)")
    parser.add_argument("--pace-ms", type=float, default=0.0, help="between the events of a stream (default: flat out)")
    options = parser.parse_args()
    uvloop.run(_main(options.port, options.model, options.pace_ms / 1000))


if __name__ == "__main__":
    main()
