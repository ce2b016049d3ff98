"""Spans of a sampled call: their names, times, attributes and parents, as a collector would get them."""

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from sluice.config import TracingSettings
from sluice.tracing.otlp import MAX_CONTENT_BYTES, OtlpTracing
from sluice.types import Call, Endpoint, Outcome, Source, Tenant, Usage

BEGAN_NS = 1_700_000_000_000_000_000
PARENT = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
UNSAMPLED = PARENT[:-2] + b"00"


def tracing(exporter: SpanExporter | None = None, *, drawn: float = 0.0, **settings: object) -> OtlpTracing:
    asked = TracingSettings.model_validate({"endpoint": "http://127.0.0.1:9/v1/traces", "sample_ratio": 0.5, **settings})
    exporter = exporter or InMemorySpanExporter()
    return OtlpTracing(asked, exporter=exporter, wall_clock_ns=lambda: BEGAN_NS, draw=lambda: drawn)


def call(endpoint: Endpoint = Endpoint.CHAT, **more: object) -> Call:
    tenant = Tenant("acme", "key_1")
    return Call("req-1", tenant, "llama", endpoint, endpoint.value, model="gpt-4o", stream=True, **more)  # type: ignore[arg-type]


GOOD = Outcome(
    200, worker="http://10.0.0.1:8000", usage=Usage(12, 34, 5, exact=True), attempts=2, first_event_s=0.25, duration_s=1.5
)


def spans_of(outcome: Outcome, asked: Call | None, headers: dict[bytes, bytes], **settings: object) -> list[ReadableSpan]:
    exporter = InMemorySpanExporter()
    traced = tracing(exporter, **settings)
    trace = traced.begin("POST", "/v1/chat/completions", headers)
    assert trace is not None
    trace.end(asked, outcome, "a secret answer")
    traced.close()
    return list(exporter.get_finished_spans())


def test_a_call_is_a_server_span_with_the_models_work_in_it():
    work, request = spans_of(GOOD, call(), {})

    assert (request.name, request.kind, work.name, work.kind) == (
        *("POST /v1/chat/completions", SpanKind.SERVER),
        *("chat gpt-4o", SpanKind.CLIENT),
    )
    assert request.parent is None and work.parent == request.context
    for span in (request, work):
        assert (span.start_time, span.end_time) == (BEGAN_NS, BEGAN_NS + 1_500_000_000)
        assert span.status.status_code is StatusCode.UNSET
    assert request.attributes == {
        "http.request.method": "POST",
        "url.path": "/v1/chat/completions",
        "http.response.status_code": 200,
        "sluice.request_id": "req-1",
        "sluice.tenant": "acme",
    }
    assert work.attributes == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "vllm",
        "gen_ai.request.model": "gpt-4o",
        "gen_ai.request.stream": True,
        "gen_ai.response.time_to_first_chunk": 0.25,
        "gen_ai.usage.input_tokens": 12,
        "gen_ai.usage.output_tokens": 34,
        "gen_ai.usage.cache_read.input_tokens": 5,
        "server.address": "10.0.0.1",
        "server.port": 8000,
        "sluice.attempts": 2,
        "sluice.route": "llama",
        "sluice.usage.exact": True,
    }
    assert [(event.name, event.timestamp) for event in work.events] == [("first event", BEGAN_NS + 250_000_000)]
    assert request.resource.attributes["service.name"] == "sluice"


@pytest.mark.parametrize(
    "endpoint, operation",
    [
        (Endpoint.MESSAGES, "chat"),
        (Endpoint.RESPONSES, "chat"),
        (Endpoint.COMPLETIONS, "text_completion"),
        (Endpoint.EMBEDDINGS, "embeddings"),
        (Endpoint.RERANK, "rerank"),
    ],
)
def test_each_endpoint_has_its_operation(endpoint: Endpoint, operation: str):
    work, _ = spans_of(GOOD, call(endpoint), {})

    assert work.name == f"{operation} gpt-4o"


def test_a_failure_says_what_and_whose():
    failed = Outcome(502, Source.UPSTREAM, "worker_failed", worker="https://gpu.internal", duration_s=0.1)

    work, request = spans_of(failed, call(), {})

    for span in (work, request):
        assert span.status.status_code is StatusCode.ERROR
        assert span.attributes is not None
        assert (span.attributes["error.type"], span.attributes["sluice.fault"]) == ("worker_failed", "upstream")
    assert work.attributes is not None and work.attributes["server.port"] == 443


def test_a_request_that_never_was_a_call_is_the_server_span_alone():
    [request] = spans_of(Outcome(401, Source.DOWNSTREAM, None, duration_s=0.001), None, {})

    assert request.attributes is not None and request.attributes["error.type"] == "401"


def test_the_clients_trace_is_continued_and_goes_up():
    exporter = InMemorySpanExporter()
    traced = tracing(exporter)
    trace = traced.begin("POST", "/v1/chat/completions", {b"traceparent": PARENT, b"tracestate": b"a=1,b=2"})
    assert trace is not None
    trace.end(call(), GOOD)
    traced.close()

    work, request = exporter.get_finished_spans()
    assert request.parent is not None and f"{request.parent.span_id:x}" == "b7ad6b7169203331"
    assert trace.id == "0af7651916cd43dd8448eb211c80319c"
    assert dict(trace.headers) == {"traceparent": f"00-{trace.id}-{work.context.span_id:016x}-01", "tracestate": "a=1,b=2"}


@pytest.mark.parametrize(
    "parent, follow, drawn, is_sampled",
    [
        (None, True, 0.49, True),
        (None, True, 0.5, False),
        (PARENT, True, 0.9, True),
        (UNSAMPLED, True, 0.1, False),
        (PARENT, False, 0.9, False),
        (UNSAMPLED, False, 0.1, True),
        (b"00-zz", True, 0.9, False),
        (PARENT + b"-more", True, 0.9, False),
    ],
)
def test_a_share_is_sampled_unless_the_client_decides(parent: bytes | None, follow: bool, drawn: float, is_sampled: bool):
    traced = tracing(drawn=drawn, follow_parent=follow)

    trace = traced.begin("POST", "/", {b"traceparent": parent} if parent else {})

    assert (trace is not None) is is_sampled
    traced.close()


def test_prompts_and_answers_are_in_no_span_unless_that_is_asked_for():
    asked = call(body=b'{"messages":[{"role":"user","content":"secret"}]}')

    work, request = spans_of(GOOD, asked, {})
    assert "secret" not in str(work.attributes) + str(request.attributes)

    work, _ = spans_of(GOOD, asked, {}, capture_content=True)
    assert work.attributes is not None and "secret" in str(work.attributes["gen_ai.input.messages"])
    assert work.attributes["gen_ai.output.messages"] == "a secret answer"


def test_a_captured_prompt_is_bounded():
    asked = call(body=(b"x" * MAX_CONTENT_BYTES, b"y" * 10))

    work, _ = spans_of(GOOD, asked, {}, capture_content=True)

    assert work.attributes is not None and work.attributes["gen_ai.input.messages"] == "x" * MAX_CONTENT_BYTES


class Broken(SpanExporter):
    def export(self, spans: object) -> SpanExportResult:
        raise OSError("the collector is away")

    def shutdown(self) -> None: ...


@pytest.mark.filterwarnings("ignore")
def test_a_collector_that_fails_costs_spans_and_nothing_else():
    traced = tracing(Broken())
    for _ in range(10):
        trace = traced.begin("POST", "/", {})
        assert trace is not None
        trace.end(call(), GOOD)
    traced.close()
