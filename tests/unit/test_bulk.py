"""Large bodies, read in a process of their own."""

import asyncio
import os
import signal

import orjson
import pytest

from sluice.bulk import BulkReader
from sluice.errors import BadRequest, InternalError, Overloaded
from sluice.types import Endpoint
from sluice.wire.requests import Rules, parse

TEXT = "x" * 300_000


def chat(**more) -> bytes:
    return orjson.dumps({"model": "m", "messages": [{"role": "user", "content": TEXT}]} | more)


def pieces(data: bytes, size: int = 65_536) -> tuple[bytes, ...]:
    return tuple(data[at : at + size] for at in range(0, len(data), size))


async def read(reader: BulkReader, data: bytes, *, model: str = "m", **more):
    async with reader.read(Endpoint.CHAT, pieces(data), "application/json") as request:
        return request, *await request.prepare(Rules(), model=model, **more)


@pytest.mark.parametrize(
    ("data", "model"),
    [
        (chat(), "m"),
        (chat(priority=1, stream=True), "served"),
        (chat(stream=True, stream_options={"include_usage": True}), "m"),
        (chat().replace(b'"model"', b'"mod\\u0065l"'), "served"),
    ],
)
async def test_a_large_body_is_prepared_as_it_would_be_in_this_process(data, model):
    expected = parse(Endpoint.CHAT, data)
    prepared = expected.prepare(Rules(), model=model, prefix_seed=b"seed")
    async with BulkReader() as reader:
        request, seen, body = await read(reader, data, model=model, prefix_seed=b"seed")

    assert b"".join(body) == prepared.body
    assert (request.model, request.stream) == (expected.model, expected.stream)
    assert (seen.stream, seen.wants_usage) == (prepared.stream, prepared.wants_usage)
    assert seen.prefix == prepared.prefix and seen.prefix.hashes


async def test_pieces_without_an_edit_go_up_as_they_came():
    data = pieces(chat())
    async with BulkReader() as reader, reader.read(Endpoint.CHAT, data, "application/json") as request:
        _, body = await request.prepare(Rules(), model="m")

    assert all(ours is theirs for ours, theirs in zip(body, data, strict=True))


async def test_one_child_reads_body_after_body_and_survives_bad_ones():
    async with BulkReader() as reader:
        await read(reader, chat())
        pid = reader.child_pid
        with pytest.raises(BadRequest, match="not valid JSON"):
            await read(reader, b"{" + b"x" * 300_000)
        with pytest.raises(BadRequest) as caught:
            await read(reader, chat(n=10_000))
        assert caught.value.param == "n"
        with pytest.raises(ValueError, match="elsewhere"):
            async with reader.read(Endpoint.CHAT, pieces(chat()), "application/json"):
                raise ValueError("it failed elsewhere")
        await read(reader, chat())

        assert reader.child_pid == pid


async def test_bodies_take_their_turn():
    async with BulkReader() as reader:
        results = await asyncio.gather(*(read(reader, chat(seed=n)) for n in range(5)))

    assert [orjson.loads(b"".join(body))["seed"] for _, _, body in results] == [0, 1, 2, 3, 4]


async def test_a_child_that_dies_costs_one_call():
    async with BulkReader() as reader:
        await read(reader, chat())
        async with reader.read(Endpoint.CHAT, pieces(chat()), "application/json") as request:
            os.kill(reader.child_pid, signal.SIGKILL)
            with pytest.raises(InternalError):
                await request.prepare(Rules(), model="m")

        await read(reader, chat())


async def test_a_child_that_hangs_is_given_up():
    async with BulkReader() as reader:
        await read(reader, chat())
        hung = reader.child_pid
        os.kill(hung, signal.SIGSTOP)
        reader.patience_s = 0.05
        with pytest.raises(Overloaded):
            await read(reader, chat())

        reader.patience_s = 20
        await read(reader, chat())
        assert reader.child_pid != hung


async def test_a_client_that_leaves_in_the_middle_leaves_nothing_behind():
    async with BulkReader() as reader:
        task = asyncio.create_task(read(reader, chat()))
        while reader.child_pid is None:  # noqa: ASYNC110  there is no event for it
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

        _, _, body = await read(reader, chat(seed=7))
        assert orjson.loads(b"".join(body))["seed"] == 7


async def test_the_child_ends_when_nobody_needs_it_and_with_its_owner():
    async with BulkReader(idle_s=0.01) as reader:
        await read(reader, chat())
        while reader.child_pid is not None:  # noqa: ASYNC110  there is no event for it
            await asyncio.sleep(0)
        await read(reader, chat())

    assert reader.child_pid is None
