"""What clients may ask of files and vector stores: JSON bodies and query parameters, checked member by member.

Sizes are OpenAI's. A member that we do not know is a mistake and not ignored: whoever sends it expects something of it.
"""

from __future__ import annotations

from typing import Any

from fastapi import Request

from sluice.errors import BadRequest, BodyTooLarge
from sluice.retrieval.catalog import Attachment, Page
from sluice.retrieval.filters import scalar
from sluice.wire.json_body import object_of

BODY_LIMIT_BYTES = 1_048_576
MAX_KEYS = 16
MAX_KEY_CHARS = 64
MAX_VALUE_CHARS = 512
MAX_NAME_CHARS = 256
MAX_BATCH = 2_000
DEFAULT_TOKENS, DEFAULT_OVERLAP = 400, 60
MIN_TOKENS, MAX_TOKENS = 100, 4_096
MAX_DAYS = 365
STATUSES = frozenset({"in_progress", "completed", "failed", "cancelled"})

Body = dict[str, Any]


async def read_body(request: Request, known: frozenset[str]) -> Body:
    """The request's JSON object; an absent body is an empty one."""
    data = bytearray()
    async for chunk in request.stream():
        data += chunk
        if len(data) > BODY_LIMIT_BYTES:
            raise BodyTooLarge(f"The request body is larger than {BODY_LIMIT_BYTES} bytes.")
    return object_of(bytes(data), known) if data.strip() else {}


def text(body: Body, name: str, *, max_chars: int = MAX_NAME_CHARS) -> str | None:
    value = body.get(name)
    if value is not None and not (isinstance(value, str) and len(value) <= max_chars):
        raise BadRequest(f"`{name}` must be a string of at most {max_chars} characters.", param=name)
    return value


def required_id(body: Body, name: str) -> str:
    value = body.get(name)
    if not isinstance(value, str) or not value:
        raise BadRequest(f"`{name}` must be the id of a file (POST /v1/files makes one).", param=name)
    return value


def metadata(body: Body) -> dict[str, str]:
    found = _pairs(body, "metadata")
    for value in found.values():
        if not isinstance(value, str) or len(value) > MAX_VALUE_CHARS:
            raise BadRequest(f"`metadata`: a value is a string of at most {MAX_VALUE_CHARS} characters.", param="metadata")
    return found


def attributes(body: Body) -> dict[str, str | float | bool]:
    return {key: scalar(value, "attributes") for key, value in _pairs(body, "attributes").items()}


def _pairs(body: Body, name: str) -> dict[str, Any]:
    value = body.get(name)
    if value is None:
        return {}
    if not isinstance(value, dict) or len(value) > MAX_KEYS or any(not 0 < len(key) <= MAX_KEY_CHARS for key in value):
        raise BadRequest(f"`{name}` is an object of at most {MAX_KEYS} keys of 1 to {MAX_KEY_CHARS} characters.", param=name)
    return value


def expires_days(body: Body) -> int | None:
    value = body.get("expires_after")
    if value is None:
        return None
    days = value.get("days") if isinstance(value, dict) and value.keys() == {"anchor", "days"} else None
    if type(days) is not int or not 1 <= days <= MAX_DAYS or value["anchor"] != "last_active_at":
        said = f'`expires_after` is {{"anchor": "last_active_at", "days": 1 to {MAX_DAYS}}}.'
        raise BadRequest(said, param="expires_after")
    return days


def strategy(body: Body) -> tuple[int, int]:
    """Tokens of a passage and of the overlap. `auto` is 400 and 60: small models do better with them than with 800 and 400."""
    value = body.get("chunking_strategy")
    if value is None or value == {"type": "auto"}:
        return DEFAULT_TOKENS, DEFAULT_OVERLAP
    static = value.get("static") if isinstance(value, dict) and value.get("type") == "static" else None
    if isinstance(static, dict) and static.keys() == {"max_chunk_size_tokens", "chunk_overlap_tokens"}:
        size, overlap = static["max_chunk_size_tokens"], static["chunk_overlap_tokens"]
        if type(size) is int and type(overlap) is int and MIN_TOKENS <= size <= MAX_TOKENS and 0 <= overlap <= size // 2:
            return size, overlap
    said = (
        '`chunking_strategy` is {"type": "auto"} or {"type": "static", "static": {"max_chunk_size_tokens": '
        f'{MIN_TOKENS} to {MAX_TOKENS}, "chunk_overlap_tokens": at most half of that}}}}.'
    )
    raise BadRequest(said, param="chunking_strategy")


def attachment(body: Body) -> Attachment:
    return Attachment(required_id(body, "file_id"), attributes(body), *strategy(body))


def attachments(body: Body, *, is_required: bool) -> list[Attachment]:
    """The files of a new store, or of a batch, each once: `file_ids`, or `files` with settings of their own."""
    ids, files = body.get("file_ids"), body.get("files")
    if files is not None and ids is None:
        if not isinstance(files, list) or not 0 < len(files) <= MAX_BATCH or not all(isinstance(one, dict) for one in files):
            raise BadRequest(f"`files` is a list of 1 to {MAX_BATCH} objects with `file_id`.", param="files")
        found = [attachment(one) for one in files]
    else:
        if ids is None and not is_required:
            return []
        if files is not None or not isinstance(ids, list) or not is_required <= len(ids) <= MAX_BATCH:
            raise BadRequest(f"`file_ids` is a list of 1 to {MAX_BATCH} ids; give it or `files`.", param="file_ids")
        common = (attributes(body), *strategy(body))
        found = [Attachment(required_id({"file_ids": one}, "file_ids"), *common) for one in ids]
    return list({one.file_id: one for one in found}.values())


def page(request: Request, *, max_limit: int = 100, default: int = 20, default_order: str = "desc") -> Page:
    query = request.query_params
    limit = query.get("limit", str(default))
    if not (limit.isascii() and limit.isdigit() and 1 <= int(limit[:9]) <= max_limit):
        raise BadRequest(f"`limit` is 1 to {max_limit}.", param="limit")
    order = query.get("order", default_order)
    if order not in ("asc", "desc"):
        raise BadRequest("`order` is asc or desc.", param="order")
    return Page(int(limit), order, query.get("after"), query.get("before"))


def status_filter(request: Request) -> str | None:
    value = request.query_params.get("filter")
    if value is not None and value not in STATUSES:
        raise BadRequest(f"`filter` is one of {', '.join(sorted(STATUSES))}.", param="filter")
    return value
