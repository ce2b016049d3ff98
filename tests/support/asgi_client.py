"""An ASGI client that is played by hand: it reads piece by piece, may leave at any time, and may refuse to read on.

    async with AsgiCall(app, "POST", "/v1/chat/completions", json={...}) as call:
        await call.read_until(b"data: ")
        await call.disconnect()

TestClient and httpx.ASGITransport join the body and never leave: both hide what a gateway must get right.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, MutableMapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, Self

import orjson

PATIENCE_S = 60.0

Message = MutableMapping[str, Any]
App = Callable[[Any, Callable[[], Awaitable[Any]], Callable[[Any], Awaitable[None]]], Awaitable[None]]


class AsgiCall:
    """One request to an ASGI application, which runs in a task of its own.

    The body is given whole, or in `pieces`; with `body_ends=False` the request never ends. After `disconnect()` the
    application hears `http.disconnect` and its sends go nowhere, as under uvicorn. `pause()` makes its sends wait, as
    a client that does not read; `resume()` lets them go.
    """

    def __init__(
        self,
        app: App,
        method: str,
        path: str,
        *,
        headers: Sequence[tuple[str, str]] = (),
        json: Any = None,
        body: bytes = b"",
        pieces: Iterable[bytes] | None = None,
        body_ends: bool = True,
        query: str = "",
        client: tuple[str, int] = ("127.0.0.1", 54321),
        state: dict[str, Any] | None = None,
    ) -> None:
        data = body if json is None else orjson.dumps(json)
        own = [] if json is None else [("content-type", "application/json"), ("content-length", str(len(data)))]
        sent = [*own, *headers]
        self._app = app
        self._scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "root_path": "",
            "query_string": query.encode(),
            "headers": [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in sent],
            "client": client,
            "server": ("127.0.0.1", 8000),
            "state": {} if state is None else state,
        }
        self._pieces = [data] if pieces is None else list(pieces)
        self._body_ends = body_ends
        self._task: asyncio.Task[None] | None = None
        self._gone = asyncio.Event()
        self._reading = asyncio.Event()
        self._reading.set()
        self._changed = asyncio.Event()

        # What came back
        self.status: int | None = None
        self.headers: list[tuple[str, str]] = []
        self.body = b""
        self.num_sends = 0  # body messages, the empty ones too
        self.is_complete = False

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._run())
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.disconnect()

    async def _run(self) -> None:
        try:
            await self._app(self._scope, self._receive, self._send)
        finally:
            self._changed.set()

    async def _receive(self) -> Message:
        if self._pieces and not self._gone.is_set():
            piece = self._pieces.pop(0)
            more = bool(self._pieces) or not self._body_ends
            return {"type": "http.request", "body": piece, "more_body": more}
        await self._gone.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Message) -> None:
        await self._reading.wait()
        if self._gone.is_set():
            return
        if message["type"] == "http.response.start":
            assert self.status is None, "the response was started twice"
            self.status = message["status"]
            self.headers = [(k.decode("latin-1"), v.decode("latin-1")) for k, v in message["headers"]]
        elif message["type"] == "http.response.body":
            assert self.status is not None, "a body before the status"
            assert not self.is_complete, "a body after its end"
            self.body += message.get("body", b"")
            self.num_sends += 1
            self.is_complete = not message.get("more_body", False)
        self._changed.set()

    # What tests do

    async def disconnect(self) -> None:
        """Leave, and wait until the application has noticed and returned. Raises what it raised."""
        self._gone.set()
        self._reading.set()
        if self._task is not None:
            async with asyncio.timeout(PATIENCE_S):
                await self._task

    def leave(self) -> None:
        """Leave without waiting for the application."""
        self._gone.set()
        self._reading.set()

    def pause(self) -> None:
        """Stop reading."""
        self._reading.clear()

    def resume(self) -> None:
        self._reading.set()

    async def started(self) -> int:
        """Until the status has come."""
        await self._until(lambda: self.status is not None)
        assert self.status is not None
        return self.status

    async def read_until(self, marker: bytes, *, times: int = 1) -> bytes:
        """Until `marker` has come so many times; the body so far."""
        await self._until(lambda: self.body.count(marker) >= times)
        return self.body

    async def finished(self) -> bytes:
        """Until the response is complete and the application has returned; the whole body."""
        await self._until(lambda: self._task is not None and self._task.done())
        assert self.is_complete, f"the response never ended: {self!r}"
        return self.body

    def header(self, name: str) -> str | None:
        values = [value for key, value in self.headers if key.lower() == name]
        assert len(values) <= 1, f"{name} occurs {len(values)} times"
        return values[0] if values else None

    def json(self) -> Any:
        return orjson.loads(self.body)

    async def _until(self, condition: Callable[[], bool]) -> None:
        try:
            async with asyncio.timeout(PATIENCE_S):
                while not condition():
                    self._changed.clear()
                    if self._task is not None and self._task.done():
                        self._task.result()  # raises what the application raised
                        raise AssertionError(f"the application returned before that: {self!r}")
                    await self._changed.wait()
        except TimeoutError:
            raise AssertionError(f"not within {PATIENCE_S} s: {self!r}") from None

    def __repr__(self) -> str:
        method, path = self._scope["method"], self._scope["path"]
        state = "complete" if self.is_complete else "open"
        return f"<AsgiCall {method} {path} [{self.status}, {len(self.body)} bytes, {state}] {self.body[-200:]!r}>"


async def asgi_request(app: App, method: str, path: str, **options: Any) -> AsgiCall:
    """A call that is let run to its end."""
    async with AsgiCall(app, method, path, **options) as call:
        await call.finished()
    return call


@asynccontextmanager
async def lifespan(app: App) -> AsyncIterator[dict[str, Any]]:
    """Start and stop an application as a server does; yields the state that its requests share."""
    state: dict[str, Any] = {}
    inbox: asyncio.Queue[Message] = asyncio.Queue()
    outbox: asyncio.Queue[Message] = asyncio.Queue()
    task = asyncio.ensure_future(app({"type": "lifespan", "asgi": {"version": "3.0"}, "state": state}, inbox.get, outbox.put))

    async def step(name: str) -> None:
        await inbox.put({"type": f"lifespan.{name}"})
        said = asyncio.ensure_future(outbox.get())
        await asyncio.wait({task, said}, timeout=PATIENCE_S, return_when=asyncio.FIRST_COMPLETED)
        if not said.done():
            said.cancel()
            if task.done():
                task.result()
            raise AssertionError(f"the application did not answer to lifespan.{name}")
        message = said.result()
        assert message["type"] == f"lifespan.{name}.complete", message

    await step("startup")
    try:
        yield state
    finally:
        await step("shutdown")
        await task
