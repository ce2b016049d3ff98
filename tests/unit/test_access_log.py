"""The access log never stalls anybody: a reader that is slow or gone loses lines, and they are counted."""

import asyncio
import fcntl
import os
from collections.abc import Iterator
from dataclasses import dataclass

import orjson
import pytest

from sluice.access_log import MAX_WAITING_BATCHES, AccessLog

PIPE_BYTES = 4096


@dataclass
class Pipe:
    reader: int
    writer: int

    def read_all(self) -> list[dict[str, int]]:
        """Everything until the writing end is closed."""
        os.close(self.writer)
        self.writer = -1
        out = b""
        while data := os.read(self.reader, 65_536):
            out += data
        return [orjson.loads(line) for line in out.splitlines()]


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    ends = Pipe(*os.pipe())
    fcntl.fcntl(ends.writer, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
    yield ends
    for fd in (ends.reader, ends.writer):
        if fd >= 0:
            os.close(fd)


class Dropped:
    def __init__(self) -> None:
        self.num_lines = 0

    def __call__(self, count: int) -> None:
        self.num_lines += count


async def test_every_line_is_written_in_its_order_by_the_end_of_the_block(pipe: Pipe):
    dropped = Dropped()
    with AccessLog(pipe.writer, dropped) as log:
        for number in range(200):
            log.write({"number": number})
    assert pipe.read_all() == [{"number": number} for number in range(200)]
    assert dropped.num_lines == 0


async def test_lines_are_written_while_it_runs_without_further_ado(pipe: Pipe):
    with AccessLog(pipe.writer, Dropped()) as log:
        log.write({"number": 1})
        line = await asyncio.to_thread(os.read, pipe.reader, 100)
        log.write({"number": 2})
        assert line == b'{"number":1}\n'
        assert await asyncio.to_thread(os.read, pipe.reader, 100) == b'{"number":2}\n'


async def test_nothing_is_written_where_nothing_was_logged(pipe: Pipe):
    with AccessLog(pipe.writer, Dropped()):
        pass
    assert pipe.read_all() == []


async def test_a_reader_that_blocks_costs_lines_and_not_time_and_the_lines_are_counted(pipe: Pipe):
    dropped = Dropped()
    log = AccessLog(pipe.writer, dropped)
    line = {"filler": "x" * PIPE_BYTES * 2}
    with log:
        await blocked(log, line)
        for _ in range(MAX_WAITING_BATCHES + 19):
            log.write(line)
            log._flush()
        assert dropped.num_lines == 19
        assert await asyncio.to_thread(read_lines, pipe, MAX_WAITING_BATCHES + 1) == MAX_WAITING_BATCHES + 1


async def blocked(log: AccessLog, line: dict[str, str]) -> None:
    """A first line, which is half in the pipe."""
    log.write(line)
    log._flush()
    while not log._batches.empty():  # noqa: ASYNC110  the thread has no event to wait for
        await asyncio.sleep(0)


def read_lines(pipe: Pipe, number: int) -> int:
    seen = 0
    while seen < number:
        seen += os.read(pipe.reader, 65_536).count(b"\n")
    return seen


async def test_an_end_with_a_reader_that_blocks_is_not_held_up_for_long(pipe: Pipe):
    started_at = asyncio.get_running_loop().time()
    line = {"filler": "x" * PIPE_BYTES * 2}
    with AccessLog(pipe.writer, Dropped()) as log:
        await blocked(log, line)
        for _ in range(MAX_WAITING_BATCHES):
            log.write(line)
            log._flush()
    assert asyncio.get_running_loop().time() - started_at < 5
    read_lines(pipe, MAX_WAITING_BATCHES)  # let the thread go


async def test_lines_for_a_reader_that_has_left_are_counted_also_those_that_waited():
    reader, writer = os.pipe()
    os.close(reader)
    dropped = Dropped()
    with AccessLog(writer, dropped) as log:
        for number in range(3):
            log.write({"number": number})
            log._flush()
    os.close(writer)
    assert dropped.num_lines == 3


async def test_a_descriptor_that_does_not_block_is_waited_for(pipe: Pipe):
    """Whoever shares our terminal or pipe may have set it so."""
    os.set_blocking(pipe.writer, False)
    dropped = Dropped()
    with AccessLog(pipe.writer, dropped) as log:
        for _ in range(5):
            log.write({"filler": "x" * PIPE_BYTES * 2})
            log._flush()
        assert await asyncio.to_thread(read_lines, pipe, 5) == 5
    assert dropped.num_lines == 0
