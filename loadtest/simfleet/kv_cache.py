"""The KV cache of one worker: fixed blocks, found again by the hash of their content and all before it, evicted LRU.

As in vLLM a block that nobody uses stays findable until its room is needed; of one sequence the tail goes first. One
thing is simpler: two sequences that compute the same block at the same time leave one findable copy and not two.
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(slots=True)
class Stored:
    """`source` has filled its blocks `first` to `first + len(hashes)`."""

    source: object
    first: int
    hashes: list[int]
    parent: int | None


@dataclass(slots=True)
class Removed:
    """A block was evicted."""

    hash: int


@dataclass(slots=True)
class Cleared:
    """The whole cache was emptied."""


Event = Stored | Removed | Cleared


@dataclass(slots=True)
class Table:
    """The blocks one sequence holds: the findable ones in order, and how many others."""

    hashes: list[int] = field(default_factory=list)
    num_private: int = 0
    # Full blocks that were offered to `commit`, findable under this table's name or not.
    num_committed: int = 0

    def __len__(self) -> int:
        return len(self.hashes) + self.num_private


class KvCache:
    """Who holds what is in `_refs` (findable blocks in use), `_idle` (findable, evictable) and `num_blank`."""

    def __init__(self, num_blocks: int, block_size: int, *, record_events: bool = False) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.num_blank = num_blocks
        self._refs: dict[int, int] = {}
        self._idle: OrderedDict[int, None] = OrderedDict()
        self._record = record_events
        self._events: list[Event] = []

    def __repr__(self) -> str:
        return f"<KvCache {self.num_blocks} blocks | {len(self._refs)} in use, {len(self._idle)} idle>"

    @property
    def num_free(self) -> int:
        return self.num_blank + len(self._idle)

    @property
    def usage(self) -> float:
        """The share in use by sequences; a block that is only kept in case it is wanted again is free."""
        return 1.0 - self.num_free / self.num_blocks

    def __contains__(self, block_hash: int) -> bool:
        return block_hash in self._refs or block_hash in self._idle

    def match(self, hashes: Sequence[int]) -> int:
        """How many leading blocks of a prompt are here."""
        for at, block_hash in enumerate(hashes):
            if block_hash not in self:
                return at
        return len(hashes)

    def num_idle(self, hashes: Sequence[int]) -> int:
        """How many of these blocks count as free now and would not after `adopt`."""
        return sum(block_hash in self._idle for block_hash in hashes)

    def adopt(self, table: Table, hashes: Sequence[int]) -> None:
        """Let an empty table use blocks that `match` found."""
        for block_hash in hashes:
            self._idle.pop(block_hash, None)
            self._refs[block_hash] = self._refs.get(block_hash, 0) + 1
        table.hashes.extend(hashes)
        table.num_committed = len(hashes)

    def grow(self, table: Table, num_tokens: int) -> bool:
        """Give the table room for `num_tokens`, evicting what was not used for longest; False if that is not enough."""
        wanted = -(-num_tokens // self.block_size) - len(table)
        if wanted <= 0:
            return True
        if wanted > self.num_free:
            return False
        while self.num_blank < wanted:
            block_hash, _ = self._idle.popitem(last=False)
            self.num_blank += 1
            if self._record:
                self._events.append(Removed(block_hash))
        self.num_blank -= wanted
        table.num_private += wanted
        return True

    def commit(self, table: Table, hashes: Sequence[int], source: object) -> None:
        """Make the table's full blocks findable; `hashes` are those of the sequence from its beginning."""
        stored: Stored | None = None
        for at in range(table.num_committed, len(hashes)):
            block_hash = hashes[at]
            if block_hash in self:
                stored = None
                continue
            self._refs[block_hash] = 1
            table.hashes.append(block_hash)
            table.num_private -= 1
            if not self._record:
                continue
            if stored is None:
                stored = Stored(source, at, [], hashes[at - 1] if at else None)
                self._events.append(stored)
            stored.hashes.append(block_hash)
        table.num_committed = len(hashes)

    def release(self, table: Table) -> None:
        """Take everything back. What is findable stays so, the end of the sequence to be evicted first."""
        for block_hash in reversed(table.hashes):
            refs = self._refs[block_hash] - 1
            if refs:
                self._refs[block_hash] = refs
            else:
                del self._refs[block_hash]
                self._idle[block_hash] = None
        self.num_blank += table.num_private
        table.hashes.clear()
        table.num_private = table.num_committed = 0

    def clear(self) -> bool:
        """Forget everything; as in vLLM not while any block is in use."""
        if self.num_free != self.num_blocks:
            return False
        self._idle.clear()
        self.num_blank = self.num_blocks
        if self._record:
            self._events.append(Cleared())
        return True

    def take_events(self) -> list[Event]:
        """The events since the last call, oldest first."""
        events, self._events = self._events, []
        return events
