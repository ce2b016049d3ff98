"""The sections of retrieval: what fits together, and what is told where it does not."""

import os
import time
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from sluice.config import ConfigError, RetrieverSettings, Settings
from sluice.http_json import HttpJson
from sluice.retrieval.adapters.pgvector import PgvectorRetriever
from sluice.retrieval.adapters.table import external_stores, retriever_of
from sluice.yaml_lines import parse

ROUTES: dict[str, Any] = {"m": {"workers": {"static": ["http://127.0.0.1:1"]}}}
HTTP = {"type": "http", "url": "http://search.internal/retrieval"}


def settings(**retrieval: Any) -> Settings:
    return Settings.model_validate({"routes": ROUTES, "retrieval": retrieval}, context={"environment": os.environ})


@pytest.mark.parametrize(
    "retrieval, said",
    [
        ({"retrievers": {"kb": HTTP | {"type": "pgvector"}}}, "another kind of address"),
        ({"retrievers": {"kb": HTTP | {"url": "postgresql://db/x"}}}, "another kind of address"),
        ({"retrievers": {"kb": HTTP | {"url": "ftp://search"}}}, "a retriever is http://"),
        ({"retrievers": {"kb": HTTP | {"url": "http://a b"}}}, "a retriever is http://"),
        ({"retrievers": {"kb": HTTP | {"type": "web", "stores": ["x"]}}}, "one store"),
        ({"retrievers": {"embedded": HTTP}}, "embedded engine's"),
        ({"retrievers": {"vs_1": HTTP}}, "embedded engine's"),
        ({"retrievers": {"a": HTTP | {"stores": ["x"]}, "b": HTTP | {"stores": ["x"]}}}, "another's already"),
        ({"retrievers": {"a": HTTP | {"stores": ["vs_1"]}}}, "another's already"),
        ({"retrievers": {"a": HTTP | {"api_key_env": "NO_SUCH_VARIABLE"}}}, "NO_SUCH_VARIABLE is not set"),
        ({"retrievers": {"a b": HTTP}}, "pattern"),
        ({"retrievers": {"a": HTTP | {"collection": "x; DROP TABLE y"}}}, "pattern"),
        ({"embedding_route": "no"}, "there is no route 'no'"),
        ({"on_call": {"rerank_route": "no"}}, "there is no route 'no'"),
        ({"on_call": {"public_url": "gw.example"}}, "the address of the gateway"),
        ({"on_call": {"public_url": "https://gw.example?x=1"}}, "the address of the gateway"),
    ],
)
def test_what_does_not_fit_is_told(retrieval: dict[str, Any], said: str):
    text = str({"routes": ROUTES, "retrieval": retrieval})

    with pytest.raises(ConfigError) as caught:
        parse(Path("sluice.yaml"), text, Settings, {"environment": {}})

    assert said in str(caught.value)


def test_stores_are_found_by_the_ids_that_calls_use():
    found = external_stores(
        settings(
            retrievers={"kb": HTTP | {"stores": ["a", "b"], "tenants": ["acme"]}, "web": HTTP | {"type": "web"}}
        ).retrieval.retrievers
    )

    assert {id: (one.ref.retriever, one.tenants) for id, one in found.items()} == {
        "a": ("kb", frozenset({"acme"})),
        "b": ("kb", frozenset({"acme"})),
        "web": ("web", None),
    }


async def test_a_postgresql_is_closed_with_what_else_is_open():
    asked = RetrieverSettings.model_validate({"type": "pgvector", "url": "postgresql://sluice@127.0.0.1:1/x"})
    async with AsyncExitStack() as resources:
        made = retriever_of("kb", asked, http=HttpJson(), resources=resources, clock=time.monotonic)
        assert isinstance(made, PgvectorRetriever) and not (await made.health()).is_up


def test_a_public_url_has_no_slash_at_its_end():
    assert settings(on_call={"public_url": "https://gw.example/llm/"}).retrieval.on_call.public_url == "https://gw.example/llm"
