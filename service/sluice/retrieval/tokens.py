"""Words of a text as the full-text index knows them: NFKC, case folded, accents off, Porter stems, and pairs of CJK characters.

SQLite's own tokenisers fail on Chinese (nDCG@10 on XQuAD-zh: .11, these pairs .96). A run of CJK characters becomes its
overlapping pairs and its last character, so that a question of one character, asked as a prefix, meets every place where that
character stands. What comes out holds letters and digits only: nothing of it means anything to FTS5.

The index keeps no places of words (`detail = none`): half as large, it is filled and read faster. How often a word stands in a
passage is told by more words: `port·2` where it stands twice or more often, `port·3`, and so on.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter

import snowballstemmer

VERSION = 2  # of what is indexed: a store of another version is indexed anew
MAX_WORD_CHARS = 64
MAX_CACHED = 200_000

CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff\U00020000-\U0003134f"
_WORD = re.compile(rf"([{CJK}]+)|[^\W_{CJK}]+")
_IS_CJK = re.compile(f"[{CJK}]").match
_ASCII_LOWER = str.maketrans({at: chr(at).lower() if chr(at).isalnum() else " " for at in range(128)})
LEVELS = (2, 3, 4, 5, 6, 8, 12, 20)  # more often makes no difference to BM25
_MARKS = tuple(tuple(f"·{level}" for level in LEVELS if level <= times) for times in range(LEVELS[-1] + 1))


class Stems(dict[str, str]):
    """Words and their stems, worked out when first met: looking one up costs a tenth of finding it out."""

    def __init__(self) -> None:
        super().__init__()
        self._stemmer = snowballstemmer.stemmer("porter")

    def __missing__(self, word: str) -> str:
        if len(self) >= MAX_CACHED:
            self.clear()
        stem = self[word] = self._stem(word[:MAX_WORD_CHARS])
        return stem

    def _stem(self, word: str) -> str:
        if not word.isascii():
            parts = unicodedata.normalize("NFD", word)
            bare = "".join(one for one in parts if unicodedata.category(one) != "Mn")
            word = unicodedata.normalize("NFC", bare) or word
        return str(self._stemmer.stemWord(word)) if word.isascii() and word.isalpha() and len(word) > 2 else word


class Analyzer:
    """Turns texts into words. Keeps the stems that it has worked out; one for each thread."""

    def __init__(self) -> None:
        self.stems = Stems()

    def words(self, text: str) -> list[str]:
        """The words to index."""
        stem = self.stems.__getitem__
        if text.isascii():
            return list(map(stem, text.translate(_ASCII_LOWER).split()))
        found: list[str] = []
        for match in _WORD.finditer(unicodedata.normalize("NFKC", text).casefold()):
            if run := match[1]:
                found += [run[at : at + 2] for at in range(len(run))]
            else:
                found.append(stem(match[0]))
        return found

    def query(self, text: str) -> list[tuple[str, bool]]:
        """The words to look for, each once and in order, and whether any word that begins so will do."""
        asked: dict[tuple[str, bool], None] = {}
        for match in _WORD.finditer(unicodedata.normalize("NFKC", text).casefold()):
            run = match[1]
            if run is None:
                asked[self.stems[match[0]], False] = None
            elif len(run) == 1:
                asked[run, True] = None
            else:
                asked.update(((run[at : at + 2], False), None) for at in range(len(run) - 1))
        return list(asked)


def indexed(words: list[str]) -> str:
    """What FTS5 is given for a passage of these words: each once, and once more for each level that its number reaches.

    A CJK character has levels by how often it stands anywhere, since it is looked for as a beginning.
    """
    times = Counter(words)
    repeated = [(word, number) for word, number in times.items() if number > 1]
    body = " ".join(times)
    if not body.isascii():
        characters: Counter[str] = Counter()
        for word, number in times.items():
            if _IS_CJK(word):
                characters[word[0]] += number
        repeated = [*((word, number) for word, number in repeated if word not in characters), *characters.items()]
    return " ".join([body, *(word + mark for word, number in repeated for mark in _MARKS[min(number, LEVELS[-1])])])


def at_level(word: str, level: int) -> str:
    """The word that stands in the index where `word` stands so often or more often."""
    return f"{word}·{level}"


def quoted(word: str, is_prefix: bool) -> str:
    """A word as FTS5 takes it; `words` and `query` let no quote through, and this does not rely on it."""
    return '"' + word.replace('"', '""') + '"' + ("*" if is_prefix else "")
