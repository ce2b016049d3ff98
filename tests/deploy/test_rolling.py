"""Two gateways behind nginx and haproxy, restarted one after the other under 200 streams: every stream comes to its end.

Each client asks for its next stream when it has had one, so calls begin at every moment of a restart. SLUICE_ROLLS says how
often both gateways are restarted (once).
"""

import asyncio
import json
import os
import re
import signal
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import yaml

from loadtest.bench.processes import free_port
from loadtest.stack import MODEL, Gateway, Workers, fleet, gateway, routes
from tests.deploy.tools import process, tool, until

NUM_STREAMS = 200
NUM_TOKENS = 40
ROLLS = int(os.environ.get("SLUICE_ROLLS", "1"))

NGINX = """
daemon off; pid %(folder)s/nginx.pid; error_log %(folder)s/error.log; worker_processes 1;
events { worker_connections 4096; }
http {
    access_log off;
    client_body_temp_path %(folder)s/body; proxy_temp_path %(folder)s/proxy; fastcgi_temp_path %(folder)s/f;
    uwsgi_temp_path %(folder)s/u; scgi_temp_path %(folder)s/s;
    upstream gateways { %(servers)s }
    server {
        listen 127.0.0.1:%(port)d backlog=1024;
        location / {
            proxy_pass http://gateways;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_buffering off;            # events go on as they come
            proxy_read_timeout 3600s;
            proxy_next_upstream error;      # one that does not answer the door was not asked: ask the other one
        }
    }
}
"""

HAPROXY = """
global
    maxconn 4096
defaults
    mode http
    timeout connect 2s
    timeout check 5s
    timeout client 3600s
    timeout server 3600s
    retries 3
    option redispatch
frontend calls
    bind 127.0.0.1:%(port)d
    default_backend gateways
backend gateways
    balance leastconn
    option httpchk GET /readyz
    %(servers)s
"""


@dataclass
class Tally:
    """What became of the streams."""

    done: int = 0
    failures: list[str] = field(default_factory=list)
    is_over: bool = False


@pytest.fixture
def workers(tmp_path: Path) -> Iterator[Workers]:
    with fleet(tmp_path, "-n", "8") as found:
        yield found


def configuration(proxy: str, folder: Path, port: int, gateways: list[Gateway]) -> tuple[Path, list[str]]:
    addresses = [one.url.removeprefix("http://") for one in gateways]
    path = folder / f"{proxy}.conf"
    if proxy == "nginx":
        servers = " ".join(f"server {address} max_fails=0;" for address in addresses)
        path.write_text(NGINX % {"folder": folder, "port": port, "servers": servers})
        return path, ["-c", str(path), "-e", str(folder / "error.log")]
    lines = [f"server g{number} {address} check inter 500ms fall 8 rise 1" for number, address in enumerate(addresses)]
    path.write_text(HAPROXY % {"port": port, "servers": "\n    ".join(lines)})
    return path, ["-db", "-f", str(path)]


async def one_stream(port: int, key: str) -> str | None:
    """What went wrong with it, if anything did."""
    body = {"model": MODEL, "stream": True, "stream_options": {"include_usage": True}, "max_tokens": NUM_TOKENS}
    body |= {"min_tokens": NUM_TOKENS, "messages": [{"role": "user", "content": "hello"}]}
    sent = json.dumps(body).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\nconnection: close\r\n"
    head += f"content-type: application/json\r\ncontent-length: {len(sent)}\r\n\r\n"
    try:
        got = await asyncio.wait_for(answer(port, head.encode() + sent), 120)
    except (OSError, TimeoutError) as exc:
        return f"{type(exc).__name__}: {exc}"
    if not got.startswith(b"HTTP/1.1 200 "):
        return f"refused: {got[:200]!r}"
    if b"data: [DONE]" not in got:
        return f"dropped: it ends with {got[-200:]!r}"
    text = re.sub(rb"\r\n[0-9a-f]+\r\n", b"", got)  # without the marks of chunks, which may stand anywhere
    tokens = re.search(rb'"completion_tokens":(\d+)', text)
    return None if tokens and int(tokens[1]) == NUM_TOKENS else f"{tokens and tokens[1]!r} tokens: {got[-300:]!r}"


async def answer(port: int, request: bytes) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(request)
        return await reader.read(-1)
    finally:
        writer.close()


async def one_client(port: int, key: str, tally: Tally) -> None:
    while not tally.is_over:
        failure = await one_stream(port, key)
        if failure is None:
            tally.done += 1
        else:
            tally.failures.append(failure)


@pytest.mark.parametrize("proxy", ["nginx", "haproxy"])
def test_a_rolling_restart_drops_no_stream_and_refuses_no_call(proxy: str, workers: Workers, tmp_path: Path) -> None:
    binary = tool(proxy)
    with ExitStack() as stack:
        settings = routes(workers) | {"drain_timeout_s": 120}
        first = stack.enter_context(gateway(tmp_path, settings, name="a"))
        second = stack.enter_context(gateway(tmp_path, settings, name="b", made_keys=first.keys))
        port = free_port()
        path, options = configuration(proxy, tmp_path, port, [first, second])
        stack.enter_context(process(tmp_path / f"{proxy}.log", binary, *options))
        until(lambda: asyncio.run(one_stream(port, first.keys["people"])) is None, f"{path} leads to the gateways")
        tally = asyncio.run(roll(stack, tmp_path, [first, second], port))
    print(f"\n{proxy}: {tally.done} streams whole, {len(tally.failures)} failed, {2 * ROLLS} restarts")
    assert not tally.failures, tally.failures[:5]
    assert tally.done > NUM_STREAMS


async def roll(stack: ExitStack, folder: Path, gateways: list[Gateway], port: int) -> Tally:
    """Restart each gateway, at the address that it had, while the clients call."""
    tally = Tally()
    key = gateways[0].keys["people"]
    running = list(gateways)
    async with asyncio.TaskGroup() as clients:
        for _ in range(NUM_STREAMS):
            clients.create_task(one_client(port, key, tally))
        for _ in range(ROLLS):
            for number, old in enumerate(running):
                await asyncio.sleep(3)  # the proxy has seen that the other one is back
                old.process.send_signal(signal.SIGTERM)
                assert await asyncio.to_thread(old.process.wait, 120) == 0, old.log.read_text()[-2000:]
                running[number] = await asyncio.to_thread(again, stack, folder, old)
        await asyncio.sleep(2)
        tally.is_over = True
    return tally


def again(stack: ExitStack, folder: Path, old: Gateway) -> Gateway:
    settings = yaml.safe_load(old.config.read_text())
    server = {"port": int(old.url.rsplit(":", 1)[1]), "metrics_port": int(old.metrics_url.split(":")[2].split("/")[0])}
    return stack.enter_context(gateway(folder, settings | {"server": server}, name=old.config.stem, made_keys=old.keys))
