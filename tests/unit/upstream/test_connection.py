"""One answer, byte by byte: what a worker may send, and what becomes of it, with a transport that is played by hand."""

import asyncio
import gc
import weakref

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sluice.errors import GatewayError, UpstreamError, WorkerRefused, WorkerTimeout
from sluice.outbox import Outbox
from sluice.upstream.connection import MAX_BARE_BYTES, MAX_HEAD_BYTES, Answer, Connection, Sink
from tests.unit.hot_path import PATIENCE_S
from tests.unit.upstream.transport import Transport

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\ncontent-length: 5\r\n\r\n"
CHUNKED_HEAD = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
WHOLE = HEAD + b"hello"
CHUNKED = CHUNKED_HEAD + b"2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n"


class Upstream:
    """A connection with a request on it."""

    def __init__(self) -> None:
        self.lost: list[Connection] = []
        self.transport = Transport()
        self.connection = Connection(asyncio.get_running_loop(), self.lost.append, Outbox())
        self.connection.connection_made(self.transport)
        self.answer = self.send()

    def send(self) -> Answer:
        self.answer = self.connection.send(b"POST / HTTP/1.1\r\n\r\n", b"{}")
        return self.answer

    def feed(self, *reads: bytes) -> None:
        for data in reads:
            self.connection.data_received(data)

    def error(self) -> GatewayError:
        assert self.answer.error is not None
        return self.answer.error


async def whole(upstream: Upstream, limit_bytes: int = 1000) -> tuple[int, bytes]:
    await upstream.answer.has_head()
    return upstream.answer.status, await upstream.answer.read(limit_bytes)


# Good answers


@given(data=st.sampled_from([WHOLE, CHUNKED]), cuts=st.lists(st.integers(0, 120), max_size=8))
async def test_an_answer_is_the_same_however_it_is_cut_into_reads(data, cuts):
    upstream = Upstream()
    borders = sorted({min(cut, len(data)) for cut in cuts} | {0, len(data)})
    upstream.feed(*(data[a:b] for a, b in zip(borders, borders[1:], strict=False)))

    assert await whole(upstream) == (200, b"hello")
    assert upstream.connection.is_reusable
    assert repr(upstream.connection) == "<Connection idle, 1 answers>"


async def test_header_names_are_in_lower_case():
    upstream = Upstream()
    upstream.feed(WHOLE)
    assert upstream.answer.headers == {"content-type": "application/json", "content-length": "5"}


async def test_a_reader_is_woken_by_what_it_waits_for():
    upstream = Upstream()
    reading = asyncio.create_task(whole(upstream))
    for piece in (HEAD[:20], HEAD[20:], b"he", b"llo"):
        await asyncio.sleep(0)
        assert not reading.done()
        upstream.feed(piece)
    assert await reading == (200, b"hello")


async def test_some_gives_what_has_come_and_nothing_at_the_end():
    upstream = Upstream()
    upstream.feed(CHUNKED_HEAD + b"2\r\nhe\r\n", b"2\r\nll\r\n")
    assert await upstream.answer.some() == b"hell"
    waiting = asyncio.create_task(upstream.answer.some())
    await asyncio.sleep(0)
    upstream.feed(b"1\r\no\r\n0\r\n\r\n")
    assert await waiting == b"o"
    assert await upstream.answer.some() == b""


async def test_informational_answers_are_passed_over():
    upstream = Upstream()
    upstream.feed(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n", WHOLE)
    assert await whole(upstream) == (200, b"hello")
    assert "link" not in upstream.answer.headers
    assert upstream.connection.is_reusable


async def test_one_connection_carries_one_answer_after_the_other():
    upstream = Upstream()
    upstream.feed(WHOLE)
    upstream.send()
    assert repr(upstream.connection) == "<Connection busy, 1 answers>"
    upstream.feed(CHUNKED)
    assert await whole(upstream) == (200, b"hello")
    assert repr(upstream.connection) == "<Connection idle, 2 answers>"


@pytest.mark.parametrize(
    "head",
    [
        b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 5\r\n\r\n",
        b"HTTP/1.0 200 OK\r\ncontent-length: 5\r\n\r\n",
    ],
)
async def test_a_worker_that_will_close_is_not_sent_to_again(head):
    upstream = Upstream()
    upstream.feed(head + b"hello")
    assert await whole(upstream) == (200, b"hello")
    assert not upstream.connection.is_reusable


async def test_trailers_are_read_and_dropped():
    upstream = Upstream()
    upstream.feed(CHUNKED_HEAD + b"5\r\nhello\r\n0\r\n", b"x-trailer: 1\r\n", b"\r\n")
    assert await whole(upstream) == (200, b"hello")
    assert "x-trailer" not in upstream.answer.headers
    assert upstream.connection.is_reusable


@pytest.mark.parametrize(
    ("body", "writes"),
    [
        (b"x" * 10, [b"head" + b"x" * 10]),
        (b"x" * 65_537, [b"head", b"x" * 65_537]),
        ((b"x" * 70_000, b"y"), [b"head", b"x" * 70_000, b"y"]),
    ],
)
async def test_small_requests_are_one_write_and_large_bodies_are_not_copied(body, writes):
    upstream = Upstream()
    upstream.feed(WHOLE)
    await asyncio.sleep(0)
    upstream.transport.written.clear()
    upstream.connection.send(b"head", body)
    await asyncio.sleep(0)
    assert upstream.transport.written == writes


# Odd answers


@pytest.mark.parametrize(
    "data",
    [
        b"<html>502</html>\r\n\r\n",
        b"\x00\xff\x15",
        b"HTTP/1.1 2000 OK\r\n\r\n",
        b"HTTP/1.1 600 Odd\r\ncontent-length: 0\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 200 OK\r\nbad header\r\n\r\n",
    ],
)
async def test_what_is_no_http_is_the_end_of_the_connection(data):
    upstream = Upstream()
    upstream.feed(data)
    with pytest.raises(UpstreamError, match="not HTTP") as caught:
        await whole(upstream)
    assert not isinstance(caught.value, WorkerRefused)
    assert upstream.transport.is_aborted and not upstream.connection.is_reusable
    assert repr(upstream.connection) == "<Connection closed, 0 answers>"


class KeepingSink(Sink):
    """Keeps what it is given by an answer, from the beginning on."""

    def __init__(self, upstream: Upstream, answer: Answer | None = None) -> None:
        self.seen: list[bytes] = []
        self.chunks: list[bytes] = []
        self.errors: list[GatewayError | None] = []
        self._answer = answer or upstream.answer
        upstream.connection.pipe(self._answer, self)

    def take(self, data: bytes, chunk: bytes) -> None:
        self.seen.append(data)
        self.chunks.append(chunk)

    def end(self) -> None:
        self.seen.append(b"end")
        self.errors.append(self._answer.error)


PIECES = st.sampled_from(
    [HEAD, CHUNKED_HEAD, b"hello", b"5\r\nhello\r\n", b"0\r\n\r\n", b"HTTP/1.1 100 Continue\r\n\r\n", b"\r\n"]
)


@given(st.lists(PIECES | st.binary(max_size=30), max_size=8))
async def test_whatever_a_worker_sends_its_answer_ends_once_and_never_in_an_exception(reads):
    upstream = Upstream()
    sink = KeepingSink(upstream)
    for data in reads:
        if not upstream.transport.is_aborted:
            upstream.feed(data)
    was_whole = upstream.connection.is_reusable
    upstream.connection.connection_lost(None)
    assert len(sink.errors) == 1 and upstream.answer.ended
    assert not was_whole or upstream.answer.error is None


@pytest.mark.parametrize("start", [b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 100 Continue\r\n\r\n" * 8 + b"HTTP/1.1 200 OK\r\n"])
async def test_headers_without_end_are_cut_off(start):
    upstream = Upstream()
    upstream.feed(start)
    for _ in range(MAX_HEAD_BYTES // 1000 + 1):
        upstream.feed(b"x-more: " + b"x" * 990 + b"\r\n")
    assert upstream.answer.ended
    assert "headers are too large" in upstream.error().message
    assert upstream.transport.is_aborted


async def test_informational_answers_without_end_are_cut_off():
    upstream = Upstream()
    for _ in range(MAX_HEAD_BYTES // 1000 + 1):
        upstream.feed(b"HTTP/1.1 102 Processing\r\nx: " + b"x" * 990 + b"\r\n\r\n")
    assert "headers are too large" in upstream.error().message


async def test_trailers_without_end_are_cut_off():
    upstream = Upstream()
    upstream.feed(CHUNKED_HEAD + b"5\r\nhello\r\n0\r\nx: ")
    for _ in range(MAX_BARE_BYTES // 65_536 + 1):
        upstream.feed(b"x" * 65_536)
    assert upstream.transport.is_aborted
    with pytest.raises(UpstreamError, match="headers are too large"):
        await upstream.answer.read(1000)


async def test_a_long_body_is_no_long_head():
    upstream = Upstream()
    upstream.feed(CHUNKED_HEAD)
    for _ in range(100):  # a worker that writes the frame of a chunk and its data apart
        upstream.feed(b"400\r\n", b"x" * 1024, b"\r\n")
    upstream.feed(b"0\r\n\r\n")
    assert (await whole(upstream, 200_000))[1] == b"x" * 102_400


async def test_a_second_answer_in_the_same_read_is_none_of_ours():
    upstream = Upstream()
    upstream.feed(WHOLE + b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nforged")
    with pytest.raises(UpstreamError, match="not HTTP"):
        await whole(upstream)
    assert upstream.transport.is_aborted


@pytest.mark.parametrize("more", [b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nforged", b"more than was announced"])
async def test_bytes_after_the_end_close_the_connection_and_leave_the_answer_alone(more):
    upstream = Upstream()
    upstream.feed(WHOLE)
    upstream.feed(more)  # before anybody has looked at the answer
    assert upstream.transport.is_aborted
    assert await whole(upstream) == (200, b"hello")


async def test_a_worker_that_speaks_unasked_is_hung_up_on():
    connection = Connection(asyncio.get_running_loop(), lambda _: None, Outbox())
    transport = Transport()
    connection.connection_made(transport)
    connection.data_received(b"HTTP/1.1 408 Request Timeout\r\n\r\n")
    assert transport.is_aborted


# Lost connections


@pytest.mark.parametrize(
    ("reads", "error"),
    [
        ([], WorkerRefused),
        ([b"HTTP/1.1 20"], UpstreamError),
        ([b"HTTP/1.1 100 Continue\r\n\r\n"], UpstreamError),
        ([HEAD], UpstreamError),
        ([HEAD + b"hel"], UpstreamError),
        ([CHUNKED_HEAD + b"5\r\nhello\r\n"], UpstreamError),
        ([b"HTTP/1.1 200 OK\r\n\r\n{}"], UpstreamError),  # its end is the connection's: it may have been cut
    ],
)
async def test_only_a_worker_that_said_nothing_has_refused(reads, error):
    upstream = Upstream()
    upstream.feed(*reads)
    upstream.connection.connection_lost(None)
    with pytest.raises(error) as caught:
        await whole(upstream)
    assert type(caught.value) is error
    assert upstream.lost == [upstream.connection]
    assert upstream.connection.is_closed and not upstream.connection.is_reusable


async def test_a_reader_that_waits_for_the_head_is_told_of_the_loss():
    upstream = Upstream()
    waiting = asyncio.create_task(upstream.answer.has_head())
    await asyncio.sleep(0)
    upstream.connection.connection_lost(ConnectionResetError())
    with pytest.raises(WorkerRefused, match="before it answered"):
        await waiting


async def test_what_came_before_the_loss_is_given_first():
    upstream = Upstream()
    upstream.feed(CHUNKED_HEAD + b"5\r\nhello\r\n")
    upstream.connection.connection_lost(None)
    assert await upstream.answer.some() == b"hello"
    with pytest.raises(UpstreamError, match="in the middle"):
        await upstream.answer.some()


async def test_a_whole_answer_outlives_its_connection():
    upstream = Upstream()
    upstream.feed(WHOLE)
    upstream.connection.connection_lost(None)
    assert await whole(upstream) == (200, b"hello")


async def test_the_first_error_stands():
    upstream = Upstream()
    upstream.answer.end(WorkerTimeout("too slow"))
    upstream.connection.connection_lost(None)
    with pytest.raises(WorkerTimeout):
        await upstream.answer.has_head()


async def test_a_lost_connection_is_paused_resumed_and_aborted_in_vain():
    upstream = Upstream()
    upstream.connection.connection_lost(None)
    upstream.connection.pause()
    upstream.connection.resume()
    upstream.connection.abort()
    assert not upstream.transport.is_aborted and not upstream.transport.is_reading_paused


# Bounds and pipes


@pytest.mark.parametrize(("limit_bytes", "fits"), [(4, False), (5, True)])
@pytest.mark.parametrize("reads", [[WHOLE], [HEAD + b"hel", b"lo"]])
async def test_a_body_is_held_up_to_its_limit(limit_bytes, fits, reads):
    upstream = Upstream()
    upstream.feed(*reads)
    if fits:
        assert await upstream.answer.read(limit_bytes) == b"hello"
    else:
        with pytest.raises(UpstreamError, match="larger than 4 bytes"):
            await upstream.answer.read(limit_bytes)


async def test_a_body_that_outgrows_its_limit_is_not_waited_for():
    upstream = Upstream()
    reading = asyncio.create_task(upstream.answer.read(1000))
    await asyncio.sleep(0)
    upstream.feed(CHUNKED_HEAD + b"3e9\r\n" + b"x" * 1001)
    with pytest.raises(UpstreamError, match="larger than 1000 bytes"):
        await asyncio.wait_for(reading, PATIENCE_S)


async def test_a_pipe_gets_what_was_gathered_and_then_each_read_at_once():
    upstream = Upstream()
    upstream.feed(CHUNKED_HEAD + b"1\r\na\r\n")
    seen = KeepingSink(upstream).seen
    assert seen == [b"a"]
    upstream.feed(b"1\r\nb\r\n1\r\nc\r\n", b"1\r\nd\r\n0\r\n\r\n")
    assert seen == [b"a", b"bc", b"d", b"end"]

    upstream.send()
    upstream.feed(WHOLE)  # the next answer is gathered again
    assert await whole(upstream) == (200, b"hello")
    assert seen == [b"a", b"bc", b"d", b"end"]


async def test_the_pipe_of_an_answer_that_has_ended_ends_at_once():
    upstream = Upstream()
    upstream.feed(WHOLE)
    answer = upstream.answer
    upstream.send()  # its connection has another one by now
    seen = KeepingSink(upstream, answer).seen
    upstream.feed(WHOLE)
    assert seen == [b"hello", b"end"]


async def test_a_pipe_is_told_of_the_loss():
    upstream = Upstream()
    upstream.feed(CHUNKED_HEAD)
    sink = KeepingSink(upstream)
    upstream.connection.connection_lost(None)
    assert [type(error) for error in sink.errors] == [UpstreamError]


def framed(body: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(body), body)


@pytest.mark.parametrize("length", [1, 9, 10, 15, 16, 250, 255, 256, 2042, 2043, 2044, 5000])
async def test_a_read_that_is_one_whole_chunk_is_handed_on_with_its_frame(length: int):
    upstream = Upstream()
    upstream.feed(CHUNKED_HEAD)
    sink = KeepingSink(upstream)
    bodies = [bytes([letter]) * length for letter in b"abc"]
    for body in bodies:
        upstream.feed(framed(body))
    assert sink.seen == bodies and sink.chunks == [framed(body) for body in bodies]
    upstream.feed(b"0\r\n\r\n")
    assert sink.seen[-1] == b"end" and upstream.connection.is_reusable

    upstream.send()  # and the parser is where it should be
    upstream.feed(WHOLE)
    assert await whole(upstream) == (200, b"hello")


@pytest.mark.parametrize(
    ("reads", "body"),
    [
        ((b"3\r\nabc\r\n3\r\ndef\r\n",), b"abcdef"),
        ((b"3\r\nabc", b"\r\n"), b"abc"),
        ((b"3\r\na", b"bc\r\n"), b"abc"),
        ((b"1", b"0\r\nabcdefghijklmnop\r\n"), b"abcdefghijklmnop"),
        ((b"3;x=1\r\nabc\r\n",), b"abc"),
        ((b"03\r\nabc\r\n",), b"abc"),
        ((b"A\r\nabcdefghij\r\n",), b"abcdefghij"),
        ((b"e\r\nab\r\n", b"1\r\nx\r\n1234\r\n"), b"ab\r\n1\r\nx\r\n1234"),  # what looks like a chunk in a chunk
    ],
)
async def test_reads_that_are_not_one_chunk_of_the_usual_form_are_parsed(reads: tuple[bytes, ...], body: bytes):
    upstream = Upstream()
    upstream.feed(CHUNKED_HEAD)
    sink = KeepingSink(upstream)
    for plain in (b"first", b"second"):  # from here on chunks pass the parser by
        upstream.feed(framed(plain))
    upstream.feed(*reads)
    assert b"".join(sink.seen) == b"firstsecond" + body
    assert b"".join(sink.chunks) == framed(b"first") + framed(b"second")
    upstream.feed(framed(b"last"))
    assert (sink.seen[-1], sink.chunks[-1]) == (b"last", framed(b"last"))
    upstream.feed(b"0\r\n\r\n")
    assert sink.seen[-1] == b"end" and upstream.connection.is_reusable


async def test_a_body_of_known_length_has_no_chunks_whatever_it_looks_like():
    upstream = Upstream()
    upstream.feed(b"HTTP/1.1 200 OK\r\ncontent-length: 24\r\n\r\n")
    sink = KeepingSink(upstream)
    upstream.feed(*[framed(b"abc")] * 3)
    assert sink.seen == [framed(b"abc")] * 3 + [b"end"] and sink.chunks == [b""] * 3


@given(st.lists(st.binary(min_size=1, max_size=40), max_size=6), st.lists(st.integers(1, 60), max_size=20))
async def test_however_chunks_are_cut_into_reads_the_body_is_the_same(bodies: list[bytes], cuts: list[int]):
    upstream = Upstream()
    upstream.feed(CHUNKED_HEAD)
    sink = KeepingSink(upstream)
    data = b"".join(framed(body) for body in bodies) + b"0\r\n\r\n"
    for cut in cuts:
        if len(data) > cut:
            upstream.feed(data[:cut])
            data = data[cut:]
    upstream.feed(data)
    assert b"".join(sink.seen) == b"".join(bodies) + b"end" and sink.errors == [None]


async def test_a_connection_that_is_lost_leaves_no_work_for_the_collector():
    upstream = Upstream()
    upstream.feed(CHUNKED_HEAD)
    sink = KeepingSink(upstream)
    gone = [weakref.ref(upstream.connection), weakref.ref(upstream.answer), weakref.ref(sink)]
    gc.disable()
    try:
        upstream.connection.connection_lost(None)
        upstream.lost.clear()
        del upstream, sink
        assert [ref() for ref in gone] == [None] * 3
    finally:
        gc.enable()


async def test_pause_and_resume_reach_the_socket():
    upstream = Upstream()
    upstream.connection.pause()
    assert upstream.transport.is_reading_paused
    upstream.connection.resume()
    assert not upstream.transport.is_reading_paused
