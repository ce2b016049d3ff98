"""Files and vector stores for calls that retrieve: one store for each tenant at each gateway, which keeps its own."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping

import httpx

from loadtest.stack import StackFailed

DOCUMENT = "\n\n".join(
    f"# Lock {number}\n\nThe gate of lock {number} opens at {number % 24} o'clock, for ships of up to {number} metres."
    for number in range(1, 40)
)
QUESTION = "When does the gate of lock 7 open?"
PATIENCE_S = 60.0


def make_stores(urls: Iterable[str], keys: Mapping[str, str], tenants: Iterable[str]) -> dict[tuple[str, str], str]:
    """The id of a store with a document, for each gateway and tenant; `StackFailed` where one is not made."""
    return {(url, name): _make_store(url, keys[name]) for url in urls for name in tenants}


def _make_store(url: str, key: str) -> str:
    with httpx.Client(base_url=url, headers={"authorization": f"Bearer {key}"}, timeout=PATIENCE_S) as client:
        file = client.post("/v1/files", files={"file": ("locks.md", DOCUMENT.encode())}, data={"purpose": "assistants"}).json()
        store = client.post("/v1/vector_stores", json={"name": "locks", "file_ids": [file.get("id")]}).json()
        ends_at = time.monotonic() + PATIENCE_S
        while store.get("file_counts", {}).get("completed") != 1:
            if "id" not in store or time.monotonic() > ends_at:
                raise StackFailed(f"no vector store at {url}: {file} {store}")
            time.sleep(0.1)
            store = client.get(f"/v1/vector_stores/{store['id']}").json()
        return str(store["id"])
