"""Chat and completion requests: read from JSON, checked as vLLM checks them, turned into prompts of token ids.

Unknown members are ignored, as vLLM ignores them. Sampling members are checked and do nothing: an answer depends on its
prompt alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import orjson

from loadtest.simfleet.answer import Ending
from loadtest.simfleet.chat_template import ChatTemplate
from loadtest.simfleet.checks import (
    cache_salt,
    check_limit,
    check_logprobs,
    check_messages,
    check_sampling,
    check_tools,
    ending_of,
    flag,
)
from loadtest.simfleet.config import WorkerConfig
from loadtest.simfleet.errors import ApiError, Detail, invalid, rejected, unknown_model
from loadtest.simfleet.tokenizer import BOS, Tokenizer

_NOT_COMPATIBLE = (
    "continue_final_message and add_generation_prompt are not compatible. Use continue_final_message when you want the"
    " model to continue the final message, and add_generation_prompt when you want to add a header that will prompt it"
    " to start a new assistant message instead."
)


@dataclass(frozen=True, slots=True)
class Asked:
    """What a client asked for."""

    is_chat: bool
    model: str
    lora: str | None
    prompts: tuple[Sequence[int], ...]
    is_tokenised: bool  # the prompts came as ids
    endings: tuple[Ending, ...]
    num_choices: int
    cache_salt: str
    stream: bool
    stream_interval: int
    include_usage: bool
    continuous_usage: bool
    return_token_ids: bool
    logprobs: int | None  # how many alternatives beside the chosen token; None: no logprobs
    role: str
    echoed: tuple[str, ...]  # what each choice of a prompt begins with besides its answer
    prompt_text: str | None


class Reader:
    """Reads requests for one worker; `adapters` are the LoRA adapters it has at the moment."""

    def __init__(self, config: WorkerConfig, tokenizer: Tokenizer, adapters: dict[str, str]) -> None:
        self._config = config
        self._tokenizer = tokenizer
        self._adapters = adapters
        self._template = ChatTemplate(config.model_name, trim=config.trim_template)

    def body(self, data: bytes, content_type: str) -> dict[str, Any]:
        """The JSON object of a request."""
        if content_type.partition(";")[0].strip().lower() != "application/json":
            message = "1 validation error:\n  Unsupported Media Type: Only 'application/json' is allowed"
            raise ApiError(message, type_="Bad Request")
        try:
            data.decode()
        except UnicodeDecodeError:
            raise Detail(400, "There was an error parsing the body") from None
        try:
            body = orjson.loads(data)
        except orjson.JSONDecodeError as error:
            context = {"error": error.msg}
            raise invalid(f"body.{error.pos}", "json_invalid", "JSON decode error", {}, **context) from None
        if not isinstance(body, dict):
            raise invalid(
                "body", "model_attributes_type", "Input should be a valid dictionary or object to extract fields from", body
            )
        return body

    def model(self, body: dict[str, Any]) -> tuple[str, str | None]:
        """(the name to answer with, the adapter or None)."""
        asked = body.get("model")
        if asked in self._adapters:
            return asked, asked
        if asked and asked not in self._config.served_model_name:
            raise unknown_model(asked, self._config.served_model_name)
        return self._config.model_name, None

    def chat(self, body: dict[str, Any]) -> Asked:
        """`POST /v1/chat/completions`."""
        messages = check_messages(body)
        check_tools(body, auto_is_enabled=self._config.enable_auto_tool_choice)
        common = self._common(body, is_chat=True)
        text = self.render(body, messages)
        # The template writes the special tokens itself.
        ids = self._tokenizer.encode(text)
        limit = body.get("max_completion_tokens")
        limit = body.get("max_tokens") if limit is None else limit
        name = "max_tokens" if body.get("max_completion_tokens") is None else "max_completion_tokens"
        role = "assistant" if body.get("add_generation_prompt", True) else str(messages[-1]["role"])
        echoed = self._template.text_of(messages[-1].get("content")) if body.get("echo") else ""
        if body.get("top_logprobs") and not body.get("logprobs"):
            raise rejected("when using `top_logprobs`, `logprobs` must be set to true.", "top_logprobs")
        logprobs = body.get("top_logprobs") or 0 if body.get("logprobs") else None
        return Asked(
            prompts=(ids,),
            is_tokenised=False,
            endings=(self._ending(common.ending, ids, limit, name),),
            role=role,
            echoed=(echoed if echoed and messages[-1]["role"] == role else "",),
            logprobs=check_logprobs(logprobs, "top_logprobs"),
            prompt_text=text if body.get("return_prompt_text") else None,
            **common.members,
        )

    def completion(self, body: dict[str, Any]) -> Asked:
        """`POST /v1/completions`."""
        common = self._common(body, is_chat=False)
        prompts = self._prompts(body)
        limit = body.get("max_tokens", 16)
        echoed = tuple(self._tokenizer.decode(ids) if body.get("echo") else "" for ids in prompts)
        return Asked(
            prompts=prompts,
            is_tokenised=not _contains_text(body["prompt"]),
            endings=tuple(self._ending(common.ending, ids, limit, "max_tokens") for ids in prompts),
            role="",
            echoed=echoed,
            logprobs=check_logprobs(body.get("logprobs"), "logprobs"),
            prompt_text=None,
            **common.members,
        )

    def render(self, body: dict[str, Any], messages: list[dict[str, Any]]) -> str:
        """The text of a chat prompt."""
        continues = bool(body.get("continue_final_message"))
        if continues and body.get("add_generation_prompt"):
            raise ApiError("Cannot set both `continue_final_message` and `add_generation_prompt` to True.")
        if continues and "add_generation_prompt" not in body:
            raise ApiError(_NOT_COMPATIBLE)
        return self._template.render(
            messages,
            body.get("tools"),
            add_generation_prompt=bool(body.get("add_generation_prompt", True)),
            continue_final_message=continues,
        )

    def _prompts(self, body: dict[str, Any]) -> tuple[Sequence[int], ...]:
        prompt = body.get("prompt")
        if prompt == []:
            raise ApiError("You must pass at least one prompt")
        if prompt is None or prompt == "":
            raise rejected("Either prompt or prompt_embeds must be provided and non-empty.", "prompt")
        if isinstance(prompt, str) or (isinstance(prompt, list) and isinstance(prompt[0], int)):
            prompt = [prompt]
        if not isinstance(prompt, list):
            raise invalid("body.prompt", "string_type", "Input should be a valid string", prompt)
        add_special = bool(body.get("add_special_tokens", True))
        return tuple(self._prompt(one, add_special) for one in prompt)

    def _prompt(self, prompt: Any, add_special: bool) -> Sequence[int]:
        if isinstance(prompt, str):
            return self.encode(prompt, add_special)
        if not isinstance(prompt, list) or not all(type(token) is int for token in prompt):
            raise invalid("body.prompt", "string_type", "Input should be a valid string", prompt)
        if any(not 0 <= token < self._tokenizer.vocabulary_size for token in prompt):
            bad = max(prompt)
            raise ApiError(f"Token id {bad} is out of vocabulary")
        return prompt

    def encode(self, text: str, add_special: bool) -> list[int]:
        """Ids of plain text, with the beginning-of-text token if asked."""
        ids = self._tokenizer.encode(text)
        return [BOS, *ids] if add_special else ids

    def _common(self, body: dict[str, Any], *, is_chat: bool) -> "_Common":
        model, lora = self.model(body)
        stream = flag(body, "stream")
        options = body.get("stream_options")
        if options is not None and not stream:
            raise rejected("Stream options can only be defined when `stream=True`.", "stream_options")
        options = options if isinstance(options, dict) else {}
        forced = self._config.enable_force_include_usage
        include_usage = forced or bool(options.get("include_usage"))
        members: dict[str, Any] = {
            "is_chat": is_chat,
            "model": model,
            "lora": lora,
            "num_choices": check_sampling(body),
            "cache_salt": cache_salt(body),
            "stream": stream,
            "stream_interval": max(int(body.get("stream_interval") or 1), self._config.stream_interval),
            "include_usage": include_usage,
            "continuous_usage": forced or include_usage and bool(options.get("continuous_usage_stats")),
            "return_token_ids": bool(body.get("return_token_ids")),
        }
        return _Common(members, ending_of(body))

    def _ending(self, ending: Ending, ids: Sequence[int], limit: Any, name: str) -> Ending:
        context = self._config.profile.max_model_len
        check_limit(limit, name, context)
        if len(ids) >= context:
            # A tokeniser stops reading there, so the true length is not known.
            message = (
                f"This model's maximum context length is {context} tokens. However, your prompt contains at least"
                f" {context + 1} input tokens, which exceeds this limit even without any output tokens. Please reduce"
                " the length of the input prompt."
            )
            raise rejected(message, "input_tokens", context + 1)
        room = context - len(ids)
        return replace(ending, max_tokens=room if limit is None else min(limit, room))


def _contains_text(prompt: Any) -> bool:
    return isinstance(prompt, str) or any(isinstance(one, str) for one in prompt)


@dataclass(frozen=True, slots=True)
class _Common:
    members: dict[str, Any]
    ending: Ending
