"""Messages of one turn of the event loop, which go out together."""

import asyncio

from sluice.outbox import Outbox


class Transport:
    """Notes what is written to it, in one list for all."""

    def __init__(self, name: str, written: list[tuple[str, bytes]]) -> None:
        self.name = name
        self.closes = False
        self._written = written

    def is_closing(self) -> bool:
        return self.closes

    def write(self, data: bytes) -> None:
        self._written.append((self.name, data))


def outbox() -> tuple[Outbox, list[tuple[str, bytes]], Transport, Transport]:
    written: list[tuple[str, bytes]] = []
    return Outbox(), written, Transport("a", written), Transport("b", written)


async def test_what_is_written_in_one_turn_goes_out_at_its_end_in_order():
    out, written, a, b = outbox()
    for transport, data in ((a, b"1"), (b, b"2"), (a, b"3")):
        out.write(transport, data)
    assert written == []
    await asyncio.sleep(0)
    assert written == [("a", b"1"), ("b", b"2"), ("a", b"3")]


async def test_the_next_turn_has_an_end_of_its_own():
    out, written, a, _ = outbox()
    out.write(a, b"1")
    await asyncio.sleep(0)
    out.write(a, b"2")
    assert written == [("a", b"1")]
    await asyncio.sleep(0)
    assert written == [("a", b"1"), ("a", b"2")]


async def test_what_waits_can_be_sent_at_once_and_is_sent_once():
    out, written, a, b = outbox()
    out.write(a, b"1")
    out.flush()
    assert written == [("a", b"1")]
    out.write(b, b"2")
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert written == [("a", b"1"), ("b", b"2")]


async def test_a_transport_that_closes_gets_nothing_and_keeps_nobody_from_it():
    out, written, a, b = outbox()
    out.write(a, b"1")
    out.write(b, b"2")
    a.closes = True
    await asyncio.sleep(0)
    assert written == [("b", b"2")]
