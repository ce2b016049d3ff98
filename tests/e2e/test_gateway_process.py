"""The gateway as a process: workers with a key or a private CA, wrong secrets, and how it starts and stops."""

import asyncio
import ssl
import subprocess
from pathlib import Path
from typing import Any

import pytest
import trustme
import yaml

from tests.e2e.gateway import SLUICE, RunningGateway, free_port, serving
from tests.support import scripts
from tests.support.raw_http import RawClient, event_data, request_bytes
from tests.support.scripted_worker import ScriptedWorker

pytestmark = pytest.mark.e2e

CHAT = "/v1/chat/completions"
ASK: dict[str, Any] = {"model": "smollm2", "messages": [{"role": "user", "content": "Say hi"}]}


def settings_for(worker: ScriptedWorker, **members: Any) -> dict[str, Any]:
    return {"routes": {"smollm2": {"workers": {"static": [worker.url]} | members}}}


@pytest.fixture
def authority(tmp_path: Path) -> tuple[Path, ssl.SSLContext]:
    """A private CA's file, and what a server of it presents."""
    ca = trustme.CA()
    ca_file = tmp_path / "ca.pem"
    ca.cert_pem.write_to_path(str(ca_file))
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    ca.issue_cert("127.0.0.1").configure_cert(context)
    return ca_file, context


async def test_a_worker_of_a_private_ca_with_a_key_of_its_own(tmp_path: Path, authority: tuple[Path, ssl.SSLContext]):
    ca_file, tls = authority
    async with ScriptedWorker(tls=tls, api_key="sk-worker") as worker:
        settings = settings_for(worker, ca_file=ca_file.name, api_key_env="WORKER_KEY")
        async with serving(tmp_path, settings, environment={"WORKER_KEY": "sk-worker"}) as gateway:
            whole = await gateway.request("POST", CHAT, json=ASK)
            stream = await gateway.request("POST", CHAT, json=ASK | {"stream": True})

    assert whole.status == 200
    assert event_data(stream.body)[-1] == "[DONE]"
    assert {call.header("authorization") for call in worker.calls()} == {"Bearer sk-worker"}


async def test_a_worker_whose_certificate_nobody_vouches_for_is_never_used(
    tmp_path: Path, authority: tuple[Path, ssl.SSLContext]
):
    _, tls = authority
    async with ScriptedWorker() as known, ScriptedWorker(tls=tls) as stranger:
        settings = settings_for(known)
        settings["routes"]["private"] = {"workers": {"static": [stranger.url]}, "served_model": "smollm2"}
        async with serving(tmp_path, settings) as gateway:
            refused = await gateway.request("POST", CHAT, json=ASK | {"model": "private"})
    assert refused.status in (502, 503)
    assert not stranger.requests


async def test_sigterm_lets_a_stream_end_and_takes_no_new_one(tmp_path: Path):
    gate = asyncio.Event()
    async with ScriptedWorker() as worker:
        worker.on(CHAT, scripts.chat_stream(gates={2: gate}))
        async with serving(tmp_path, settings_for(worker)) as gateway, RawClient(gateway.url) as client:
            key = ("authorization", f"Bearer {gateway.key}")
            await client.send(request_bytes("POST", CHAT, json=ASK | {"stream": True}, headers=[key]))
            await client.read_until(b"Hello")
            gateway.stop()
            async with asyncio.timeout(60):
                while await is_ready(gateway):
                    pass  # the signal goes to another process
            gate.set()
            rest = await client.read_rest()
    assert b"data: [DONE]\n\n" in rest and rest.endswith(b"0\r\n\r\n")


async def test_in_its_grace_a_gateway_is_not_ready_but_serves(tmp_path: Path):
    gate = asyncio.Event()
    async with ScriptedWorker() as worker:
        worker.on(CHAT, scripts.chat_stream(gates={2: gate}), scripts.chat_stream())
        settings = settings_for(worker) | {"drain_grace_s": 5}
        async with serving(tmp_path, settings) as gateway, RawClient(gateway.url) as client:
            key = ("authorization", f"Bearer {gateway.key}")
            await client.send(request_bytes("POST", CHAT, json=ASK | {"stream": True}, headers=[key]))
            await client.read_until(b"Hello")
            gateway.stop()
            async with asyncio.timeout(60):
                while await is_ready(gateway):
                    pass
            late = await gateway.request("POST", CHAT, json=ASK | {"stream": True})
            assert (late.status, late.header("connection")) == (200, "close")
            async with asyncio.timeout(60):
                while True:  # until the grace is over
                    try:
                        await gateway.request("GET", "/healthz")
                    except (ConnectionError, asyncio.IncompleteReadError):
                        break
            gate.set()
            rest = await client.read_rest()
    assert b"data: [DONE]\n\n" in rest


async def is_ready(gateway: RunningGateway) -> bool:
    try:
        return (await gateway.request("GET", "/readyz")).status == 200
    except (ConnectionError, asyncio.IncompleteReadError):
        return False


async def test_killed_workers_leave_clear_errors_and_come_back(tmp_path: Path):
    async with ScriptedWorker() as worker:
        async with serving(tmp_path, settings_for(worker)) as gateway:
            assert (await gateway.request("POST", CHAT, json=ASK)).status == 200
            await worker.stop()
            gone = await gateway.request("POST", CHAT, json=ASK)
            assert gone.status in (502, 503) and gone.json()["error"]["message"]
            await worker.start()
            async with asyncio.timeout(60):
                while True:
                    if (await gateway.request("POST", CHAT, json=ASK)).status == 200:
                        break
                    await asyncio.sleep(0.1)  # until the gateway's own probe has seen it


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (
            {"routes": {"smollm2": {"workers": {"static": ["http://127.0.0.1:1"], "api_key_env": "NOT_SET_ANYWHERE"}}}},
            "NOT_SET_ANYWHERE",
        ),
        ({"routez": {}}, "routez"),
        ({"server": {"port": "eight"}}, "port"),
        ({"auth": {"mode": "open"}, "server": {"host": "0.0.0.0"}}, "auth"),
        ({"auth": {"keys_file": "absent.yaml"}}, "absent.yaml"),
    ],
    ids=["secret", "unknown section", "wrong type", "open to the world", "no keys"],
)
def test_a_bad_configuration_is_one_clear_line_and_exit_code_3(tmp_path: Path, change: dict[str, Any], named: str):
    good = {
        "server": {"port": free_port(), "metrics_port": None},
        "routes": {"smollm2": {"workers": {"static": ["http://127.0.0.1:1"]}}},
    }
    config = tmp_path / "sluice.yaml"
    config.write_text(yaml.safe_dump(good | change))
    done = subprocess.run([*SLUICE, "serve", "--config", str(config)], capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 3
    assert named in done.stderr and "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) <= 3
