"""What steers the shared engine from inside a request, and so is the gateway's alone to set: salts, priorities, deadlines.

A salt keeps the prefix caches of tenants apart (CVE-2025-46570: who shares a cache can find out by timing what others have
asked). vLLM mixes it into the first block of a prompt, and so into all that follow: prompts under different salts share
nothing, not even a system prompt that all of them begin with. What is to be shared is therefore shared whole, by a salt of
the route or of a group of tenants that trust each other.
"""

from __future__ import annotations

import hmac
import time
from collections.abc import Callable
from hashlib import sha256

from sluice.config import Route
from sluice.errors import BadRequest
from sluice.types import Endpoint, Tenant

SALTED = frozenset(
    {
        Endpoint.CHAT,
        Endpoint.COMPLETIONS,
        Endpoint.RESPONSES,
        Endpoint.MESSAGES,
        Endpoint.EMBEDDINGS,
        Endpoint.RERANK,
        Endpoint.SCORE,
    }
)
PRIORITISED = SALTED - {Endpoint.MESSAGES}  # whose request has no such member in vLLM
CLASS_STEP = 10**12  # above all deadlines, which are tenths of a second since 1970
TIMEOUT_HEADER = b"x-request-timeout-ms"
MAX_TIMEOUT_MS = 86_400_000


class Steering:
    """Rule of use: `secret` is the same in all replicas, or workers keep a prefix once for each of them."""

    def __init__(
        self, secret: bytes, clock: Callable[[], float] = time.monotonic, wall_clock: Callable[[], float] = time.time
    ) -> None:
        self._secret = secret
        self._clock = clock
        self._wall_clock = wall_clock

    def salt(self, name: str, route: Route, tenant: Tenant) -> str:
        """The salt of this tenant's prompts on the route called `name`; "" where all of its workers' users share."""
        if route.cache_salt == "none":
            return ""
        scope = ("route", name)
        if route.cache_salt == "tenant":
            scope = ("group", name) if tenant.name in route.cache_shared_by else ("tenant", tenant.name)
        said = "\0".join(("cache_salt", *scope)).encode()
        return hmac.new(self._secret, said, sha256).hexdigest()[:32]

    def members(self, endpoint: Endpoint, route: Route, tenant: Tenant, salt: str, deadline: float) -> dict[str, str | int]:
        """What goes into the request beside the client's own members."""
        members: dict[str, str | int] = {}
        if salt and endpoint in SALTED:
            members["cache_salt"] = salt
        if route.queue.engine_priority and endpoint in PRIORITISED:
            members["priority"] = self._priority(tenant, deadline)
        return members

    def _priority(self, tenant: Tenant, deadline: float) -> int:
        """vLLM serves the lowest first: the higher class, and in it the earlier deadline, by a clock that replicas share."""
        due = self._wall_clock() + deadline - self._clock()
        return int(due * 10) - tenant.priority * CLASS_STEP


def timeout_ms(header: bytes | None, in_body: int | None) -> int | None:
    """How long the client gives its request, the shorter where it says so twice; None where it does not say."""
    if header is None:
        return in_body
    if not (header.isdigit() and len(header) <= 8 and 1 <= int(header) <= MAX_TIMEOUT_MS):
        raise BadRequest(f"The header {TIMEOUT_HEADER.decode()} must be a whole number from 1 to {MAX_TIMEOUT_MS}.")
    return int(header) if in_body is None else min(int(header), in_body)
