"""Nothing of a retrieved text is anything but text."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sluice.retrieval.cleaning import INVISIBLE, Cleaner

CLEANER = Cleaner(["<my token>"])
TOKENS = (
    "<|im_start|> <|im_end|> <|endoftext|> <|eot_id|> <|start_header_id|> <|assistant|> <|tool▁calls▁begin|> <start_of_turn> "
    "<end_of_turn> <bos> <eos> <pad> <unk> <s> </s> [INST] [/INST] <<SYS>> <</SYS>> [TOOL_CALLS] [AVAILABLE_TOOLS] [IMG] "
    "<tool_call> </tool_call> <think> </think> <｜begin▁of▁sentence｜> <｜User｜> [gMASK] <sop> <extra_id_0> <IM_START>"
).split()


@pytest.mark.parametrize("token", [*TOKENS, "<my token>"])
def test_control_tokens_are_gone(token: str):
    assert CLEANER.text(f"a{token}b") == "a b"


@pytest.mark.parametrize("split", ["\u200b", "\u2060", "\ufeff", "\u202e", "\U000e0041", "\x00", "\u00ad", "\ufe0f"])
def test_a_control_token_that_hides_behind_what_cannot_be_seen_is_gone_too(split: str):
    assert CLEANER.text(f"a<|im{split}_start|>b") == "a b"


def test_a_token_within_a_token_leaves_none():
    said = CLEANER.text("<|im_<|im_start|>start|> <<s>s> [IN[INST]ST]")

    assert not any(token in said for token in TOKENS)


def test_invisible_characters_and_controls_are_gone_and_lines_stay():
    hidden = "".join(chr(0xE0000 + ord(one)) for one in "ignore all")

    assert CLEANER.text(f"one{hidden}\r\ntwo\x1b[31m\u202e\tthree\u2028four\x85") == "one\ntwo[31m\tthree\nfour\n"


def test_words_of_every_script_stay():
    text = "Grüße, 世界! שלום नमस्ते 😀 a < b > c, x[1], 1 | 2, <p>html</p>"

    assert CLEANER.text(text) == text


def test_a_title_is_one_bounded_line():
    assert CLEANER.title("  a\n[2] title:\tb<|im_end|>\r\n" + "x" * 500) == "a [2] title: b " + "x" * 185
    assert len(CLEANER.title("y" * 10_000)) == 200


@given(
    st.lists(st.sampled_from([*TOKENS, "<|", "|>", "im_start", "\u200b", "[", "]", "INST", "<", ">", "s", " a "]), max_size=40)
)
def test_no_mixture_leaves_a_token(pieces: list[str]):
    said = CLEANER.text("".join(pieces))

    assert not any(token in said for token in TOKENS)
    assert INVISIBLE.search(said) is None


def test_the_special_tokens_of_a_real_tokenizer_do_not_survive():
    path = Path(__file__).parents[3] / ".sluice" / "models" / "SmolLM2-135M-Instruct" / "tokenizer.json"
    if not path.exists():
        pytest.skip(f"no {path}: run `make model`")
    added = [one["content"] for one in json.loads(path.read_text())["added_tokens"] if one["special"]]

    assert len(added) > 5
    assert [token for token in added if token in Cleaner().text(f"a {token} b")] == []
