"""The process that reads files: what it gives back, and that no file can stall, fill or break anything but itself."""

import asyncio
import io
import os
import signal
from pathlib import Path

import orjson
import pytest

from sluice.ingest.base import Limits, Unreadable
from sluice.ingest.worker import PART, FileReader, Job, serve
from tests.unit.ingest.documents import pdf, pdf_bomb

MEMORY = 400_000_000


def job(tmp_path: Path, data: bytes, filename: str = "a.md") -> Job:
    path = tmp_path / "upload"
    path.write_bytes(data)
    return Job(str(path), filename, 400, 60)


async def test_a_file_comes_back_as_passages_with_their_words_one_after_the_other(tmp_path: Path):
    async with FileReader(Limits(memory_bytes=MEMORY)) as reader:
        first = await reader.read(job(tmp_path, "# Ports\n\nThe gateway listens. 网关".encode()))
        pid = reader.child_pid
        second = await reader.read(job(tmp_path, pdf("The gateway listens"), "a.pdf"))

        assert reader.child_pid == pid
    [piece] = first.pieces
    assert piece.title == "Ports" and piece.words.split()[:2] == ["port", "the"] and "网关" in piece.words
    assert first.num_bytes == len("# Ports\n\nThe gateway listens. 网关".encode())
    assert [one.text for one in second.pieces] == ["The gateway listens"]
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


async def test_what_cannot_be_read_is_said_and_the_process_goes_on(tmp_path: Path):
    async with FileReader(Limits(memory_bytes=MEMORY)) as reader:
        with pytest.raises(Unreadable) as caught:
            await reader.read(job(tmp_path, b"\x7fELF\0", "a.txt"))
        pid = reader.child_pid
        assert (await reader.read(job(tmp_path, b"good"))).pieces[0].text == "good"
        assert reader.child_pid == pid
    assert caught.value.code == "unsupported_file"


async def test_a_file_that_needs_too_much_memory_fails_alone(tmp_path: Path):
    async with FileReader(Limits(memory_bytes=MEMORY)) as reader:
        with pytest.raises(Unreadable) as caught:
            await reader.read(job(tmp_path, pdf_bomb(500_000_000), "a.pdf"))

        assert (await reader.read(job(tmp_path, b"good"))).pieces[0].text == "good"
    assert caught.value.code == "invalid_file"


async def test_a_file_that_takes_too_long_is_given_up(tmp_path: Path):
    fifo = tmp_path / "endless"
    os.mkfifo(fifo)
    async with FileReader(Limits(memory_bytes=MEMORY, time_s=0.8)) as reader:
        with pytest.raises(Unreadable, match="within 0.8 s"):
            await reader.read(Job(str(fifo), "a.md", 400, 60))
        assert reader.child_pid is None


async def test_a_child_that_was_killed_is_replaced_and_the_file_read_again(tmp_path: Path):
    async with FileReader(Limits(memory_bytes=MEMORY)) as reader:
        await reader.read(job(tmp_path, b"good"))
        assert reader.child_pid is not None
        os.kill(reader.child_pid, signal.SIGKILL)

        assert (await reader.read(job(tmp_path, b"again"))).pieces[0].text == "again"


async def test_a_file_that_two_children_die_of_is_unreadable(tmp_path: Path):
    async with FileReader(Limits(memory_bytes=MEMORY)) as reader:
        with pytest.raises(Unreadable, match="memory or time"):
            await reader.read(Job(str(tmp_path / "gone"), "a.md", 400, 60))  # our own mistake: the child ends


async def test_cancelling_a_reading_ends_its_child(tmp_path: Path):
    fifo = tmp_path / "endless"
    os.mkfifo(fifo)
    async with FileReader(Limits(memory_bytes=MEMORY)) as reader:
        reading = asyncio.ensure_future(reader.read(Job(str(fifo), "a.md", 400, 60)))
        writing_end = await asyncio.to_thread(fifo.open, "wb")  # returns once the child reads
        with writing_end:
            reading.cancel()
            with pytest.raises(asyncio.CancelledError):
                await reading
        assert reader.child_pid is None


def test_the_child_answers_line_by_line_and_confines_itself_before_each(tmp_path: Path):
    asked = job(tmp_path, "# A\n\n网关".encode())
    limits = {"text_bytes": 1000, "time_s": 1.0, "memory_bytes": 1, "pages": 1}
    lines = [
        {"path": asked.path, "filename": name, "max_tokens": 400, "overlap_tokens": 60, "limits": limits}
        for name in ("a.md", "b.md")
    ]
    sink, confined = io.BytesIO(), []

    serve(io.BytesIO(b"".join(orjson.dumps(line) + b"\n" for line in lines)), sink, confined.append)

    data, parts = sink.getvalue(), []
    while data:
        size = int.from_bytes(data[:8], "big")
        parts.append(orjson.loads(data[8 : 8 + size]))
        data = data[8 + size :]
    of_each = [{"pieces": [["# A\n\n网关", "A", 0, 7, "a 网关 关 a·2", 4]]}, {"num_bytes": 11}]
    assert confined == [Limits(**limits)] * 2 and parts == of_each * 2


async def test_a_file_of_many_passages_comes_in_parts(tmp_path: Path):
    text = "\n\n".join(f"# Part {number}\n\n" + f"word{number} " * 150 for number in range(3 * PART))
    async with FileReader(Limits(memory_bytes=MEMORY)) as reader:
        found = await reader.read(job(tmp_path, text.encode()))

    assert [one.title for one in found.pieces] == [f"Part {number}" for number in range(3 * PART)]
    assert all(text[one.char_start : one.char_end] == one.text for one in found.pieces)


async def test_a_child_that_sends_more_than_any_file_can_give_is_not_heard_out():
    source = asyncio.StreamReader()
    source.feed_data((1 << 40).to_bytes(8, "big"))

    with pytest.raises(OSError, match="larger than any file's"):
        await FileReader(Limits())._reply(source)
