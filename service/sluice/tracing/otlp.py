"""OpenTelemetry spans by the GenAI conventions, sent to an OTLP/HTTP collector by a thread of the SDK.

A sampled call is two spans: the request as we served it (SERVER), and in it the model's work as we saw it (CLIENT, named
`chat llama`), whose context goes up as `traceparent`: vLLM with `--otlp-traces-endpoint` hangs its own span below it. A call
that is not sampled makes no span; a client's own `traceparent` goes up untouched then.

A collector that is slow, away or wrong costs spans, never calls: what it does not take in time is dropped from a bounded
queue, and the SDK says so in the log.

Source: OpenTelemetry semantic conventions for generative AI (semantic-conventions-genai, 2026) and for HTTP; W3C Trace Context.
"""

from __future__ import annotations

import random
import re
import time
from collections.abc import Callable, Mapping
from urllib.parse import urlsplit

from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Span, SpanLimits, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from opentelemetry.trace import NonRecordingSpan, SpanContext, SpanKind, Status, StatusCode, TraceFlags, TraceState

from sluice import __version__
from sluice.config import TracingSettings
from sluice.types import Body, Call, Endpoint, Outcome

TRACEPARENT = re.compile(rb"00-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})")
SAMPLED = 0x01
MAX_TRACESTATE_BYTES = 512
MAX_CONTENT_BYTES = 65_536  # of a prompt or an answer, where they are captured
NS = 1_000_000_000
QUEUE_SPANS, BATCH_SPANS, SEND_EVERY_MS, SEND_TIMEOUT_S = 4096, 512, 1000, 5.0
CLOSE_TIMEOUT_MS = 3000

OPERATIONS = {
    Endpoint.CHAT: "chat",
    Endpoint.MESSAGES: "chat",
    Endpoint.RESPONSES: "chat",
    Endpoint.COMPLETIONS: "text_completion",
    Endpoint.EMBEDDINGS: "embeddings",
}


class OtlpTracing:
    """Samples calls by a ratio, or as their own trace context says, and sends their spans to the collector."""

    def __init__(
        self,
        settings: TracingSettings,
        *,
        exporter: SpanExporter | None = None,
        wall_clock_ns: Callable[[], int] = time.time_ns,
        draw: Callable[[], float] = random.random,
    ) -> None:
        self._ratio = settings.sample_ratio
        self._follows_parent = settings.follow_parent
        self._captures = settings.capture_content
        self._wall_clock_ns = wall_clock_ns
        self._draw = draw
        exporter = exporter or OTLPSpanExporter(endpoint=settings.endpoint, timeout=SEND_TIMEOUT_S)
        resource = Resource.create({"service.name": settings.service_name, "service.version": __version__})
        limits = SpanLimits(max_attribute_length=MAX_CONTENT_BYTES)
        self._provider = TracerProvider(ALWAYS_ON, resource, shutdown_on_exit=False, span_limits=limits)
        self._provider.add_span_processor(
            BatchSpanProcessor(
                exporter,
                max_queue_size=QUEUE_SPANS,
                max_export_batch_size=BATCH_SPANS,
                schedule_delay_millis=SEND_EVERY_MS,
            )
        )
        self._tracer = self._provider.get_tracer("sluice", __version__)

    def begin(self, method: str, path: str, headers: Mapping[bytes, bytes]) -> OtlpTrace | None:
        theirs = TRACEPARENT.fullmatch(headers.get(b"traceparent", b""))
        if theirs is not None and self._follows_parent:
            is_sampled = bool(int(theirs[3], 16) & SAMPLED)
        else:
            is_sampled = self._draw() < self._ratio
        if not is_sampled:
            return None
        context = None
        if theirs is not None:
            state = headers.get(b"tracestate", b"")[:MAX_TRACESTATE_BYTES].decode("latin-1")
            parent = SpanContext(
                *(int(theirs[1], 16), int(theirs[2], 16)),
                is_remote=True,
                trace_flags=TraceFlags(SAMPLED),
                trace_state=TraceState.from_header([state]),
            )
            context = trace.set_span_in_context(NonRecordingSpan(parent))
        began_ns = self._wall_clock_ns()
        request = self._tracer.start_span(f"{method} {path}", context, SpanKind.SERVER, start_time=began_ns)
        below = trace.set_span_in_context(request)
        work = self._tracer.start_span("call", below, SpanKind.CLIENT, start_time=began_ns)
        assert isinstance(request, Span) and isinstance(work, Span)
        request.set_attributes({"http.request.method": method, "url.path": path})
        return OtlpTrace(request, work, began_ns, captures=self._captures)

    def close(self) -> None:
        self._provider.force_flush(CLOSE_TIMEOUT_MS)
        self._provider.shutdown()


class OtlpTrace:
    """The two spans of one call."""

    __slots__ = ("_began_ns", "_request", "_work", "captures", "headers", "id")

    def __init__(self, request: Span, work: Span, began_ns: int, *, captures: bool) -> None:
        self._request = request
        self._work = work
        self._began_ns = began_ns
        self.captures = captures
        context = work.get_span_context()
        self.id = trace.format_trace_id(context.trace_id)
        parent = f"00-{self.id}-{trace.format_span_id(context.span_id)}-01"
        state = context.trace_state.to_header()
        self.headers = (("traceparent", parent), *((("tracestate", state),) if state else ()))

    def end(self, call: Call | None, outcome: Outcome, answer: str = "") -> None:
        ended_ns = self._began_ns + int(outcome.duration_s * NS)
        self._request.set_attribute("http.response.status_code", outcome.status)
        if outcome.source is not None:
            for span in (self._request, self._work):
                span.set_attribute("error.type", outcome.code or str(outcome.status))
                span.set_attribute("sluice.fault", outcome.source)
                span.set_status(Status(StatusCode.ERROR))
        if call is not None:
            self._request.set_attributes({"sluice.request_id": call.id, "sluice.tenant": call.tenant.name})
            self._describe(call, outcome)
            if self.captures:
                self._work.set_attribute("gen_ai.input.messages", _text(call.body))
                self._work.set_attribute("gen_ai.output.messages", answer)
            self._work.end(ended_ns)
        self._request.end(ended_ns)

    def _describe(self, call: Call, outcome: Outcome) -> None:
        """The model's work, by the GenAI conventions."""
        operation = OPERATIONS.get(call.endpoint, call.endpoint.value.rpartition("/")[2])
        model = call.model or call.route
        work = self._work
        work.update_name(f"{operation} {model}")
        work.set_attributes(
            {
                "gen_ai.operation.name": operation,
                "gen_ai.provider.name": "vllm",
                "gen_ai.request.model": model,
                "gen_ai.request.stream": call.stream,
                "sluice.route": call.route,
                "sluice.attempts": outcome.attempts,
            }
        )
        if outcome.worker is not None:
            worker = urlsplit(outcome.worker)
            work.set_attribute("server.address", worker.hostname or "")
            work.set_attribute("server.port", worker.port or (443 if worker.scheme == "https" else 80))
            usage = outcome.usage
            work.set_attribute("gen_ai.usage.input_tokens", usage.prompt_tokens)
            work.set_attribute("gen_ai.usage.output_tokens", usage.completion_tokens)
            work.set_attribute("gen_ai.usage.cache_read.input_tokens", usage.cached_tokens)
            work.set_attribute("sluice.usage.exact", usage.exact)
        if outcome.first_event_s is not None:
            work.set_attribute("gen_ai.response.time_to_first_chunk", outcome.first_event_s)
            work.add_event("first event", timestamp=self._began_ns + int(outcome.first_event_s * NS))


def _text(body: Body) -> str:
    """The request as it went up, cut to what a span may hold."""
    whole = body if isinstance(body, bytes) else b"".join(body)[:MAX_CONTENT_BYTES]
    return whole[:MAX_CONTENT_BYTES].decode(errors="replace")
