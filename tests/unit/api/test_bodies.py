"""Bodies are read within bounds: each one's size, all together, and time."""

import asyncio
from collections.abc import Iterable
from typing import Any

import pytest

from sluice.api.bodies import BodyReader, Buffers, ClientLeft
from sluice.config import ClientTimeouts
from sluice.errors import BadRequest, BodyTooLarge, Overloaded, RequestTimeout
from sluice.middleware import Visit

LIMIT_BYTES = 10
DISCONNECT = {"type": "http.disconnect"}


def visit(**headers: str) -> Visit:
    named = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    return Visit({"type": "http", "headers": named}, "req-1", 0.0)


class Receive:
    """A client that sends these messages, and then nothing more."""

    def __init__(self, messages: Iterable[dict[str, Any]]) -> None:
        self._messages = list(messages)
        self.num_read = 0

    async def __call__(self) -> dict[str, Any]:
        if not self._messages:
            await asyncio.Event().wait()
        self.num_read += 1
        return self._messages.pop(0)


def parts(*bodies: bytes, ends: bool = True) -> Receive:
    last = len(bodies) - 1
    return Receive(
        {"type": "http.request", "body": body, "more_body": not ends or number < last} for number, body in enumerate(bodies)
    )


def reader(clock: Iterable[float] | None = None, **timeouts: float) -> BodyReader:
    times = iter(clock or ())
    return BodyReader(LIMIT_BYTES, ClientTimeouts(**timeouts), lambda: next(times, 0.0))


@pytest.mark.parametrize("bodies", [[b""], [b"0123456789"], [b"01234", b"56789"], [b"", b"0", b"", b"1", b""]])
async def test_a_body_is_read_whole_and_held_to_the_end_of_the_call(bodies: list[bytes]):
    buffers = Buffers(100)
    with buffers.hold() as held:
        assert await reader().read(visit(), parts(*bodies), held) == b"".join(bodies)
        assert buffers.held_bytes == len(b"".join(bodies))
    assert repr(buffers) == "<Buffers 0 of 100 bytes>"


async def test_a_body_that_the_server_has_already_is_not_asked_for():
    buffers, receive = Buffers(100), parts()
    with buffers.hold() as held:
        assert await reader().read(visit(content_length="3"), receive, held, b"abc") == b"abc"
        assert (buffers.held_bytes, receive.num_read) == (3, 0)


@pytest.mark.parametrize("length", ["11", "1000000000000000", "9" * 5000])
async def test_a_length_beyond_the_limit_is_refused_before_anything_is_read(length: str):
    receive = parts(b"x" * 11)
    with Buffers(100).hold() as held, pytest.raises(BodyTooLarge, match="10 bytes"):
        await reader().read(visit(content_length=length), receive, held)
    assert receive.num_read == 0


@pytest.mark.parametrize("whole", [None, b"x" * 11])
async def test_a_body_beyond_the_limit_is_refused_though_it_did_not_say_so(whole: bytes | None):
    with Buffers(100).hold() as held, pytest.raises(BodyTooLarge):
        await reader().read(visit(), parts(b"x" * 11), held, whole)


async def test_a_body_in_parts_is_cut_where_it_goes_beyond_the_limit():
    receive = parts(b"x" * 6, b"x" * 6, b"x", b"x")
    with Buffers(100).hold() as held, pytest.raises(BodyTooLarge):
        await reader().read(visit(), receive, held)
    assert receive.num_read == 2


async def test_the_last_part_counts_too():
    with Buffers(100).hold() as held, pytest.raises(BodyTooLarge):
        await reader().read(visit(), parts(b"x" * 6, b"x" * 6), held)


@pytest.mark.parametrize(
    "headers", [{"content_length": "-1"}, {"content_length": "1e3"}, {"transfer_encoding": "gzip, chunked"}]
)
async def test_a_length_or_coding_that_we_do_not_understand_is_a_bad_request(headers: dict[str, str]):
    with Buffers(100).hold() as held, pytest.raises(BadRequest):
        await reader().read(visit(**headers), parts(b""), held)


async def test_chunked_is_understood():
    with Buffers(100).hold() as held:
        assert await reader().read(visit(transfer_encoding="Chunked"), parts(b"abc"), held) == b"abc"


@pytest.mark.parametrize("begun", [parts(), parts(b"a", ends=False)])
async def test_a_client_that_stalls_is_timed_out(begun: Receive):
    with Buffers(100).hold() as held, pytest.raises(RequestTimeout):
        await reader(body_idle_s=0.01).read(visit(), begun, held)


async def test_a_client_that_trickles_is_timed_out_once_the_time_for_the_whole_body_is_over():
    receive = parts(b"a", b"b", b"c", ends=False)
    with Buffers(100).hold() as held, pytest.raises(RequestTimeout):
        await reader([0.0, 1.0, 59.0, 59.9, 59.999], body_s=60, body_idle_s=50).read(visit(), receive, held)
    assert receive.num_read == 3


@pytest.mark.parametrize("messages", [[DISCONNECT], [{"type": "http.request", "body": b"a", "more_body": True}, DISCONNECT]])
async def test_a_client_that_leaves_is_told_from_one_that_is_slow(messages: list[dict[str, Any]]):
    with Buffers(100).hold() as held, pytest.raises(ClientLeft):
        await reader().read(visit(), Receive(messages), held)


async def test_all_bodies_together_are_bounded_and_what_one_gives_back_is_for_the_next():
    buffers = Buffers(15)
    with buffers.hold() as first, buffers.hold() as second:
        await reader().read(visit(), parts(b"x" * 10), first)
        with pytest.raises(Overloaded) as caught:
            await reader().read(visit(), parts(b"x" * 5, b"x"), second)
        assert caught.value.retry_after_s == 2
        assert buffers.held_bytes == 15
    assert buffers.held_bytes == 0
    with buffers.hold() as third:
        await reader().read(visit(), parts(b"x" * 10), third)
