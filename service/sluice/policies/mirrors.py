"""What each worker's prefix cache holds, as far as one gateway can know: what it has sent there, less what was evicted since.

A cache is mirrored as a list of blocks, least recently used first, up to a capacity that is learnt. The age of a block is how
much its worker has taken in since it was last used. Where the engine still finds a block or finds it no more, that is evidence
that its capacity is above or below the block's age. The capacity thus also stands for what a mirror does not see: answers,
blocks that running calls hold, the calls of other gateways.
"""

from __future__ import annotations

import math
from array import array
from collections import OrderedDict
from collections.abc import Sequence

from sluice.prefix import COARSE_BYTES, FINE_BYTES, NUM_FINE
from sluice.worker import Worker

FINE_KB, COARSE_KB = FINE_BYTES / 1024, COARSE_BYTES / 1024
FIRST_KB, LEAST_KB, MOST_KB = 16_384.0, 64.0, 1_048_576.0  # the capacity before anything was learnt: some 4 million tokens
MAX_BLOCKS = 65_536  # of one mirror, whatever it has learnt: about 10 MB
# A block as old as the capacity is found in half of all cases, one twice as old in one of 2 ** SHARPNESS.
SHARPNESS = 6
LEARNT = 0.05  # how far the capacity's logarithm moves for one surprise; more in the beginning
ENOUGH = 8.0  # surprises, after which what was learnt counts more than what is told
UNKNOWN = -1.0  # the age of a block that a mirror does not know


class Mirror:
    """One worker's cache. `bit` stands for the worker in the masks of `Mirrors`, `salt` in the choice of a prompt's home."""

    __slots__ = ("bit", "blocks", "capacity_kb", "evicted", "evidence", "is_told", "noted_at", "noted_kb", "now_kb", "salt")

    def __init__(self, bit: int, salt: int) -> None:
        self.bit = bit
        self.salt = salt
        self.capacity_kb = FIRST_KB
        self.evidence = 0.0  # how many surprises the capacity is learnt from
        self.is_told = False  # whether the engine says what it finds: some never do, and then nothing found means nothing
        # When facts of the cache were last told, and what the worker had been sent by then.
        self.noted_at: float | None = None
        self.noted_kb = 0.0
        # What the worker was sent so far; and for each block, least recently used first, how much that was at its last use.
        self.now_kb = 0.0
        self.blocks: OrderedDict[int, float] = OrderedDict()
        self.evicted: OrderedDict[int, float] = OrderedDict()  # believed to be gone; the engine may know better

    def num_held(self, holders: Sequence[tuple[int, int]]) -> int:
        """How many leading blocks of a prompt this worker holds, by what `Mirrors.holders` said of the prompt."""
        bit = self.bit
        for mask, num_blocks in holders:
            if mask & bit:
                return num_blocks
        return 0

    def note(self, size_kb: float, age_s: float | None, now: float) -> None:
        """What is known of the cache from elsewhere: its size, and how long a block stays there. Answers know better.

        What was sent there while a block stays is what the cache holds of ours: less than its size, where others send too.
        """
        if self.noted_at is not None and age_s is not None and now > self.noted_at:
            size_kb = min(size_kb, age_s * (self.now_kb - self.noted_kb) / (now - self.noted_at))
        self.noted_at, self.noted_kb = now, self.now_kb
        if size_kb > 0 and self.evidence < ENOUGH:
            self.capacity_kb = min(MOST_KB, max(LEAST_KB, size_kb))

    def learn(self, ages_kb: Sequence[float], num_predicted: int, num_found: int) -> None:
        """Of a prompt whose blocks had these ages so many leading ones were predicted to be there, and so many were."""
        surprise = 0.0
        if num_found and (age_kb := ages_kb[num_found - 1]) > UNKNOWN:
            surprise = 1.0 - self._chance(age_kb)
        if num_found < num_predicted and (age_kb := ages_kb[num_found]) > UNKNOWN:
            surprise -= self._chance(age_kb)
        self.evidence += abs(surprise)
        step = max(LEARNT, 1.0 / (1.0 + self.evidence / 2.0))
        self.capacity_kb = min(MOST_KB, max(LEAST_KB, self.capacity_kb * math.exp(step * surprise)))

    def _chance(self, age_kb: float) -> float:
        """How likely a block of this age is found."""
        return 1.0 / (1.0 + (age_kb / self.capacity_kb) ** SHARPNESS)


class Mirrors:
    """The mirrors of all workers, and for each block who holds it, as a mask of bits."""

    def __init__(self) -> None:
        self.of: dict[Worker, Mirror] = {}
        self.workers: dict[int, Worker] = {}  # by bit
        self._holders: dict[int, int] = {}
        self._free_bits: list[int] = []

    def __repr__(self) -> str:
        return f"<Mirrors of {len(self.of)} workers, {len(self._holders)} blocks>"

    def open(self, worker: Worker, salt: int) -> Mirror:
        """The mirror of a worker that has none yet."""
        bit = self._free_bits.pop() if self._free_bits else 1 << len(self.of)
        mirror = self.of[worker] = Mirror(bit, salt)
        self.workers[bit] = worker
        return mirror

    def holders(self, hashes: Sequence[int]) -> list[tuple[int, int]]:
        """Who holds how many of a prompt's leading blocks: masks of workers and numbers of blocks, most blocks first.

        A worker is in the masks of all that it holds: its first one counts. Who holds a block holds all before it, for they
        are used after it and evicted later: so the ends are found by halving.
        """
        found: list[tuple[int, int]] = []
        get, num_blocks = self._holders.get, len(hashes)
        mask, held = (get(hashes[0], 0) if hashes else 0), 0
        while mask:  # who holds the block `held`; the first that not all of them hold is between it and `gone`
            gone, at = num_blocks, num_blocks - 1
            while gone - held > 1:
                others = get(hashes[at], 0)
                if others == mask or others & mask == mask:
                    held = at
                else:
                    gone = at
                at = (held + gone) // 2
            found.append((mask, gone))
            if gone == num_blocks:
                break
            mask &= get(hashes[gone], 0)
            held = gone
        found.reverse()
        return found

    def use(self, mirror: Mirror, hashes: Sequence[int]) -> array[float]:
        """The worker uses these blocks of a prompt, its beginning last: of one prompt the end is evicted first. Returns how
        old they were.
        """
        blocks, evicted, holders, bit = mirror.blocks, mirror.evicted, self._holders, mirror.bit
        capacity_kb, now_kb = mirror.capacity_kb, mirror.now_kb
        before_kb = now_kb
        ages_kb = array("f")
        for at in range(len(hashes) - 1, -1, -1):
            block = hashes[at]
            size_kb = FINE_KB if at < NUM_FINE else COARSE_KB
            used_kb = blocks.pop(block, None)
            if used_kb is not None:
                age_kb = before_kb - used_kb
                # It overtakes the blocks that were used since, and no others get older by that.
                now_kb += size_kb * age_kb / capacity_kb if age_kb < capacity_kb else size_kb
                ages_kb.append(age_kb)
            else:
                now_kb += size_kb
                used_kb = evicted.pop(block, None)
                ages_kb.append(UNKNOWN if used_kb is None else before_kb - used_kb)
                holders[block] = holders.get(block, 0) | bit
            blocks[block] = now_kb
        mirror.now_kb = now_kb
        self.evict(mirror)
        ages_kb.reverse()
        return ages_kb

    def evict(self, mirror: Mirror) -> None:
        """Give up the blocks that are older than the capacity."""
        blocks, evicted = mirror.blocks, mirror.evicted
        oldest_kb = mirror.now_kb - mirror.capacity_kb
        while blocks:
            block, used_kb = blocks.popitem(last=False)
            if used_kb >= oldest_kb and len(blocks) < MAX_BLOCKS:
                blocks[block] = used_kb
                blocks.move_to_end(block, last=False)
                break
            evicted[block] = used_kb
            self._drop(block, mirror.bit)
        while len(evicted) > min(len(blocks) + 1024, MAX_BLOCKS):
            evicted.popitem(last=False)

    def forget(self, worker: Worker) -> None:
        """The worker is gone, or its cache is empty."""
        mirror = self.of.pop(worker, None)
        if mirror is not None:
            for block in mirror.blocks:
                self._drop(block, mirror.bit)
            del self.workers[mirror.bit]
            self._free_bits.append(mirror.bit)

    def _drop(self, block: int, bit: int) -> None:
        mask = self._holders[block] & ~bit
        if mask:
            self._holders[block] = mask
        else:
            del self._holders[block]
