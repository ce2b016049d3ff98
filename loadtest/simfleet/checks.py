"""Validation of chat and completion bodies, with the errors vLLM has for them."""

from typing import Any

from loadtest.simfleet.answer import Ending
from loadtest.simfleet.errors import ApiError, invalid, rejected

_MAX_CHOICES = 16_384
_MAX_LOGPROBS = 20
_SALT_FORBIDDEN = frozenset("@/\\\x00")
_NO_INTEGER = "Input should be a valid integer, unable to parse string as an integer"
_AUTO_TOOLS_OFF = '"auto" tool choice requires --enable-auto-tool-choice and --tool-call-parser to be set'


def check_messages(body: dict[str, Any]) -> list[dict[str, Any]]:
    """The `messages` of a request."""
    if "messages" not in body:
        raise invalid("body.messages", "missing", "Field required", body)
    messages = body["messages"]
    if not isinstance(messages, list):
        raise invalid("body.messages", "list_type", "Input should be a valid list", messages)
    for at, message in enumerate(messages):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            location = f"body.messages.{at}.ChatCompletionDeveloperMessageParam.role"
            raise invalid(location, "missing", "Field required", message)
        if not isinstance(message.get("content"), str | list | None):
            location = f"body.messages.{at}.ChatCompletionDeveloperMessageParam.content"
            raise invalid(location, "string_type", "Input should be a valid string", message)
    if not messages:
        raise ApiError("Cannot apply chat template to an empty conversation. Provide at least one message.")
    return messages


def check_tools(body: dict[str, Any], *, auto_is_enabled: bool) -> None:
    """The `tools` and `tool_choice` of a request."""
    tools, choice = body.get("tools"), body.get("tool_choice")
    if tools == []:
        message = "`tools` must not be an empty array. Either provide at least one tool or omit the field entirely."
        raise rejected(message, "tools")
    if choice is not None and choice != "none" and tools is None:
        raise rejected("When using `tool_choice`, `tools` must be set.", "tool_choice")
    for at, tool in enumerate(tools or ()):
        if not isinstance(tool, dict) or tool.get("type") != "function":
            kind = tool.get("type") if isinstance(tool, dict) else tool
            location, expected = f"body.tools.{at}.type", "'function'"
            raise invalid(location, "literal_error", f"Input should be {expected}", kind, expected=expected)
        if not isinstance(tool.get("function"), dict) or not isinstance(tool["function"].get("name"), str):
            raise invalid(f"body.tools.{at}.function", "missing", "Field required", tool)
    if tools and choice in (None, "auto") and not auto_is_enabled:
        raise ApiError(_AUTO_TOOLS_OFF)


def check_sampling(body: dict[str, Any]) -> int:
    """Check the members that would steer sampling; how many choices are wanted."""
    if (temperature := number(body, "temperature", 1.0)) < 0:
        message = f"temperature must be non-negative, got {temperature}."
        raise rejected(message, "temperature", temperature)
    if not 0 < (top_p := number(body, "top_p", 1.0)) <= 1:
        raise rejected(f"top_p must be in (0, 1], got {top_p}.", "top_p", top_p)
    for name in ("presence_penalty", "frequency_penalty"):
        if not -2 <= (value := number(body, name, 0.0)) <= 2:
            raise ApiError(f"{name} must be in [-2, 2], got {value}.")
    choices = body.get("n")
    choices = 1 if choices is None else choices
    if type(choices) is not int:
        raise invalid("body.n", "int_parsing", _NO_INTEGER, choices)
    if not 1 <= choices <= _MAX_CHOICES:
        raise ApiError(f"n must be at least 1, got {choices}.")
    if choices > 1 and temperature == 0:
        raise ApiError(f"n must be 1 when using greedy sampling, got {choices}.")
    return choices


def check_logprobs(logprobs: Any, name: str) -> int | None:
    """How many alternatives beside the chosen token."""
    if logprobs is None:
        return None
    if type(logprobs) is not int or logprobs < 0:
        raise rejected(f"`{name}` must be a positive value or -1.", name, logprobs)
    if logprobs > _MAX_LOGPROBS:
        message = f"Requested sample logprobs of {logprobs}, which is greater than max allowed: {_MAX_LOGPROBS}"
        raise rejected(message, "logprobs", logprobs)
    return logprobs


def check_limit(limit: Any, name: str, context: int) -> None:
    """The `max_tokens` of a request, called `name` there."""
    if limit is None:
        return
    if type(limit) is not int:
        raise invalid(f"body.{name}", "int_parsing", _NO_INTEGER, limit)
    if limit > context:
        message = f"{name}={limit} cannot be greater than max_model_len={context}. Please request fewer output tokens."
        raise rejected(message, name, limit)
    if limit < 1:
        raise rejected(f"max_tokens must be at least 1, got {limit}.", "max_tokens", limit)


def cache_salt(body: dict[str, Any]) -> str:
    """What keeps this prompt's blocks from others; empty: nothing."""
    salt = body.get("cache_salt")
    if salt is None:
        return ""
    if not isinstance(salt, str) or not salt:
        raise rejected("Parameter 'cache_salt' must be a non-empty string if provided.", "cache_salt")
    if len(salt) > 128 or _SALT_FORBIDDEN & set(salt):
        message = "Parameter 'cache_salt' must be at most 128 characters and must not contain '@', '/', '\\\\', or NUL."
        raise rejected(message, "cache_salt")
    return salt


def ending_of(body: dict[str, Any]) -> Ending:
    """What ends the answers, but for `max_tokens`, which depends on the prompt."""
    stop = body.get("stop")
    stop = [stop] if isinstance(stop, str) else stop or []
    if not isinstance(stop, list) or not all(isinstance(one, str) for one in stop):
        raise invalid("body.stop", "string_type", "Input should be a valid string", stop)
    if "" in stop:
        raise ApiError("stop cannot contain an empty string.")
    return Ending(
        max_tokens=1,
        ignore_eos=flag(body, "ignore_eos"),
        min_tokens=int(number(body, "min_tokens", 0)),
        stop=tuple(stop),
        stop_token_ids=frozenset(body.get("stop_token_ids") or ()),
        include_stop=flag(body, "include_stop_str_in_output"),
        skip_special=body.get("skip_special_tokens") is not False,
    )


def flag(body: dict[str, Any], name: str) -> bool:
    """A member that is true or false; missing is false."""
    value = body.get(name)
    if value not in (None, True, False):
        raise invalid(f"body.{name}", "bool_parsing", "Input should be a valid boolean", value)
    return bool(value)


def number(body: dict[str, Any], name: str, default: float) -> float:
    """A member that is a number."""
    value = body.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float):
        message = "Input should be a valid number, unable to parse string as a number"
        raise invalid(f"body.{name}", "float_parsing", message, value)
    return float(value)
