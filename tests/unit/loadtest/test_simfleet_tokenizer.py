import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.simfleet.lexicon import CHINESE_PHRASES, LONG_WORDS, WHOLE_WORDS
from loadtest.simfleet.tokenizer import EOS, FIRST_BYTE_ID, Tokenizer

TOKENIZER = Tokenizer()
WORDS = st.lists(st.sampled_from([*WHOLE_WORDS, *LONG_WORDS, *CHINESE_PHRASES, ",", ".", "\n", "🙂", "  ", "42"]))


@given(st.text())
def test_decoding_gives_the_text_back(text: str) -> None:
    assert TOKENIZER.decode(TOKENIZER.encode(text), skip_special=False) == text


@given(WORDS, WORDS)
def test_a_text_cut_after_one_of_its_pieces_has_the_ids_of_its_beginning(first: list[str], second: list[str]) -> None:
    ids = TOKENIZER.encode(" ".join([*first, *second]))
    for cut in range(len(ids)):
        beginning = TOKENIZER.decode(ids[:cut])
        if "�" not in beginning and not beginning.endswith((" ", "\n")):
            assert TOKENIZER.encode(beginning) == ids[:cut]


@pytest.mark.parametrize(("left", "right"), [("ab", "cd"), ("\n", "\n"), (" in", "side"), ("4", "2")])
def test_pieces_tokenised_apart_differ_from_the_whole(left: str, right: str) -> None:
    assert TOKENIZER.encode(left) + TOKENIZER.encode(right) != TOKENIZER.encode(left + right)


def test_names_of_special_tokens_become_special_tokens() -> None:
    assert TOKENIZER.encode("a<|im_end|>b")[1] == EOS
    assert TOKENIZER.decode(TOKENIZER.encode("a<|im_end|>b")) == "ab"


def test_a_character_outside_the_vocabulary_is_its_bytes() -> None:
    assert TOKENIZER.encode("🙂") == [FIRST_BYTE_ID + byte for byte in "🙂".encode()]


def test_a_lone_surrogate_becomes_a_question_mark() -> None:
    assert TOKENIZER.decode(TOKENIZER.encode("a\ud800b")) == "a?b"


def test_token_strings_show_spaces_and_line_ends_as_byte_level_tokenizers_do() -> None:
    assert TOKENIZER.token_strs(TOKENIZER.encode("The sea\n")) == ["The", "Ġsea", "Ċ"]


def test_ids_that_are_in_no_vocabulary_are_nothing() -> None:
    assert TOKENIZER.decode([99_999_999, *TOKENIZER.encode("sea")]) == "sea"
