"""The tokenizer: word pieces by greedy longest match, so that token ids depend on the text and on where it is cut.

Reversible for every text. As with real ones, pieces tokenised apart need not equal the whole (`"ab"` and `"cd"` against
`"abcd"`); but a text cut at the end of one of its own pieces has exactly the ids of its beginning.
"""

import re
from collections.abc import Iterable, Sequence

from loadtest.simfleet.lexicon import WHOLE_WORDS

END_OF_TEXT, IM_START, IM_END, BOS = 0, 1, 2, 3
SPECIAL_TOKENS: tuple[str, ...] = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|begin_of_text|>")
EOS = IM_END
FIRST_BYTE_ID = 16
_FIRST_PIECE_ID = 512
_LETTERS = "abcdefghijklmnopqrstuvwxyz"
_CJK = range(0x4E00, 0x9FFF + 1)
_MAX_CACHED_WORDS = 200_000

# Special tokens, words with one leading space, numbers of up to three digits, runs of line ends, runs of spaces that
# leave the last one to the word after them, and anything else character by character.
_SPLIT = re.compile(
    "|".join(re.escape(token) for token in SPECIAL_TOKENS) + r"| ?[A-Za-z]+| ?[0-9]{1,3}|\n+| +(?![A-Za-z0-9])|.",
    re.DOTALL,
)


def _pieces() -> Iterable[str]:
    yield from ("\n\n", "\n\n\n", "  ", "    ", "        ")
    yield from (f"{number:02d}" for number in range(100))
    yield from (f"{number:03d}" for number in range(1000))
    for space in ("", " "):
        if space:
            yield from (space + a for a in _LETTERS)
        yield from (space + a + b for a in _LETTERS for b in _LETTERS)
        yield from (space + a + b + c for a in _LETTERS for b in _LETTERS for c in _LETTERS)
        yield from (space + word for word in WHOLE_WORDS)
        yield from (space + word.capitalize() for word in WHOLE_WORDS)
    yield from ("user", "system", "assistant", "tool")
    yield from (chr(code) for code in _CJK)


class Tokenizer:
    """Immutable but for a bounded cache of words; one serves all workers of a fleet."""

    def __init__(self) -> None:
        self._id_of = {piece: FIRST_BYTE_ID + byte for byte, piece in ((b, chr(b)) for b in range(128))}
        self._id_of.update((token, number) for number, token in enumerate(SPECIAL_TOKENS))
        self._bytes_of = {number: token.encode() for number, token in enumerate(SPECIAL_TOKENS)}
        self._bytes_of.update((FIRST_BYTE_ID + byte, bytes([byte])) for byte in range(256))
        next_id = _FIRST_PIECE_ID
        for piece in _pieces():
            if piece not in self._id_of:
                self._id_of[piece] = next_id
                self._bytes_of[next_id] = piece.encode()
                next_id += 1
        self.vocabulary_size = next_id
        self._longest = max(map(len, self._id_of))
        self._words: dict[str, tuple[int, ...]] = {}

    def encode(self, text: str) -> list[int]:
        """The ids of `text`. The names of special tokens in it become special tokens, as in a real tokenizer."""
        ids: list[int] = []
        extend, words = ids.extend, self._words
        for word in _SPLIT.findall(text):
            found = words.get(word)
            extend(self._learn(word) if found is None else found)
        return ids

    def decode(self, ids: Sequence[int], *, skip_special: bool = True) -> str:
        """The text of `ids`; ids that are not in the vocabulary are nothing, broken UTF-8 becomes U+FFFD."""
        return b"".join(self.piece(token, skip_special=skip_special) for token in ids).decode("utf-8", "replace")

    def piece(self, token: int, *, skip_special: bool = True) -> bytes:
        """The bytes one token adds."""
        if skip_special and token < FIRST_BYTE_ID:
            return b""
        return self._bytes_of.get(token, b"")

    def token_strs(self, ids: Sequence[int]) -> list[str]:
        """What `/tokenize` shows with `return_token_strs`: like a byte-level BPE, a leading space is a `Ġ`."""
        return [
            self.piece(token, skip_special=False).decode("utf-8", "replace").replace(" ", "Ġ").replace("\n", "Ċ")
            for token in ids
        ]

    def _learn(self, word: str) -> tuple[int, ...]:
        ids = tuple(self._split(word))
        if len(self._words) >= _MAX_CACHED_WORDS:
            self._words.clear()
        self._words[word] = ids
        return ids

    def _split(self, word: str) -> Iterable[int]:
        start = 0
        while start < len(word):
            for end in range(min(len(word), start + self._longest), start, -1):
                found = self._id_of.get(word[start:end])
                if found is not None:
                    yield found
                    start = end
                    break
            else:
                # A lone surrogate, which JSON can carry, has no UTF-8: it becomes what a decoder would show for it.
                yield from (FIRST_BYTE_ID + byte for byte in word[start].encode("utf-8", "replace"))
                start += 1
