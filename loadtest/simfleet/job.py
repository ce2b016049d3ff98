"""One prompt being answered: what the engine is asked for and how far it has come."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from loadtest.simfleet.kv_cache import Table


class Content(Protocol):
    """What prompt and output consist of, as far as the engine cares."""

    def reach(self, num_output_tokens: int) -> int:
        """How many output tokens there are, looking no further than `num_output_tokens`."""

    def block_hashes(self, num_blocks: int) -> Sequence[int]:
        """The hashes of at least the first `num_blocks` full blocks of prompt and output so far."""


@dataclass(eq=False, slots=True)
class Job:
    """Made by the caller from its first four members; the others are the engine's. Times are virtual seconds."""

    content: Content
    num_prompt_tokens: int
    lora: str | None = None
    owner: object = None

    # How far it is
    num_computed: int = 0  # tokens whose keys and values are in the cache
    num_generated: int = 0
    table: Table = field(default_factory=Table)
    done: bool = False

    # What is told about it afterwards
    num_cached_tokens: int = 0  # of the prompt, found in the cache when it was first scheduled
    num_stored_tokens: int = 0  # of the prompt, computed and left in whole blocks
    num_preemptions: int = 0
    arrived_s: float = 0.0
    queued_s: float = 0.0
    scheduled_s: float | None = None
    first_token_s: float | None = None
    last_token_s: float | None = None

    @property
    def num_tokens(self) -> int:
        return self.num_prompt_tokens + self.num_generated


@dataclass(slots=True)
class Progress:
    """`job` has output tokens `start` to `stop` since the last report."""

    job: Job
    start: int
    stop: int
    finished: bool
