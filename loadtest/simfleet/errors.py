"""Errors as vLLM sends them: its own envelope, or the framework's `detail`.

WireError       any of them
├── ApiError    {"error": {"message", "type", "param", "code": <status>}}
└── Detail      {"detail": ...}: unknown path, wrong method, unreadable body
"""

from collections.abc import Sequence
from typing import Any

QUEUE_FULL = "The engine is currently busy and cannot accept new requests. Please try again later or on a different instance."
PREFILL_BACKLOG_FULL = (
    "The engine has reached its prefill token backlog limit. Please try again later or on a different instance."
)
ENGINE_DEAD = "EngineCore encountered an issue. See stack trace (above) for the root cause."


class WireError(Exception):
    """A reply that is an error."""

    def __init__(self, status: int, body: dict[str, Any]) -> None:
        super().__init__(f"{status}: {body}")
        self.headers: Sequence[tuple[str, str]] = ()
        self.status = status
        self.body = body


class ApiError(WireError):
    """vLLM's own envelope."""

    def __init__(self, message: str, *, status: int = 400, type_: str = "BadRequestError", param: str | None = None) -> None:
        super().__init__(status, error_body(message, status, type_, param))


class Detail(WireError):
    """The framework's."""

    def __init__(self, status: int, detail: str, headers: Sequence[tuple[str, str]] = ()) -> None:
        super().__init__(status, {"detail": detail})
        self.headers = headers


def error_body(message: str, status: int, type_: str, param: str | None = None) -> dict[str, Any]:
    """The body of an `ApiError`, which is also the data of an error event."""
    return {"error": {"message": message, "type": type_, "param": param, "code": status}}


def invalid(location: str, kind: str, message: str, value: object, **context: object) -> ApiError:
    """A member that fails validation; `location` like `body.messages`."""
    entry: dict[str, object] = {"type": kind, "loc": location, "msg": message, "input": _summary(value)}
    if context:
        entry["ctx"] = context
    return ApiError(f"1 validation error:\n  {entry}", type_="Bad Request", param=location)


def rejected(message: str, param: str, value: object = None) -> ApiError:
    """A member that vLLM's own checks refuse; they name it in the message as well."""
    shown = "" if value is None else f", value={value}"
    return ApiError(f"{message} (parameter={param}{shown})", param=param)


def queue_full(reason: str) -> ApiError:
    """Refused with nothing computed: another worker may be tried at once."""
    message = QUEUE_FULL if reason == "max_num_queued_reqs" else PREFILL_BACKLOG_FULL
    return ApiError(message, status=503, type_="Service Unavailable")


def engine_dead() -> ApiError:
    """The engine's process has died, this server's not yet."""
    return ApiError(ENGINE_DEAD, status=500, type_="InternalServerError")


def shutting_down() -> ApiError:
    """A server that drains has no threads left to tokenise with."""
    message = "cannot schedule new futures after shutdown"
    return ApiError(message, status=500, type_="InternalServerError")


def unknown_model(model: object, served: tuple[str, ...]) -> ApiError:
    """No such model or adapter."""
    names = ", ".join(served)
    message = f"The model `{model}` does not exist. Valid aliases: {names}."
    return ApiError(message, status=404, type_="NotFoundError", param="model")


def _summary(value: object) -> object:
    if isinstance(value, str):
        return value if len(value) <= 200 else value[:200] + "...[truncated]"
    if isinstance(value, list | dict):
        return f"<{type(value).__name__} of {len(value)} items>"
    return str(value)
