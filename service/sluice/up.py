"""`sluice up`: a model, its workers and the gateway from nothing, on this machine, in one command.

Everything it makes lies in the state folder (`.sluice`): models, logs, config.yaml, keys.yaml, the key in clear (mode
0600, so that the next start shows the same one), workers.json (who runs now) and up.pid. What can be known before the
workers load is checked before: what cannot work is a `CannotStart` or `ConfigError`, one line and exit code 3. A signal
drains the gateway and ends the workers; a second one ends this process at once, and the workers' launchers then kill what
is left.
"""

import argparse
import asyncio
import json
import os
import signal
import socket
import sys
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

import uvloop
import yaml
from rich.console import Console
from rich.panel import Panel
from rich.text import Text

from sluice.config import ConfigError, Settings, load
from sluice.discovery.managed import Roster
from sluice.engines import demo_model
from sluice.engines.base import CannotStart, Job, MonotonicClock, Notices
from sluice.engines.processes import kill_session, run_file
from sluice.engines.progress import WorkerDisplay
from sluice.engines.supervisor import Supervisor
from sluice.engines.vllm import VllmWorker, context_of, kind_of_engine, share_cpus
from sluice.engines.vllm_log import VllmLog
from sluice.http_json import HttpJson, HttpJsonError
from sluice.keys_file import add_to_file, new_key, read_keys

NEVER_STARTS = 3
HOST = "127.0.0.1"
EMBEDDING_CONTEXT = 256
MAX_REPLICAS = 64
HEALTH_TIMEOUT_S = 2.0
HEALTH = "/health"
ROSTER = "workers.json"
SIGNALS = (signal.SIGINT, signal.SIGTERM)
# A laptop's workers share its cores with the gateway and with each other: one long prompt silences all other streams.
ROUTE = {"timeouts": {"silence_s": 60}}

RunServer = Callable[..., Coroutine[Any, Any, None]]


@dataclass(frozen=True, slots=True)
class Plan:
    """What will run, and the key that its banner shows."""

    settings: Settings
    jobs: tuple[Job, ...]
    key: str
    roster: Roster

    def started(self, job: Job, pid: int) -> None:
        """A process that is started anew is another worker to the gateway."""
        self.roster.started(job.health_url.removesuffix(HEALTH), f"launcher {pid}")

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.settings.server.port}"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    def add(flag: str, said: str, **options: Any) -> None:
        parser.add_argument(flag, help=said, **options)

    add("--model", "a Hugging Face folder or hub id (default: SmolLM2-135M-Instruct)", metavar="DIR-OR-ID")
    add("--served-name", "what clients call the model (default: from --model)", metavar="NAME")
    add("--replicas", "workers of the model (default: 1)", type=int, default=1, metavar="N")
    add("--port", f"the gateway's port on {HOST} (default: 8000)", type=int, default=8000)
    add("--max-model-len", "context length (default: 8192, or the model's where that is less)", type=int, metavar="N")
    add("--with-embeddings", "also serve all-minilm, a small embedding model", action="store_true")
    add("--engine-python", "a Python that has vLLM (default: .venv-engine's)", type=Path, metavar="PATH")
    add("--state-dir", "where everything is kept (default: .sluice)", type=Path, default=Path(".sluice"), metavar="DIR")
    add("--engine-args", "the rest of the line is for vLLM", nargs=argparse.REMAINDER, default=[], metavar="...")


def run(args: argparse.Namespace) -> int:
    """The command. `args.run_server` serves settings until it is told to stop, and calls `on_ready` once it listens."""
    out, err = Console(), Console(stderr=True)
    try:
        with run_file(state_dir(args.state_dir) / "up.pid") as (file, num_reaped):
            if num_reaped:
                err.print(f"sluice up: ended what an earlier one had left running, processes: {num_reaped}")
            plan = prepared(args)

            def on_launch(job: Job, pid: int) -> None:
                file.add(pid)
                plan.started(job, pid)

            uvloop.run(serve(plan, args.run_server, WorkerDisplay(err, on_launch), lambda: show_banner(plan, out)))
    except (CannotStart, ConfigError) as failure:
        err.print(f"sluice up: {failure}", markup=False, highlight=False, soft_wrap=True)
        return NEVER_STARTS
    return 0


def prepared(args: argparse.Namespace) -> Plan:
    try:
        return prepare(args)
    except OSError as exc:
        raise CannotStart(f"the state folder {args.state_dir} cannot be used: {exc}") from exc


def prepare(args: argparse.Namespace) -> Plan:
    """Everything up to the first process; raises `CannotStart` or `ConfigError` for what would fail later."""
    if not 1 <= args.replicas <= MAX_REPLICAS:
        raise CannotStart(f"--replicas is 1 to {MAX_REPLICAS}, not {args.replicas}")
    check_port(args.port)
    state = state_dir(args.state_dir).resolve()
    python = args.engine_python or default_engine_python()
    on_cpu = kind_of_engine(python) == "cpu"
    model, served_name = chosen_model(args, state / "models", python)
    if not (0 < len(served_name) <= 256 and served_name.isprintable()):
        raise CannotStart(f"--served-name is 1 to 256 printable characters, not {served_name!r}")
    cpus = share_cpus(sorted(os.sched_getaffinity(0)), args.replicas + args.with_embeddings)
    workers = [
        VllmWorker(
            python=python,
            model=model,
            served_name=served_name,
            port=free_port(),
            max_model_len=args.max_model_len or context_of(model),
            on_cpu=on_cpu,
            cpus=share,
            extra_args=tuple(args.engine_args),
        )
        for share in cpus[: args.replicas]
    ]
    if args.with_embeddings:
        workers.append(embedding_worker(state / "models", python, served_name, on_cpu, cpus[-1]))
    urls: dict[str, list[str]] = {}
    for worker in workers:
        urls.setdefault(worker.served_name, []).append(worker.url)
    settings = write_config(state, args.port, list(urls))
    jobs = tuple(jobs_of(workers, state / "logs"))
    return Plan(settings, jobs, ensure_key(state), Roster(state / ROSTER, urls))


def state_dir(path: Path) -> Path:
    try:
        (path / "logs").mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise CannotStart(f"the state folder {path} cannot be made: {exc.strerror}; take another --state-dir") from exc
    return path


def check_port(port: int) -> None:
    if not 0 < port < 65_536:
        raise CannotStart(f"--port is 1 to 65535, not {port}")
    if not port_is_free(port):
        other = port + 10 if port < 65_000 else port - 10
        raise CannotStart(f"port {port} is taken; stop what listens there, or take another: --port {other}")


def port_is_free(port: int) -> bool:
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((HOST, port))
        except OSError:
            return False
    return True


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind((HOST, 0))
        return int(listener.getsockname()[1])


def default_engine_python() -> Path:
    """Beside the gateway's own environment, wherever the command is called from."""
    return Path(sys.prefix).parent / ".venv-engine" / "bin" / "python"


def chosen_model(args: argparse.Namespace, models: Path, python: Path) -> tuple[str, str]:
    """The folder or hub id for vLLM, and the name for clients."""
    if args.model is None:
        folder = demo_model.fetch(demo_model.CHAT, models, python, os.environ)
        return str(folder), args.served_name or "smollm2"
    folder = Path(args.model).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise CannotStart(f"{folder} holds no config.json: --model takes a Hugging Face folder")
        return str(folder.resolve()), args.served_name or folder.resolve().name
    if args.model.startswith((".", "/", "~")) or args.model.count("/") > 1:
        raise CannotStart(f"there is no folder {folder}")
    return args.model, args.served_name or args.model.rpartition("/")[2]


def embedding_worker(models: Path, python: Path, chat_name: str, on_cpu: bool, cpus: tuple[int, ...]) -> VllmWorker:
    if chat_name == demo_model.EMBEDDING.name:
        raise CannotStart(f"the name {chat_name} is the embedding model's; choose another one by --served-name")
    folder = demo_model.fetch(demo_model.EMBEDDING, models, python, os.environ)
    return VllmWorker(
        python=python,
        model=str(folder),
        served_name=demo_model.EMBEDDING.name,
        port=free_port(),
        max_model_len=EMBEDDING_CONTEXT,
        on_cpu=on_cpu,
        is_pooling=True,
        cpus=cpus,
    )


def write_config(state: Path, port: int, routes: list[str]) -> Settings:
    metrics_port = port + 1 if port < 65_535 and port_is_free(port + 1) else None
    document = {
        "server": {"host": HOST, "port": port, "metrics_port": metrics_port},
        "auth": {"mode": "keys", "keys_file": "keys.yaml"},
        "routes": {name: {"workers": {"managed": ROSTER}, **ROUTE} for name in routes},
        "drain_timeout_s": 5,
    }
    if demo_model.EMBEDDING.name in routes:
        document["retrieval"] = {"embedding_route": demo_model.EMBEDDING.name}
    path = state / "config.yaml"
    path.write_text("# Written by `sluice up` at every start.\n" + yaml.safe_dump(document, sort_keys=False))
    return load(path)


def jobs_of(workers: list[VllmWorker], logs: Path) -> list[Job]:
    jobs = []
    for number, worker in enumerate(workers, start=1):
        log_path = logs / f"worker-{number}.log"
        if log_path.exists():
            log_path.replace(log_path.with_suffix(".log.1"))
        job = Job(
            name=f"worker {number} ({worker.served_name})",
            command=tuple(worker.command()),
            environment=worker.environment(os.environ),
            health_url=worker.url + HEALTH,
            log_path=log_path,
            reader=VllmLog(),
            cpus=worker.cpus,
        )
        jobs.append(job)
    return jobs


def ensure_key(state: Path) -> str:
    """The key of the starts before; a new one when there is none, or when the keys file no longer takes it."""
    clear, keys_file = state / "key", state / "keys.yaml"
    if clear.is_file() and keys_file.is_file():
        key = clear.read_text().strip()
        known = f"sha256:{sha256(key.encode()).hexdigest()}"
        if any(entry.hash == known and not entry.disabled for entry in read_keys(keys_file)):
            return key
    key, entry = new_key("local", now=datetime.now(UTC))
    add_to_file(keys_file, entry)
    clear.unlink(missing_ok=True)
    with open(os.open(clear, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(f"{key}\n")
    return key


async def serve(plan: Plan, run_server: RunServer, display: WorkerDisplay, on_ready: Callable[[], None]) -> None:
    """Run the workers, then the gateway beside them, until a signal comes or a worker is given up."""
    loop = asyncio.get_running_loop()
    stopped = asyncio.Event()
    for number in SIGNALS:
        loop.add_signal_handler(number, stopped.set)
    async with HttpJson() as http:
        supervisor = supervisor_of(plan.jobs, http, display)
        supervision = asyncio.create_task(supervisor.run())
        try:
            with display:
                await first_of(supervision, supervisor.all_were_healthy(), stopped.wait())
            if not stopped.is_set():
                await first_of(supervision, run_server(plan.settings, on_ready=on_ready))
        finally:
            for number in SIGNALS:  # the gateway had its own meanwhile
                loop.add_signal_handler(number, os._exit, 128 + number)
            supervision.cancel()
            await asyncio.wait({supervision})
            for number in SIGNALS:
                loop.remove_signal_handler(number)


def supervisor_of(jobs: tuple[Job, ...], http: HttpJson, notices: Notices) -> Supervisor:
    async def is_healthy(url: str) -> bool:
        try:
            await http.get_text(url, timeout_s=HEALTH_TIMEOUT_S)
        except HttpJsonError:
            return False
        return True

    return Supervisor(jobs, is_healthy=is_healthy, kill_session=kill_session, notices=notices, clock=MonotonicClock())


async def first_of(supervision: "asyncio.Task[None]", *others: Coroutine[Any, Any, Any]) -> None:
    """Until one of them is over; raises what ended it. The others are cancelled, supervision goes on."""
    tasks = [asyncio.create_task(other) for other in others]
    try:
        done, _ = await asyncio.wait([supervision, *tasks], return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
    for task in done:
        task.result()


def show_banner(plan: Plan, console: Console) -> None:
    model = next(iter(plan.settings.routes))
    question = {"role": "user", "content": "Where is the Eiffel Tower?"}
    body = json.dumps({"model": model, "temperature": 0, "max_tokens": 64, "messages": [question]})
    headers = f'-H "authorization: Bearer {plan.key}" -H "content-type: application/json"'
    facts = f"""\
base URL   {plan.url}/v1
key        {plan.key}
models     {", ".join(plan.settings.routes)}
Chatbox    Settings > Model Provider > Add > OpenAI API Compatible
           API Host {plan.url}, API Key as above, model {model}
logs       {plan.jobs[0].log_path.parent}
stop       Ctrl-C"""
    box = Text(facts, overflow="fold")
    console.print(Panel(box, title="Sluice is ready", expand=False) if console.is_terminal else box, soft_wrap=True)
    # Outside the box and in one line, so that it can be copied.
    console.print(f"curl {plan.url}/v1/chat/completions {headers} -d '{body}'", markup=False, highlight=False, soft_wrap=True)
