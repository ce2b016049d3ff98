"""Every error that a client can be told, as one tree. Nobody else builds an error response.

    GatewayError                       status  code                     whose fault   retry
    ├── BadRequest                     400     -                        downstream    no
    │   ├── Unsupported                400     unsupported_parameter    downstream    no
    │   ├── ContextTooLong             400     context_length_exceeded  downstream    no
    │   ├── NotFound                   404     -                        downstream    no
    │   │   ├── ModelNotFound          404     model_not_found          downstream    no
    │   │   └── StoreNotFound          404     -                        downstream    no
    │   ├── MethodNotAllowed           405     -                        downstream    no
    │   ├── RequestTimeout             408     -                        downstream    yes
    │   ├── EmbeddingMismatch          409     embedding_mismatch       downstream    no
    │   ├── StoreExpired               410     vector_store_expired     downstream    no
    │   ├── BodyTooLarge               413     -                        downstream    no
    │   ├── UnsupportedMediaType       415     -                        downstream    no
    │   └── HeadTooLarge               431     -                        downstream    no
    ├── Unauthenticated                401     invalid_api_key          downstream    no
    ├── Forbidden                      403     -                        downstream    no
    ├── RateLimited                    429     rate_limit_exceeded      downstream    yes
    │   ├── BudgetSpent                429     insufficient_quota       downstream    no
    │   └── LimitsAway                 429     server_overloaded        gateway       yes
    ├── Overloaded                     429     server_overloaded        gateway       yes
    ├── InternalError                  500     internal_error           gateway       no
    ├── RetrievalUnavailable           503     retrieval_unavailable    gateway       yes
    │   └── RetrievalTimeout           504     retrieval_timeout        gateway       no
    ├── UpstreamError                  502     worker_failed            upstream      no
    │   ├── WorkerRefused              502     worker_unreachable       upstream      yes   nothing was computed
    │   │   └── WorkerFull             429     server_overloaded        upstream      yes   nothing was computed
    │   ├── WorkerUnavailable          503     no_worker_available      upstream      yes
    │   └── WorkerTimeout              504     worker_timeout           upstream      no
    └── WorkerRejected                 as the worker's                  as status     as status

`retryable` is written as `x-should-retry`. Overload is 429 and not 503: clients repeat 5xx in storms (Chatbox up to
five times, ignoring Retry-After). A 5xx after the worker has computed says "do not retry": a repeat would pay for it
again.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import orjson

from sluice.asgi import Headers
from sluice.types import Source


class GatewayError(Exception):
    """An error with everything a client needs: status, OpenAI's type and code, and whether to retry.

    `retry_after_s` is how long a client should wait; it is sent as whole seconds (1 to 60) and in milliseconds.
    """

    status: int = 500
    type: str = "server_error"
    code: str | None = None
    source: Source = Source.GATEWAY
    retryable: bool = False

    def __init__(self, message: str, *, param: str | None = None, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.retry_after_s = retry_after_s

    def envelope(self) -> dict[str, Any]:
        """OpenAI's error object; all four members are always there."""
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}

    def body(self, *, is_anthropic: bool = False) -> bytes:
        """The JSON of an error answer. Anthropic's SDKs look for an outer `type` beside the same `error`."""
        return orjson.dumps({"type": "error"} | self.envelope() if is_anthropic else self.envelope())

    def headers(self) -> list[tuple[str, str]]:
        """Besides the request id: whether and when to retry."""
        out = [("content-type", "application/json"), ("x-should-retry", "true" if self.retryable else "false")]
        if self.retryable and self.status in (429, 503):
            wait_s = min(60.0, max(0.001, self.retry_after_s if self.retry_after_s is not None else 1.0))
            out += [("retry-after", str(math.ceil(wait_s))), ("retry-after-ms", str(math.ceil(wait_s * 1000)))]
        return out


class BadRequest(GatewayError):
    """The client's request is wrong, and will be wrong when repeated."""

    status = 400
    type = "invalid_request_error"
    source = Source.DOWNSTREAM


class Unsupported(BadRequest):
    """The request asks for what is done here in another way, or not at this endpoint."""

    code = "unsupported_parameter"


class ContextTooLong(BadRequest):
    """Prompt and answer do not fit the model's context."""

    code = "context_length_exceeded"


class Unauthenticated(GatewayError):
    """No key (code null), or one that is unknown, expired or disabled (`invalid_api_key`)."""

    status = 401
    type = "authentication_error"
    source = Source.DOWNSTREAM

    def __init__(self, message: str, *, key_was_sent: bool) -> None:
        super().__init__(message)
        self.code = "invalid_api_key" if key_was_sent else None

    def headers(self) -> list[tuple[str, str]]:
        return [*super().headers(), ("www-authenticate", "Bearer")]


class Forbidden(GatewayError):
    """The key is good but lacks the scope."""

    status = 403
    type = "permission_error"
    source = Source.DOWNSTREAM


class NotFound(BadRequest):
    """No such path, or no such object of this tenant."""

    status = 404


class ModelNotFound(NotFound):
    """No such route, or not one for this key: the two are not told apart."""

    code = "model_not_found"

    def __init__(self, model: str) -> None:
        super().__init__(f"The model {_shown(model)} does not exist or you do not have access to it.", param="model")


class StoreNotFound(NotFound):
    """No such vector store, file or batch, or one of another tenant: the two are not told apart."""

    def __init__(self, id: str, kind: str = "vector store", *, param: str | None = None) -> None:
        super().__init__(f"No {kind} found with id {_shown(id)}.", param=param)


class MethodNotAllowed(BadRequest):
    status = 405

    def __init__(self, allowed: str) -> None:
        super().__init__(f"Method not allowed here; use {allowed}.")
        self.allowed = allowed

    def headers(self) -> list[tuple[str, str]]:
        return [*super().headers(), ("allow", self.allowed)]


class RequestTimeout(BadRequest):
    """The client was too slow to send its request."""

    status = 408
    retryable = True


class EmbeddingMismatch(BadRequest):
    """The store's vectors are of another model than the one that is configured now: they cannot be compared."""

    status = 409
    code = "embedding_mismatch"


class StoreExpired(BadRequest):
    """The vector store was not used for as long as its owner said that it shall live."""

    status = 410
    code = "vector_store_expired"


class BodyTooLarge(BadRequest):
    status = 413


class UnsupportedMediaType(BadRequest):
    status = 415


class HeadTooLarge(BadRequest):
    status = 431


class RateLimited(GatewayError):
    """The tenant has used what it was promised; waiting helps. `headers` say what of it is left."""

    status = 429
    type = "rate_limit_error"
    code = "rate_limit_exceeded"
    source = Source.DOWNSTREAM
    retryable = True

    def __init__(self, message: str, *, retry_after_s: float | None = None, headers: Headers | None = None) -> None:
        super().__init__(message, retry_after_s=retry_after_s)
        self._headers = [(name.decode(), value.decode()) for name, value in headers or ()]

    def headers(self) -> list[tuple[str, str]]:
        return [*super().headers(), *self._headers]


class BudgetSpent(RateLimited):
    """What was meant for a day or a month is used up: no client should wait for that, and those that do come back seldom."""

    type = "insufficient_quota"
    code = "insufficient_quota"
    retryable = False

    def headers(self) -> list[tuple[str, str]]:
        return [*super().headers(), ("retry-after", "60"), ("retry-after-ms", "60000")]


class LimitsAway(RateLimited):
    """The store of limits cannot be asked, and this one says that then nobody may pass."""

    code = "server_overloaded"
    source = Source.GATEWAY


class Overloaded(GatewayError):
    """Shed by our own load."""

    status = 429
    type = "rate_limit_error"
    code = "server_overloaded"
    retryable = True


class InternalError(GatewayError):
    """Our bug. The traceback is in the log under the request id, and never in the answer."""

    code = "internal_error"

    def __init__(self) -> None:
        super().__init__("The gateway failed on this request; its log has the details under the request id.")


class RetrievalUnavailable(GatewayError):
    """A retriever, or what it needs, is down, full or broken: nothing was found out."""

    status = 503
    code = "retrieval_unavailable"
    retryable = True

    def headers(self) -> list[tuple[str, str]]:
        return [*super().headers(), ("x-retrieval-status", "error")]


class RetrievalTimeout(RetrievalUnavailable):
    """A search did not end within its deadline."""

    status = 504
    code = "retrieval_timeout"
    retryable = False


class UpstreamError(GatewayError):
    """A worker failed after it may have computed something: lost, cut, answered garbage or an error of its own."""

    status = 502
    code = "worker_failed"
    source = Source.UPSTREAM


class WorkerRefused(UpstreamError):
    """The worker did no work for this call (connect failed, reset before any byte, queue full): another may take it."""

    code = "worker_unreachable"
    retryable = True


class WorkerFull(WorkerRefused):
    """The worker's queue is full. Where all of them are, the client is told 429: it would repeat a 5xx at once."""

    status = 429
    type = "rate_limit_error"
    code = "server_overloaded"


class WorkerUnavailable(UpstreamError):
    """No worker of the route can take a call now."""

    status = 503
    code = "no_worker_available"
    retryable = True


class WorkerTimeout(UpstreamError):
    """A worker was silent for longer than the route allows."""

    status = 504
    code = "worker_timeout"


class WorkerRejected(GatewayError):
    """A worker's own error answer, its status kept and its body normalised to OpenAI's shape."""

    TYPES: ClassVar[dict[int, str]] = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}

    def __init__(self, status: int, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message, param=param)
        self.status = status
        self.code = code
        if status < 500:
            self.type = self.TYPES.get(status, "invalid_request_error")
        self.source = Source.DOWNSTREAM if status < 500 and status != 429 else Source.UPSTREAM
        self.retryable = status in (429, 503)


def is_workers_fault(error: GatewayError) -> bool:
    """Whether another worker may do better: not where the request was judged, nor for what none of them can do."""
    if isinstance(error, WorkerRejected):
        return error.status >= 500 and error.status != 501
    return isinstance(error, UpstreamError)


def _shown(text: str, limit: int = 80) -> str:
    """A client's text as it may stand in a message: bounded and quoted."""
    return f"`{text}`" if len(text) <= limit else f"`{text[:limit]}...`"
