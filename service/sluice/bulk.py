"""Large request bodies, read in a process of their own: to parse 32 MiB takes longer than a stream may wait.

The gateway hands the pieces of a body through a pipe as they are, and gets back what the request says and where to cut it;
the bytes themselves stay in their pieces and go up from there. One body is read at a time. The child holds nothing between
two bodies and ends with its parent, since its input ends then. A body that it cannot get through in time, or that kills
it, costs that one call; the next call starts a new child.

    parent                                   child
    Read(endpoint, content type, size) + bytes ->
                                          <- Said(model, stream, ...) or the error
    Prepare(rules, model, response id, ..) ->
                                          <- Edited(prepared with its cuts, rewritten) or the error
"""

from __future__ import annotations

import asyncio
import pickle
import signal
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, BinaryIO, Self

from sluice.errors import GatewayError, InternalError, Overloaded
from sluice.types import Endpoint
from sluice.wire.cuts import cut_pieces
from sluice.wire.requests import Prepared, Request, Rules, parse
from sluice.wire.rules import NO_STEERING

PATIENCE_S = 20.0  # for one step of one body
IDLE_S = 60.0
HEAD_BYTES = 8
CHILD = "from sluice.bulk import main; main()"  # not -m: its messages would be of other classes


@dataclass(frozen=True, slots=True)
class Read:
    endpoint: Endpoint
    content_type: str
    num_bytes: int


@dataclass(frozen=True, slots=True)
class Said:
    """What `Request` says of itself before the route is known."""

    model: str
    stream: bool
    previous_response_id: str | None
    store: bool | None
    timeout_ms: int | None


@dataclass(frozen=True, slots=True)
class Prepare:
    rules: Rules
    model: str
    response_id: str | None
    prefix_seed: bytes | None
    retrieves: bool
    steering: dict[str, str | int]


@dataclass(frozen=True, slots=True)
class Edited:
    """The prepared request without its bytes; `rewritten` where the child had to write them anew."""

    prepared: Prepared
    rewritten: bytes | None


class BulkReader:
    """The gateway's side: owns the child process. Used by `async with`, which ends it."""

    def __init__(self, *, patience_s: float = PATIENCE_S, idle_s: float = IDLE_S) -> None:
        self.patience_s = patience_s
        self._idle_s = idle_s
        self._turn = asyncio.Lock()
        # The child, and the timer that ends it when nobody needs it. Only who has the turn changes them.
        self._child: asyncio.subprocess.Process | None = None
        self._idle: asyncio.TimerHandle | None = None
        self._is_asking = False  # a step has begun and its answer was not read
        self._ending: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        if self._idle is not None:
            self._idle.cancel()
        self._stop()
        await asyncio.gather(*self._ending)

    @property
    def child_pid(self) -> int | None:
        return self._child.pid if self._child is not None else None

    def read(self, endpoint: Endpoint, pieces: tuple[bytes, ...], content_type: str) -> BulkRequest:
        """The request in `pieces`, by `async with`, which waits for its turn; raises what `wire.requests.parse` raises."""
        return BulkRequest(self, endpoint, pieces, content_type)

    async def begin(self, read: Read, pieces: tuple[bytes, ...]) -> Said:
        await self._turn.acquire()
        if self._idle is not None:
            self._idle.cancel()
        try:
            if self._child is None or self._child.returncode is not None:
                self._child = await asyncio.create_subprocess_exec(
                    sys.executable, "-c", CHILD, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
                )
            said = await self.ask(read, pieces)
        except BaseException:
            self.end()
            raise
        assert isinstance(said, Said)
        return said

    def end(self) -> None:
        """Give the turn to the next one. A child that was left in the middle of a step is of no use to anybody."""
        if self._is_asking:
            self._stop()
        else:
            self._idle = asyncio.get_running_loop().call_later(self._idle_s, self._stop)
        self._turn.release()

    async def ask(self, message: object, pieces: tuple[bytes, ...] = ()) -> Any:
        """One step; raises the error that is its answer."""
        child = self._child
        assert child is not None and child.stdin is not None and child.stdout is not None
        self._is_asking = True
        try:
            async with asyncio.timeout(self.patience_s):
                child.stdin.write(_framed(message))
                for piece in pieces:
                    child.stdin.write(piece)
                    await child.stdin.drain()
                size = int.from_bytes(await child.stdout.readexactly(HEAD_BYTES), "big")
                answer = pickle.loads(await child.stdout.readexactly(size))
        except TimeoutError as exc:
            raise Overloaded("This large request could not be read in time; try again in a moment.") from exc
        except (OSError, asyncio.IncompleteReadError) as exc:
            raise InternalError from exc
        self._is_asking = False
        if isinstance(answer, GatewayError):
            raise answer
        return answer

    def _stop(self) -> None:
        child, self._child, self._is_asking = self._child, None, False
        if child is not None:
            ending = asyncio.get_running_loop().create_task(_ended(child))
            self._ending.add(ending)
            ending.add_done_callback(self._ending.discard)


async def _ended(child: asyncio.subprocess.Process) -> None:
    """Kill the child and wait until nothing of it is left."""
    if child.returncode is None:
        child.kill()
    await child.communicate()


class BulkRequest:
    """One large request while it has the child's attention: the same members as `wire.requests.Request`."""

    def __init__(self, reader: BulkReader, endpoint: Endpoint, pieces: tuple[bytes, ...], content_type: str) -> None:
        self._reader = reader
        self._read = Read(endpoint, content_type, sum(map(len, pieces)))
        self._pieces = pieces

    async def __aenter__(self) -> Self:
        said = await self._reader.begin(self._read, self._pieces)
        self.model = said.model
        self.stream = said.stream
        self.previous_response_id = said.previous_response_id
        self.store = said.store
        self.timeout_ms = said.timeout_ms
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._reader.end()

    async def prepare(
        self,
        rules: Rules,
        *,
        model: str,
        response_id: str | None = None,
        prefix_seed: bytes | None = None,
        retrieves: bool = False,
        steering: Mapping[str, str | int] = NO_STEERING,
    ) -> tuple[Prepared, tuple[bytes, ...]]:
        """The request for a worker, and its body in pieces."""
        edited = await self._reader.ask(Prepare(rules, model, response_id, prefix_seed, retrieves, dict(steering)))
        assert isinstance(edited, Edited)
        pieces = self._pieces if edited.rewritten is None else (edited.rewritten,)
        return edited.prepared, cut_pieces(pieces, edited.prepared.cuts)


def main() -> None:
    """The child: body after body from standard input, until it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C is for the gateway, whose end is ours
    source, sink = sys.stdin.buffer, sys.stdout.buffer
    request: Request | None = None
    data = b""
    while (message := _next(source)) is not None:
        try:
            if isinstance(message, Read):
                request = None  # whoever asked before went away without preparing
                data = source.read(message.num_bytes)
                request = parse(message.endpoint, data, message.content_type)
                answer: object = Said(
                    request.model, request.stream, request.previous_response_id, request.store, request.timeout_ms
                )
            else:
                assert isinstance(message, Prepare) and request is not None
                answer = _edited(request, data, message)
                request, data = None, b""
        except GatewayError as exc:
            answer, request, data = exc, None, b""
        sink.write(_framed(answer))
        sink.flush()


def _edited(request: Request, data: bytes, wanted: Prepare) -> Edited:
    prepared = request.prepare(
        wanted.rules,
        model=wanted.model,
        response_id=wanted.response_id,
        prefix_seed=wanted.prefix_seed,
        retrieves=wanted.retrieves,
        steering=wanted.steering,
    )
    rewritten = None if prepared.data is data else prepared.data
    return Edited(replace(prepared, data=b""), rewritten)


def _next(source: BinaryIO) -> object | None:
    head = source.read(HEAD_BYTES)
    if len(head) < HEAD_BYTES:
        return None
    message: object = pickle.loads(source.read(int.from_bytes(head, "big")))
    return message


def _framed(message: object) -> bytes:
    data = pickle.dumps(message)
    return len(data).to_bytes(HEAD_BYTES, "big") + data
