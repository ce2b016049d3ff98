"""What a simulated model says: the next token as a pure function of all token ids before it.

Nothing but the ids so far decides (a running CRC over them, and the unfinished word they end in), so whoever is given
prompt + the first k tokens of an answer goes on with token k + 1 of the same answer, on any worker, at any time. An
answer's text has the ids it was made of: tokenising its first k tokens' text gives these k tokens back.
"""

import zlib
from array import array
from collections.abc import Sequence
from dataclasses import dataclass

from loadtest.simfleet.lexicon import CHINESE_PHRASES, EMOJI, LONG_WORDS, WHOLE_WORDS
from loadtest.simfleet.tokenizer import BOS, EOS, FIRST_BYTE_ID, Tokenizer

_MASK = 0xFFFFFFFF
_MAX_ITEM_TOKENS = 8
_SENTENCE_TOKENS = 18.5  # between two full stops, measured


@dataclass(frozen=True)
class Style:
    """How answers are shaped."""

    # An answer that nothing stops ends after about so many tokens, at the end of a sentence.
    mean_answer_tokens: int = 250
    # So many of the answers to a chat begin with a line end, which merges with the one before it in the template: who
    # continues such an answer by its text and not by its ids gets other ids, and so another continuation.
    newline_share: float = 0.1


def _mix(state: int) -> int:
    """32 well mixed bits; a CRC alone is linear."""
    state = ((state ^ (state >> 16)) * 0x7FEB352D) & _MASK
    state = ((state ^ (state >> 15)) * 0x846CA68B) & _MASK
    return state ^ (state >> 16)


def _crc(ids: Sequence[int], state: int) -> int:
    return zlib.crc32(array("I", ids).tobytes(), state)


class Author:
    """The model. Immutable; one serves all workers of a fleet."""

    def __init__(self, tokenizer: Tokenizer, style: Style) -> None:
        encode = tokenizer.encode
        self.tokenizer = tokenizer
        self._words = [tuple(encode(" " + word)) for word in (*WHOLE_WORDS, *LONG_WORDS)]
        self._openers = [tuple(encode(word.capitalize())) for word in WHOLE_WORDS]
        self._sentence_openers = [tuple(encode(" " + word.capitalize())) for word in WHOLE_WORDS]
        self._phrases = [tuple(encode(phrase)) for phrase in CHINESE_PHRASES]
        self._emoji = [tuple(encode(sign)) for sign in EMOJI]
        (self._newline,), (self._paragraph,) = encode("\n"), encode("\n\n")
        (self._comma,), (self._stop,), (self._assistant,) = encode(","), encode("."), encode("assistant")
        # Tokens that never begin a word, a phrase or a sign of the answer.
        items = (*self._words, *self._openers, *self._sentence_openers, *self._phrases, *self._emoji)
        self._inner = frozenset(token for item in items for token in item[1:])
        self._newline_below = int(style.newline_share * 1000)
        self._end_below = int(min(_SENTENCE_TOKENS / style.mean_answer_tokens, 1.0) * 10_000)

    def begin(self, prompt_ids: Sequence[int], voice: str = "", *, may_end: bool = True) -> "Draft":
        """The answer to these ids, not yet written. `voice` tells an adapter's answers from the base model's."""
        return Draft(self, prompt_ids, zlib.crc32(voice.encode()), may_end)

    def next_item(self, state: int, last: int, before_last: int, may_end: bool) -> tuple[int, ...]:
        """The tokens of the next word, sign or phrase after a whole one."""
        luck = _mix(state)
        if last == self._newline and before_last == self._assistant and luck % 1000 < self._newline_below:
            return (self._newline,)
        if last < FIRST_BYTE_ID or last in (self._newline, self._paragraph):
            return self._openers[_mix(luck) % len(self._openers)]
        if last == self._stop:
            if luck % 10_000 < self._end_below and may_end:
                return (EOS,)
            if luck % 16 == 0:
                return (self._paragraph,)
            return self._sentence_openers[_mix(luck) % len(self._sentence_openers)]
        return self._after_word(luck, last)

    def _after_word(self, luck: int, last: int) -> tuple[int, ...]:
        share = luck % 1000 if last != self._comma else 1000
        if share < 90:
            return (self._stop,)
        if share < 140:
            return (self._comma,)
        if share < 190:
            kind = self._emoji if share < 150 else self._phrases
            return kind[_mix(luck) % len(kind)]
        return self._words[_mix(luck) % len(self._words)]

    def unfinished(self, ids: Sequence[int], voice_crc: int, may_end: bool) -> tuple[int, tuple[int, ...]]:
        """(CRC over all ids, what is missing of the word they break off in)."""
        first = max(0, len(ids) - _MAX_ITEM_TOKENS)
        state = _crc(ids[:first], voice_crc)
        begun: tuple[int, ...] = ()
        state_before = state
        for at in range(first, len(ids)):
            if ids[at] not in self._inner:
                begun, state_before = tuple(ids[at:]), state
            state = _crc(ids[at : at + 1], state)
        if not begun or len(begun) >= len(ids):
            return state, ()
        at = len(ids) - len(begun)
        item = self.next_item(state_before, ids[at - 1], ids[at - 2] if at > 1 else BOS, may_end)
        return state, item[len(begun) :] if item[: len(begun)] == begun else ()


class Draft:
    """Token after token of one answer, for as long as it is asked."""

    __slots__ = ("_author", "_before_last", "_last", "_may_end", "_rest", "_state")

    def __init__(self, author: Author, prompt_ids: Sequence[int], voice_crc: int, may_end: bool) -> None:
        self._author = author
        self._may_end = may_end
        self._last = prompt_ids[-1] if prompt_ids else BOS
        self._before_last = prompt_ids[-2] if len(prompt_ids) > 1 else BOS
        self._state, self._rest = author.unfinished(prompt_ids, voice_crc, may_end)

    def next_token(self) -> int:
        """The next token; after `EOS` it is not to be asked again."""
        rest = self._rest or self._author.next_item(self._state, self._last, self._before_last, self._may_end)
        token, self._rest = rest[0], rest[1:]
        self._state = zlib.crc32(token.to_bytes(4, "little"), self._state)
        self._before_last, self._last = self._last, token
        return token


def filler(seed: int, num_tokens: int) -> str:
    """Text of exactly `num_tokens` tokens, wherever it stands: the same for the same seed. For prompts of traces."""
    state, words = seed & _MASK, []
    for _ in range(num_tokens):
        state = (state * 1664525 + 1013904223) & _MASK
        words.append(WHOLE_WORDS[_mix(state) % len(WHOLE_WORDS)])
    return " " + " ".join(words) if words else ""
