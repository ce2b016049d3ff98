"""vLLM's chat replies byte for byte (0.32), as the mock engine writes them and the load generator expects them.

An event here is one JSON chunk of a stream as a client sees it: the role chunk and one chunk a token. What ends every
stream (the usage chunk where it was asked for, `[DONE]`) is sent with the last event and not counted.
"""

from dataclasses import dataclass

# The text of token n is WORDS[n % len(WORDS)]: a lost, doubled or swapped event changes the text.
WORDS = (" the", " water", " over", " sluice", " falls", " in", " eight", " steps")
NUM_PROMPT_TOKENS = 31
_FINGERPRINT = '"system_fingerprint":"vllm-0.32.0-3c1f0a52"'
_LAST_CHUNK = b"0\r\n\r\n"
_CONTENT_TYPE_STREAM = "text/event-stream; charset=utf-8"
STREAM_HEAD = (
    f"HTTP/1.1 200 OK\r\nserver: uvicorn\r\ncontent-type: {_CONTENT_TYPE_STREAM}\r\ntransfer-encoding: chunked\r\n\r\n"
).encode()


def expected_text(num_tokens: int) -> str:
    whole, rest = divmod(num_tokens, len(WORDS))
    return "".join(WORDS) * whole + "".join(WORDS[:rest])


def num_events(num_tokens: int) -> int:
    return num_tokens + 1


@dataclass(frozen=True, slots=True)
class StreamParts:
    """One streamed reply, ready for the socket: HTTP chunks around SSE events."""

    role: bytes
    deltas: tuple[bytes, ...]  # token n is deltas[n % len(deltas)], but for the last, which is in `end`
    end: bytes  # the last token with its finish reason, usage, [DONE] and the end of the body: vLLM writes them at once


def chat_stream(reply_id: str, created: int, model: str, num_tokens: int, include_usage: bool) -> StreamParts:
    head = f'{{"id":"{reply_id}","object":"chat.completion.chunk","created":{created},"model":"{model}","choices":'
    delta = head + '[{"index":0,"delta":{"content":"'
    role = (
        head + '[{"index":0,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}],'
        '"prompt_token_ids":null,"prompt_text":null}'
    )
    last = (
        f'{delta}{WORDS[(num_tokens - 1) % len(WORDS)]}"}},"logprobs":null,"finish_reason":"length",'
        '"stop_reason":null,"token_ids":null}]'
    )
    end = _http_chunk(_event(last + ("}" if include_usage else f",{_FINGERPRINT}}}")))
    if include_usage:
        end += _http_chunk(_event(f'{head}[],"usage":{{{_usage(num_tokens)}}},{_FINGERPRINT}}}'))
    return StreamParts(
        role=_http_chunk(_event(role)),
        deltas=tuple(
            _http_chunk(_event(f'{delta}{word}"}},"logprobs":null,"finish_reason":null,"token_ids":null}}]}}'))
            for word in WORDS[: num_tokens - 1]
        ),
        end=end + _http_chunk(_event("[DONE]")) + _LAST_CHUNK,
    )


def chat_reply(reply_id: str, created: int, model: str, num_tokens: int) -> bytes:
    """A reply that is not streamed, head and body."""
    return http_reply(
        (
            f'{{"id":"{reply_id}","object":"chat.completion","created":{created},"model":"{model}","choices":[{{"index":0,'
            f'"message":{{"role":"assistant","content":"{expected_text(num_tokens)}","refusal":null,"annotations":null,'
            '"audio":null,"function_call":null,"reasoning":null},"logprobs":null,"finish_reason":"length",'
            '"stop_reason":null,"token_ids":null,"routed_experts":null}],"service_tier":null,'
            f'{_FINGERPRINT},"usage":{{{_usage(num_tokens)},"prompt_tokens_details":null,'
            '"completion_tokens_details":null},"prompt_logprobs":null,"prompt_token_ids":null,"prompt_text":null,'
            '"kv_transfer_params":null,"ec_transfer_params":null,"metrics":null}'
        ).encode()
    )


def http_reply(body: bytes, status: str = "200 OK", content_type: str = "application/json") -> bytes:
    head = f"HTTP/1.1 {status}\r\nserver: uvicorn\r\ncontent-length: {len(body)}\r\ncontent-type: {content_type}\r\n\r\n"
    return head.encode() + body


def _usage(num_tokens: int) -> str:
    total = NUM_PROMPT_TOKENS + num_tokens
    return f'"prompt_tokens":{NUM_PROMPT_TOKENS},"total_tokens":{total},"completion_tokens":{num_tokens}'


def _event(data: str) -> bytes:
    return f"data: {data}\n\n".encode()


def _http_chunk(body: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(body), body)
