"""A real redis-server on a free port of loopback, with nothing on disk; it can be killed, stopped and started again."""

import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path
from typing import Self

PATIENCE_S = 60.0


def find_redis() -> str | None:
    return shutil.which("redis-server") or shutil.which("valkey-server")


class RedisServer:
    """Used by `with`. Its port stays the same however often it is started."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        binary = find_redis()
        assert binary is not None, "there is no redis-server here"
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self._command = [binary, "--bind", "127.0.0.1", "--port", str(self.port), "--save", "", "--appendonly", "no"]
        self._command += ["--dir", str(folder), "--loglevel", "warning", *arguments]
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.kill()

    def start(self) -> None:
        self._process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        ends_at = time.monotonic() + PATIENCE_S
        while self.say("PING") != b"+PONG":
            assert time.monotonic() < ends_at and self._process.poll() is None, "redis-server does not start"
            time.sleep(0.02)

    def kill(self) -> None:
        """At once, and all its keys are lost."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def freeze(self) -> None:
        """It takes connections, and answers nothing."""
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGCONT)

    def say(self, *words: str) -> bytes:
        """The first line that it answers to a command; nothing where it is not there."""
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=10) as connection:
                connection.sendall(" ".join(words).encode() + b"\r\n")
                return connection.recv(65_536).split(b"\r\n")[0]
        except OSError:
            return b""
