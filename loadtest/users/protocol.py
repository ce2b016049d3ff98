"""One call as a client makes it: the request, its events as they come, and what was measured of them.

A stream is read line by line from the socket, so that a time is the time of an event and not of a buffer. A stream that ends
without `[DONE]`, or with an error event, has failed, whatever came before.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from geventhttpclient.client import HTTPClientPool
from geventhttpclient.url import URL

from loadtest.users.samples import Sample

CHAT = "/v1/chat/completions"
NETWORK_ERRORS = (OSError, EOFError)


@dataclass
class Reading:
    """What has been seen of one stream."""

    began_at: float
    first_at: float | None = None
    last_at: float | None = None
    num_texts: int = 0  # events with text
    longest_gap_s: float | None = None
    num_tokens: int = 0
    text: str = ""
    is_done: bool = False

    def take(self, event: dict[str, Any], now: float) -> None:
        usage = event.get("usage")
        if isinstance(usage, dict):
            self.num_tokens = int(usage.get("completion_tokens") or 0)
        for choice in event.get("choices") or ():
            piece = (choice.get("delta") or {}).get("content") or choice.get("text")
            if piece:
                self.text += piece
                self._heard(now)

    def _heard(self, now: float) -> None:
        if self.last_at is None:
            self.first_at = now
        else:
            self.longest_gap_s = max(self.longest_gap_s or 0.0, now - self.last_at)
        self.last_at = now
        self.num_texts += 1

    @property
    def gap_s(self) -> float | None:
        if self.first_at is None or self.last_at is None or self.num_texts < 2:
            return None
        return (self.last_at - self.first_at) / (self.num_texts - 1)


class StreamFailed(Exception):
    """The answer was no success; the message is what a report shows."""


class Client:
    """One person's or app's client: a key, and connections that it keeps, each for one call at a time."""

    def __init__(self, host: str, key: str, *, timeout_s: float, num_connections: int = 1) -> None:
        self._url = URL(host)
        self._headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
        self._pool = HTTPClientPool(
            concurrency=num_connections, connection_timeout=timeout_s, network_timeout=timeout_s, insecure=True
        )

    def close(self) -> None:
        self._pool.close()

    def post(self, path: str, body: dict[str, Any], headers: dict[str, str] | None = None) -> tuple[int, dict[str, Any]]:
        """A whole answer: its status and JSON. Raises `OSError` and the like where there was none."""
        response = self._pool.get_client(self._url).post(path, body=json.dumps(body), headers=self._headers | (headers or {}))
        data = response.read()
        answer = json.loads(data) if data else {}
        return response.status_code, answer if isinstance(answer, dict) else {}

    def upload(self, path: str, name: str, data: bytes, fields: dict[str, str]) -> tuple[int, dict[str, Any]]:
        """A file as a multipart form."""
        border = "loadtest-4c7e1f"
        parts = [f'--{border}\r\nContent-Disposition: form-data; name="{k}"\r\n\r\n{v}\r\n'.encode() for k, v in fields.items()]
        head = f'--{border}\r\nContent-Disposition: form-data; name="file"; filename="{name}"\r\n\r\n'.encode()
        body = b"".join([*parts, head, data, f"\r\n--{border}--\r\n".encode()])
        headers = self._headers | {"Content-Type": f"multipart/form-data; boundary={border}"}
        response = self._pool.get_client(self._url).post(path, body=body, headers=headers)
        answer = json.loads(response.read() or b"{}")
        return response.status_code, answer

    def stream(self, kind: str, body: dict[str, Any], started_at: float, *, leave_after: int | None = None) -> Sample:
        """Chat with `stream`, read to its end, or for `leave_after` events of text and then hung up on."""
        asked = body | {"stream": True, "stream_options": {"include_usage": True}}
        reading = Reading(time.perf_counter())
        error, was_refused, has_left = None, False, False
        try:
            response = self._pool.get_client(self._url).post(CHAT, body=json.dumps(asked), headers=self._headers)
            with response:
                if response.status_code != 200:
                    was_refused = response.status_code == 429
                    raise StreamFailed(failure_of(response.status_code, response.read()))
                for event in events_of(response):
                    reading.take(event, time.perf_counter())
                    if leave_after is not None and reading.num_texts >= leave_after:
                        has_left = True
                        break
                else:
                    reading.is_done = True
        except (StreamFailed, *NETWORK_ERRORS) as exc:
            error = str(exc) or type(exc).__name__
        now = time.perf_counter()
        return Sample(
            at_s=now - started_at,
            kind=kind,
            ttft_s=reading.first_at - reading.began_at if reading.first_at is not None else None,
            gap_s=reading.gap_s,
            longest_gap_s=reading.longest_gap_s,
            duration_s=now - reading.began_at,
            num_tokens=reading.num_tokens or reading.num_texts,
            error=None if was_refused else error,
            was_refused=was_refused,
            has_left=has_left,
        )


def events_of(response: Any) -> Iterator[dict[str, Any]]:
    """The JSON events of a stream up to `[DONE]`; raises `StreamFailed` for an error event and for an end without it."""
    while line := response.readline(b"\n"):
        if not line.startswith(b"data: "):
            continue
        data = line[6:].strip()
        if data == b"[DONE]":
            response.read()  # the end of the body, so that the connection can be used again
            return
        try:
            event = json.loads(data)
        except ValueError as exc:
            raise StreamFailed("an event that is not JSON") from exc
        if isinstance(event, dict) and event.get("error"):
            raise StreamFailed(f"error event: {code_of(event)}")
        yield event
    raise StreamFailed("the stream ended without [DONE]")


def failure_of(status: int, body: bytes) -> str:
    try:
        return f"{status} {code_of(json.loads(body))}"
    except ValueError:
        return f"{status} (no JSON)"


def code_of(answer: Any) -> str:
    error = answer.get("error") if isinstance(answer, dict) else None
    if isinstance(error, dict):
        return str(error.get("code") or error.get("type") or error.get("message"))[:80]
    return str(error)[:80]
