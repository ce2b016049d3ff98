"""Edits of a body as a list of cuts: from here to there, this instead. The bytes between them are never looked at again."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

Cut = tuple[int, int, bytes]  # from here to there, this instead; in order, not overlapping


def cut(data: bytes, cuts: Sequence[Cut]) -> bytes:
    """`data` with the cuts made, in one copy."""
    view = memoryview(data)
    pieces: list[bytes | memoryview] = []
    at = 0
    for start, end, replacement in cuts:
        pieces += (view[at:start], replacement)
        at = end
    pieces.append(view[at:])
    return b"".join(pieces)


def cut_pieces(pieces: Iterable[bytes], cuts: Sequence[Cut]) -> tuple[bytes, ...]:
    """The same for a body that lies in pieces: only the pieces that a cut touches are copied."""
    out: list[bytes] = []
    waiting = list(cuts)
    base = 0  # where the piece begins in the whole
    for piece in pieces:
        end = base + len(piece)
        at = base
        while waiting and waiting[0][0] < end:
            start, stop, replacement = waiting[0]
            if start > at:
                out.append(piece[at - base : start - base])
            if replacement:
                out.append(replacement)
            at = max(at, min(stop, end))
            if stop <= end:
                waiting.pop(0)
                continue
            waiting[0] = (end, stop, b"")  # the rest of what is cut out lies in the next pieces
        if at == base:
            out.append(piece)
        elif at < end:
            out.append(piece[at - base :])
        base = end
    out += [replacement for _, _, replacement in waiting if replacement]
    return tuple(out)
