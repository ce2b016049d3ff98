"""`sluice check`: what it finds at workers that are well, wrong, closed, hostile or not there."""

import io
import ssl
from pathlib import Path

import pytest
import trustme
from rich.console import Console

from sluice.check import Finding, as_table, examine
from sluice.config import ConfigError, Settings
from sluice.discovery.managed import write_workers
from tests.support import scripts
from tests.support.scripted_worker import ScriptedWorker


def settings(*urls: str, timeout_s: float = 10, **route: object) -> Settings:
    workers = {"static": urls, **route.pop("workers", {})}  # type: ignore[dict-item]
    routes = {"smollm2": {"workers": workers, **route}}
    return Settings.model_validate({"routes": routes, "probes": {"timeout_s": timeout_s}}).resolved(Path("/"))


async def finding(worker: ScriptedWorker, environment: dict[str, str] | None = None, **options: object) -> Finding:
    [one] = await examine(settings(worker.url, **options), environment or {})  # type: ignore[arg-type]
    return one


async def test_a_worker_that_serves_the_route_is_good():
    async with ScriptedWorker(max_model_len=2048) as worker:
        assert await finding(worker) == Finding("smollm2", worker.url, "up", ("smollm2",), 2048)
        assert (await finding(worker, served_model="smollm2", policy="round_robin")).advice == ""


async def test_each_worker_has_its_finding_in_the_order_of_the_file():
    async with ScriptedWorker() as first, ScriptedWorker() as second:
        second.on("/health", scripts.empty(503))
        findings = await examine(settings(second.url, first.url), {})

    assert [(one.worker, one.health) for one in findings] == [(second.url, "503"), (first.url, "up")]
    assert "/health says 503: its engine is down or still loading" in findings[0].advice


async def test_a_worker_that_is_not_there_is_refused():
    worker = ScriptedWorker()
    await worker.start()
    await worker.stop()

    one = await finding(worker)

    assert one.health == "refused" and one.advice.startswith("is it running, and are host and port right?")


async def test_a_worker_that_is_silent_is_found_within_the_time_out():
    async with ScriptedWorker() as worker:
        worker.on("/health", scripts.never_answers())
        one = await finding(worker, timeout_s=0.05)

    assert one.health == "timeout" and one.advice.startswith("silent for 0.05 s")


async def test_what_does_not_speak_http_is_found():
    async with ScriptedWorker() as worker:
        worker.on("/health", scripts.garbage())
        one = await finding(worker)

    assert one.health == "garbage" and one.advice.startswith("does not speak plain HTTP as vLLM does")


async def test_a_worker_that_serves_another_model_is_told_what_to_set():
    async with ScriptedWorker(model="llama") as worker:
        one = await finding(worker)

    assert one.models == ("llama",)
    assert one.advice == "does not list 'smollm2', but llama: set served_model to one of these"


async def test_an_adapter_that_is_not_loaded_is_named():
    async with ScriptedWorker() as worker:
        one = await finding(worker, adapters=["sql", "smollm2-x"])

    assert one.advice == "does not list sql, smollm2-x: load it there, or take it out of the route's adapters"


async def test_a_worker_with_a_key_says_how_to_give_it():
    async with ScriptedWorker(api_key="sk-worker") as worker:
        without = await finding(worker)
        workers = {"api_key_env": "WORKER_KEY"}
        wrong = await finding(worker, {"WORKER_KEY": "sk-wrong"}, workers=workers)
        right = await finding(worker, {"WORKER_KEY": "sk-worker"}, workers=workers)

    assert without.advice.startswith("wants a key: put vLLM's --api-key into an environment variable")
    assert wrong.advice.startswith("refuses the key in WORKER_KEY") and "sk-wrong" not in wrong.advice
    assert right.advice == ""


async def test_a_private_authority_has_to_be_named(tmp_path):
    authority, context = trustme.CA(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    async with ScriptedWorker(tls=context) as worker:
        without = await finding(worker)
        named = await finding(worker, workers={"ca_file": tmp_path / "ca.pem"})

    assert without.advice.startswith("its certificate is not from a known authority: set ca_file")
    assert named.advice == ""


@pytest.mark.parametrize(
    "script", [scripts.reply(200, []), scripts.reply(200, {"data": 1}), scripts.reply(200, b"<html>"), scripts.empty(404)]
)
async def test_what_is_no_list_of_models_is_found(script):
    async with ScriptedWorker() as worker:
        worker.on("/v1/models", script)
        one = await finding(worker)

    assert (one.health, one.models) == ("up", ())
    assert one.advice.startswith("has no list of models: is this vLLM? (")


async def test_a_policy_that_cannot_be_loaded_is_a_bad_configuration():
    with pytest.raises(ConfigError, match=r"routes.smollm2.policy: 'fastest' is neither built in nor"):
        await examine(settings("http://127.0.0.1:9", policy="fastest"), {})


async def test_what_a_worker_says_cannot_play_with_the_terminal():
    names = ["\x1b[2Jevil", "[red]markup[/red]", "x" * 200, "c", "d", "e"]
    async with ScriptedWorker() as worker:
        worker.on("/v1/models", scripts.reply(200, {"data": [{"id": name} for name in names]}))
        one = await finding(worker)
    out = io.StringIO()
    Console(file=out, width=400).print(as_table([one]))

    for shown in (one.advice, out.getvalue()):
        assert f"[red]markup[/red], {'x' * 80}, c, d, and 1 more" in shown
        assert "\x1b" not in shown


def test_the_table_has_a_row_for_each_finding():
    out = io.StringIO()
    good = Finding("a", "http://b:1", "up", ("m",), 4096)
    bad = Finding("a", "http://b:2", "refused", advice="is it running?")
    Console(file=out, width=200).print(as_table([good, bad]))

    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in out.getvalue().splitlines() if "http" in line]
    assert rows == [["a", "http://b:1", "up", "m", "4096", "good"], ["a", "http://b:2", "refused", "-", "-", "bad"]]


# Workers that are found


async def test_workers_are_found_as_the_gateway_finds_them(tmp_path):
    async with ScriptedWorker() as worker:
        write_workers(tmp_path / "workers.json", {"smollm2": {worker.url: "1"}})
        route = {"workers": {"managed": tmp_path / "workers.json"}}
        [one] = await examine(Settings.model_validate({"routes": {"smollm2": route}}), {})
    assert (one.worker, one.health, one.advice) == (worker.url, "up", "")


@pytest.mark.parametrize(
    ("text", "advice"),
    [(None, "its workers cannot be found: "), ("{}", "it has no worker now: is the name right, and is anything ready there?")],
)
async def test_a_route_whose_workers_are_not_found_is_bad(tmp_path, monkeypatch, text, advice):
    monkeypatch.setattr("sluice.check.FIND_S", 0.05)
    if text is not None:
        (tmp_path / "workers.json").write_text(text)
    route = {"workers": {"managed": tmp_path / "workers.json"}}
    [one] = await examine(Settings.model_validate({"routes": {"smollm2": route}}), {})
    assert (one.route, one.worker, one.health) == ("smollm2", "-", "-")
    assert one.advice.startswith(advice) and (text is not None or "workers.json: No such file" in one.advice)
