"""Multipart forms: their parts by offset, and that no other parser reads them differently."""

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.datastructures import Headers
from starlette.formparsers import MultiPartException, MultiPartParser

from sluice.errors import BadRequest, UnsupportedMediaType
from sluice.wire.multipart import MAX_PARTS, MAX_TEXT_BYTES, Multipart, parse_multipart

BOUNDARY = "9f86d081884c7d65"
TYPE = f"multipart/form-data; boundary={BOUNDARY}"
WAV = b"RIFF\x00\x01\r\n--not a boundary\r\n\r\n\xff\xfe"
GUARDED = frozenset({"model", "file"})


def text(name: str, value: str | bytes, head: str = "") -> bytes:
    value = value.encode() if isinstance(value, str) else value
    return f'Content-Disposition: form-data; name="{name}"\r\n{head}\r\n'.encode() + value


def file(content: bytes = WAV, name: str = "file") -> bytes:
    disposition = f'Content-Disposition: form-data; name="{name}"; filename="a b.wav"\r\nContent-Type: audio/wav\r\n\r\n'
    return disposition.encode() + content


def form(*parts: bytes, boundary: str = BOUNDARY, end: bytes = b"--\r\n") -> bytes:
    line = b"--" + boundary.encode()
    return b"".join(line + b"\r\n" + part + b"\r\n" for part in parts) + line + end


def parse(*parts: bytes) -> Multipart:
    return parse_multipart(TYPE, form(*parts), GUARDED)


def as_the_worker_reads(data: bytes, content_type: str = TYPE) -> list[tuple[str, str | bytes]]:
    """The form as starlette, which vLLM stands on, reads it."""

    async def read():
        async def body():
            yield data

        found = await MultiPartParser(Headers({"content-type": content_type}), body()).parse()
        read = [(name, value if isinstance(value, str) else await value.read()) for name, value in found.multi_items()]
        await found.close()
        return read

    return asyncio.run(read())


def as_we_read(parsed: Multipart) -> list[tuple[str, str | bytes]]:
    values = [(part, parsed.data[part.value : part.end]) for part in parsed.parts]
    return [(part.name, value if part.is_file else value.decode()) for part, value in values]


def test_text_parts_are_fields_and_files_are_not():
    parsed = parse(text("model", "whisper"), file(), text("prompt", "größe\r\n\r\nx"), text("language", ""))
    assert parsed.fields == {"model": "whisper", "prompt": "größe\r\n\r\nx", "language": ""}
    assert [(part.name, part.is_file) for part in parsed.parts if part.is_file] == [("file", True)]
    assert as_we_read(parsed) == as_the_worker_reads(parsed.data)
    assert parsed.content_type == f'multipart/form-data; boundary="{BOUNDARY}"'


def test_a_repeated_field_is_allowed_where_nobody_reads_it():
    parsed = parse(text("granularities[]", "word"), text("granularities[]", "segment"), file())
    assert parsed.fields["granularities[]"] == "segment"


@pytest.mark.parametrize("parts", [(text("model", "a"), text("model", "a")), (file(), file())])
def test_a_guarded_part_that_occurs_twice_is_refused(parts):
    with pytest.raises(BadRequest, match="occurs twice") as caught:
        parse(*parts)
    assert caught.value.param in GUARDED


@pytest.mark.parametrize(
    "disposition",
    [
        'form-data; name="model"',
        "form-data; name=model",
        'Form-Data ;\tNAME="model"',
        'form-data;name="model"',
    ],
)
def test_spellings_of_client_libraries(disposition):
    data = form(b"Content-Disposition: " + disposition.encode() + b"\r\n\r\nwhisper")
    assert parse_multipart(TYPE, data).fields == {"model": "whisper"}


@pytest.mark.parametrize(
    "disposition",
    ['name="file"; filename="a.wav"', "name=file; filename=a.wav; filename*=utf-8''a.wav", 'filename="";name="file"'],
)
def test_spellings_of_files(disposition):
    data = form(b"Content-Disposition: form-data; " + disposition.encode() + b"\r\n\r\n" + WAV)
    parsed = parse_multipart(TYPE, data)
    assert as_we_read(parsed) == [("file", WAV)] == as_the_worker_reads(data)


@pytest.mark.parametrize(
    "content_type",
    [
        TYPE,
        f'multipart/form-data; boundary="{BOUNDARY}"',
        f"Multipart/Form-Data;charset=UTF-8;Boundary={BOUNDARY}",
    ],
)
def test_spellings_of_the_content_type(content_type):
    assert parse_multipart(content_type, form(text("model", "whisper"))).fields == {"model": "whisper"}


@pytest.mark.parametrize("content_type", ["", "application/json", "multipart/mixed; boundary=x", "multipart/form-data-x"])
def test_another_media_type_is_refused(content_type):
    with pytest.raises(UnsupportedMediaType, match="multipart/form-data"):
        parse_multipart(content_type, form(text("model", "whisper")))


@pytest.mark.parametrize(
    ("content_type", "said"),
    [
        ("multipart/form-data", "boundary"),
        ("multipart/form-data; boundary=", "boundary"),
        ('multipart/form-data; boundary=""', "boundary"),
        (f"multipart/form-data; boundary={'b' * 71}", "boundary"),
        (f"{TYPE}; boundary=other", "boundary"),
        (f"{TYPE}; charset=utf-7", "UTF-8"),
        (f"{TYPE}; charset=utf-16", "UTF-8"),
        (f"{TYPE};", "boundary"),
        ('multipart/form-data; boundary="a\\"b"', "boundary"),
        ('multipart/form-data; boundary="a\r\nb"', "boundary"),
        ("multipart/form-data; boundary=other", "does not begin"),
    ],
)
def test_a_content_type_that_parsers_could_read_differently_is_refused(content_type, said):
    with pytest.raises(BadRequest, match=said):
        parse_multipart(content_type, form(text("model", "whisper")))


MODEL = text("model", "a")


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "does not begin"),
        (b"\r\n" + form(MODEL), "does not begin"),
        (b"preamble\r\n" + form(MODEL), "does not begin"),
        (form(), "does not begin"),
        (form(MODEL)[:-9], "cut off"),
        (form(MODEL)[:-3], "inside a part"),
        (form(MODEL, end=b""), "inside a part"),
        (form(MODEL, end=b" --\r\n"), "inside a part"),
        (form(text("model", f"a\r\n--{BOUNDARY}x")), "inside a part"),
        (form(text("model", f"a\r\n--{BOUNDARY} \r\n")), "inside a part"),
        (form(*[MODEL] * (MAX_PARTS + 1)), "more than 64 parts"),
        (form(text("prompt", "a" * (MAX_TEXT_BYTES + 1))), "longer than"),
        (form(text("prompt", b"\xff")), "not UTF-8"),
        (form(b""), "no headers"),
        (form(b"\r\nvalue"), "no headers"),
        (form(b"Content-Disposition: form-data"), "no headers"),
        (form(text("model", "a", "X: " + "x" * 5000 + "\r\n")), "no headers"),
        (form(text("model", "a", "no colon\r\n")), "malformed header"),
        (form(text("model", "a", " folded: x\r\n")), "malformed header"),
        (form(text("model", "a", "X: a\nY: b\r\n")), "malformed header"),
        (form(text("model", "a", "X: a\0\r\n")), "malformed header"),
        (form(text("model", "a", 'content-disposition: form-data; name="n"\r\n')), "lacks a plain"),
        (form(b"Content-Type: text/plain\r\n\r\na"), "lacks a plain"),
        (form(b'Content-Disposition: attachment; name="model"\r\n\r\na'), "lacks a plain"),
        (form(b"Content-Disposition: form-data\r\n\r\na"), "lacks a plain"),
        (form(b"Content-Disposition: form-data; filename=a\r\n\r\na"), "lacks a plain"),
        (form(text('x"; name="model', "a")), "lacks a plain"),
        (form(text('x\\"; name="model', "a")), "lacks a plain"),
        (form(text('x\\\\"; filename="y', "a")), "lacks a plain"),
        (form(b"Content-Disposition: form-data; name*=utf-8''model\r\n\r\na"), "lacks a plain"),
        (form(b"Content-Disposition: form-data; name=x; filename*=utf-8''a\r\n\r\na"), "file name"),
    ],
)
def test_a_form_that_parsers_could_read_differently_is_refused(data, said):
    with pytest.raises(BadRequest, match=said):
        parse_multipart(TYPE, data)


def test_a_form_full_of_false_boundaries_is_given_up_at_the_first():
    data = form(file(f"\r\n--{BOUNDARY}X".encode() * 500_000))
    with pytest.raises(BadRequest, match="inside a part"):
        parse_multipart(TYPE, data)


# What an edit changes


def test_an_edit_leaves_every_other_byte_as_the_client_wrote_it():
    parsed = parse(text("model", "alias", "X-Odd: 1\r\n"), text("priority", "-9"), file(), text("n", "1"))
    edited = parsed.edited({"model": b"whisper", "priority": None, "stream_include_usage": b"true", "missing": None})
    assert edited == form(
        text("stream_include_usage", "true"), text("model", "whisper", "X-Odd: 1\r\n"), file(), text("n", "1")
    )
    assert as_the_worker_reads(edited)[1:] == [("model", "whisper"), ("file", WAV), ("n", "1")]


@pytest.mark.parametrize("removed", [{"a"}, {"b"}, {"c"}, {"a", "b"}, {"b", "c"}, {"a", "c"}])
def test_parts_are_taken_out_wherever_they_stand(removed):
    parsed = parse(*[text(name, name * 3) for name in "abc"])
    assert parsed.edited(dict.fromkeys(removed)) == form(*[text(name, name * 3) for name in "abc" if name not in removed])


def test_an_empty_value_is_replaced_too():
    assert parse(text("model", ""), file()).edited({"model": b"whisper"}) == form(text("model", "whisper"), file())


def test_a_repeated_part_is_replaced_everywhere():
    parsed = parse(text("a", "1"), file(), text("a", "2"))
    assert parsed.edited({"a": b"3"}) == form(text("a", "3"), file(), text("a", "3"))


# Against the worker's parser

same_every_time = settings(derandomize=True, deadline=None, max_examples=80)
pieces = st.sampled_from(
    [
        b"\r\n",
        b"\r",
        b"\n",
        b"--",
        b"-",
        BOUNDARY.encode(),
        b"\r\n--" + BOUNDARY.encode(),
        b"\r\n\r\n",
        b":",
        b";",
        b'"',
        b" ",
        b"\\",
    ]
    + [
        b"Content-Disposition: form-data; ",
        b'name="model"',
        b'name="n"',
        b"filename=x",
        b"; ",
        b"filename*=utf-8''x",
        b"=",
        b"x",
    ]
)
soup = st.lists(pieces | st.binary(max_size=2), max_size=10).map(b"".join)


@same_every_time
@given(st.lists(st.tuples(st.sampled_from(["model", "n", "file"]), soup), min_size=1, max_size=4), soup)
def test_what_passes_is_what_the_worker_reads(parts, insertion):
    data = form(*[file(value) if name == "file" else text(name, value) for name, value in parts])
    for candidate in (data, data[: len(data) // 3] + insertion + data[len(data) // 3 :]):
        try:
            parsed = parse_multipart(TYPE, candidate)
        except BadRequest:
            continue
        try:
            theirs = as_the_worker_reads(candidate)
        except MultiPartException:
            continue  # the worker refuses it: nothing slipped through
        assert as_we_read(parsed) == theirs
        assert as_the_worker_reads(parsed.edited({"model": b"m"}))[-len(theirs) :] == [
            (name, "m" if name == "model" and isinstance(value, str) else value) for name, value in theirs
        ]


@same_every_time
@given(st.binary(max_size=40), st.binary(max_size=80) | soup)
def test_arbitrary_bytes_are_a_form_or_a_bad_request(kind, data):
    for content_type in (kind.decode("latin-1"), TYPE, "multipart/form-data" + kind.decode("latin-1")):
        for body in (data, b"--" + BOUNDARY.encode() + b"\r\n" + data):
            try:
                parse_multipart(content_type, body, GUARDED)
            except BadRequest as refused:
                assert refused.status in (400, 415)
