"""The web, through a search engine with SearXNG's JSON (`GET {url}?q=...&format=json`), which finds snippets with an address.

Nothing is fetched from the addresses that it names: whoever can write a result could make the gateway ask any host. Everybody's
results are the same, so there is no tenant to tell; the question itself leaves the house, which is for the site to want.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from sluice.errors import BadRequest
from sluice.http_json import HttpJson, HttpJsonError
from sluice.retrieval.adapters.http import MAX_REPLY_BYTES, MAX_TEXT_CHARS
from sluice.retrieval.base import Failure, Health, Passage, Search, SearchResult
from sluice.retrieval.fusion import fuse

MAX_QUERY_CHARS = 400  # of a question that goes to a search engine


class WebRetriever:
    """Asks one search engine. It is one store, named as it is."""

    capabilities = frozenset({"lexical"})

    def __init__(
        self, name: str, url: str, http: HttpJson, *, api_key: str | None, ca_file: Path | None, clock: Callable[[], float]
    ) -> None:
        self.name = name
        self._url = url
        self._http = http
        self._headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
        self._ca_file = ca_file
        self._clock = clock

    async def search(self, search: Search) -> SearchResult:
        if search.filters is not None:
            raise BadRequest("`filters`: results of the web have no attributes to filter by.", param="filters")
        lists = []
        for query in search.queries:
            asked = urlencode({"q": query[:MAX_QUERY_CHARS], "format": "json"})
            url = f"{self._url}{'&' if '?' in self._url else '?'}{asked}"
            try:
                reply = await self._http.get_json(
                    url,
                    headers=self._headers,
                    timeout_s=max(0.001, search.deadline - self._clock()),
                    limit_bytes=MAX_REPLY_BYTES,
                    ca_file=self._ca_file,
                )
            except HttpJsonError as exc:
                code = "timeout" if exc.kind == "timeout" else "unavailable"
                return SearchResult((), tuple(Failure(store.id, code) for store in search.stores))
            results = reply.get("results") if isinstance(reply, dict) else None
            found = (_passage(given, search.stores[0].id) for given in results or ())
            lists.append([one for one in found if one is not None][: search.limit])
        known = {one.file_id: one for passages in lists for one in passages}
        ranked = fuse([([one.file_id for one in passages], 1.0) for passages in lists])
        return SearchResult(tuple(known[id] for id, _ in ranked)[: search.limit])

    async def health(self) -> Health:
        """Not asked: each question is a search that somebody pays for. Searches say how it is."""
        return Health(is_up=True)


def _passage(given: Any, store_id: str) -> Passage | None:
    """A result as a passage; None where it is no web page with a text."""
    if not isinstance(given, dict):
        return None
    url, title, text = (given.get(name) for name in ("url", "title", "content"))
    if not isinstance(url, str) or not url.startswith(("http://", "https://")) or len(url) > 2048:
        return None
    if not isinstance(text, str) or not text.strip():
        return None
    digest = hashlib.sha256(url.encode("utf-8", "replace")).hexdigest()
    return Passage(
        chunk_id=f"c_{digest[:16]}",
        file_id=f"web-{digest[:24]}",
        filename=url[:256],
        text=text[:MAX_TEXT_CHARS],
        score=0.0,
        vector_store_id=store_id,
        attributes={"url": url},
        char_end=len(text),
        title=title[:512] if isinstance(title, str) else "",
    )
