"""Who may speak to the retrieval process: gateways, which say whose request it is."""

from __future__ import annotations

from hmac import compare_digest
from urllib.parse import unquote

from fastapi import Request

from sluice.errors import Forbidden
from sluice.retrieval.wire import TENANT_HEADER


class Trust:
    """Over a unix socket, whose file only its owner may open, `token` is None; over TCP it is the secret of all gateways."""

    def __init__(self, token: str | None) -> None:
        self._token = token

    def check(self, request: Request) -> None:
        """Raises `Forbidden` for anybody but a gateway."""
        given = request.headers.get("authorization", "")
        if self._token is not None and not compare_digest(given.encode(), f"Bearer {self._token}".encode()):
            raise Forbidden("This process serves gateways only.")

    def tenant(self, request: Request) -> str:
        """The name of the tenant whose request a gateway relays."""
        self.check(request)
        name = unquote(request.headers.get(TENANT_HEADER, ""))
        if not name:
            raise Forbidden("This process serves gateways only, which name the tenant.")
        return name
