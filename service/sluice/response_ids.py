"""Ids of stored responses that any replica can read: which worker holds the response, and whose it is.

`resp_` + 24 hex digits at random + 8 of the worker's URL + 24 of an HMAC over both and the tenant. A foreign id and one that
was never given out fail the same check, so that nobody can tell them apart.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets

from sluice.errors import NotFound

PREFIX = "resp_"
RANDOM, WORKER, SEAL = 24, 8, 24
SHAPE = re.compile(f"{PREFIX}[0-9a-f]{{{RANDOM + WORKER + SEAL}}}")


class ResponseIds:
    """Makes and reads ids under one secret; replicas that share it understand each other's."""

    def __init__(self, secret: bytes) -> None:
        self._secret = secret
        # Stands in a body until the worker is known; of an id's length, and unguessable, so that no prompt contains it.
        self.placeholder = PREFIX + secrets.token_hex((RANDOM + WORKER + SEAL) // 2)

    def new(self, worker_url: str, tenant: str) -> str:
        body = secrets.token_hex(RANDOM // 2) + worker_mark(worker_url)
        return PREFIX + body + self._seal(body, tenant)

    def worker_mark(self, response_id: str, tenant: str) -> str:
        """The mark of the worker that holds the response; raises `NotFound` where the id is not one of this tenant's."""
        if SHAPE.fullmatch(response_id) is None:
            raise not_found()
        body, seal = response_id[len(PREFIX) : -SEAL], response_id[-SEAL:]
        if not hmac.compare_digest(self._seal(body, tenant), seal):
            raise not_found()
        return body[RANDOM:]

    def _seal(self, body: str, tenant: str) -> str:
        message = b"\0".join((b"response", body.encode(), tenant.encode()))
        return hmac.new(self._secret, message, hashlib.sha256).hexdigest()[:SEAL]


def worker_mark(url: str) -> str:
    return hashlib.sha256(url.encode()).hexdigest()[:WORKER]


def not_found() -> NotFound:
    return NotFound("No such response.", param="response_id")
