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


class Analyzer:
    """Turns texts into words. Keeps the stems that it has worked out; one for each thread."""

    def __init__(self) -> None:
        self._stemmer = snowballstemmer.stemmer("porter")
        self._stems: dict[str, str] = {}

    def words(self, text: str) -> list[str]:
        """The words to index."""
        found: list[str] = []
        if text.isascii():
            self._add_stems(found, _ASCII_WORD.findall(text.lower()))
            return found
        for match in _WORD.finditer(unicodedata.normalize("NFKC", text).casefold()):
            if run := match[1]:
                found += [run[at : at + 2] for at in range(len(run))]
            else:
                self._add_stems(found, (match[0],))
        return found

    def query(self, text: str) -> list[tuple[str, bool]]:
        """The words to look for, each once and in order, and whether any word that begins so will do."""
        asked: dict[tuple[str, bool], None] = {}
        for match in _WORD.finditer(unicodedata.normalize("NFKC", text).casefold()):
            run = match[1]
            if run is None:
                asked.update(((stem, False), None) for stem in self._stemmed(match[0]))
            elif len(run) == 1:
                asked[run, True] = None
            else:
                asked.update(((run[at : at + 2], False), None) for at in range(len(run) - 1))
        return list(asked)

    def _stemmed(self, word: str) -> list[str]:
        found: list[str] = []
        self._add_stems(found, (word,))
        return found

    def _add_stems(self, found: list[str], words: list[str] | tuple[str, ...]) -> None:
        stems = self._stems
        for word in words:
            stem = stems.get(word)
            if stem is None:
                stem = self._stem(word[:MAX_WORD_CHARS])
                if len(stems) >= MAX_CACHED:
                    stems.clear()
                stems[word[:MAX_WORD_CHARS]] = stem
            if stem:
                found.append(stem)

    def _stem(self, word: str) -> str:
        if not word.isascii():
            parts = unicodedata.normalize("NFD", word)
            word = "".join(one for one in parts if unicodedata.category(one) != "Mn")
            word = unicodedata.normalize("NFC", word)
        return str(self._stemmer.stemWord(word)) if word.isascii() and word.isalpha() and len(word) > 2 else word


def quoted(word: str, is_prefix: bool) -> str:
    """A word as FTS5 takes it; `words` and `query` let no quote through, and this does not rely on it."""
    return '"' + word.replace('"', '""') + '"' + ("*" if is_prefix else "")
