"""Words of a text as the full-text index knows them: NFKC, case folded, accents off, Porter stems, and pairs of CJK characters.

SQLite's own tokenisers fail on Chinese (nDCG@10 on XQuAD-zh: .11, these pairs .96). A run of CJK characters becomes its
overlapping pairs and its last character, so that a question of one character, asked as a prefix, meets every place where that
character stands. What comes out holds letters and digits only: nothing of it means anything to FTS5.
"""

from __future__ import annotations

import re
import unicodedata

import snowballstemmer

VERSION = 1  # of what is indexed: a store of another version cannot take words out of its index again
MAX_WORD_CHARS = 64
MAX_CACHED = 200_000

CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff\U00020000-\U0003134f"
_WORD = re.compile(rf"([{CJK}]+)|[^\W_{CJK}]+")
_ASCII_WORD = re.compile(r"[a-z0-9]+")


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
            return list(map(stem, _ASCII_WORD.findall(text.lower())))
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


def quoted(word: str, is_prefix: bool) -> str:
    """A word as FTS5 takes it; `words` and `query` let no quote through, and this does not rely on it."""
    return '"' + word.replace('"', '""') + '"' + ("*" if is_prefix else "")
