"""The frozen nouns that every layer shares: who calls, what is asked, what it cost and how it ended.

Those that are made for each call are named tuples, or make themselves: a third of what a frozen dataclass costs, and less.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import StrEnum
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


class Call(NamedTuple):
    """One parsed client request: everything that the path of a call needs to know, and nothing that changes."""

    # Who asks, and under which name we follow it
    id: str
    tenant: Tenant
    # Where it goes
    route: str
    endpoint: Endpoint
    path: str  # on the worker; differs from the endpoint where an id is part of the path
    method: str = "POST"
    pinned_worker: str | None = None  # URL of the only worker that can answer (stored responses)
    # What is asked
    model: str = ""  # as the client spelled it; answers carry this name
    body: Body = b""  # as it goes up
    content_type: str = "application/json"
    headers: tuple[tuple[str, str], ...] = ()  # of the client's, those that may go up
    stream: bool = False
    wants_usage: bool = True  # False: the usage chunk was our wish, the client must not see it
    stamp: Callable[[str], Body] | None = None  # the body for the worker at this URL, where it depends on that
    ground: Ground | None = None  # finds sources and puts them into the body
    # What it will cost, before a worker has said so
    size: PromptSize = PromptSize()
    prompt_tokens: int = 0  # estimated
    max_tokens: int | None = None  # of each answer, as asked for; None: as many as fit the context
    num_choices: int = 1  # answers to all of its prompts together; 0 where nothing is generated
    output_tokens: int = 0  # estimated, of all answers together
    # Whom it is for, where the key is trusted to say so
    user: str = ""
    # What a policy may look at
    prefix: Prefix = Prefix()  # of the prompt, where the route's policy reads it
    adapter: str | None = None  # the LoRA adapter that is asked for
    session: str = ""  # what the route's session header says
    explains: bool = False  # whether why it goes to its worker shall be noted
    is_child: bool = False  # made by the gateway for another call: its tokens count, and neither as a request nor for a place
    # When it must be done, on the event loop's clock
    started_at: float = 0.0
    deadline: float = float("inf")

    @property
    def allowed_s(self) -> float:
        """How long it may take in all, as it is told to people."""
        return round(self.deadline - self.started_at, 3)


Ground = Callable[[Call], Awaitable[tuple[Call, Grounding]]]


class Outcome(NamedTuple):
    """How a call ended, for the one metric update and the one access line."""

    status: int
    source: Source | None = None  # None: it went well
    code: str | None = None
    worker: str | None = None
    usage: Usage = Usage()
    gpu_ms: float = 0.0  # its part of the engine's time
    gpu_exact: bool = False  # from the worker's own times, and not from ours
    tokens_wasted: int = 0  # computed for this call by workers that were lost or not needed, and billed to nobody
    attempts: int = 0
    reason: str = ""  # why that worker, where the call wanted to know
    num_resumes: int = 0  # how often its stream was continued on another worker
    fell_back: bool = False  # to the route's `fallback`
    hedge: str | None = None  # where a second copy was sent: which of the two was taken, first or copy
    first_event_s: float | None = None  # from the start of the call
    overhead_s: float | None = (
        None  # from the start of the call to the request that went up, without waiting for slots or sources
    )
    queued_s: float = 0.0  # waited for slots on workers
    duration_s: float = 0.0
