"""The command-line options that the users add to locust's own."""

from __future__ import annotations

import argparse
import os
from typing import Any


def add_to(parser: Any) -> None:
    group = parser.add_argument_group("OpenAI users")
    environment = os.environ.get
    group.add_argument("--key", default=environment("SLUICE_KEY", "sk-none"), help="API key of the users (SLUICE_KEY)")
    group.add_argument(
        "--abusive-key", default=environment("SLUICE_ABUSIVE_KEY", ""), help="key of AbusiveUser; none: no such user"
    )
    group.add_argument("--model", default=environment("SLUICE_MODEL", "sim"), help="model that is asked (SLUICE_MODEL)")
    group.add_argument("--embedding-model", default="", help="model of EmbeddingsUser; none: no such user")
    group.add_argument("--with-retrieval", action="store_true", help="RagUser uploads a file and asks about it")
    group.add_argument("--max-tokens", type=int, default=128, help="of an answer")
    group.add_argument("--think-s", type=float, default=1.0, help="mean pause between two calls of a person")
    group.add_argument("--timeout-s", type=float, default=120.0, help="of the network")
    group.add_argument("--goal-ttft-ms", type=float, default=2000.0, help="goodput: the first event within")
    group.add_argument("--goal-gap-ms", type=float, default=200.0, help="goodput: mean gap between events at most")
    group.add_argument(
        "--slo", default="", help="conditions such as 'ttft_p95_ms<=2000,error_ratio<=0.01'; exit code 1 if missed"
    )
    group.add_argument("--report", default="", metavar="FILE.html", help="write a page with plots, and FILE.json beside it")


def add_trace_to(parser: Any) -> None:
    group = parser.add_argument_group("trace replay")
    group.add_argument("--trace", required=False, default="", help="Mooncake's .jsonl or Azure's .csv")
    group.add_argument("--trace-speed", type=float, default=1.0, help="so many seconds of the trace in a second")
    group.add_argument("--trace-scale", type=float, default=1.0, help="share of each prompt's and answer's tokens that is sent")
    group.add_argument("--trace-limit", type=positive, default=1_000_000, help="the first so many requests of it")


def positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return value
