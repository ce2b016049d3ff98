"""A vLLM 0.32.0 worker without an engine: it answers as the real one does, until a test gives it a script.

    async with ScriptedWorker() as worker:
        worker.on("/v1/chat/completions", scripts.reset_before_any_byte(), scripts.chat_stream())

Scripts of a path are used in turn and the last one stays; `None` stands for the default. What it answers by default is
in `vllm_default`; the ready-made scripts are in `scripts`.
"""

import ssl
from collections import deque
from collections.abc import Callable

from tests.support import scripts, vllm_shapes
from tests.support.raw_server import Connection, RawServer, Request, Script
from tests.support.vllm_default import DefaultReplies

GUARDED_PREFIXES = ("/v1", "/v2", "/inference", "/cohere")  # vLLM's key guards these and nothing else


class ScriptedWorker(RawServer):
    """A fake worker on a free loopback port; its records and waits are those of `RawServer`.

    `model` and `max_model_len` are what it serves; `api_key` is vLLM's --api-key; `tls` makes it HTTPS. `vision`,
    `tools`, `reasoning` and `responses_store` are what the model and the flags of the server allow.
    `on_reuse` makes the script for a kept-alive connection that is used again, as in `worker.on_reuse =
    scripts.reset_before_any_byte`: the race that a worker plays which retires idle connections. None: it serves.
    """

    def __init__(
        self,
        *,
        model: str = "smollm2",
        max_model_len: int = 8192,
        api_key: str | None = None,
        tls: ssl.SSLContext | None = None,
        vision: bool = False,
        tools: bool = True,
        reasoning: bool = False,
        responses_store: bool = False,
    ) -> None:
        super().__init__(tls=tls)
        self.model = model
        self.api_key = api_key
        self.defaults = DefaultReplies(
            model=model,
            max_model_len=max_model_len,
            vision=vision,
            tools=tools,
            reasoning=reasoning,
            responses_store=responses_store,
            num_running=lambda: self.num_running,
        )
        self.on_reuse: Callable[[], Script] | None = None
        self._scripts: dict[str, deque[Script | None]] = {}

    def on(self, path: str, *scripts_in_turn: Script | None) -> None:
        """From now on `path` runs these, one a request; the last one stays. `None` is the default."""
        assert scripts_in_turn, "say which scripts"
        self._scripts[path] = deque(scripts_in_turn)

    def forget(self) -> None:
        """Back to the defaults, with empty records: one worker may serve many tests. Open connections stay."""
        self.forget_scripts()
        self.requests.clear()
        self.errors.clear()
        self.num_aborted = 0
        self.num_connections_made = len(self.connections)

    def forget_scripts(self) -> None:
        """Back to the defaults; the records stay."""
        self._scripts.clear()
        self.on_reuse = None

    def calls(self, path: str | None = None) -> list[Request]:
        """The requests so far without the gateway's own probes; only those to `path`, if given."""
        probes = ("/health", "/v1/models", "/metrics", "/metrics/", "/version", "/load", "/is_sleeping", "/is_paused")
        return [r for r in self.requests if (r.path == path if path else r.path not in probes)]

    async def wait_calls(self, num: int, path: str | None = None) -> Request:
        """Until `num` calls came (probes do not count); the last of them."""
        await self.until(lambda: len(self.calls(path)) >= num)
        return self.calls(path)[num - 1]

    def script_for(self, request: Request) -> Script:
        if self.on_reuse is not None and request.nth_on_connection > 1:
            return self.on_reuse()
        guarded = request.path.startswith(GUARDED_PREFIXES)
        if self.api_key is not None and guarded and request.header("authorization") != f"Bearer {self.api_key}":
            return scripts.string_error(401)
        waiting = self._scripts.get(request.path)
        if not waiting:
            return self.defaults.script_for(request)
        script = waiting.popleft() if len(waiting) > 1 else waiting[0]
        return script or self.defaults.script_for(request)


__all__ = ["Connection", "Request", "Script", "ScriptedWorker", "scripts", "vllm_shapes"]
