"""The rest of a broken stream, asked of another worker: what it is given, and what its answer is made into.

Nothing was parsed while the stream went well. Now the request and what has gone down are read, once; each worker that is
asked tokenises what it is to continue. A worker that lies or fails here is one more that failed the call.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import NamedTuple

from sluice.errors import WorkerTimeout
from sluice.types import Call, Endpoint
from sluice.wire.continuation import MAX_BODY_BYTES, Continuation, Tokens, parse_tokens
from sluice.wire.emitted import CannotResume, read_emitted
from sluice.wire.events import EventStream
from sluice.wire.replies import rejection
from sluice.wire.splice import DONE, Splice, ending
from sluice.worker import Worker

TOKENIZE_S = 10.0
MAX_TOKENIZED_BYTES = 16_777_216


class Request(NamedTuple):
    """What goes to a worker for the rest, and what makes its answer the rest."""

    call: Call
    splice: Splice


class Rest:
    """What is left of one broken stream. Raises `CannotResume` where it cannot be had without being wrong."""

    def __init__(self, call: Call, events: EventStream) -> None:
        body = call.body if isinstance(call.body, bytes) else b"".join(call.body)
        if events.kept is None:
            raise CannotResume("it is longer than what is kept of a stream (resume.max_bytes)")
        if len(body) > MAX_BODY_BYTES:
            raise CannotResume("its request is too large")
        self._call = call
        self._emitted = read_emitted(call.endpoint, bytes(events.kept))
        self._continuation = Continuation(call.endpoint, body, self._emitted)
        self._has_usage = events.usage.exact  # it may have come without going down
        self._prompt: Tokens | None = None
        self.compares = True  # the end of the text is made anew where it may end inside a token; until that has failed

    async def request(self, worker: Worker) -> Request | bytes:
        """For this worker; or, where nothing is left to be made, the end of the stream. Raises what the worker did to us."""
        call, emitted, continuation = self._call, self._emitted, self._continuation
        if continuation.is_restart:
            return Request(call, Splice(call.endpoint, emitted, num_given=call.prompt_tokens))
        if emitted.finish_reason is not None and self._has_usage:
            return DONE
        prompt = self._prompt = self._prompt or await self._tokenize_prompt(worker)
        overlap = continuation.overlap() if self.compares and not continuation.needs_chat else ""
        made: list[int] = []
        if len(overlap) < len(emitted.text):
            made = (await self._tokenize(worker, continuation.text_question(overlap))).ids
        if emitted.finish_reason is not None or continuation.tokens_left(prompt, len(made)) <= 0:
            return ending(call.endpoint, emitted, num_prompt=len(prompt.ids), num_made=len(made))
        if continuation.needs_chat:
            await self._check_template(worker, prompt.ids + made)
            path, body = Endpoint.CHAT.value, continuation.chat_body(prompt, len(made))
        else:
            path, body = Endpoint.COMPLETIONS.value, continuation.body(prompt, made)
        num_prompt, num_made = len(prompt.ids), len(made)
        splice = Splice(
            call.endpoint,
            emitted,
            num_prompt=num_prompt,
            num_made=num_made,
            num_given=num_prompt + num_made,
            overlap=overlap,
        )
        return Request(replace(call, path=path, body=body), splice)

    async def _tokenize_prompt(self, worker: Worker) -> Tokens:
        if (ids := self._continuation.prompt_ids) is None:
            return await self._tokenize(worker, self._continuation.prompt_question())
        context = await self._tokenize(worker, b'{"prompt":"a"}')  # for the length of the context alone
        return Tokens(ids, context.max_model_len)

    async def _check_template(self, worker: Worker, ids: list[int]) -> None:
        """A message that goes on must be the very tokens that were made: templates may trim it, or merge its beginning."""
        continued = await self._tokenize(worker, self._continuation.continued_question())
        if continued.ids != ids:
            raise CannotResume("its template does not keep the beginning of an answer as it is")

    async def _tokenize(self, worker: Worker, body: bytes) -> Tokens:
        path, connections = Endpoint.TOKENIZE.value, worker.connections
        content_type, request_id = "application/json", f"{self._call.id}-tokenize"
        head = connections.head("POST", path, content_type=content_type, length=len(body), request_id=request_id)
        try:
            async with asyncio.timeout(TOKENIZE_S), connections.send(head, body) as sending:
                answer = await sending.head()
                data = await answer.read(MAX_TOKENIZED_BYTES)
        except TimeoutError as exc:
            raise WorkerTimeout(f"The worker did not tokenise within {TOKENIZE_S:g} s.") from exc
        if answer.status != 200:
            raise rejection(answer.status, data, path)
        return parse_tokens(data)
