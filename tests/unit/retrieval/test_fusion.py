"""Reciprocal rank fusion, by hand."""

import pytest

from sluice.retrieval.fusion import DEPTH, K, fuse


def test_what_is_first_everywhere_scores_one_and_more_lists_beat_a_better_rank():
    assert fuse([(["a", "b"], 1.0), (["a", "c"], 1.0)])[0] == ("a", pytest.approx(1.0))

    fused = dict(fuse([(["a", "b", "c"], 1.0), (["d", "b"], 1.0)]))
    assert fused["b"] == pytest.approx((2 / (K + 2)) / (2 / (K + 1)))
    assert fused["b"] > fused["a"] == fused["d"] > fused["c"]


def test_weights_count_and_a_weight_of_nothing_takes_its_list_out():
    assert [thing for thing, _ in fuse([(["a"], 3.0), (["b"], 1.0)])] == ["a", "b"]
    assert [thing for thing, _ in fuse([(["a"], 0.0), (["b"], 1.0)])] == ["b"]


def test_lists_are_cut_and_nothing_gives_nothing():
    assert len(fuse([(range(500), 1.0)])) == DEPTH
    assert fuse([]) == [] and fuse([([], 1.0)]) == []
