"""A call's trace as an OTLP receiver gets it, from a gateway started as its user does, in front of a scripted worker."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest, ExportTraceServiceResponse
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from tests.e2e.gateway import serving
from tests.support.raw_http import event_data
from tests.support.scripted_worker import ScriptedWorker

pytestmark = pytest.mark.e2e

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SOON_S = 60.0


class Receiver:
    """The least OTLP/HTTP collector: it takes spans and keeps them."""

    def __init__(self) -> None:
        self.url = ""
        self.paths: list[str] = []
        self.resources: list[dict[str, Any]] = []
        self.spans: list[Span] = []
        self.has_spans = asyncio.Event()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                self.paths.append(head.split(b" ")[1].decode())
                fields = dict(line.split(": ", 1) for line in head.decode().lower().split("\r\n")[1:] if line)
                self.take(await reader.readexactly(int(fields["content-length"])))
                answer = ExportTraceServiceResponse().SerializeToString()
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/x-protobuf\r\n")
                writer.write(b"content-length: %d\r\n\r\n%b" % (len(answer), answer))
        except asyncio.IncompleteReadError:
            writer.close()

    def take(self, body: bytes) -> None:
        for group in ExportTraceServiceRequest.FromString(body).resource_spans:
            self.resources.append(attributes_of(group.resource))
            self.spans += [span for scope in group.scope_spans for span in scope.spans]
        self.has_spans.set()


def attributes_of(holder: Any) -> dict[str, Any]:
    return {one.key: getattr(one.value, str(one.value.WhichOneof("value"))) for one in holder.attributes}


@asynccontextmanager
async def receiving() -> AsyncIterator[Receiver]:
    receiver = Receiver()
    async with await asyncio.start_server(receiver.serve, "127.0.0.1", 0) as server:
        receiver.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        yield receiver


async def test_a_call_arrives_at_a_receiver_with_the_models_attributes_and_the_worker_continues_it(tmp_path: Path):
    async with ScriptedWorker() as worker, receiving() as receiver:
        settings = {
            "routes": {"smollm2": {"workers": {"static": [worker.url]}}},
            "tracing": {"endpoint": f"{receiver.url}/v1/traces", "sample_ratio": 0},
        }
        ask = {"model": "smollm2", "messages": [{"role": "user", "content": "a secret"}]}
        async with serving(tmp_path, settings) as gateway:
            headers = [("traceparent", f"00-{TRACE}-{PARENT}-01")]
            answer = await gateway.request("POST", "/v1/chat/completions", json=ask, headers=headers)
            unsampled = await gateway.request("POST", "/v1/chat/completions", json=ask)
            async with asyncio.timeout(SOON_S):
                await receiver.has_spans.wait()

    assert answer.status == unsampled.status == 200
    assert set(receiver.paths) == {"/v1/traces"}
    assert receiver.resources[0]["service.name"] == "sluice"
    work, request = sorted(receiver.spans, key=lambda span: span.kind, reverse=True)
    assert {span.trace_id.hex() for span in receiver.spans} == {TRACE}
    assert request.parent_span_id.hex() == PARENT and work.parent_span_id == request.span_id
    assert (request.name, request.kind) == ("POST /v1/chat/completions", Span.SPAN_KIND_SERVER)
    assert (work.name, work.kind) == ("chat smollm2", Span.SPAN_KIND_CLIENT)
    said = attributes_of(work)
    usage = answer.json()["usage"]
    assert said["gen_ai.operation.name"] == "chat" and said["gen_ai.request.model"] == "smollm2"
    assert said["gen_ai.usage.input_tokens"] == usage["prompt_tokens"]
    assert said["gen_ai.usage.output_tokens"] == usage["completion_tokens"]
    assert f"http://{said['server.address']}:{said['server.port']}" == worker.url
    assert "secret" not in str(receiver.spans)
    [up] = [dict(one.headers)["traceparent"] for one in worker.requests if "traceparent" in dict(one.headers)]
    assert up == f"00-{TRACE}-{work.span_id.hex()}-01"


async def test_prompt_and_answer_are_in_the_span_where_the_operator_says_so(tmp_path: Path):
    async with ScriptedWorker() as worker, receiving() as receiver:
        settings = {
            "routes": {"smollm2": {"workers": {"static": [worker.url]}}},
            "tracing": {"endpoint": f"{receiver.url}/v1/traces", "sample_ratio": 1, "capture_content": True},
        }
        ask = {"model": "smollm2", "messages": [{"role": "user", "content": "a secret"}]}
        async with serving(tmp_path, settings) as gateway:
            whole = await gateway.request("POST", "/v1/chat/completions", json=ask)
            stream = await gateway.request("POST", "/v1/chat/completions", json=ask | {"stream": True})
        # at its end the gateway has sent what waited

    works = [span for span in receiver.spans if span.kind == Span.SPAN_KIND_CLIENT]
    said = sorted(map(attributes_of, works), key=lambda one: one["gen_ai.request.stream"])
    assert all("a secret" in one["gen_ai.input.messages"] for one in said)
    assert said[0]["gen_ai.output.messages"] == whole.body.decode()
    events = [event for event in event_data(stream.body) if event != "[DONE]"]
    text = "".join(event["choices"][0]["delta"].get("content") or "" for event in events if event["choices"])
    assert text and said[1]["gen_ai.output.messages"] == text
