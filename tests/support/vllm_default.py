"""What a scripted worker answers when no script is set: vLLM 0.32.0's replies to good and to bad requests."""

import base64
import struct
from collections.abc import Callable
from dataclasses import dataclass, field

import orjson

from tests.support import scripts, vllm_agents
from tests.support import vllm_shapes as vllm
from tests.support.raw_server import Request, Script
from tests.support.vllm_shapes import Json

THOUGHTS = ("The user", " greets", " me.")
TOOL_ARGUMENTS = ('{"city":', ' "Paris"', "}")


@dataclass
class DefaultReplies:
    """A small model that always says the same words, as far as `max_tokens` allows."""

    model: str
    max_model_len: int
    vision: bool
    tools: bool
    reasoning: bool
    responses_store: bool
    num_running: Callable[[], int]
    stored: dict[str, Json] = field(default_factory=dict)

    def script_for(self, request: Request) -> Script:
        handlers: dict[tuple[str, str], Callable[[Request], Script]] = {
            ("GET", "/health"): lambda _: scripts.empty(200),
            ("GET", "/version"): lambda _: scripts.reply(200, {"version": "0.32.0"}),
            ("GET", "/v1/models"): lambda _: scripts.reply(200, vllm.model_list(self.model, max_model_len=self.max_model_len)),
            ("GET", "/metrics"): self._metrics,
            ("POST", "/v1/chat/completions"): self._checked(self._chat, needs="messages"),
            ("POST", "/v1/completions"): self._checked(self._completions, needs="prompt"),
            ("POST", "/v1/embeddings"): self._checked(self._embeddings, needs="input"),
            ("POST", "/v1/responses"): self._checked(self._responses, needs="input"),
            ("POST", "/v1/messages"): self._checked(self._messages, needs="messages"),
            ("POST", "/v1/messages/count_tokens"): self._checked(self._count_tokens, needs="messages"),
            ("POST", "/v1/rerank"): self._checked(self._rerank, needs="documents"),
            ("POST", "/v1/score"): self._checked(self._score, needs="documents"),
            ("POST", "/tokenize"): self._checked(self._tokenize),
            ("POST", "/detokenize"): self._checked(self._detokenize, needs="tokens"),
            ("POST", "/v1/audio/transcriptions"): self._transcriptions,
        }
        handler = handlers.get((request.method, request.path))
        if handler is not None:
            return handler(request)
        if request.path.startswith("/v1/responses/"):
            return self._stored_response(request)
        known = any(path == request.path for _, path in handlers)
        return scripts.detail_error(405, "Method Not Allowed") if known else scripts.detail_error(404)

    def _checked(self, handler: Callable[[Request, Json], Script], needs: str | None = None) -> Callable[..., Script]:
        """The handler behind vLLM's checks: media type, JSON, the member it needs, the model (none: the default)."""

        def check(request: Request) -> Script:
            if (request.header("content-type") or "").partition(";")[0].strip() != "application/json":
                message = "1 validation error:\n  Unsupported Media Type: Only 'application/json' is allowed"
                return scripts.vllm_error(400, message, type="Bad Request")
            try:
                body = orjson.loads(request.body)
            except orjson.JSONDecodeError:
                return scripts.detail_error(400, "There was an error parsing the body")
            if needs is not None and body.get(needs) is None:
                return scripts.reply(400, vllm.missing_member(needs))
            asked = body.get("model", self.model)
            if asked != self.model:
                return scripts.reply(404, vllm.unknown_model(asked, self.model))
            return handler(request, body)

        return check

    # Chat

    def _chat(self, request: Request, body: Json) -> Script:
        messages = body["messages"]
        if not self.vision and b'"image_url"' in request.body:
            return scripts.reply(400, vllm.not_multimodal(self.model))
        asked_for_tools = bool(body.get("tools")) and body.get("tool_choice") != "none"
        if asked_for_tools and not self.tools:
            needs = '"auto" tool choice requires --enable-auto-tool-choice and --tool-call-parser to be set'
            return scripts.vllm_error(400, needs)
        id = f"chatcmpl-{self._id(request)}"
        prompt = _num_words(messages)
        calls_tool = asked_for_tools and messages[-1].get("role") != "tool"
        if body.get("stream"):
            return self._chat_stream(body, id, prompt, calls_tool)
        limit = body.get("max_completion_tokens") or body.get("max_tokens") or self.max_model_len
        words = vllm.WORDS[:limit]
        finish = "length" if len(words) < len(vllm.WORDS) else "stop"
        message: Json = {"content": "".join(words)}
        if self.reasoning:
            message["reasoning"] = "".join(THOUGHTS)
        if calls_tool:
            function = {"name": body["tools"][0]["function"]["name"], "arguments": "".join(TOOL_ARGUMENTS)}
            call = {"id": "chatcmpl-tool-0123456789abcdef", "type": "function", "function": function}
            message, finish = {"content": None, "tool_calls": [call]}, "tool_calls"
        whole = vllm.chat_reply(
            message,
            model=self.model,
            id=id,
            prompt=prompt,
            completion=len(words),
            finish=finish,
            n=body.get("n") or 1,
        )
        return scripts.reply(200, whole)

    def _chat_stream(self, body: Json, id: str, prompt: int, calls_tool: bool) -> Script:
        limit = body.get("max_completion_tokens") or body.get("max_tokens") or self.max_model_len
        deltas = vllm.content_deltas(vllm.WORDS[:limit])
        finish = "length" if len(deltas) < len(vllm.WORDS) else "stop"
        if self.reasoning:
            deltas = [*vllm.reasoning_deltas(THOUGHTS, ()), *deltas]
        if calls_tool:
            name = body["tools"][0]["function"]["name"]
            deltas, finish = vllm.tool_call_deltas(name, TOOL_ARGUMENTS), "tool_calls"
        options = body.get("stream_options") or {}
        events = vllm.chat_events(
            deltas,
            model=self.model,
            id=id,
            prompt=prompt,
            include_usage=bool(options.get("include_usage")),
            continuous_usage=bool(options.get("continuous_usage_stats")),
            finish=finish,
            n=body.get("n") or 1,
        )
        return scripts.stream(events)

    # The other endpoints

    def _completions(self, request: Request, body: Json) -> Script:
        words = vllm.WORDS[: body.get("max_tokens") or 16]
        id, prompt = f"cmpl-{self._id(request)}", _num_words(body["prompt"])
        if body.get("stream"):
            wants_usage = bool((body.get("stream_options") or {}).get("include_usage"))
            events = vllm.completion_events(words, model=self.model, id=id, prompt=prompt, include_usage=wants_usage)
            return scripts.stream(events)
        text = "".join(words)
        return scripts.reply(200, vllm.completion_reply(text, model=self.model, id=id, prompt=prompt, completion=len(words)))

    def _embeddings(self, request: Request, body: Json) -> Script:
        asked = body["input"]
        is_one = isinstance(asked, str) or (asked and isinstance(asked[0], int))
        inputs = [asked] if is_one else asked
        vectors: list[list[float] | str] = [[0.5, -0.25, float(index)] for index in range(len(inputs))]
        if body.get("encoding_format") == "base64":
            vectors = [base64.b64encode(struct.pack("<3f", *vector)).decode() for vector in vectors]
        id = f"embd-{self._id(request)}"
        return scripts.reply(200, vllm.embedding_reply(vectors, model=self.model, id=id, prompt=_num_words(inputs)))

    def _responses(self, request: Request, body: Json) -> Script:
        previous = body.get("previous_response_id")
        if previous is not None and previous not in self.stored:
            return scripts.reply(404, vllm_agents.no_such_response(previous))
        id, prompt = body.get("request_id") or f"resp_{self._id(request)}", _num_words(body["input"])
        text = "".join(vllm.WORDS)
        whole = vllm_agents.response_object(text, model=self.model, id=id, prompt=prompt, completion=len(vllm.WORDS))
        if self.responses_store and body.get("store", True):
            self.stored[id] = whole
        if body.get("stream"):
            return scripts.stream(vllm_agents.response_events(vllm.WORDS, model=self.model, id=id, prompt=prompt))
        return scripts.reply(200, whole)

    def _stored_response(self, request: Request) -> Script:
        id, _, action = request.path.removeprefix("/v1/responses/").partition("/")
        if (request.method, action) not in (("GET", ""), ("POST", "cancel")):
            return scripts.detail_error(404)
        if id not in self.stored:
            return scripts.reply(404, vllm_agents.no_such_response(id))
        if action == "cancel":
            return scripts.vllm_error(400, "Cannot cancel a synchronous response.", param="response_id")
        return scripts.reply(200, self.stored[id])

    def _messages(self, request: Request, body: Json) -> Script:
        words = vllm.WORDS[: body.get("max_tokens")]
        stop = "max_tokens" if len(words) < len(vllm.WORDS) else "end_turn"
        id, prompt = f"chatcmpl-{self._id(request)}", _num_words(body["messages"])
        if body.get("stream"):
            return scripts.stream(vllm_agents.message_events(words, model=self.model, id=id, prompt=prompt, stop=stop))
        content = [{"type": "text", "text": "".join(words)}]
        return scripts.reply(
            200,
            vllm_agents.message_reply(content, model=self.model, id=id, prompt=prompt, completion=len(words), stop=stop),
        )

    def _count_tokens(self, request: Request, body: Json) -> Script:
        num = _num_words(body["messages"])
        return scripts.reply(200, {"input_tokens": num, "context_management": {"original_input_tokens": num}})

    def _rerank(self, request: Request, body: Json) -> Script:
        documents = body["documents"]
        top_n = body.get("top_n") or len(documents)
        id = f"score-{self._id(request)}"
        return scripts.reply(
            200, vllm.rerank_reply(documents, model=self.model, id=id, top_n=top_n, prompt=_num_words(documents))
        )

    def _score(self, request: Request, body: Json) -> Script:
        documents = body["documents"]
        num = len(documents) if isinstance(documents, list) else 1
        id = f"score-{self._id(request)}"
        return scripts.reply(200, vllm.score_reply(num, model=self.model, id=id, prompt=_num_words(documents)))

    def _tokenize(self, request: Request, body: Json) -> Script:
        num = _num_words(body.get("messages") or body.get("prompt") or "")
        whole = {"count": num, "max_model_len": self.max_model_len, "tokens": list(range(num)), "token_strs": None}
        return scripts.reply(200, whole)

    def _detokenize(self, request: Request, body: Json) -> Script:
        return scripts.reply(200, {"prompt": " ".join(str(token) for token in body["tokens"])})

    def _transcriptions(self, request: Request) -> Script:
        if not (request.header("content-type") or "").startswith("multipart/form-data; boundary="):
            return scripts.reply(400, vllm.missing_member("file"))
        return scripts.reply(200, {"text": "".join(vllm.WORDS), "usage": {"type": "duration", "seconds": 1}})

    def _metrics(self, request: Request) -> Script:
        labels = f'{{engine="0",model_name="{self.model}"}}'
        text = f"vllm:num_requests_running{labels} {self.num_running() - 1}.0\n"  # less this very scrape
        text += f"vllm:num_requests_waiting{labels} 0.0\nvllm:kv_cache_usage_perc{labels} 0.0\n"
        return scripts.reply(200, text.encode(), content_type="text/plain; version=1.0.0; charset=utf-8")

    def _id(self, request: Request) -> str:
        """vLLM takes its id from X-Request-Id; without one, ours is fixed."""
        return request.header("x-request-id") or "0123456789abcdef"


def _num_words(value: object) -> int:
    """How many words there are in any JSON value: this model's tokens."""
    if isinstance(value, str):
        return len(value.split())
    if isinstance(value, dict):
        return sum(_num_words(item) for key, item in value.items() if key != "role")
    if isinstance(value, list):
        return sum(_num_words(item) for item in value)
    return 1 if isinstance(value, int) else 0
