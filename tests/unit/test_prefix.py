"""Hashes of what a prompt begins with."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sluice.prefix import MAX_BLOCKS, MAX_BYTES, block_hashes, covered_bytes, prefix_of, seed_of
from sluice.types import Endpoint, Prefix

LONG = "The quick brown fox jumps over the lazy dog. " * 100  # 4,500 bytes
OTHER = LONG.replace("fox", "cat")
SEED = seed_of("smollm2")


def shared(one: Prefix, two: Prefix) -> int:
    equal = [a == b for a, b in zip(one.hashes, two.hashes, strict=False)]
    return equal.index(False) if False in equal else len(equal)


def chat(*contents, endpoint=Endpoint.CHAT, seed=SEED, **members):
    roles = ("user", "assistant") * len(contents)
    messages = [{"role": role, "content": content} for role, content in zip(roles, contents, strict=False)]
    return prefix_of(endpoint, {"messages": messages, **members}, seed)


@given(common=st.binary(max_size=300_000), one=st.binary(max_size=9000), two=st.binary(max_size=9000))
def test_prompts_share_exactly_the_blocks_that_are_equal(common, one, two):
    a, b = block_hashes(common + one), block_hashes(common + two)
    num_equal = next((at for at, (x, y) in enumerate(zip(common + one, common + two, strict=False)) if x != y), None)
    end = min(len(common + one), len(common + two)) if num_equal is None else num_equal
    expected = sum(covered_bytes(k + 1) <= end for k in range(min(len(a.hashes), len(b.hashes))))
    assert shared(a, b) == expected


@given(num_bytes=st.integers(0, 2 * MAX_BYTES))
def test_there_is_a_hash_for_each_whole_block_up_to_the_bound(num_bytes):
    prefix = block_hashes(bytes(num_bytes))
    assert prefix.num_bytes == num_bytes
    assert covered_bytes(len(prefix.hashes)) <= num_bytes
    assert len(prefix.hashes) == MAX_BLOCKS or covered_bytes(len(prefix.hashes) + 1) > num_bytes


def test_a_difference_at_the_front_changes_every_hash():
    one, two = block_hashes(b"a" + bytes(9000)), block_hashes(b"b" + bytes(9000))
    assert not set(one.hashes) & set(two.hashes)


def test_model_adapter_and_salt_are_part_of_every_hash():
    seeds = [seed_of("smollm2"), seed_of("my-adapter"), seed_of("smollm2", "acme"), seed_of("smollm2", "globex")]
    hashes = [chat(LONG, seed=seed).hashes for seed in seeds]
    assert len({first for first, *_ in hashes}) == len({last for *_, last in hashes}) == 4


def test_the_hashes_are_the_same_in_every_process():
    """Replicas must agree, so no hash of Python's own is in it."""
    assert block_hashes(bytes(2048), b"seed").hashes == (3403740791, 3726669852)


def test_the_next_turn_of_a_conversation_begins_with_the_turns_before():
    first = chat(LONG)
    assert shared(first, chat(LONG, "Yes.", "And then?")) == len(first.hashes) == 4


def test_a_text_and_a_list_of_one_text_part_are_the_same_prompt():
    assert chat(LONG) == chat([{"type": "text", "text": LONG}])


def test_the_order_of_members_in_a_message_does_not_matter():
    tool_call = {"role": "assistant", "content": "", "tool_calls": [{"id": "1"}], "name": LONG}
    backwards = dict(reversed(tool_call.items()))
    one, two = (prefix_of(Endpoint.CHAT, {"messages": [message]}, SEED) for message in (tool_call, backwards))
    assert one == two and one.hashes


def test_roles_and_parts_are_apart():
    one = [{"role": "user", "content": "a"}, {"role": "user", "content": "b" + LONG}]
    two = [{"role": "user", "content": "ab" + LONG}]
    three = [{"role": "system", "content": "a"}, {"role": "user", "content": "b" + LONG}]
    firsts = {prefix_of(Endpoint.CHAT, {"messages": messages}, SEED).hashes[0] for messages in (one, two, three)}
    assert len(firsts) == 3


def test_tools_come_before_the_messages():
    tools = [{"type": "function", "function": {"name": "look_up", "description": LONG}}]
    one, two = chat(LONG, tools=tools), chat(OTHER, tools=tools)
    assert shared(one, two) == 4
    assert shared(one, chat(LONG)) == 0


def test_an_image_is_told_from_another_and_its_size_is_not_the_prompts():
    image, other = ([{"type": "image_url", "image_url": {"url": f"data:{x * 100_000}"}}] for x in "ab")
    assert chat(image).num_bytes < 100
    assert shared(chat(image, "ok", LONG), chat(other, "ok", LONG)) == 0
    assert shared(chat(image, "ok", LONG), chat(image, "ok", LONG)) == 4


@pytest.mark.parametrize(
    "one, two",
    [({"prompt": LONG}, {"prompt": [LONG, "x"]}), ({"prompt": [7] * 5000}, {"prompt": [[7] * 5000, [8]]})],
)
def test_of_several_prompts_the_first_counts(one, two):
    hashed = prefix_of(Endpoint.COMPLETIONS, one, SEED)
    assert hashed == prefix_of(Endpoint.COMPLETIONS, two, SEED) and hashed.hashes


def test_a_responses_input_is_a_text_or_a_list():
    text = prefix_of(Endpoint.RESPONSES, {"instructions": LONG, "input": "Hi", "tools": [{"type": "x"}]}, SEED)
    items = [{"role": "user", "content": [{"type": "input_text", "text": "Hi"}]}]
    assert text == prefix_of(Endpoint.RESPONSES, {"instructions": LONG, "input": items, "tools": [{"type": "x"}]}, SEED)
    assert len(text.hashes) == 4


def test_anthropics_system_prompt_comes_before_its_messages():
    members = {"system": LONG, "tools": [{"name": "t"}]}
    one, two = (chat(last, endpoint=Endpoint.MESSAGES, **members) for last in (LONG, OTHER))
    assert shared(one, two) == 4 and len(one.hashes) == 8


@pytest.mark.parametrize("endpoint", [Endpoint.EMBEDDINGS, Endpoint.TOKENIZE, Endpoint.SCORE, Endpoint.COUNT_TOKENS])
def test_what_generates_nothing_has_no_prefix(endpoint):
    assert chat(LONG, endpoint=endpoint) == Prefix()


@pytest.mark.parametrize("endpoint", Endpoint)
@pytest.mark.parametrize(
    "junk",
    [None, 7, "text", [], [None, 7, "x", []], {"role": 1}, [{"role": 1, "content": 2}], [{"content": [{}, 3, {"type": []}]}]],
)
def test_whatever_the_members_are_there_is_a_prefix(endpoint, junk):
    """What is wrong with them is for others to say."""
    members = dict.fromkeys(["messages", "prompt", "input", "system", "tools", "instructions"], junk)
    assert prefix_of(endpoint, members, SEED).num_bytes >= 0
