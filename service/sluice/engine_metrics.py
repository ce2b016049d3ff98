"""What a worker's `/metrics` says of its engine, found by looking for the few lines that matter: it is read often.

Of a server with several data-parallel ranks all series are added up. Numbers that no engine can mean are a `ValueError`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

RUNNING = b"vllm:num_requests_running"
WAITING = b"vllm:num_requests_waiting"
REASONS = b"vllm:num_requests_waiting_by_reason"
KV_USAGE = b"vllm:kv_cache_usage_perc"
OLD_KV_USAGE = b"vllm:gpu_cache_usage_perc"
SLEEP_STATE = b"vllm:engine_sleep_state"
PROMPT_TOKENS = b"vllm:prompt_tokens_total"
GENERATED_TOKENS = b"vllm:generation_tokens_total"
CACHE_CONFIG = b"vllm:cache_config_info"
READ = (RUNNING, WAITING, REASONS, KV_USAGE, OLD_KV_USAGE, SLEEP_STATE, PROMPT_TOKENS, GENERATED_TOKENS)

MAX_REQUESTS = 1_000_000  # of one worker; beyond it a number is a lie
MAX_TOKENS = 10**18
CACHE_LABELS = re.compile(rb'[{,](block_size|num_gpu_blocks)="([1-9][0-9]{0,8})"')


class Reading(NamedTuple):
    """One look at a worker's engine."""

    num_running: int
    num_waiting: int
    num_waiting_for_capacity: int
    kv_usage: float
    is_asleep: bool
    num_tokens: int  # ever computed: grows while the engine works, and falls when it is started anew


def read(page: bytes) -> Reading | None:
    """The load on a page; None where it is not there. Raises `ValueError` for numbers that cannot be."""
    running = _values(page, RUNNING)
    if not running:
        return None
    usage = _values(page, KV_USAGE) or _values(page, OLD_KV_USAGE)
    awake = _values(page, SLEEP_STATE, _is_awake)
    capacity = _values(page, REASONS, _is_capacity)
    waiting = _count(_values(page, WAITING))
    return Reading(
        num_running=_count(running),
        num_waiting=waiting,
        num_waiting_for_capacity=min(waiting, _count(capacity)) if capacity else waiting,
        kv_usage=_share(usage),
        is_asleep=bool(awake) and not all(awake),
        num_tokens=_count(_values(page, PROMPT_TOKENS) + _values(page, GENERATED_TOKENS), MAX_TOKENS),
    )


def cache_size(page: bytes) -> tuple[int, int] | None:
    """The tokens of a block of the KV cache, and how many blocks there are; None where it does not say."""
    block_size = num_blocks = 0
    for labels in _lines(page, CACHE_CONFIG):
        found = dict(CACHE_LABELS.findall(labels))
        block_size = max(block_size, int(found.get(b"block_size", 0)))
        num_blocks += int(found.get(b"num_gpu_blocks", 0))
    return (block_size, num_blocks) if block_size and num_blocks else None


def _lines(page: bytes, name: bytes) -> list[bytes]:
    """All series of a metric: they stand together."""
    begin = b"\n" + name + b"{"
    at = page.find(begin)
    found = []
    while at >= 0:
        end = page.find(b"\n", at + 1)
        if end < 0:
            end = len(page)
        found.append(page[at + len(name) + 1 : end])
        at = end if page.startswith(begin, end) else -1
    return found


def _any(labels: bytes) -> bool:
    return True


def _is_awake(labels: bytes) -> bool:
    return b'sleep_state="awake"' in labels


def _is_capacity(labels: bytes) -> bool:
    return b'reason="capacity"' in labels


def _values(page: bytes, name: bytes, is_meant: Callable[[bytes], bool] = _any) -> list[float]:
    return [float(line[line.rindex(b"}") + 1 :]) for line in _lines(page, name) if is_meant(line)]


def _count(values: list[float], most: int = MAX_REQUESTS) -> int:
    total = sum(values)
    if not all(0 <= value <= most for value in values) or total > most:  # NaN is in no range
        raise ValueError(f"{total:g} cannot be")
    return round(total)


def _share(values: list[float]) -> float:
    """The mean of the ranks."""
    if not all(0 <= value <= 1.01 for value in values):
        raise ValueError(f"a cache that is {values[0]:g} full cannot be")
    return sum(values) / len(values) if values else 0.0
