"""The sections of a route: how one of its workers is picked, and what may be asked of it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from sluice.config.base import Count, HeaderName, Positive, Seconds, Section
from sluice.config.queue import Queue
from sluice.config.workers import Workers

OpenEndpoint = Literal["tokenize", "detokenize", "transcriptions"]


def _list_or_discover(adapters: Any) -> Any:
    if adapters != "discover" and not isinstance(adapters, list | tuple):
        raise ValueError("adapters is a list of names, or the word discover")
    return adapters


Adapters = Annotated[tuple[str, ...] | Literal["discover"], BeforeValidator(_list_or_discover)]


class Timeouts(Section):
    connect_s: Seconds = 2
    first_event_s: Seconds = 300
    silence_s: Seconds = 15
    total_s: Seconds = 3600


class Resume(Section):
    """Streams whose worker is lost go on at another one; what has gone down of each is kept for that."""

    enabled: bool = True
    max_resumes: Annotated[int, Field(ge=0, le=100)] = 8
    max_bytes: Annotated[int, Field(ge=1024)] = 262_144  # kept of a stream, text without its framing; a longer one ends broken


class Hedge(Section):
    """A second copy of a stream's call where its first event is late."""

    enabled: bool = False
    max_percent: Annotated[int, Field(ge=1, le=10)] = 2  # of the streams of the route


class Bounds(Section):
    """What one request may ask of the shared engine; beyond it the request is refused with a 400."""

    max_n: Positive = 16
    max_logprobs: Count = 20
    max_tokens: Positive | None = None  # of each answer; what names no bound of its own gets this one
    max_prompt_tokens: Positive | None = None  # as estimated
    max_prompts: Positive = 2048  # inputs of one embeddings, rerank, score or completions call
    min_tokens: bool = True
    ignore_eos: bool = False
    beam_search: bool = False


class DefaultRetrieval(Section):
    """What a call of the route retrieves that asks for nothing; no stores: nothing."""

    vector_store_ids: Annotated[tuple[str, ...], Field(max_length=8)] = ()
    mode: Literal["hybrid", "lexical", "dense"] = "hybrid"
    max_num_results: Annotated[int, Field(ge=1, le=50)] = 8
    max_context_tokens: Positive = 2048
    on_error: Literal["open", "fail"] = "open"
    on_empty: Literal["answer", "refuse"] = "answer"


class Explain(Section):
    """Who may know why a call went to its worker."""

    headers: bool = False  # `x-sluice-worker` and `x-sluice-route-reason` on answers: they show the inside to clients
    log_share: Annotated[float, Field(ge=0, le=1)] = 0.01  # of calls whose access line has the reason


class Route(Section):
    """One model name: its workers, how one of them is picked, and what may be asked of it."""

    workers: Workers
    served_model: str | None = None
    policy: str = "prefix_affinity"
    session_header: HeaderName | None = None  # names a conversation
    explain: Explain = Explain()
    aliases: tuple[str, ...] = ()
    adapters: Adapters = ()
    max_retries: Annotated[int, Field(ge=0, le=10)] = 2
    timeouts: Timeouts = Timeouts()
    resume: Resume = Resume()
    hedge: Hedge = Hedge()
    fallback: str | None = None  # the route whose workers take a call that no worker of this one can take
    bounds: Bounds = Bounds()
    queue: Queue = Queue()
    cache_salt: Literal["none", "tenant", "route"] = "none"  # who shares the workers' prefix caches
    cache_shared_by: tuple[str, ...] = ()  # tenants that share theirs, where others have one each
    open: frozenset[OpenEndpoint] = frozenset()
    media_hosts: tuple[str, ...] = ()  # hosts that image and audio URLs may name; data: URLs always may
    input_modalities: tuple[Literal["text", "image", "audio", "video"], ...] = ()  # shown by GET /v1/models, where known
    reasoning_content: bool = False  # write vLLM's `reasoning` a second time under its older name
    retrieval: DefaultRetrieval = DefaultRetrieval()
    responses_store: bool = False  # the workers run with VLLM_ENABLE_RESPONSES_API_STORE=1
    keep_alive_s: Seconds | None = 10  # comments to the client while a worker is silent, once the answer has begun
    keep_alive_before_first_event_s: Seconds | None = None  # commits a 200 early: later failures are events

    @property
    def named_adapters(self) -> tuple[str, ...]:
        """Those that the file names; with `adapters: discover` the workers name them."""
        return () if self.adapters == "discover" else self.adapters
