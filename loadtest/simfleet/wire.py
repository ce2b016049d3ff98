"""Replies in vLLM's exact shapes: which members there are, which are null, which are left out."""

import json
from collections.abc import Sequence
from typing import Any

import orjson

from loadtest.simfleet.answer import Answer
from loadtest.simfleet.asked import Asked
from loadtest.simfleet.config import FINGERPRINT, WorkerConfig
from loadtest.simfleet.job import Job
from loadtest.simfleet.tokenizer import Tokenizer

DONE = b"data: [DONE]\n\n"
Json = dict[str, Any]


def event(value: Json) -> bytes:
    """One server-sent event."""
    return b"data: " + orjson.dumps(value) + b"\n\n"


def error_event(body: Json) -> bytes:
    """An error in a stream: the one event that vLLM writes with spaces."""
    return b"data: " + json.dumps(body).encode() + b"\n\n"


def usage(job_tokens: tuple[int, int]) -> Json:
    """`usage` from (prompt tokens, completion tokens)."""
    prompt, completion = job_tokens
    return {"prompt_tokens": prompt, "total_tokens": prompt + completion, "completion_tokens": completion}


def request_metrics(job: Job) -> Json:
    """`metrics` of a reply, in the worker's own milliseconds."""
    scheduled_s, first_s, last_s = job.scheduled_s, job.first_token_s, job.last_token_s
    names = ("time_to_first_token_ms", "generation_time_ms", "queue_time_ms", "mean_itl_ms", "tokens_per_second")
    metrics: Json = dict.fromkeys(names)
    if scheduled_s is not None:
        metrics["queue_time_ms"] = (scheduled_s - job.queued_s) * 1e3
        if first_s is not None and last_s is not None:
            metrics["time_to_first_token_ms"] = (first_s - scheduled_s) * 1e3
            metrics["generation_time_ms"] = (last_s - first_s) * 1e3
            if job.num_generated > 1:
                metrics["mean_itl_ms"] = (last_s - first_s) * 1e3 / (job.num_generated - 1)
            if last_s > scheduled_s:
                metrics["tokens_per_second"] = job.num_generated / (last_s - scheduled_s)
    return {**metrics, "speculative_decoding": None}


class Wire:
    """The replies to one request."""

    def __init__(self, asked: Asked, reply_id: str, created: int, config: WorkerConfig, tokenizer: Tokenizer) -> None:
        self.asked = asked
        self._id = reply_id
        self._created = created
        self._config = config
        self._tokenizer = tokenizer
        kind = "chat.completion.chunk" if asked.is_chat else "text_completion"
        self._chunk: Json = {"id": reply_id, "object": kind, "created": created, "model": asked.model}
        # An event that carries nothing but text is put together from these.
        head = b"data: " + orjson.dumps(self._chunk)[:-1] + b',"choices":[{"index":%d,'
        if asked.is_chat:
            self._text_head = head + b'"delta":{"content":'
            self._text_tail = b'},"logprobs":null,"finish_reason":null,"token_ids":null}]}\n\n'
        else:
            self._text_head = head + b'"text":'
            self._text_tail = (
                b',"logprobs":null,"finish_reason":null,"stop_reason":null,"prompt_token_ids":null,"token_ids":null}]}\n\n'
            )
        self.is_plain = asked.logprobs is None and not asked.return_token_ids and not asked.continuous_usage

    # -- streams -----------------------------------------------------------------------------------------------------

    def text_event(self, index: int, text: str) -> bytes:
        """An event in the middle of a stream that `is_plain`."""
        return b"%s%s%s" % (self._text_head % index, orjson.dumps(text), self._text_tail)

    def role_event(self, index: int, prompt_ids: Sequence[int]) -> bytes:
        """The first event of a chat choice."""
        delta = {"role": self.asked.role, "content": ""}
        choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}
        chunk = {**self._chunk, "choices": [choice]}
        if self.asked.continuous_usage:
            chunk["usage"] = self._running_usage(len(prompt_ids), 0)
        chunk["prompt_token_ids"] = prompt_ids if self.asked.return_token_ids else None
        chunk["prompt_text"] = self.asked.prompt_text
        return event(chunk)

    def echo_event(self, index: int, text: str) -> bytes:
        """The event that repeats the message which a chat continues."""
        choice = {"index": index, "delta": {"content": text}, "logprobs": None, "finish_reason": None}
        chunk = {**self._chunk, "choices": [choice]}
        if self.asked.continuous_usage:
            chunk["usage"] = self._running_usage(len(self.asked.prompts[0]), 0)
        return event(chunk)

    def token_event(
        self, index: int, text: str, answer: Answer, start: int, stop: int, prompt_ids: Sequence[int], finish: str | None
    ) -> bytes:
        """An event with everything that was asked for; `finish` on the last of a choice."""
        asked = self.asked
        ids = answer.ids[start:stop]
        logprobs = None if asked.logprobs is None else self._logprobs(ids, asked.logprobs)
        choice: Json = {"index": index}
        if asked.is_chat:
            choice |= {"delta": {"content": text}, "logprobs": logprobs, "finish_reason": finish}
            if finish is not None:
                choice["stop_reason"] = _stop_reason(answer, finish)
        else:
            choice |= {"text": text, "logprobs": logprobs, "finish_reason": finish}
            choice["stop_reason"] = _stop_reason(answer, finish)
            choice["prompt_token_ids"] = prompt_ids if asked.return_token_ids and start == 0 else None
        choice["token_ids"] = ids if asked.return_token_ids else None
        chunk = {**self._chunk, "choices": [choice]}
        if asked.continuous_usage:
            chunk["usage"] = self._running_usage(len(prompt_ids), stop)
        if finish is not None and not asked.include_usage:
            chunk["system_fingerprint"] = FINGERPRINT
        return event(chunk)

    def usage_event(self, tokens: tuple[int, int], jobs: Sequence[Job]) -> bytes:
        """The event before the end of a stream, if it was asked for."""
        counted = usage(tokens)
        if (details := self._details(jobs)) is not None:
            counted["prompt_tokens_details"] = {k: v for k, v in details.items() if v is not None}
        chunk = {**self._chunk, "choices": [], "usage": counted, "system_fingerprint": FINGERPRINT}
        if self._has_metrics(jobs):
            chunk["metrics"] = {k: v for k, v in request_metrics(jobs[0]).items() if v is not None}
        return event(chunk)

    # -- whole replies -----------------------------------------------------------------------------------------------

    def whole(self, choices: list[Json], tokens: tuple[int, int], jobs: Sequence[Job], prompt_ids: Sequence[int]) -> Json:
        """A reply that is no stream."""
        asked = self.asked
        counted = {**usage(tokens), "prompt_tokens_details": self._details(jobs), "completion_tokens_details": None}
        body: Json = {
            "id": self._id,
            "object": "chat.completion" if asked.is_chat else "text_completion",
            "created": self._created,
            "model": asked.model,
            "choices": choices,
            "service_tier": None,
            "system_fingerprint": FINGERPRINT,
            "usage": counted,
        }
        if asked.is_chat:
            body["prompt_logprobs"] = None
            body["prompt_token_ids"] = prompt_ids if asked.return_token_ids else None
            body["prompt_text"] = asked.prompt_text
        body |= {"kv_transfer_params": None, "ec_transfer_params": None}
        body["metrics"] = request_metrics(jobs[0]) if self._has_metrics(jobs) else None
        return body

    def whole_choice(
        self, index: int, answer: Answer, num_tokens: int, finish: str, echoed: str, prompt_ids: Sequence[int]
    ) -> Json:
        """One choice of it."""
        asked = self.asked
        ids = answer.ids[:num_tokens]
        text = echoed + answer.text(num_tokens)
        logprobs = None if asked.logprobs is None else self._logprobs(ids, asked.logprobs)
        choice: Json = {"index": index}
        if asked.is_chat:
            empty = dict.fromkeys(("refusal", "annotations", "audio", "function_call", "reasoning"))
            choice["message"] = {"role": asked.role, "content": text, **empty}
        else:
            choice["text"] = text
        choice |= {"logprobs": logprobs, "finish_reason": finish, "stop_reason": _stop_reason(answer, finish)}
        token_ids = ids if asked.return_token_ids else None
        if asked.is_chat:
            return choice | {"token_ids": token_ids, "routed_experts": None}
        shown = prompt_ids if asked.return_token_ids else None
        return choice | {
            "token_ids": token_ids,
            "prompt_logprobs": None,
            "prompt_token_ids": shown,
            "routed_experts": None,
        }

    # -- parts -------------------------------------------------------------------------------------------------------

    def _running_usage(self, num_prompt: int, num_completion: int) -> Json:
        counted = usage((num_prompt, num_completion))
        return {**counted, "completion_tokens_details": None} if self.asked.is_chat else counted

    def _details(self, jobs: Sequence[Job]) -> Json | None:
        if not self._config.enable_prompt_tokens_details:
            return None
        stored = jobs[-1].num_stored_tokens if self.asked.is_chat else None
        cached = jobs[-1].num_cached_tokens
        return {"cached_tokens": cached, "created_cache_tokens": stored, "multimodal_tokens": None}

    def _has_metrics(self, jobs: Sequence[Job]) -> bool:
        return self._config.enable_per_request_metrics and len(jobs) == 1

    def _logprobs(self, ids: Sequence[int], num_others: int) -> Json:
        if self.asked.is_chat:
            return {"content": [self._chat_logprob(token, num_others) for token in ids]}
        texts = [self._tokenizer.decode([token]) for token in ids]
        offsets = [sum(map(len, texts[:at])) for at in range(len(texts))]
        return {
            "text_offset": offsets,
            "token_logprobs": [_logprob(token, 0) for token in ids],
            "tokens": texts,
            "top_logprobs": [
                {self._tokenizer.decode([token + k]): _logprob(token, k) for k in range(num_others + 1)} for token in ids
            ],
        }

    def _chat_logprob(self, token: int, num_others: int) -> Json:
        top = [self._entry(token + k, _logprob(token, k)) for k in range(num_others)]
        return {**self._entry(token, _logprob(token, 0)), "top_logprobs": top}

    def _entry(self, token: int, logprob: float) -> Json:
        text = self._tokenizer.decode([token], skip_special=False)
        return {"token": text, "logprob": logprob, "bytes": list(text.encode())}


def _stop_reason(answer: Answer, finish: str | None) -> int | str | None:
    """What stopped it. An answer is written ahead of what is sent of it, so one that is aborted may have one too."""
    return answer.stop_reason if finish == "stop" else None


def _logprob(token: int, rank: int) -> float:
    """Some logarithm of a probability: there is none to tell."""
    return -((token * 2654435761 >> 8) % 1500) / 1000 - rank
