import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loadtest.simfleet.answer import Answer, Ending, Manuscript, Namespace
from loadtest.simfleet.text import Author, Style, filler
from loadtest.simfleet.tokenizer import BOS, EOS, Tokenizer

TOKENIZER = Tokenizer()
AUTHOR = Author(TOKENIZER, Style())
LONG = Ending(max_tokens=400, ignore_eos=True)


def prompt(question: str) -> list[int]:
    return [BOS, *TOKENIZER.encode(f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n")]


def answer(ids: list[int], ending: Ending = LONG, author: Author = AUTHOR, voice: str = "") -> Answer:
    written = Answer(author.begin(ids, voice, may_end=not ending.ignore_eos), TOKENIZER, ending)
    written.reach(ending.max_tokens)
    return written


def test_the_same_prompt_has_the_same_answer_and_another_prompt_another() -> None:
    assert answer(prompt("a")).ids == answer(prompt("a")).ids != answer(prompt("b")).ids


@settings(max_examples=60)
@given(st.integers(0, 10_000), st.integers(0, 150))
def test_an_answer_is_continued_to_the_letter_from_its_text_cut_after_any_token(seed: int, cut: int) -> None:
    ids = prompt(f"Question {seed}")
    whole = answer(ids, Ending(160, ignore_eos=True))
    so_far = whole.text(cut)
    rest = answer(ids + TOKENIZER.encode(so_far), Ending(160 - len(TOKENIZER.encode(so_far)), ignore_eos=True))
    assert so_far + rest.text(160) == whole.text(160)


def test_the_ids_of_an_answers_text_are_the_ids_it_was_made_of() -> None:
    whole = answer(prompt("c"))
    for cut in range(200):
        ids = TOKENIZER.encode(whole.text(cut))
        assert ids == whole.ids[: len(ids)]
        assert cut - len(ids) < 4  # no more than the bytes of an unfinished character


def test_other_ids_for_the_same_text_are_continued_otherwise() -> None:
    ids, line_end = prompt("d"), TOKENIZER.encode("\n")
    merged = ids[:-1] + TOKENIZER.encode("\n\n")
    assert TOKENIZER.decode(ids + line_end) == TOKENIZER.decode(merged)
    assert answer(ids + line_end).ids != answer(merged).ids


def test_some_answers_begin_with_a_line_end_that_would_merge_with_the_templates() -> None:
    always = Author(TOKENIZER, Style(newline_share=1.0))
    never = Author(TOKENIZER, Style(newline_share=0.0))
    assert answer(prompt("e"), author=always).text(9).startswith("\n")
    assert not any(answer(prompt(str(n)), Ending(2), never).text(1).startswith("\n") for n in range(50))


def test_answers_contain_chinese_and_characters_that_take_several_tokens() -> None:
    whole = answer(prompt("f"), Ending(2000, ignore_eos=True))
    assert any("一" <= letter <= "鿿" for letter in whole.text(2000))
    at = next(at for at, delta in enumerate(whole.deltas) if delta and ord(delta[-1]) > 0xFFFF)
    assert whole.deltas[at - 3 : at] == ["", "", ""]


def test_an_adapter_speaks_otherwise_than_the_base_model() -> None:
    assert answer(prompt("g"), voice="adapter").ids != answer(prompt("g")).ids


def test_answers_end_by_themselves_after_about_as_many_tokens_as_was_set() -> None:
    author = Author(TOKENIZER, Style(mean_answer_tokens=100))
    answers = [answer(prompt(str(n)), Ending(3000), author) for n in range(300)]
    assert {written.finish_reason for written in answers} == {"stop"}
    assert all(written.ids[-1] == EOS and written.deltas[-1] == "" for written in answers)
    assert 80 < sum(len(written.ids) for written in answers) / len(answers) < 120


def test_an_answer_reaches_its_token_limit_and_no_further() -> None:
    written = answer(prompt("h"), Ending(7, ignore_eos=True))
    assert (written.reach(100), written.finish_reason) == (7, "length")


def test_a_stop_string_cuts_the_text_before_it_however_tokens_split_it() -> None:
    whole = answer(prompt("i")).text(400)
    stop = whole[53:60]
    written = answer(prompt("i"), Ending(400, ignore_eos=True, stop=("never there", stop)))
    assert written.text(400) == whole[: whole.index(stop)]
    assert (written.finish_reason, written.stop_reason) == ("stop", stop)


def test_text_that_may_begin_a_stop_string_is_held_back_until_it_is_none() -> None:
    written = Answer(AUTHOR.begin(prompt("i"), may_end=False), TOKENIZER, Ending(20, ignore_eos=True, stop=("z" * 9,)))
    written.reach(10)
    plain = answer(prompt("i"), Ending(20, ignore_eos=True))
    assert written.text(10) == plain.text(10)[:-8]
    written.reach(20)
    assert written.text(20) == plain.text(20)


def test_a_stop_token_ends_the_answer_and_is_told() -> None:
    ids = answer(prompt("j")).ids
    written = answer(prompt("j"), Ending(400, stop_token_ids=frozenset({ids[11]})))
    assert written.stop_reason == ids[11]
    assert len(written.ids) == ids.index(ids[11]) + 1


@pytest.mark.parametrize("num_tokens", [0, 1, 16, 512])
def test_filler_has_exactly_the_tokens_asked_for_and_so_has_filler_after_filler(num_tokens: int) -> None:
    first, second = filler(1, num_tokens), filler(2, 512)
    assert len(TOKENIZER.encode(first)) == num_tokens
    assert len(TOKENIZER.encode(first + second)) == num_tokens + 512
    assert filler(1, num_tokens) == first


def test_block_hashes_depend_on_all_before_them_and_on_adapter_and_salt() -> None:
    def hashes(ids: list[int], namespace: Namespace) -> list[int]:
        return Manuscript(ids, answer(ids, Ending(40, ignore_eos=True)), 4, namespace).block_hashes(3)

    plain = hashes([7] * 16, Namespace())
    assert len(set(plain)) == 3
    assert plain == hashes([7] * 12 + [8] * 4, Namespace())
    assert not set(plain) & set(hashes([8] + [7] * 15, Namespace()))
    assert not set(plain) & set(hashes([7] * 16, Namespace(cache_salt="s")))
    assert not set(plain) & set(hashes([7] * 16, Namespace(lora="a")))


def test_blocks_of_the_answer_are_those_of_a_prompt_with_the_same_ids() -> None:
    ids = prompt("k")
    written = answer(ids, Ending(64, ignore_eos=True))
    asked_again = ids + written.ids
    blocks = len(asked_again) // 16
    first = Manuscript(ids, written, 16, Namespace()).block_hashes(blocks)
    assert first == Manuscript(asked_again, answer(asked_again), 16, Namespace()).block_hashes(blocks)
