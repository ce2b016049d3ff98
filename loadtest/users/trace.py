"""Recorded traces: Mooncake's (with the prefixes that its prompts share) or Azure's (lengths alone).

Mooncake: Qin et al., "Mooncake", FAST '25; `hash_ids` name blocks of 512 tokens, and equal ids are equal text with all that
comes before. Its arrivals are rounded to steps of about 3 s: they are spread evenly within a step. Azure: Patel et al.,
"Splitwise", ISCA 2024.
"""

from __future__ import annotations

import csv
import itertools
import json
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

from loadtest.simfleet.text import filler

BLOCK_TOKENS = 512
STEP_S = 3.0
SEED = 1


@dataclass(frozen=True)
class Arrival:
    """One request of a trace: when it comes, and how long it and its answer are, in tokens."""

    at_s: float
    prompt_tokens: int
    answer_tokens: int
    blocks: tuple[int, ...] = ()

    def text(self, scale: float) -> str:
        """A prompt whose blocks are the same text as the same blocks of others."""
        wanted = max(1, int(self.prompt_tokens * scale))
        size = max(1, int(BLOCK_TOKENS * scale))
        pieces = []
        for block in self.blocks or (hash((self.at_s, self.prompt_tokens)) & 0x7FFFFFFF,):
            length = min(size, wanted) if self.blocks else wanted
            pieces.append(filler(block, length))
            wanted -= length
            if wanted <= 0:
                break
        return "".join(pieces)


def read_trace(path: Path) -> list[Arrival]:
    """The arrivals in order; raises `ValueError` or `OSError` where the file is no trace."""
    with path.open(encoding="utf-8", newline="") as lines:
        arrivals = list(_azure(lines) if path.suffix == ".csv" else _mooncake(lines))
    if not arrivals:
        raise ValueError(f"{path}: no request in it")
    return arrivals


def _mooncake(lines: Iterable[str]) -> Iterator[Arrival]:
    try:
        recorded = [json.loads(line) for line in lines]
        found = [
            Arrival(one["timestamp"] / 1000, one["input_length"], one["output_length"], tuple(one["hash_ids"]))
            for one in recorded
        ]
    except (ValueError, KeyError, TypeError) as exc:
        raise ValueError("not a Mooncake trace: a line is no object with timestamp, input_length, ...") from exc
    drawn = random.Random(SEED)
    for _, group in itertools.groupby(found, key=lambda one: one.at_s):
        together = list(group)
        offsets = sorted(drawn.uniform(0, STEP_S) for _ in together) if len(together) > 1 else [0.0]
        for one, offset in zip(together, offsets, strict=True):
            yield replace(one, at_s=one.at_s + offset)


def _azure(lines: Iterable[str]) -> Iterator[Arrival]:
    begun: datetime | None = None
    try:
        for row in csv.DictReader(lines):
            at = datetime.strptime(row["TIMESTAMP"][:26], "%Y-%m-%d %H:%M:%S.%f")
            begun = begun or at
            yield Arrival((at - begun).total_seconds(), int(row["ContextTokens"]), int(row["GeneratedTokens"]))
    except (ValueError, KeyError, TypeError) as exc:
        raise ValueError("not an Azure trace: columns TIMESTAMP, ContextTokens, GeneratedTokens are needed") from exc
