"""Reciprocal rank fusion: several rankings of the same things made into one.

A thing's score is the sum of weight / (K + rank) over the rankings that it stands in, divided by the best that could be: 1 for
what is first everywhere. Ranks and not scores, because BM25's and cosines cannot be compared.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from typing import TypeVar

K = 60
DEPTH = 100  # of each ranking

Thing = TypeVar("Thing", bound=Hashable)


def fuse(rankings: Iterable[tuple[Sequence[Thing], float]]) -> list[tuple[Thing, float]]:
    """The things by falling score; among equals those that were met first. A ranking comes with its weight."""
    scores: dict[Thing, float] = {}
    best = 0.0
    for ranking, weight in rankings:
        best += weight / (K + 1)
        for rank, thing in enumerate(ranking[:DEPTH], start=1):
            scores[thing] = scores.get(thing, 0.0) + weight / (K + rank)
    fused = [(thing, score / best) for thing, score in scores.items() if score > 0]
    fused.sort(key=lambda pair: -pair[1])
    return fused
