"""BM25 over a store's words: the lengths of its passages in memory, and where the words stand that were asked for.

FTS5 finds the passages of a word; its own `bm25()` would look up each one's length in a table, one after the other, which takes
most of a search for a common word. Here lengths are one array, and a score is a few operations on arrays.

Nothing gets stale: the ids of new passages are always the highest, so each search reads what has come since the last one,
of the lengths and of each of its words. Where passages were taken out, the lexicon is made anew.
"""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass

import numpy as np

from sluice.retrieval.passages import POSITION_BITS, PassageReader
from sluice.retrieval.tokens import LEVELS, at_level, quoted

K1, B = 1.2, 0.75  # as FTS5 and most others have them
WORD_BYTES = 300  # of an entry, beside its arrays

Word = tuple[str, bool]  # as in tokens.Analyzer.query


@dataclass(frozen=True, slots=True)
class Bounds:
    """Which words of a query are looked for. `make retrieval-quality` shows what is lost by that: less than .005 of nDCG@10."""

    max_words: int = 24  # the rarest
    max_share: float = 0.4  # of the passages: a word that stands in more tells nothing
    share_from: int = 1_000  # in a smaller store nothing is too common


@dataclass(frozen=True, slots=True)
class Posting:
    """Where a word stands: positions in `Lengths`, and how often at each. Of passages up to the id `upto`."""

    upto: int
    positions: np.ndarray
    times: np.ndarray

    @property
    def num_bytes(self) -> int:
        return int(self.positions.nbytes + self.times.nbytes)


NOWHERE = Posting(-1, np.empty(0, np.int32), np.empty(0, np.uint8))


@dataclass(frozen=True, slots=True)
class Lengths:
    """The passages of a store, by rising id, and how many words each has."""

    last_file: int
    ids: np.ndarray
    words: np.ndarray

    @property
    def num_bytes(self) -> int:
        return int(self.ids.nbytes + self.words.nbytes)


class Lexicon:
    """Of one store. Any number of searches at a time may use it."""

    def __init__(self, bounds: Bounds) -> None:
        self._bounds = bounds
        self._lock = threading.Lock()  # to change what follows
        self._lengths = Lengths(-1, np.empty(0, np.int64), np.empty(0, np.float32))
        # Two searches that work out the same do no harm: what is kept is what the last one found.
        self._frequencies: dict[Word, tuple[int, int]] = {}  # up to which id, in how many passages
        self._postings: dict[Word, Posting] = {}
        self._words_bytes = 0

    @property
    def num_bytes(self) -> int:
        return self._lengths.num_bytes + self._words_bytes

    def search(self, reader: PassageReader, words: list[Word], files: np.ndarray | None, limit: int) -> list[tuple[int, float]]:
        """The best passages by BM25 over the rarest of these words: id and score."""
        lengths = self.lengths(reader)
        num = len(lengths.ids)
        if not num:
            return []
        scores = np.zeros(num, np.float32)
        norms = (K1 * (1 - B) + K1 * B / max(float(lengths.words.mean()), 1.0) * lengths.words).astype(np.float32)
        for word in self._chosen(reader, words, lengths):
            positions, times = self._posting(reader, word, lengths)
            weight = max(math.log((num - len(positions) + 0.5) / (len(positions) + 0.5)), 1e-6) * (K1 + 1)
            scores[positions] += weight * times / (times + norms[positions])  # no position occurs twice in a posting
        return best(lengths.ids, scores, files, limit, above=0.0)

    def lengths(self, reader: PassageReader) -> Lengths:
        """Those of all passages that are in the file now."""
        with self._lock:
            known = self._lengths
            if fresh := reader.lengths(known.last_file):
                ids = [known.ids, *((n << POSITION_BITS) + np.arange(len(words), dtype=np.int64) for n, words in fresh)]
                words = [known.words, *(words.astype(np.float32) for _, words in fresh)]
                known = self._lengths = Lengths(fresh[-1][0], np.concatenate(ids), np.concatenate(words))
            return known

    def _chosen(self, reader: PassageReader, words: list[Word], lengths: Lengths) -> list[Word]:
        """The words to look for, the rarest first."""
        counted = [(word, self._frequency(reader, word, int(lengths.ids[-1]))) for word in words]
        there = sorted(((word, number) for word, number in counted if number), key=lambda pair: pair[1])
        bounds = self._bounds
        if len(lengths.ids) >= bounds.share_from:
            most = bounds.max_share * len(lengths.ids)
            there = [(word, number) for word, number in there if number <= most] or there[:1]
        return [word for word, _ in there[: bounds.max_words]]

    def _frequency(self, reader: PassageReader, word: Word, last: int) -> int:
        upto, number = self._frequencies.get(word, (-1, 0))
        if upto < last:
            number += reader.count(quoted(*word), upto, last)
            if number:  # what stands nowhere is not kept: anybody can think of any number of such words
                with self._lock:
                    self._words_bytes += 0 if word in self._frequencies else WORD_BYTES
                    self._frequencies[word] = (last, number)
        return number

    def _posting(self, reader: PassageReader, word: Word, lengths: Lengths) -> tuple[np.ndarray, np.ndarray]:
        """At which of these positions the word stands, and how often at each."""
        posting, last = self._postings.get(word, NOWHERE), int(lengths.ids[-1])
        if posting.upto < last:
            fresh = read_posting(reader, word, lengths, posting.upto)
            positions = np.concatenate([posting.positions, fresh.positions])
            posting = Posting(last, positions, np.concatenate([posting.times, fresh.times]))
            with self._lock:
                self._words_bytes += posting.num_bytes - self._postings.get(word, NOWHERE).num_bytes
                self._postings[word] = posting
        num = len(posting.positions)
        if posting.upto > last:  # another search has seen more of the store than this one
            num = int(np.searchsorted(posting.positions, len(lengths.ids)))
        return posting.positions[:num], posting.times[:num].astype(np.float32)


def read_posting(reader: PassageReader, word: Word, lengths: Lengths, after: int) -> Posting:
    """Where the word stands in passages whose ids are above `after`."""
    last = int(lengths.ids[-1])
    ids = reader.matching(quoted(*word), after, last)
    times = np.ones(len(ids), np.uint8)
    for level in LEVELS if len(ids) else ():
        often = reader.matching(quoted(at_level(word[0], level), False), after, last)
        if not len(often):
            break
        times[np.searchsorted(ids, often)] = level
    return Posting(last, np.searchsorted(lengths.ids, ids).astype(np.int32), times)


def best(
    ids: np.ndarray, scores: np.ndarray, files: np.ndarray | None, limit: int, *, above: float = -2.0
) -> list[tuple[int, float]]:
    """The highest scores, of these files if any are named; equal ones by rising id."""
    wanted = scores > above
    if files is not None:
        wanted &= np.isin(ids >> POSITION_BITS, files)
    at = np.flatnonzero(wanted)
    if len(at) > limit:
        least = np.partition(scores[at], len(at) - limit)[len(at) - limit]
        at = at[scores[at] >= least]
    order = at[np.lexsort((ids[at], -scores[at]))][:limit]
    return [(int(ids[one]), float(scores[one])) for one in order]
