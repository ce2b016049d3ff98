"""What one turn of the event loop writes to the same program, gathered: whoever reads it is woken once and not for each.

To wake a reader that sleeps costs more than all that the gateway does for a request, so what the callbacks of one turn write
goes out together when they have run. Where little is going on that is at once.
"""

from __future__ import annotations

import asyncio


class Outbox:
    """For messages that are whole: a request, an answer. What is written to a transport by another way must not come between:
    `flush` first, also before the transport is closed. What a transport that closes has not got is lost, as ever.
    """

    __slots__ = ("_is_open", "_waiting")

    def __init__(self) -> None:
        self._waiting: list[tuple[asyncio.Transport, tuple[bytes, ...]]] = []
        self._is_open = False  # something was written in this turn

    def write(self, transport: asyncio.Transport, *parts: bytes) -> None:
        """In the order of the calls, at the end of this turn. Only from within the event loop."""
        self._waiting.append((transport, parts))
        if not self._is_open:
            self._is_open = True
            asyncio.get_running_loop().call_soon(self._end_turn)

    def flush(self) -> None:
        """What waits goes out now."""
        if self._waiting:
            waiting, self._waiting = self._waiting, []
            for transport, parts in waiting:
                if transport.is_closing():
                    continue
                if len(parts) == 1:
                    transport.write(parts[0])
                else:
                    transport.writelines(parts)

    def _end_turn(self) -> None:
        self._is_open = False
        self.flush()
