"""The command line: what goes to stdout, what to stderr, and the exit code."""

import asyncio
import json
import re
import sys
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from sluice import __version__, cli
from sluice.__main__ import main as sluice
from sluice.config import ConfigError, Settings
from sluice.keys import Keys
from sluice.keys_file import read_keys
from sluice.types import Call, Endpoint, Outcome, Tenant, Usage
from sluice.usage import Ledger
from tests.support import scripts
from tests.support.scripted_worker import ScriptedWorker

CONFIG = 'routes: {smollm2: {workers: {static: ["http://127.0.0.1:9"]}}, other: {workers: {static: ["http://b"]}}}\n'


class Server:
    """Stands where the app does: keeps what it was given and ends as it is told."""

    def __init__(self, ends_with: BaseException | None = None) -> None:
        self.ends_with = ends_with
        self.settings: Settings | None = None
        self.loop = ""

    async def __call__(self, settings: Settings, *, on_ready: Callable[[], None] | None = None) -> None:
        self.settings, self.loop = settings, type(asyncio.get_running_loop()).__module__
        if on_ready is not None:
            on_ready()
        if self.ends_with is not None:
            raise self.ends_with


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "sluice.yaml"
    path.write_text(CONFIG)
    return path


def run(*arguments: object, server: Server | None = None) -> int:
    """The exit code of `sluice` with these arguments."""
    try:
        return cli.main([str(argument) for argument in arguments], run_server=server or Server())
    except SystemExit as exc:  # argparse
        return int(exc.code or 0)


def made(config: Path, capsys: pytest.CaptureFixture[str], *options: object) -> str:
    assert run("key", "new", "--config", config, "--tenant", "research", *options) == 0
    return capsys.readouterr().out.strip()


@pytest.mark.parametrize("arguments", [["version"], ["--version"]])
def test_the_version_is_printed(capsys, arguments):
    assert run(*arguments) == 0
    assert capsys.readouterr().out == f"sluice {__version__}, plain Python\n"


def test_the_script_runs_the_command_line(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["sluice", "version"])

    with pytest.raises(SystemExit) as ended:
        sluice()

    assert ended.value.code == 0
    assert capsys.readouterr().out == f"sluice {__version__}, plain Python\n"


@pytest.mark.parametrize("command", ["up", "serve", "check", "key new", "key list", "key revoke", "version"])
def test_every_command_has_help_with_an_example(capsys, command):
    assert run(*command.split(), "--help") == 0
    assert f"example:\n  {'key=$(' if command == 'key new' else ''}sluice {command}" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [[], ["key"], ["nonsense"], ["serve", "--no-such"], ["key", "new"]])
def test_a_wrong_command_line_is_exit_code_2(capsys, arguments):
    assert run(*arguments) == 2
    assert "usage: sluice" in capsys.readouterr().err


# serve


def test_serve_runs_the_server_on_uvloop_with_the_settings_and_says_when_it_is_ready(config, capsys):
    server = Server()

    assert run("serve", "--config", config, server=server) == 0

    assert server.settings is not None and server.settings.auth.keys_file == config.parent / "keys.yaml"
    assert server.loop == "uvloop"
    assert capsys.readouterr().err == "sluice: ready on http://127.0.0.1:8000\n"


@pytest.mark.parametrize(
    "line, said",
    [('server: {host: "::1", port: 80}', "ready on http://[::1]:80"), ("server: {port: 0}", "ready")],
)
def test_serve_says_where_it_listens_if_that_is_known(config, capsys, line, said):
    config.write_text(CONFIG + line)

    assert run("serve", "--config", config) == 0
    assert capsys.readouterr().err == f"sluice: {said}\n"


def test_what_will_never_start_is_exit_code_3_with_a_line_for_each_mistake(config, capsys):
    config.write_text("routes: {a: {}}\nserver: {port: x}\n")

    assert run("serve", "--config", config, server=Server()) == 3

    out, err = capsys.readouterr()
    assert out == ""
    assert [line.split(": ")[:3] for line in err.splitlines()] == [
        ["sluice", f"{config}:2", "server.port"],
        ["sluice", f"{config}:1", "routes.a.workers"],
    ]


def test_an_absent_configuration_is_exit_code_3(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)

    assert run("serve") == 3
    assert capsys.readouterr().err == "sluice: sluice.yaml: cannot be read: No such file or directory\n"


def test_a_server_that_finds_it_cannot_start_is_exit_code_3(config, capsys):
    assert run("serve", "--config", config, server=Server(ConfigError("127.0.0.1:8000: is taken"))) == 3
    assert capsys.readouterr().err.endswith("sluice: 127.0.0.1:8000: is taken\n")


def test_an_interrupt_is_no_traceback(config, capsys):
    assert run("serve", "--config", config, server=Server(KeyboardInterrupt())) == 130


# key


def test_a_new_key_alone_is_on_stdout_and_works(config, capsys):
    assert run("key", "new", "--config", config, "--tenant", "research") == 0

    out, err = capsys.readouterr()
    key = out.removesuffix("\n")
    keys = Keys(config.parent / "keys.yaml", max_failures_per_minute=1)
    keys.load()
    tenant = keys.resolve(f"Bearer {key}".encode(), None, address="", now=0)
    assert re.fullmatch(r"sk-[A-Za-z0-9_-]{43}", key)
    assert (tenant.name, tenant.scopes, tenant.routes) == ("research", frozenset(), None)
    assert key not in err and tenant.key_id in err and "research" in err
    assert key not in (config.parent / "keys.yaml").read_text()


def test_a_new_key_has_what_was_asked_for(config, capsys):
    made(config, capsys, "--scope", "admin", "--routes", "smollm2, other", "--expires", "2999-12-31")

    [entry] = read_keys(config.parent / "keys.yaml")
    assert (entry.scopes, entry.routes) == (("admin",), ("smollm2", "other"))
    assert entry.expires == datetime(2999, 12, 31, tzinfo=UTC)


@pytest.mark.parametrize(
    "options, said",
    [
        (["--routes", "smollm2,smolm"], "no such route: smolm (the configuration has smollm2, other)"),
        (["--routes", ""], "a name is 1 to 256 printable characters"),
        (["--tenant", "a\nb"], "a name is 1 to 256 printable characters"),
        (["--expires", "soon"], "a date is written 2030-12-31 or 2030-12-31T18:00:00Z"),
        (["--expires", "2001-01-01"], "--expires 2001-01-01T00:00:00+00:00 has passed"),
        (["--scope", "root"], "invalid choice: 'root'"),
        (["--rpm", "0"], "a whole number of at least 1"),
        (["--tpm", "many"], "a whole number of at least 1"),
        (["--priority", "11"], "invalid choice: 11"),
    ],
)
def test_a_key_that_makes_no_sense_is_exit_code_2_and_not_made(config, capsys, options, said):
    assert run("key", "new", "--config", config, "--tenant", "t", *options) == 2

    out, err = capsys.readouterr()
    assert out == "" and said in err
    assert not (config.parent / "keys.yaml").exists()


def test_a_key_is_made_with_its_limits_its_place_and_its_trust(config, capsys):
    made(config, capsys, *"--rpm 60 --tpm 5000 --concurrency 3 --priority -5 --weight 4 --names-users".split())

    [entry] = read_keys(config.parent / "keys.yaml")
    assert (entry.rpm, entry.tpm, entry.concurrency) == (60, 5000, 3)
    assert (entry.priority, entry.weight, entry.names_users) == (-5, 4, True)


def test_a_key_can_be_made_where_the_workers_keys_are_not_known(config, capsys, monkeypatch):
    monkeypatch.delenv("WORKER_KEY", raising=False)
    config.write_text('routes: {a: {workers: {static: ["http://b"], api_key_env: WORKER_KEY}}}\n')

    assert made(config, capsys).startswith("sk-")


def test_a_key_for_an_open_gateway_is_made_with_a_note(config, capsys):
    config.write_text(CONFIG + "auth: {mode: open}\n")

    assert run("key", "new", "--config", config, "--tenant", "t") == 0
    assert "auth.mode is open" in capsys.readouterr().err


def test_keys_are_listed_with_their_state_and_revoked_by_id(config, capsys):
    made(config, capsys, "--routes", "smollm2", "--scope", "admin", "--rpm", "60", "--concurrency", "2")
    made(config, capsys)
    first, second = read_keys(config.parent / "keys.yaml")
    text = (config.parent / "keys.yaml").read_text()
    (config.parent / "keys.yaml").write_text(text.replace("expires: null", "expires: 2026-01-01", 1))

    assert run("key", "revoke", "--config", config, second.id) == 0
    assert second.id in capsys.readouterr().err
    assert run("key", "list", "--config", config) == 0

    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in capsys.readouterr().out.splitlines()]
    created = f"{first.created:%Y-%m-%d %H:%M}"
    assert [first.id, "research", "admin", "smollm2", "rpm 60, concurrency 2", created, "2026-01-01 00:00", "expired"] in rows
    assert [second.id, "research", "-", "all", "-", created, "never", "disabled"] in rows


def test_revoking_an_unknown_key_is_exit_code_1(config, capsys):
    made(config, capsys)

    assert run("key", "revoke", "--config", config, "key_no") == 1
    assert "there is no key key_no; `sluice key list` shows them" in capsys.readouterr().err


def test_listing_no_file_is_exit_code_3(config, capsys):
    assert run("key", "list", "--config", config) == 3
    assert "keys.yaml: cannot be read: No such file or directory" in capsys.readouterr().err


# check: the command has the test's thread, as it has the process's; the worker has another one


@pytest.fixture
def worker():
    worker, loop = ScriptedWorker(), asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    asyncio.run_coroutine_threadsafe(worker.start(), loop).result()
    yield worker
    asyncio.run_coroutine_threadsafe(worker.stop(), loop).result()
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


def checked(config: Path, worker: ScriptedWorker, auth: str = "auth: {mode: open}") -> int:
    config.write_text(f'routes: {{smollm2: {{workers: {{static: ["{worker.url}"]}}}}}}\n{auth}\n')
    return run("check", "--config", config)


def test_check_shows_a_table_and_is_exit_code_0_when_all_is_good(config, capsys, worker):
    assert checked(config, worker) == 0

    out, err = capsys.readouterr()
    assert re.search(rf"smollm2 │ {worker.url} │ up +│ smollm2 │ 8192 +│ good", out)
    assert err == ""


def test_check_says_what_to_do_and_is_exit_code_1_when_a_worker_is_bad(config, capsys, worker):
    worker.on("/health", scripts.empty(503))

    assert checked(config, worker) == 1

    out, err = capsys.readouterr()
    assert re.search(rf"{worker.url} │ 503 +│ - +│ - +│ bad", out)
    assert err.startswith(f"sluice: smollm2: {worker.url}: /health says 503")


def test_check_tells_how_many_keys_can_be_used(config, capsys, worker):
    made(config, capsys)

    assert checked(config, worker, auth="") == 0
    assert f"{config.parent}/keys.yaml: 1 usable keys\n" in capsys.readouterr().err
    run("key", "revoke", "--config", config, read_keys(config.parent / "keys.yaml")[0].id)
    assert checked(config, worker, auth="") == 0

    assert "0 usable keys: nobody may call until" in capsys.readouterr().err


def test_check_refuses_what_serve_would_refuse(config, capsys):
    assert run("check", "--config", config) == 3
    assert "there is no such keys file; `sluice key new --tenant NAME` makes it" in capsys.readouterr().err
    config.write_text("nonsense")
    assert run("check", "--config", config) == 3


def test_usage_is_shown_as_a_table_as_json_and_as_a_picture(config, capsys):
    config.write_text(CONFIG + "ledger: {folder: ledger, replica: one}\n")
    call = Call("req-1", Tenant("acme", "k1"), "smollm2", Endpoint.CHAT, "/v1/chat/completions")
    with Ledger(config.parent / "ledger", "one", keep_months=2, wall_clock=time.time) as ledger:
        ledger.call_ended(call, Outcome(200, usage=Usage(10, 5, exact=True), attempts=1))

    assert run("usage", "--config", config) == 0
    shown = capsys.readouterr()
    assert "acme" in shown.out and "of one" in shown.err
    assert run("usage", "--folder", config.parent / "ledger", "--by", "route", "--json") == 0
    assert json.loads(capsys.readouterr().out)["data"][0]["tokens"] == 15
    assert run("usage", "--config", config, "--plot", config.parent / "usage.png") == 0
    assert (config.parent / "usage.png").read_bytes().startswith(b"\x89PNG")


def test_usage_without_a_ledger_or_of_a_broken_one_says_so(config, capsys):
    assert run("usage", "--config", config) == 1
    assert "there is no ledger" in capsys.readouterr().err
    (config.parent / time.strftime("usage-%Y-%m-one.sqlite", time.gmtime())).write_bytes(b"no database at all" * 100)
    assert run("usage", "--folder", config.parent) == 1
    assert "cannot be read" in capsys.readouterr().err
    assert run("usage", "--config", config, "--by", "colour") == 2


def test_memory_that_would_have_to_count_for_several_gateways_is_told(config, capsys):
    config.write_text(CONFIG + "auth: {mode: open}\nreplicas: {count: 2}\n")

    assert run("check", "--config", config) == 1
    said = capsys.readouterr().err
    assert "limits.store is memory, which counts for one gateway alone" in said
    assert "retrieval.store is embedded, where each gateway has" in said


@pytest.mark.parametrize("kept", ["store: null", "url: http://127.0.0.1:9, token_env: HOME"])
def test_several_gateways_that_share_what_they_keep_are_well(config, capsys, kept):
    shared = f"limits: {{store: redis://127.0.0.1:9/0}}\nretrieval: {{{kept}}}\n"
    config.write_text(CONFIG + "auth: {mode: open}\nreplicas: {count: 2}\n" + shared)
    run("check", "--config", config)

    assert "there are more" not in capsys.readouterr().err
