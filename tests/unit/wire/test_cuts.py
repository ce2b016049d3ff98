"""Cuts of a body, in one piece and in many."""

from hypothesis import given
from hypothesis import strategies as st

from sluice.wire.cuts import cut, cut_pieces


@st.composite
def bodies(draw):
    data = draw(st.binary(max_size=60))
    borders = sorted(draw(st.lists(st.integers(0, len(data)), max_size=8)))
    if len(borders) % 2:
        borders.pop()
    cuts = [(a, b, draw(st.binary(max_size=4))) for a, b in zip(borders[::2], borders[1::2], strict=True)]
    places = [0, *sorted(draw(st.lists(st.integers(0, len(data)), max_size=8))), len(data)]
    return data, cuts, tuple(data[a:b] for a, b in zip(places, places[1:], strict=False))


@given(bodies())
def test_a_body_in_pieces_is_cut_like_one_in_one_piece(body):
    data, cuts, pieces = body

    assert b"".join(cut_pieces(pieces, cuts)) == cut(data, cuts)


def test_pieces_that_no_cut_touches_stay_the_same_objects():
    pieces = (b"x" * 100, b"y" * 100, b"z" * 100)

    out = cut_pieces(pieces, [(150, 160, b"new"), (300, 300, b"end")])

    assert out[0] is pieces[0]
    assert pieces[2] in out
    assert b"".join(out) == b"x" * 100 + b"y" * 50 + b"new" + b"y" * 40 + b"z" * 100 + b"end"


def test_a_cut_over_many_pieces_is_replaced_once():
    assert b"".join(cut_pieces((b"ab", b"cd", b"ef"), [(1, 5, b"-")])) == b"a-f"


def test_nothing_is_made_of_nothing():
    assert cut_pieces((), []) == ()
    assert cut(b"", [(0, 0, b"x")]) == b"x"
