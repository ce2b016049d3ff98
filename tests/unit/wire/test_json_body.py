"""A client's JSON object: what is refused, what is kept to the byte, and what an edit changes."""

import json

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sluice.errors import BadRequest
from sluice.wire.json_body import LARGE_BYTES, MAX_MEMBERS, MAX_WALKED_BYTES, JsonBody

GUARDED = frozenset({"model", "stream"})
same_every_time = settings(derandomize=True, deadline=None, max_examples=80)


def parse(data: bytes) -> JsonBody:
    return JsonBody.parse(data, GUARDED)


# What hypothesis writes: objects as a client might, with white space and escapes wherever JSON allows them.

spaces = st.text(" \t\n\r", max_size=3)
scalars = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False, allow_infinity=False)
values = st.recursive(
    scalars | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=4,
)
names = st.sampled_from(["model", "stream", "n", "a", 'a":1,"b', "\\", "größe", "模型", "😀", ""]) | st.text(max_size=6)


@st.composite
def spelled(draw, text):
    """A JSON string that reads as `text`, with some of its characters escaped."""
    out = []
    for character in text:
        if draw(st.integers(0, 9)) == 0:
            pairs = character.encode("utf-16-be")
            out += [f"\\u{pairs[i]:02x}{pairs[i + 1]:02x}" for i in range(0, len(pairs), 2)]
        else:
            out.append(json.dumps(character, ensure_ascii=draw(st.booleans()))[1:-1])
    return '"' + "".join(out) + '"'


@st.composite
def objects(draw, names=names, unique=True):
    """The bytes of an object, and its members in order as (name, value)."""
    members = draw(st.lists(st.tuples(names, values), max_size=5, unique_by=(lambda member: member[0]) if unique else None))
    written = []
    for name, value in members:
        around = [draw(spaces) for _ in range(4)]
        style = draw(st.sampled_from([{}, {"separators": (",", ":")}, {"indent": 1}, {"ensure_ascii": False}]))
        text = json.dumps(value, **style)
        written.append(around[0] + draw(spelled(name)) + around[1] + ":" + around[2] + text + around[3])
    data = draw(spaces) + "{" + ",".join(written) + (draw(spaces) if not written else "") + "}" + draw(spaces)
    return data.encode(), members


# What is refused


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "empty"),
        (b"  \n", "not valid JSON"),
        (b"hello", "not valid JSON"),
        (b'{"model":', "not valid JSON"),
        (b'{"model":"m",}', "not valid JSON"),
        (b"{'model':'m'}", "not valid JSON"),
        (b'{"model":"m"} {}', "not valid JSON"),
        (b'{"model":"m"}\0', "not valid JSON"),
        (b'{"a":NaN}', "not valid JSON"),
        (b'{"a":-Infinity}', "not valid JSON"),
        (b'{"a":1e999}', "not valid JSON"),
        (b'{"a":' + b"7" * 6000 + b"}", "not valid JSON"),
        (b'{"a":"\\ud800"}', "not valid JSON"),
        (b'{"\\udc00":1}', "not valid JSON"),
        (b'{"a":"\x01"}', "not valid JSON"),
        (b'\xef\xbb\xbf{"a":1}', "not valid JSON"),
        (b'{"a":"\xff"}', "not UTF-8 from byte 6"),
        (b'{"a":"\xed\xa0\x80"}', "not UTF-8 from byte 6"),
        ('{"model":"m"}'.encode("utf-16"), "not UTF-8 from byte 0"),
        ('{"model":"m"}'.encode("utf-16-le"), "not valid JSON"),
        (b"[]", "must be a JSON object"),
        (b'"model"', "must be a JSON object"),
        (b"null", "must be a JSON object"),
        (b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "depth"),
        (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "too many small"),
        (b'{"a":' * 30_000 + b"1" + b"}" * 30_000, "depth"),
        (b'{"a":' + b"[" * 1010 + b"]" * 1010 + b"}", "nested too deeply"),
    ],
)
def test_what_is_no_json_object_is_refused(data, said):
    with pytest.raises(BadRequest, match=said) as caught:
        parse(data)
    assert "\n" not in caught.value.message


def test_a_hundred_levels_are_fine():
    body = parse(b'{"a":' + b"[" * 100 + b"]" * 100 + b',"model":"m"}')
    assert body.members["model"] == "m"


@pytest.mark.parametrize(
    "data",
    [
        b'{"model":"a","model":"b"}',
        b'{"model":"a","mod\\u0065l":"a"}',
        b'{"mod\\u0065l":"a","\\u006dodel":"a"}',
        b'{ "model" : "a" ,\n "x": "                      ", "model" : "a" }',
        b'{"stream":true,"n":1,"stream":true}',
        b'{"model":"a",' + b" " * 2 * MAX_WALKED_BYTES + b'"model":"a"}',
        b'{"model":"a","x":"' + b"x" * LARGE_BYTES + b'","model":"a"}',
    ],
)
def test_a_guarded_member_that_occurs_twice_is_refused_by_name(data):
    with pytest.raises(BadRequest, match="occurs twice") as caught:
        parse(data)
    assert caught.value.param in GUARDED


def test_a_member_that_nobody_guards_may_occur_twice():
    data = b'{"model":"m","seed":1,"seed":2}'
    body = parse(data)
    assert body.members == {"model": "m", "seed": 2}
    assert body.data is data


@pytest.mark.parametrize("data", [b'"a":1,', b'"a\\n":1,'])
@pytest.mark.parametrize("times", [MAX_MEMBERS + 1, LARGE_BYTES // 4])
def test_too_many_members_are_refused(data, times):
    with pytest.raises(BadRequest, match="more than 1024 members"):
        parse(b"{" + data * times + b'"model":"m"}')


def test_too_many_different_members_are_refused():
    with pytest.raises(BadRequest, match="more than 1024 members"):
        parse(json.dumps({f"m{i}": i for i in range(MAX_MEMBERS + 1)}).encode())


@pytest.mark.parametrize("piece", [b"[],", b"{},", b'{"a":1},', b"[[]],"])
def test_a_large_body_of_tiny_pieces_is_refused(piece):
    with pytest.raises(BadRequest, match="too many small"):
        parse(b'{"model":"m","messages":[' + piece * (1_000_000 // len(piece)) + b"0]}")


def test_large_bodies_of_text_images_and_messages_are_fine():
    code = "for (i = 0; i < n; i++) { total += prices[i]; }\n" * 20_000
    messages = [{"role": "user", "content": "hello there"}] * 20_000
    for value in (code, "iVBORw0KGgo" * 200_000, messages):
        data = json.dumps({"model": "m", "messages": value}).encode()
        assert len(data) > LARGE_BYTES
        assert parse(data).members["messages"] == value


# What an edit changes


def test_an_edit_leaves_every_other_byte_as_the_client_wrote_it():
    data = b' {"model" : "a", "temperature":1.50 ,\n\t"x":{"model":"a"}, "n":1 } '
    edited = parse(data).edited({"model": b'"b"', "n": None, "request_id": b'"r"'})
    assert edited == b' {"model" : "b", "temperature":1.50 ,\n\t"x":{"model":"a"} ,"request_id":"r"} '


@pytest.mark.parametrize(
    ("data", "changes", "expected"),
    [
        (b"{}", {"a": b"1"}, b'{"a":1}'),
        (b"{ }", {"a": b"1", "b": b"2"}, b'{ "a":1,"b":2}'),
        (b'{"a":1}', {"a": None}, b"{}"),
        (b'{"a":1}', {"a": None, "b": b"2"}, b'{"b":2}'),
        (b'{"a":1,"b":2,"c":3}', {"a": None}, b'{"b":2,"c":3}'),
        (b'{"a":1,"b":2,"c":3}', {"b": None}, b'{"a":1,"c":3}'),
        (b'{"a":1,"b":2,"c":3}', {"c": None}, b'{"a":1,"b":2}'),
        (b'{"a":1,"b":2,"c":3}', {"a": None, "b": None}, b'{"c":3}'),
        (b'{"a":1,"b":2,"c":3}', {"b": None, "c": None}, b'{"a":1}'),
        (b'{"a":1,"b":2,"c":3}', {"a": None, "c": None}, b'{"b":2}'),
        (b'{"a":1,"b":2,"c":3}', {"a": None, "b": None, "c": None}, b"{}"),
        (b'{"a":1,"b":2}', {"a": b"[3]", "missing": None}, b'{"a":[3],"b":2}'),
        (b'{"a":1,"a":2,"b":3}', {"a": b"4"}, b'{"a":4,"a":4,"b":3}'),
        (b'{"a":1,"a":2,"b":3}', {"a": None}, b'{"b":3}'),
        (b'{"\\u0061":1.0,"b":2}', {"b": b"3"}, b'{"a":1.0,"b":3}'),
        (b'{"a":1.0,' + b" " * 5000 + b'"b":2}', {"b": b"3"}, b'{"a":1.0,"b":3}'),
    ],
)
def test_edits(data, changes, expected):
    assert parse(data).edited(changes) == expected


def test_an_edit_of_a_large_body_keeps_it():
    text = "x" * LARGE_BYTES
    data = json.dumps({"messages": text, "model": "a"}).encode()
    assert orjson.loads(parse(data).edited({"model": b'"b"'})) == {"messages": text, "model": "b"}


@same_every_time
@given(objects(), st.dictionaries(names, st.none() | values, max_size=3))
def test_an_edited_body_says_what_the_edited_object_says(written, changes):
    data, members = written
    wanted = dict(members)
    for name, value in changes.items():
        if value is None:
            wanted.pop(name, None)
        else:
            wanted[name] = value
    edited = parse(data).edited({name: None if value is None else orjson.dumps(value) for name, value in changes.items()})
    assert orjson.loads(edited) == orjson.loads(json.dumps(wanted))


@same_every_time
@given(objects(names=st.sampled_from(["model", "mode", "n", "model "]), unique=False))
def test_a_guarded_member_passes_once_or_not_at_all(written):
    data, members = written
    occurrences = [name for name, _ in json.loads(data, object_pairs_hook=list)]
    assert occurrences == [name for name, _ in members]
    if occurrences.count("model") > 1:
        with pytest.raises(BadRequest, match="`model` occurs twice"):
            parse(data)
    else:
        assert parse(data).members == json.loads(data)


@same_every_time
@given(st.binary(max_size=60) | st.text(max_size=60).map(str.encode))
def test_arbitrary_bytes_are_an_object_or_a_bad_request(data):
    try:
        body = parse(data)
    except BadRequest as refused:
        assert refused.status == 400
    else:
        assert body.members == json.loads(data)


@same_every_time
@given(objects(), st.data())
def test_a_damaged_object_is_read_as_the_worker_reads_it_or_refused(written, data):
    whole, _ = written
    at = data.draw(st.integers(0, len(whole)))
    damaged = whole[:at] + data.draw(st.binary(max_size=2)) + whole[at + data.draw(st.integers(0, 2)) :]
    try:
        body = parse(damaged)
    except BadRequest:
        return
    assert body.members == orjson.loads(json.dumps(json.loads(damaged)))
    assert orjson.loads(body.edited({"model": b'"m"'})) == body.members | {"model": "m"}
