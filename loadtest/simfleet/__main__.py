"""Start N simulated vLLM workers in one process; see docs/simfleet.md.

When all are up one line of JSON on standard output says where they are. Faults are ordered by POST /sim/fault on a
worker's port or on the control port (which outlives a killed worker), with --fault at the start, or of a fleet that
runs already with --order and --control.
"""

import argparse
import asyncio
import gc
import json
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import httpx
import msgspec
import uvloop

from loadtest.simfleet.config import WorkerConfig
from loadtest.simfleet.console import show
from loadtest.simfleet.faults import BadOrder, Order, parse_chaos, parse_words
from loadtest.simfleet.fleet import Fleet, FleetConfig
from loadtest.simfleet.profile import ProfileError, load
from loadtest.simfleet.text import Style


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m loadtest.simfleet", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    _add_fleet(parser.add_argument_group("fleet"))
    _add_engine(parser.add_argument_group("engine (default: what the profile says)"))
    _add_server(parser.add_argument_group("server, under vLLM's names"))
    _add_faults(parser.add_argument_group("faults"))
    return parser


def _add_fleet(group: argparse._ArgumentGroup) -> None:
    group.add_argument("-n", "--num-workers", type=int, default=1, metavar="N")
    group.add_argument("--host", default="127.0.0.1")
    group.add_argument("--port", type=int, default=0, help="of worker 0, the others follow; 0: free ports")
    group.add_argument("--control-port", type=int, default=0)
    group.add_argument("--kv-events-port", type=int, help="publish KV events from here on, one port a worker; 0: free")
    group.add_argument("--kv-replay-port", type=int, help="answer replay requests likewise")
    group.add_argument("--time-warp", type=float, default=1.0, metavar="X", help="X seconds of a worker in a second")
    group.add_argument("--seed", type=int, default=0, help="of the faults that hit a share of requests")
    group.add_argument("--ready-file", type=Path, help="write the line of JSON here as well, when all are up")
    group.add_argument("--console", action="store_true", help="show a table that renews itself")


def _add_engine(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--profile", default="cpu-smollm2-135m", help="name of a shipped profile or path of a JSON file")
    group.add_argument("--max-num-seqs", type=int)
    group.add_argument("--max-num-batched-tokens", type=int)
    group.add_argument("--max-model-len", type=int)
    group.add_argument("--block-size", type=int)
    group.add_argument("--num-gpu-blocks", type=int, dest="num_kv_blocks", metavar="N", help="KV cache of a worker")
    group.add_argument("--prefill-tokens-per-s", type=float)
    group.add_argument("--mean-answer-tokens", type=int, default=Style.mean_answer_tokens, help="if nothing stops it")
    group.add_argument("--newline-share", type=float, default=Style.newline_share, help="of chat answers; see the docs")


def _add_server(group: argparse._ArgumentGroup) -> None:
    flag = argparse.BooleanOptionalAction
    group.add_argument("--served-model-name", nargs="+", default=["sim"])
    group.add_argument("--api-key")
    group.add_argument("--max-num-queued-reqs", type=int)
    group.add_argument("--max-num-queued-tokens", type=int)
    group.add_argument("--stream-interval", type=int, default=1)
    group.add_argument("--shutdown-timeout", type=float, default=0.0, metavar="S")
    group.add_argument("--max-loras", type=int, default=WorkerConfig.max_loras)
    group.add_argument("--lora-modules", nargs="*", default=[], metavar="NAME=PATH")
    group.add_argument("--enable-prompt-tokens-details", action=flag, default=True)
    group.add_argument("--enable-per-request-metrics", action=flag, default=False)
    group.add_argument("--enable-force-include-usage", action=flag, default=False)
    group.add_argument("--enable-server-load-tracking", action=flag, default=False)
    group.add_argument("--enable-auto-tool-choice", action=flag, default=True)
    group.add_argument("--trim-template", action="store_true", help="strip message content, as Llama-3's template does")
    group.add_argument("--old-kv-names", action="store_true", help="gpu_cache_usage_perc too, as older versions")
    group.add_argument("--keep-alive", type=float, default=WorkerConfig.keep_alive_s, metavar="S", help="not warped")


def _add_faults(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--fault", action="append", default=[], metavar="kind=K,worker=I,...", help="from the start")
    group.add_argument("--chaos", action="append", default=[], metavar="JSON", help='{"order": {...}, "every_s": 2}')
    group.add_argument("--order", metavar="kind=K,worker=I,...", help="order a fault of the fleet at --control, and end")
    group.add_argument("--control", metavar="URL", help="where that fleet has its control port")


def _config(options: argparse.Namespace) -> FleetConfig:
    profile = load(options.profile).changed(
        max_num_seqs=options.max_num_seqs,
        max_num_batched_tokens=options.max_num_batched_tokens,
        max_model_len=options.max_model_len,
        block_size=options.block_size,
        num_kv_blocks=options.num_kv_blocks,
        prefill_tokens_per_s=options.prefill_tokens_per_s,
    )
    worker = WorkerConfig(
        profile=profile,
        served_model_name=tuple(options.served_model_name),
        api_key=options.api_key,
        max_num_queued_reqs=options.max_num_queued_reqs,
        max_num_queued_tokens=options.max_num_queued_tokens,
        max_loras=options.max_loras,
        stream_interval=options.stream_interval,
        shutdown_timeout_s=options.shutdown_timeout,
        enable_prompt_tokens_details=options.enable_prompt_tokens_details,
        enable_per_request_metrics=options.enable_per_request_metrics,
        enable_force_include_usage=options.enable_force_include_usage,
        enable_server_load_tracking=options.enable_server_load_tracking,
        enable_auto_tool_choice=options.enable_auto_tool_choice,
        trim_template=options.trim_template,
        old_kv_names=options.old_kv_names,
        keep_alive_s=options.keep_alive,
        lora_modules=dict(module.split("=", 1) for module in options.lora_modules),
    )
    return FleetConfig(
        worker=worker,
        num_workers=options.num_workers,
        host=options.host,
        port=options.port,
        control_port=options.control_port,
        kv_events_port=options.kv_events_port,
        kv_replay_port=options.kv_replay_port,
        warp=options.time_warp,
        seed=options.seed,
        style=Style(options.mean_answer_tokens, options.newline_share),
    )


async def _run(config: FleetConfig, options: argparse.Namespace, orders: Sequence[Order]) -> None:
    done = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, done.set)
    async with Fleet(config) as fleet:
        for order in orders:
            fleet.place(order)
        for chaos in options.chaos:
            fleet.desk.unleash(parse_chaos(chaos.encode()), fleet.workers)
        # What is here now stays: the collector need not look at the vocabulary again and again.
        gc.freeze()
        line = json.dumps(fleet.describe())
        if options.ready_file is not None:
            options.ready_file.write_text(line + "\n")
        print(line, flush=True)
        table = asyncio.create_task(show(fleet)) if options.console else None
        await done.wait()
        if table is not None:
            table.cancel()


def _order(control: str | None, words: str) -> None:
    if control is None:
        raise BadOrder("--order needs --control URL: where the fleet has its control port")
    order = parse_words(words)
    try:
        reply = httpx.post(control.rstrip("/") + "/sim/fault", content=msgspec.json.encode(order))
    except httpx.HTTPError as error:
        raise BadOrder(f"no fleet at {control}: {error}") from error
    if reply.status_code != 200:
        raise BadOrder(reply.text)
    print(reply.text)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. Exit code 3 if it cannot start."""
    options = _parser().parse_args(arguments)
    try:
        if options.order is not None:
            _order(options.control, options.order)
            return 0
        uvloop.run(_run(_config(options), options, [parse_words(words) for words in options.fault]))
    except (ProfileError, BadOrder, OSError, ValueError) as error:
        print(f"simfleet: {error}", file=sys.stderr)
        return 3
    return 0


if __name__ == "__main__":
    sys.exit(main())
