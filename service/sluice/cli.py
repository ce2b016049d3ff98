"""The `sluice` command: reads arguments, runs one command, and turns what went wrong into one line and an exit code.

0  it went well
1  the command ran and found something wrong, or could not do it
2  the command line itself is wrong
3  it will never start like this: a bad configuration, no keys file, a port that is taken
"""

import argparse
import asyncio
import os
import sys
from collections.abc import Callable, Coroutine, Sequence
from datetime import UTC, datetime
from enum import IntEnum
from pathlib import Path
from typing import Any, Protocol

import uvloop
from rich.console import Console
from rich.table import Table
from rich.text import Text

from sluice import __version__, up, usage_command
from sluice.check import Finding, as_table, examine
from sluice.config import ConfigError, Settings, load
from sluice.gateway import exchanging
from sluice.keys import door
from sluice.keys_file import KeyEntry, add_to_file, checked_name, instant, new_key, read_keys, revoke_in_file
from sluice.loading import load as load_attribute
from sluice.replay import command as replay

KEY_MEMBERS = ("rpm", "tpm", "concurrency", "priority", "weight", "names_users")  # of `sluice key new`, as in the file


class Exit(IntEnum):
    OK = 0
    FAILED = 1
    USAGE = 2
    NEVER_STARTS = 3


class RunServer(Protocol):
    """Serves until it is told to stop; `on_ready` is called once it listens. Raises `ConfigError` if it never can."""

    def __call__(self, settings: Settings, *, on_ready: Callable[[], None] | None = None) -> Coroutine[Any, Any, None]: ...


def main(arguments: Sequence[str], *, run_server: RunServer) -> int:
    args = _parser(run_server).parse_args(arguments)
    try:
        return int(args.run(args))
    except ConfigError as exc:
        _say(*str(exc).splitlines())
        return Exit.NEVER_STARTS
    except KeyboardInterrupt:
        return 130


def serve(args: argparse.Namespace) -> int:
    settings = load(args.config)
    host = f"[{settings.server.host}]" if ":" in settings.server.host else settings.server.host
    where = f" on http://{host}:{settings.server.port}" if settings.server.port else ""
    run_server: RunServer = args.run_server
    uvloop.run(run_server(settings, on_ready=lambda: _say(f"ready{where}")))
    return Exit.OK


def retrieval(args: argparse.Namespace) -> int:
    """The process of files and vector stores, for several gateways. It is loaded here alone: it is large."""
    settings = load(args.config)
    variable = settings.retrieval.token_env
    if variable is None:
        raise ConfigError(f"{args.config}: retrieval.token_env: name the variable with the secret that gateways show")
    load_attribute("sluice.retrieval_app:run", setting="retrieval")(settings.retrieval, os.environ[variable])
    return Exit.OK


def check(args: argparse.Namespace) -> int:
    settings = load(args.config)
    door(settings.auth)  # refuses what `serve` would refuse
    if settings.auth.mode == "keys":
        num_usable = sum(_state(entry) == "good" for entry in read_keys(settings.auth.keys_file))
        hint = "" if num_usable else ": nobody may call until `sluice key new` has made one"
        _say(f"{settings.auth.keys_file}: {num_usable} usable keys{hint}")
    unshared = _unshared(settings)
    for advice in unshared:
        _say(advice)
    return max(_report(asyncio.run(examine(settings, os.environ))), Exit.FAILED if unshared else Exit.OK)


def _unshared(settings: Settings) -> list[str]:
    """What each of several gateways would have for itself: a client would find it in one and not in the next."""
    if not settings.replicas.are_several:
        return []
    advice = []
    if settings.limits.store == "memory":
        advice.append("limits.store is memory, which counts for one gateway alone, and there are more: use redis://HOST:PORT/0")
    if settings.retrieval.store is not None and settings.retrieval.url is None:
        advice.append(
            "retrieval.store is embedded, where each gateway has files and vector stores of its own, and there are more: "
            "run one `sluice retrieval` and name it in retrieval.url, or set retrieval.store: null"
        )
    return advice


def _report(findings: Sequence[Finding]) -> int:
    _show(as_table(findings))
    for one in findings:
        if one.advice:
            _say(f"{one.route}: {one.worker}: {one.advice}")
    return Exit.FAILED if any(one.advice for one in findings) else Exit.OK


def key_new(args: argparse.Namespace) -> int:
    settings = load(args.config, environment=None)
    now = datetime.now(UTC)
    unknown = sorted(set(args.routes or ()) - set(settings.routes))
    if unknown:
        _say(f"no such route: {', '.join(unknown)} (the configuration has {', '.join(settings.routes)})")
        return Exit.USAGE
    if args.expires is not None and args.expires <= now:
        _say(f"--expires {args.expires.isoformat()} has passed")
        return Exit.USAGE
    members = {name: getattr(args, name) for name in KEY_MEMBERS if getattr(args, name) is not None}
    key, entry = new_key(args.tenant, scopes=args.scope, routes=args.routes, expires=args.expires, now=now, **members)
    add_to_file(settings.auth.keys_file, entry)
    _say(f"{entry.id} for {entry.tenant} is in {settings.auth.keys_file}, as a hash; this is the only time it is shown:")
    if settings.auth.mode == "open":
        _say("note: auth.mode is open, so nobody is asked for a key")
    print(key, flush=True)
    return Exit.OK


def key_list(args: argparse.Namespace) -> int:
    table = Table("id", "tenant", "scopes", "routes", "limits", "created", "expires", "state")
    for entry in read_keys(load(args.config, environment=None).auth.keys_file):
        routes = "all" if entry.routes is None else ", ".join(entry.routes)
        expires = "never" if entry.expires is None else f"{entry.expires:%Y-%m-%d %H:%M}"
        created = f"{entry.created:%Y-%m-%d %H:%M}"
        limits = ", ".join(f"{name} {value}" for name in ("rpm", "tpm", "concurrency") if (value := getattr(entry, name)))
        scopes = ", ".join(entry.scopes) or "-"
        cells = [entry.id, entry.tenant, scopes, routes, limits or "-", created, expires, _state(entry)]
        table.add_row(*(Text(cell) for cell in cells))
    _show(table)
    return Exit.OK


def key_revoke(args: argparse.Namespace) -> int:
    path = load(args.config, environment=None).auth.keys_file
    if not revoke_in_file(path, args.id):
        _say(f"{path}: there is no key {args.id}; `sluice key list` shows them")
        return Exit.FAILED
    _say(f"{args.id} is disabled; gateways that are running notice within seconds")
    return Exit.OK


def version(args: argparse.Namespace) -> int:
    print(_version())
    return Exit.OK


def _version() -> str:
    return f"sluice {__version__}, {'plain Python' if exchanging.__file__.endswith('.py') else 'compiled'}"


def _state(entry: KeyEntry) -> str:
    if entry.disabled:
        return "disabled"
    return "expired" if entry.expires is not None and entry.expires <= datetime.now(UTC) else "good"


def _say(*lines: str) -> None:
    for line in lines:
        print(f"sluice: {line}", file=sys.stderr)


def _show(table: Table) -> None:
    """As wide as the terminal; for a file or a pipe, wide enough for a URL not to be broken."""
    Console(width=None if sys.stdout.isatty() else 200).print(table)


def _argument(convert: Callable[[str], Any]) -> Callable[[str], Any]:
    """A check of ours as an argparse type, with its own words for what is wrong."""

    def checked(text: str) -> Any:
        try:
            return convert(text)
        except ValueError as exc:
            raise argparse.ArgumentTypeError(str(exc)) from exc

    return checked


def _names(text: str) -> tuple[str, ...]:
    return tuple(checked_name(part.strip()) for part in text.split(","))


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise ValueError("a whole number of at least 1")
    return int(text)


def _parser(run_server: RunServer) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="sluice", description="An OpenAI-compatible gateway for vLLM.")
    parser.add_argument("--version", action="version", version=_version())
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    here = "run a model, its workers and the gateway on this machine, from nothing"
    example = "sluice up\nsluice up --model ./my-model --replicas 2 --port 8080"
    up.add_arguments(_command(commands, "up", up.run, here, example, takes_config=False))
    _command(commands, "serve", serve, "run the gateway", "sluice serve --config sluice.yaml")
    shared = "sluice retrieval --config sluice.yaml"
    _command(commands, "retrieval", retrieval, "keep files and vector stores for several gateways", shared)
    _command(commands, "check", check, "validate the configuration and ask every worker", "sluice check")
    _key_commands(commands)
    here = "run a recorded trace offline, in virtual time, and compare policies"
    replay.add_arguments(_command(commands, "replay", replay.run, here, replay.EXAMPLE, takes_config=False))
    usage = _command(commands, "usage", usage_command.run, "what was used, from the ledger", usage_command.EXAMPLE)
    usage_command.add_arguments(usage)
    _command(commands, "version", version, "print the version", "sluice version", takes_config=False)
    parser.set_defaults(run_server=run_server)
    return parser


def _key_commands(commands: Any) -> None:
    key = commands.add_parser("key", help="make, list and revoke API keys", description="Make, list and revoke API keys.")
    inner = key.add_subparsers(required=True, metavar="COMMAND")
    example = "key=$(sluice key new --tenant research)\nsluice key new --tenant ops --scope admin --expires 2030-12-31"
    new = _command(inner, "new", key_new, "make a key; it alone goes to stdout, only its hash is kept", example)
    new.add_argument("--tenant", required=True, type=_argument(checked_name), help="who is limited and billed for it")
    new.add_argument("--scope", action="append", default=[], choices=["admin"], help="what it may do besides calls")
    new.add_argument("--routes", type=_argument(_names), metavar="A,B", help="the only routes it may use (default: all)")
    new.add_argument("--expires", type=_argument(instant), metavar="DATE", help="from when on it is refused (UTC)")
    positive, names = _argument(_positive), "trust it to name its users, by header or body: limits go down to them"
    new.add_argument("--rpm", type=positive, metavar="N", help="requests per minute (default: the tenant's per_key)")
    new.add_argument("--tpm", type=positive, metavar="N", help="tokens per minute")
    new.add_argument("--concurrency", type=positive, metavar="N", help="calls at the same time")
    new.add_argument("--priority", type=int, choices=range(-10, 11), metavar="-10..10", help="in the queue; default: 0")
    new.add_argument("--weight", type=positive, metavar="N", help="its tenant's share beside other tenants; default: 1")
    new.add_argument("--names-users", action="store_const", const=True, help=names)
    _command(inner, "list", key_list, "list the keys", "sluice key list")
    revoke = _command(inner, "revoke", key_revoke, "disable a key", "sluice key revoke key_0a1b2c3d4e5f")
    revoke.add_argument("id", help="the key's id, as `sluice key list` shows it")


def _command(
    commands: Any,
    title: str,
    run: Callable[[argparse.Namespace], int],
    summary: str,
    example: str,
    *,
    takes_config: bool = True,
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        title,
        help=summary,
        description=summary[0].upper() + summary[1:] + ".",
        epilog="example:\n" + "\n".join(f"  {line}" for line in example.splitlines()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    if takes_config:
        parser.add_argument("--config", type=Path, default=Path("sluice.yaml"), metavar="FILE", help="default: sluice.yaml")
    parser.set_defaults(run=run)
    return parser
