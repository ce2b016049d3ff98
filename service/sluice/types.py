"""The frozen nouns that every layer shares: who calls, what is asked, what it cost and how it ended.

Those that are made for each call make themselves, which compiled code does without a dict of arguments. Nobody changes
them; `dataclasses.replace` makes another.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import StrEnum
from math import inf
from typing import NamedTuple, Protocol

Body = bytes | tuple[bytes, ...]  # of a request; a large one lies in the pieces that it came in


class Endpoint(StrEnum):
    """The HTTP paths of a worker that calls may go to; the value is the path on the worker."""

    CHAT = "/v1/chat/completions"
    COMPLETIONS = "/v1/completions"
    EMBEDDINGS = "/v1/embeddings"
    RESPONSES = "/v1/responses"
    MESSAGES = "/v1/messages"
    COUNT_TOKENS = "/v1/messages/count_tokens"
    RERANK = "/v1/rerank"
    SCORE = "/v1/score"
    TRANSCRIPTIONS = "/v1/audio/transcriptions"
    TOKENIZE = "/tokenize"
    DETOKENIZE = "/detokenize"


class Source(StrEnum):
    """Whose fault an error is: the client's side, our own, or the worker's side."""

    DOWNSTREAM = "downstream"
    GATEWAY = "gateway"
    UPSTREAM = "upstream"


@dataclass(frozen=True, slots=True)
class Tenant:
    """Who is limited and billed. `key_id` names the key in logs and is not secret."""

    name: str
    key_id: str
    scopes: frozenset[str] = frozenset()
    routes: frozenset[str] | None = None  # None: every route
    names_users: bool = False  # it may say for whom it calls, and limits and fairness go down to that person
    priority: int = 0  # of its calls in the queue; higher ones go first
    weight: int = 1  # its share of the workers beside other tenants
    # What the key itself may use, besides what its tenant may; None: the tenant's `per_key`
    rpm: int | None = None
    tpm: int | None = None
    concurrency: int | None = None
    vector_store_ids: tuple[str, ...] = ()  # what the key's calls retrieve from where they ask for nothing

    def may_use(self, route: str) -> bool:
        return self.routes is None or route in self.routes


@dataclass(init=False, slots=True, unsafe_hash=True)
class Usage:
    """Tokens of one call, not to be changed. `exact` is False where we counted events because the worker could not tell."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    exact: bool
    step_ms: float  # of the engine's steps that worked on it, where the worker tells

    def __init__(
        self,
        prompt_tokens: int = 0,
        completion_tokens: int = 0,
        cached_tokens: int = 0,
        exact: bool = False,
        step_ms: float = 0.0,
    ) -> None:
        self.prompt_tokens = prompt_tokens
        self.completion_tokens = completion_tokens
        self.cached_tokens = cached_tokens
        self.exact = exact
        self.step_ms = step_ms


class Prefix(NamedTuple):
    """What a prompt begins with: hash i covers all up to the end of its block i. See `prefix.block_hashes`."""

    hashes: tuple[int, ...] = ()
    num_bytes: int = 0  # of the whole prompt


class PromptSize(NamedTuple):
    """What a prompt is made of, before any tokenizer has seen it: characters by class, and what are none."""

    ascii: int = 0
    cjk: int = 0
    other: int = 0
    token_ids: int = 0
    messages: int = 0
    media: int = 0  # images, audio, files


NO_USAGE, NO_PREFIX, NO_SIZE = Usage(), Prefix(), PromptSize()


class Editor(Protocol):
    """Edits one stream on its way down: takes whole events and returns what goes down in their stead."""

    def feed(self, events: bytes) -> bytes: ...


class Grounding(Protocol):
    """What retrieval gave to a call, and what of that its answer shows."""

    @property
    def headers(self) -> list[tuple[bytes, bytes]]: ...

    @property
    def reply(self) -> tuple[str, bytes] | None:
        """Content type and body of an answer that needs no model; None where the call goes on."""

    def whole(self, body: bytes) -> bytes:
        """A whole answer with what it shows."""

    def editor(self) -> Editor: ...


@dataclass(init=False, slots=True)
class Call:
    """One parsed client request: everything that the path of a call needs to know, and nothing that changes."""

    # Who asks, and under which name we follow it
    id: str
    tenant: Tenant
    # Where it goes
    route: str
    endpoint: Endpoint
    path: str  # on the worker; differs from the endpoint where an id is part of the path
    method: str
    pinned_worker: str | None  # URL of the only worker that can answer (stored responses)
    # What is asked
    model: str  # as the client spelled it; answers carry this name
    body: Body  # as it goes up
    content_type: str
    headers: tuple[tuple[str, str], ...]  # of the client's, those that may go up
    stream: bool
    wants_usage: bool  # False: the usage chunk was our wish, the client must not see it
    stamp: Callable[[str], Body] | None  # the body for the worker at this URL, where it depends on that
    ground: Ground | None  # finds sources and puts them into the body
    # What it will cost, before a worker has said so
    size: PromptSize
    prompt_tokens: int  # estimated
    max_tokens: int | None  # of each answer, as asked for; None: as many as fit the context
    num_choices: int  # answers to all of its prompts together; 0 where nothing is generated
    output_tokens: int  # estimated, of all answers together
    # Whom it is for, where the key is trusted to say so
    user: str
    # What a policy may look at
    prefix: Prefix  # of the prompt, where the route's policy reads it
    adapter: str | None  # the LoRA adapter that is asked for
    session: str  # what the route's session header says
    explains: bool  # whether why it goes to its worker shall be noted
    is_child: bool  # made by the gateway for another call: its tokens count, and neither as a request nor for a place
    # When it must be done, on the event loop's clock
    started_at: float
    deadline: float

    def __init__(
        self,
        id: str,
        tenant: Tenant,
        route: str,
        endpoint: Endpoint,
        path: str,
        method: str = "POST",
        pinned_worker: str | None = None,
        model: str = "",
        body: Body = b"",
        content_type: str = "application/json",
        headers: tuple[tuple[str, str], ...] = (),
        stream: bool = False,
        wants_usage: bool = True,
        stamp: Callable[[str], Body] | None = None,
        ground: Ground | None = None,
        size: PromptSize = NO_SIZE,
        prompt_tokens: int = 0,
        max_tokens: int | None = None,
        num_choices: int = 1,
        output_tokens: int = 0,
        user: str = "",
        prefix: Prefix = NO_PREFIX,
        adapter: str | None = None,
        session: str = "",
        explains: bool = False,
        is_child: bool = False,
        started_at: float = 0.0,
        deadline: float = inf,
    ) -> None:
        self.id = id
        self.tenant = tenant
        self.route = route
        self.endpoint = endpoint
        self.path = path
        self.method = method
        self.pinned_worker = pinned_worker
        self.model = model
        self.body = body
        self.content_type = content_type
        self.headers = headers
        self.stream = stream
        self.wants_usage = wants_usage
        self.stamp = stamp
        self.ground = ground
        self.size = size
        self.prompt_tokens = prompt_tokens
        self.max_tokens = max_tokens
        self.num_choices = num_choices
        self.output_tokens = output_tokens
        self.user = user
        self.prefix = prefix
        self.adapter = adapter
        self.session = session
        self.explains = explains
        self.is_child = is_child
        self.started_at = started_at
        self.deadline = deadline

    @property
    def allowed_s(self) -> float:
        """How long it may take in all, as it is told to people."""
        return round(self.deadline - self.started_at, 3)


Ground = Callable[[Call], Awaitable[tuple[Call, Grounding]]]


@dataclass(init=False, slots=True)
class Outcome:
    """How a call ended, for the one metric update and the one access line."""

    status: int
    source: Source | None  # None: it went well
    code: str | None
    worker: str | None
    usage: Usage
    gpu_ms: float  # its part of the engine's time
    gpu_exact: bool  # from the worker's own times, and not from ours
    tokens_wasted: int  # computed for this call by workers that were lost or not needed, and billed to nobody
    attempts: int
    reason: str  # why that worker, where the call wanted to know
    num_resumes: int  # how often its stream was continued on another worker
    fell_back: bool  # to the route's `fallback`
    hedge: str | None  # where a second copy was sent: which of the two was taken, first or copy
    first_event_s: float | None  # from the start of the call
    overhead_s: float | None  # from the start of the call to the request that went up, without waiting for slots or sources
    queued_s: float  # waited for slots on workers
    duration_s: float

    def __init__(
        self,
        status: int,
        source: Source | None = None,
        code: str | None = None,
        worker: str | None = None,
        usage: Usage = NO_USAGE,
        gpu_ms: float = 0.0,
        gpu_exact: bool = False,
        tokens_wasted: int = 0,
        attempts: int = 0,
        reason: str = "",
        num_resumes: int = 0,
        fell_back: bool = False,
        hedge: str | None = None,
        first_event_s: float | None = None,
        overhead_s: float | None = None,
        queued_s: float = 0.0,
        duration_s: float = 0.0,
    ) -> None:
        self.status = status
        self.source = source
        self.code = code
        self.worker = worker
        self.usage = usage
        self.gpu_ms = gpu_ms
        self.gpu_exact = gpu_exact
        self.tokens_wasted = tokens_wasted
        self.attempts = attempts
        self.reason = reason
        self.num_resumes = num_resumes
        self.fell_back = fell_back
        self.hedge = hedge
        self.first_event_s = first_event_s
        self.overhead_s = overhead_s
        self.queued_s = queued_s
        self.duration_s = duration_s
