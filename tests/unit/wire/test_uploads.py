"""What a client asks with a form, and what of it goes up."""

import pytest

from sluice.config import Bounds
from sluice.errors import BadRequest, UnsupportedMediaType
from sluice.types import Endpoint
from sluice.wire.multipart import parse_multipart
from sluice.wire.requests import Prepared, Request, Rules, parse

BOUNDARY = "9f86d081884c7d65"
TYPE = f"multipart/form-data; boundary={BOUNDARY}"
MODEL = "whisper"
WAV = b"RIFF\x00\x01\r\n\xff\xfe" * 100
RULES = Rules(Bounds(max_n=4, beam_search=False))


def part(name: str, value: str) -> bytes:
    return f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode()


def form(*more: bytes, audio: bytes = WAV, **fields: str) -> bytes:
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\n'.encode()
    file = head + audio + b"\r\n" if audio else b""
    return b"".join([part(*field) for field in fields.items()]) + file + b"".join(more) + f"--{BOUNDARY}--\r\n".encode()


def ask(**fields: str) -> Request:
    return parse(Endpoint.TRANSCRIPTIONS, form(**{"model": MODEL} | fields), TYPE)


def prepare(**fields: str) -> Prepared:
    return ask(**fields).prepare(RULES, model=MODEL)


def sent(**fields: str) -> dict[str, str]:
    prepared = prepare(**fields)
    return parse_multipart(prepared.content_type, prepared.body).fields


def refusal(**fields: str) -> BadRequest:
    with pytest.raises(BadRequest) as caught:
        prepare(**fields)
    return caught.value


def test_a_form_that_needs_no_change_goes_up_as_the_very_same_bytes():
    data = form(model=MODEL, language="de", response_format="json")
    request = parse(Endpoint.TRANSCRIPTIONS, data, TYPE)
    assert (request.endpoint, request.model, request.stream) == (Endpoint.TRANSCRIPTIONS, MODEL, False)
    assert (request.store, request.previous_response_id) == (False, None)
    prepared = request.prepare(RULES, model=MODEL)
    assert prepared.body is data
    assert prepared.content_type == f'multipart/form-data; boundary="{BOUNDARY}"'
    assert (prepared.wants_usage, prepared.num_prompts, prepared.num_choices, prepared.max_tokens) == (True, 1, 1, None)


def test_the_worker_reads_its_own_name_of_the_model():
    prepared = ask(language="de").prepare(RULES, model="openai/whisper-large")
    assert prepared.body == form(model="openai/whisper-large", language="de")


@pytest.mark.parametrize("fields", [{"model": ""}, {"model": "a\nb"}])
def test_a_form_must_name_its_model(fields):
    assert refusal(**fields).param == "model"


def test_a_model_that_is_a_file_is_none():
    data = form(model=MODEL).replace(b'name="model"', b'name="model"; filename="m"')
    with pytest.raises(BadRequest) as caught:
        parse(Endpoint.TRANSCRIPTIONS, data, TYPE)
    assert caught.value.param == "model"


@pytest.mark.parametrize("data", [form(audio=b"", model=MODEL), form(part("file", "RIFF"), audio=b"", model=MODEL)])
def test_a_form_must_hold_a_file(data):
    with pytest.raises(BadRequest) as caught:
        parse(Endpoint.TRANSCRIPTIONS, data, TYPE)
    assert caught.value.param == "file"


@pytest.mark.parametrize("name", ["model", "stream", "n", "priority", "vllm_xargs"])
def test_a_part_that_we_look_at_may_not_occur_twice(name):
    with pytest.raises(BadRequest, match="occurs twice") as caught:
        parse(Endpoint.TRANSCRIPTIONS, form(part(name, "1"), part(name, "1"), language="de"), TYPE)
    assert caught.value.param == name


def test_json_is_the_wrong_media_type():
    with pytest.raises(UnsupportedMediaType):
        parse(Endpoint.TRANSCRIPTIONS, b"{}", "application/json")


@pytest.mark.parametrize("said", ["true", "True", "1", "on", "yes", "Y", "t"])
def test_usage_is_asked_for_behind_the_back_of_a_client_that_does_not_ask(said):
    assert ask(stream=said).stream
    assert not prepare(stream=said).wants_usage
    assert sent(stream=said) == {"model": MODEL, "stream": said, "stream_include_usage": "true"}
    assert sent(stream=said, stream_include_usage="false")["stream_include_usage"] == "true"


def test_a_client_that_asks_for_usage_gets_its_own_bytes_sent():
    prepared = prepare(stream="true", stream_include_usage="true")
    assert prepared.wants_usage
    assert prepared.body == form(model=MODEL, stream="true", stream_include_usage="true")


def test_usage_on_every_event_is_not_asked_for():
    asked = {"stream": "true", "stream_include_usage": "true"}
    assert sent(**asked, stream_continuous_usage_stats="true") == {"model": MODEL, **asked}


@pytest.mark.parametrize("name", ["stream_include_usage", "stream_continuous_usage_stats"])
@pytest.mark.parametrize("stream", ["false", "0", "", "no"])
def test_stream_options_need_a_stream(name, stream):
    assert refusal(**{"stream": stream, name: "true"}).param == name
    assert prepare(**{"stream": stream, name: "false"}).wants_usage


@pytest.mark.parametrize(
    ("name", "refused"),
    [
        ("stream", ["2", "maybe", "true "]),
        ("n", ["0", "5", "-1", "16384", "x", "1.5", "٣", "1_0", "9" * 6000]),
        ("use_beam_search", ["true", "1", "maybe"]),
        ("max_completion_tokens", ["-1", "x", str(2**31)]),
        ("vllm_xargs", ['{"kv_transfer_params":{}}']),
        ("media_io_kwargs", ['{"audio":{}}']),
    ],
)
def test_what_is_out_of_bounds_is_refused(name, refused):
    for value in refused:
        assert refusal(**{name: value}).param == name, value


def test_what_a_form_may_cost_is_told():
    prepared = prepare(n="4", max_completion_tokens="100", use_beam_search="false")
    assert (prepared.num_choices, prepared.max_tokens) == (4, 100)
    assert prepare(n="", max_completion_tokens="").max_tokens is None


def test_what_steers_the_engine_does_not_reach_it():
    assert sent(priority="-1", request_id="x", session_id="s", cache_salt="c", temperature="0") == {
        "model": MODEL,
        "temperature": "0",
    }
