"""How fast a simulated worker is and how much it holds: a JSON file, measured or from public figures."""

import json
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

PROFILES_DIR = Path(__file__).parent / "profiles"


class ProfileError(ValueError):
    """A profile that cannot be used; the message says which member is wrong and what it should be."""


@dataclass(frozen=True)
class Profile:
    """One worker's engine. Times are those of the worker itself; time warp is applied outside.

    A step that decodes for `d` sequences with `c` tokens of context in all and prefills `p` tokens takes
    `step_ms[d] + c * context_ns + p / prefill_tokens_per_s + (p x what is before each) * prefill_context_ns`.
    """

    name: str
    source: str
    block_size: int
    num_kv_blocks: int
    max_num_seqs: int
    max_num_batched_tokens: int
    max_model_len: int
    # From the last byte of a request to the engine's queue: HTTP, template, tokeniser.
    request_overhead_ms: float
    prefill_tokens_per_s: float
    # (sequences that decode, milliseconds), rising; the first is 0: a step that only prefills. Linear in between, and
    # beyond the last with the mean slope of all.
    step_ms: tuple[tuple[int, float], ...]
    context_ns: float = 0.0
    prefill_context_ns: float = 0.0

    def __post_init__(self) -> None:
        for name in ("block_size", "num_kv_blocks", "max_num_seqs", "max_num_batched_tokens", "max_model_len"):
            if getattr(self, name) < 1:
                raise ProfileError(f"{name} is {getattr(self, name)}: must be at least 1")
        if self.prefill_tokens_per_s <= 0:
            raise ProfileError(f"prefill_tokens_per_s is {self.prefill_tokens_per_s}: must be above 0")
        batches = [batch for batch, _ in self.step_ms]
        if batches[:1] != [0] or batches != sorted(set(batches)) or min(ms for _, ms in self.step_ms) <= 0:
            raise ProfileError("step_ms must be pairs of batch and milliseconds, batches rising from 0, times above 0")
        if self.num_kv_blocks * self.block_size < self.max_model_len:
            raise ProfileError(
                f"{self.num_kv_blocks} blocks of {self.block_size} tokens hold no prompt of max_model_len"
                f" {self.max_model_len}: set more blocks or a smaller max_model_len"
            )

    def step_s(self, num_decodes: int) -> float:
        """The time of a step that decodes for so many sequences, before context and prefill."""
        points = self.step_ms
        for (low, low_ms), (high, high_ms) in zip(points, points[1:], strict=False):
            if num_decodes <= high:
                return (low_ms + (high_ms - low_ms) * (num_decodes - low) / (high - low)) / 1e3
        (low, low_ms), (high, high_ms) = points[0], points[-1]
        slope = (high_ms - low_ms) / (high - low) if high else 0.0
        return (high_ms + slope * (num_decodes - high)) / 1e3

    def changed(self, **members: Any) -> "Profile":
        """This profile with other members; None leaves one as it is."""
        return replace(self, **{name: value for name, value in members.items() if value is not None})

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2) + "\n"


def parse(text: str) -> Profile:
    """A profile from JSON."""
    try:
        members = json.loads(text)
        known = {field.name for field in fields(Profile)}
        if unknown := set(members) - known:
            raise ProfileError(f"unknown members {sorted(unknown)}")
        members["step_ms"] = tuple((int(batch), float(ms)) for batch, ms in members["step_ms"])
        return Profile(**members)
    except (TypeError, KeyError, json.JSONDecodeError) as error:
        raise ProfileError(f"not a profile: {error}") from error


def load(name: str) -> Profile:
    """A profile by the name of a shipped one or by its path."""
    path = Path(name) if "/" in name or name.endswith(".json") else PROFILES_DIR / f"{name}.json"
    try:
        text = path.read_text()
    except OSError as error:
        shipped = ", ".join(sorted(found.stem for found in PROFILES_DIR.glob("*.json")))
        raise ProfileError(f"no profile {name!r}: give a path or one of {shipped}") from error
    return parse(text)
