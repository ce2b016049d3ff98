"""One choice of a reply: its tokens as far as they were asked for, the text each adds, and why it ends."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from loadtest.simfleet.text import Draft
from loadtest.simfleet.tokenizer import EOS, Tokenizer


@dataclass(frozen=True)
class Ending:
    """What ends an answer besides itself."""

    max_tokens: int
    ignore_eos: bool = False
    min_tokens: int = 0
    stop: tuple[str, ...] = ()
    stop_token_ids: frozenset[int] = frozenset()
    include_stop: bool = False
    skip_special: bool = True


class Answer:
    """Written lazily: the engine asks how far it reaches, the server what a token adds to the text.

    As in vLLM the token that ends an answer counts as generated and adds no text; a character that several tokens make
    up is added by the last of them; where stop strings are given, text that may be the beginning of one is held back.
    """

    def __init__(self, draft: Draft, tokenizer: Tokenizer, ending: Ending, opening: str = "") -> None:
        self._draft = draft
        self._tokenizer = tokenizer
        self._ending = ending
        self._opening = opening  # echoed before the first token's text
        self._undecoded = b""
        self._held = ""
        self._hold = 0 if ending.include_stop else max((len(stop) - 1 for stop in ending.stop), default=0)
        self._tail = ""

        # What was written so far
        self.ids: list[int] = []
        self.deltas: list[str] = []
        self.finish_reason: str | None = None
        self.stop_reason: int | str | None = None

    def reach(self, num_tokens: int) -> int:
        """How many tokens the answer has, looking no further than `num_tokens`."""
        while len(self.ids) < num_tokens and self.finish_reason is None:
            self._write()
        return min(len(self.ids), num_tokens)

    def text(self, num_tokens: int) -> str:
        """The text of the first `num_tokens` tokens, as far as it was not held back."""
        return "".join(self.deltas[:num_tokens])

    def _write(self) -> None:
        token = self._draft.next_token()
        ending = self._ending
        self.ids.append(token)
        past_minimum = len(self.ids) > ending.min_tokens
        stops = past_minimum and token in ending.stop_token_ids
        if (stops or token == EOS) and not ending.ignore_eos:
            self.finish_reason = "stop"
            self.stop_reason = token if stops else None
            delta = self._decode(token) if ending.include_stop else ""
        else:
            delta = self._decode(token)
            if ending.stop and past_minimum:
                delta = self._check_stops(delta)
        if self.finish_reason is None and len(self.ids) >= ending.max_tokens:
            self.finish_reason = "length"
        delta = self._release(delta)
        self.deltas.append(delta if self.deltas else self._opening + delta)

    def _decode(self, token: int) -> str:
        piece = self._tokenizer.piece(token, skip_special=self._ending.skip_special)
        if piece.isascii() and not self._undecoded:
            return piece.decode()
        data = self._undecoded + piece
        try:
            text = data.decode()
        except UnicodeDecodeError as error:
            if error.reason == "unexpected end of data":
                self._undecoded = data
                return ""
            text = data.decode("utf-8", "replace")
        self._undecoded = b""
        return text

    def _check_stops(self, delta: str) -> str:
        """What `delta` may add up to the first stop string that it completes."""
        ending = self._ending
        seen = self._tail + delta
        found = [(at, stop) for stop in ending.stop if (at := seen.find(stop)) >= 0]
        if not found:
            longest = max(map(len, ending.stop))
            self._tail = seen[-(longest - 1) :] if longest > 1 else ""
            return delta
        at, stop = min(found, key=lambda hit: hit[0])
        self.finish_reason, self.stop_reason = "stop", stop
        end = at + len(stop) if ending.include_stop else at
        kept = end - len(self._tail)
        if kept >= 0:
            return delta[:kept]
        self._held = self._held[:kept]
        return ""

    def _release(self, delta: str) -> str:
        if not self._hold:
            return delta
        text = self._held + delta
        if self.finish_reason is not None:
            self._held = ""
            return text
        cut = max(len(text) - self._hold, 0)
        self._held = text[cut:]
        return text[:cut]


@dataclass(frozen=True, slots=True)
class Namespace:
    """What a prompt's blocks are kept apart by, besides its tokens."""

    lora: str | None = None
    lora_id: int | None = None
    cache_salt: str = ""

    def first_parent(self) -> int:
        """What stands for the block before the first one."""
        name = f"{self.lora or ''}\0{self.cache_salt}".encode()
        return int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "big")


class Manuscript:
    """Prompt and answer as the engine sees them: how long, and which blocks of the cache they are."""

    def __init__(self, prompt_ids: Sequence[int], answer: Answer, block_size: int, namespace: Namespace) -> None:
        self.prompt_ids = prompt_ids
        self.answer = answer
        self.namespace = namespace
        self._block_size = block_size
        self._hashes: list[int] = []

    def reach(self, num_output_tokens: int) -> int:
        return self.answer.reach(num_output_tokens)

    def tokens(self, start: int, stop: int) -> list[int]:
        """The ids from `start` to `stop`, counted from the prompt's first."""
        num_prompt = len(self.prompt_ids)
        ids = list(self.prompt_ids[start:stop])
        if stop > num_prompt:
            ids += self.answer.ids[max(start - num_prompt, 0) : stop - num_prompt]
        return ids

    def block_hashes(self, num_blocks: int) -> list[int]:
        """The hashes of at least the first `num_blocks` full blocks, each chained to the one before it."""
        hashes = self._hashes
        while len(hashes) < num_blocks:
            start = len(hashes) * self._block_size
            parent = hashes[-1] if hashes else self.namespace.first_parent()
            ids = self.tokens(start, start + self._block_size)
            hashes.append(hash((parent, *ids)) & 0xFFFFFFFFFFFFFFFF)
        return hashes
