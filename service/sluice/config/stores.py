"""Of the section `retrieval`, what is about files and vector stores: where they are kept, and what they may take."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from sluice.config.base import WORKER_URL, Port, Seconds, Section
from sluice.yaml_lines import Mistake

Weight = Annotated[float, Field(ge=0, le=100)]


class Embedding(Section):
    """How the vectors of the embedding route are made and weighed."""

    text_weight: Weight = 1.0
    vector_weight: Weight = 1.0
    query_prefix: str = ""
    passage_prefix: str = ""
    batch_timeout_s: Seconds = 60

    @model_validator(mode="after")
    def _something_counts(self) -> Self:
        if not self.text_weight and not self.vector_weight:
            raise Mistake("is 0 like text_weight; one of them must count", "vector_weight")
        return self


class StoreLimits(Section):
    """What clients may store, and what reading one file may take."""

    upload_bytes: Annotated[int, Field(ge=1024)] = 67_108_864
    tenant_bytes: Annotated[int, Field(ge=1024)] = 10_737_418_240
    text_bytes: Annotated[int, Field(ge=1024)] = 2_097_152
    read_timeout_s: Seconds = 60
    read_memory_bytes: Annotated[int, Field(ge=268_435_456)] = 1_073_741_824
    memory_bytes: Annotated[int, Field(ge=1_048_576)] = 536_870_912  # of vectors and postings that are held


class Stores(Section):
    """Files and vector stores."""

    store: Literal["embedded"] | None = "embedded"
    path: Path = Path("data")
    url: str | None = None  # of a `sluice retrieval` that several gateways share
    token_env: str | None = None
    host: str = "127.0.0.1"  # where `sluice retrieval` listens
    port: Port = 8010
    embedding: Embedding = Embedding()
    limits: StoreLimits = StoreLimits()

    @field_validator("url")
    @classmethod
    def _plain_url(cls, url: str | None) -> str | None:
        if url is not None and not WORKER_URL.fullmatch(url):
            raise ValueError("this is http://HOST:PORT or https://HOST:PORT of a `sluice retrieval`, with no path")
        return url.rstrip("/") if url else None

    @model_validator(mode="after")
    def _a_shared_one_has_a_secret(self) -> Self:
        if self.url is not None and self.token_env is None:
            raise Mistake("needs token_env: whoever reaches that port could read every tenant's files", "url")
        return self
