"""Whether limits hold over several gateways: real `sluice serve` processes on one Redis, in front of a simulated fleet.

    python -m loadtest.limits_study --calls 100000 --clients 64

plain     so many calls against requests per minute: what was admitted is what the bucket in Redis gave, to the call
outage    the same, with Redis killed and started again, empty, in between: for each `fail` how many were admitted too many,
          the longest answer, and what was refused with what
crash     a gateway that holds all places of a tenant is killed with -9: how long until another one may use them

Everything is on loopback and on free ports, and ends with the study.
"""

import argparse
import asyncio
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from loadtest.bench.processes import free_port, last_lines

PATIENCE_S = 60.0
MODEL = "sim"


class Redis:
    """A redis-server with nothing on disk, on a port that stays the same however often it is started."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        binary = shutil.which("redis-server") or shutil.which("valkey-server")
        if binary is None:
            raise SystemExit("limits-study: there is no redis-server here (apt-get install redis-server)")
        self._command = [binary, "--bind", "127.0.0.1", "--port", str(self.port), "--save", "", "--dir", str(folder)]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self._process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait_until(lambda: self.say("PING") == "+PONG")

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def say(self, *words: str) -> str:
        """The last line that it answers; nothing where it is not there."""
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=2) as connection:
                connection.sendall(" ".join(words).encode() + b"\r\n")
                return connection.recv(65_536).decode().strip().splitlines()[-1]
        except OSError:
            return ""

    def bucket(self, key: str) -> tuple[float, float]:
        """Requests left in a tenant's bucket, and when that was, in minutes."""
        left, _, at_ms = self.say("GET", key).split()[:3]
        return float(left), float(at_ms) / 60_000


def wait_until(condition: Any, patience_s: float = PATIENCE_S) -> None:
    ends_at = time.monotonic() + patience_s
    while not condition():
        if time.monotonic() > ends_at:
            raise SystemExit("limits-study: what was waited for did not happen")
        time.sleep(0.02)


@dataclass
class Gateways:
    """Gateways on one Redis and one keys file, with one key of the tenant acme."""

    redis: Redis
    key: str
    ports: list[int]
    processes: list[subprocess.Popen[bytes]]


@contextmanager
def gateways(number: int, limits: dict[str, Any], *, fleet: Sequence[str] = ()) -> Iterator[Gateways]:
    """Redis, a simulated fleet with the arguments `fleet`, and so many gateways; `limits` are those of the tenant acme."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        redis = Redis(folder)
        stack.callback(redis.kill)
        redis.start()
        ready = folder / "fleet.json"
        command = [sys.executable, "-m", "loadtest.simfleet", "-n", "2", "--ready-file", str(ready), *fleet]
        stack.callback(_end, subprocess.Popen(command, stdout=subprocess.DEVNULL))
        wait_until(ready.exists)
        wait_until(lambda: ready.read_text().strip().endswith("}"))
        workers = [worker["url"] for worker in json.loads(ready.read_text())["workers"]]
        ports, processes, logs, key = [], [], [], ""
        for index in range(number):
            config = folder / f"gateway{index}.yaml"
            ports.append(free_port())
            config.write_text(json.dumps(_settings(ports[-1], workers, redis, limits)))  # JSON is YAML
            if not key:
                made = subprocess.run(
                    [*_sluice(), "key", "new", "--config", str(config), "--tenant", "acme"], capture_output=True, check=True
                )
                key = made.stdout.decode().strip()
            logs.append(folder / f"gateway{index}.log")
            log = stack.enter_context(logs[-1].open("wb"))
            process = subprocess.Popen([*_sluice(), "serve", "--config", str(config)], stdout=log, stderr=log)
            stack.callback(_end, process)
            processes.append(process)
        for port in ports:
            wait_until(lambda port=port: _is_ready(port))
        try:
            yield Gateways(redis, key, ports, processes)
        except BaseException:
            for path in logs:  # which go with the folder
                print(f"the end of {path.name}:\n{last_lines(path)}", file=sys.stderr)
            raise


def _sluice() -> list[str]:
    return [sys.executable, "-m", "sluice"]


def _settings(port: int, workers: Sequence[str], redis: Redis, limits: dict[str, Any]) -> dict[str, Any]:
    return {
        "server": {"port": port, "metrics_port": None, "access_log": False},
        "auth": {"keys_file": "keys.yaml"},
        "routes": {MODEL: {"workers": {"static": list(workers)}, "queue": {"max_waiting": 10_000}}},
        "limits": {"store": f"redis://127.0.0.1:{redis.port}/0", "tenants": {"acme": limits}},
        "replicas": {"count": 2},
        "drain_timeout_s": 1,
    }


def _is_ready(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=2) as connection:
            connection.sendall(b"GET /readyz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
            return connection.recv(64).startswith(b"HTTP/1.1 200")
    except OSError:
        return False


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(timeout=10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


@dataclass
class Tally:
    """What became of the calls."""

    statuses: Counter[str] = field(default_factory=Counter)
    slowest_s: float = 0.0
    admitted_at: list[float] = field(default_factory=list)

    @property
    def num_admitted(self) -> int:
        return self.statuses["200"] + self.statuses["200 unchecked"]


async def call(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes) -> tuple[str, bytes]:
    """One call on a connection that is kept: its status, with the error's code where it failed, and the body."""
    writer.write(request)
    head = await reader.readuntil(b"\r\n\r\n")
    length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
    body = await reader.readexactly(length)
    status = head[9:12].decode()
    if status == "200" and b"x-sluice-limits: open" in head:
        return "200 unchecked", body
    return (status if status == "200" else f"{status} {json.loads(body)['error']['code']}"), body


def request_of(key: str, **members: Any) -> bytes:
    asked = {"model": MODEL, "messages": [{"role": "user", "content": "Say hi"}], "max_tokens": 1} | members
    body = json.dumps(asked).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\ncontent-type: application/json\r\n"
    return f"{head}content-length: {len(body)}\r\n\r\n".encode() + body


async def ask_all(made: Gateways, num_calls: int, num_clients: int, tally: Tally) -> None:
    """So many calls from so many clients, spread over the gateways; each client sends its next call at once."""
    left = iter(range(num_calls))
    request = request_of(made.key)

    async def client(port: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for _ in left:
            began = time.monotonic()
            async with asyncio.timeout(PATIENCE_S):
                status, _ = await call(reader, writer, request)
            tally.statuses[status] += 1
            tally.slowest_s = max(tally.slowest_s, time.monotonic() - began)
            if status.startswith("200"):
                tally.admitted_at.append(time.monotonic())
        writer.close()

    await asyncio.gather(*(client(made.ports[n % len(made.ports)]) for n in range(num_clients)))


async def plain(num_calls: int, num_clients: int, rpm: int) -> dict[str, Any]:
    with gateways(2, {"rpm": rpm}, fleet=["--time-warp", "20"]) as made:
        book = "{sluice}:book:tenant:acme"
        await ask_all(made, rpm + rpm // 2, num_clients, Tally())  # until it is empty: from a full one nothing flows over then
        left_before, began = made.redis.bucket(book)
        tally = Tally()
        started = time.monotonic()
        await ask_all(made, num_calls, num_clients, tally)
        left, ended = made.redis.bucket(book)
        allowed = left_before - left + (ended - began) * rpm
        return {
            "calls": num_calls,
            "clients": num_clients,
            "admitted": tally.num_admitted,
            "given by the bucket": round(allowed, 3),
            "seconds": round(time.monotonic() - started, 1),
            "statuses": dict(tally.statuses),
            "slowest_s": round(tally.slowest_s, 3),
        }


async def outage(fail: str, num_calls: int, num_clients: int, rpm: int, *, away_s: float = 1.0) -> dict[str, Any]:
    """What was admitted beyond a full bucket and what flowed into it while the calls ran."""
    with gateways(2, {"rpm": rpm, "fail": fail}, fleet=["--time-warp", "20"]) as made:
        tally = Tally()
        began = time.monotonic()
        asking = asyncio.create_task(ask_all(made, num_calls, num_clients, tally))
        while sum(tally.statuses.values()) < num_calls // 3 and not asking.done():  # noqa: ASYNC110
            await asyncio.sleep(0.02)
        num_before = tally.num_admitted
        made.redis.kill()
        await asyncio.sleep(away_s)
        num_away = tally.num_admitted - num_before
        await asyncio.to_thread(made.redis.start)
        await asking
        seconds = max(tally.admitted_at) - began
        allowed = rpm + rpm * seconds / 60
        return {
            "fail": fail,
            "admitted": tally.num_admitted,
            "admitted while away": num_away,
            "allowed": round(allowed, 1),
            "let pass knowingly": tally.statuses["200 unchecked"],
            "too many besides": round(max(0.0, tally.num_admitted - tally.statuses["200 unchecked"] - allowed), 1),
            "at most": 0 if fail == "closed" else rpm + num_clients,  # a window, and calls whose answer the server took with it
            "statuses": dict(tally.statuses),
            "slowest_s": round(tally.slowest_s, 3),
        }


async def crash(places: int = 4) -> dict[str, Any]:
    with gateways(2, {"concurrency": places}, fleet=["--mean-answer-tokens", "4000"]) as made:
        request = request_of(made.key, max_tokens=4000, stream=True, ignore_eos=False)
        held = []
        for _ in range(places):
            reader, writer = await asyncio.open_connection("127.0.0.1", made.ports[0])
            writer.write(request)
            assert (await reader.readuntil(b"data: ")).startswith(b"HTTP/1.1 200")
            held.append(writer)
        reader, writer = await asyncio.open_connection("127.0.0.1", made.ports[1])
        before, _ = await call(reader, writer, request_of(made.key))
        os.kill(made.processes[0].pid, signal.SIGKILL)
        died_at = time.monotonic()
        status = before
        while status != "200" and time.monotonic() - died_at < PATIENCE_S:
            await asyncio.sleep(0.25)
            status, _ = await call(reader, writer, request_of(made.key))
        freed_s = time.monotonic() - died_at
        for one in (*held, writer):
            one.close()
        return {"before": before, "after": status, "freed_s": round(freed_s, 1)}


async def study(args: argparse.Namespace) -> list[dict[str, Any]]:
    found = [{"study": "plain"} | await plain(args.calls, args.clients, args.rpm)]
    print(json.dumps(found[-1]), flush=True)
    for fail in ("open", "local", "closed"):
        found.append({"study": "outage"} | await outage(fail, args.outage_calls, args.clients, args.outage_rpm))
        print(json.dumps(found[-1]), flush=True)
    found.append({"study": "crash"} | await crash())
    print(json.dumps(found[-1]), flush=True)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m loadtest.limits_study", description=__doc__.partition("\n")[0])
    parser.add_argument("--calls", type=int, default=100_000)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--rpm", type=int, default=6_000)
    parser.add_argument("--outage-calls", type=int, default=20_000)
    parser.add_argument("--outage-rpm", type=int, default=3_000)
    found = asyncio.run(study(parser.parse_args()))
    is_good = (
        abs(found[0]["admitted"] - found[0]["given by the bucket"]) < 0.01
        and "200 unchecked" not in found[0]["statuses"]
        and all(one["too many besides"] <= one["at most"] for one in found[1:4])
        and all(not any(status.startswith("401") for status in one["statuses"]) for one in found[:4])
        and found[4]["after"] == "200"
        and found[4]["freed_s"] <= 31
    )
    print("limits-study:", "as promised" if is_good else "NOT as promised", file=sys.stderr)
    return 0 if is_good else 1


if __name__ == "__main__":
    sys.exit(main())
