"""What a client asks, and what of it goes up."""

import json

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sluice.config import Bounds, ConfigError, Route
from sluice.errors import BadRequest
from sluice.types import Endpoint
from sluice.wire.requests import GUARDED, Prepared, Request, Rules, parse

RULES = Rules()
MODEL = "smollm2"
BODIES = {
    Endpoint.CHAT: {"messages": [{"role": "user", "content": "Hi"}]},
    Endpoint.COMPLETIONS: {"prompt": "Once"},
    Endpoint.EMBEDDINGS: {"input": "Hi"},
    Endpoint.RESPONSES: {"input": "Hi"},
    Endpoint.MESSAGES: {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 8},
    Endpoint.COUNT_TOKENS: {"messages": [{"role": "user", "content": "Hi"}]},
    Endpoint.RERANK: {"query": "q", "documents": ["a", "b"]},
    Endpoint.SCORE: {"queries": "q", "documents": ["a", "b"]},
    Endpoint.TOKENIZE: {"prompt": "Hi"},
    Endpoint.DETOKENIZE: {"tokens": [1, 2]},
}


def body(endpoint: Endpoint = Endpoint.CHAT, **more) -> bytes:
    return json.dumps({"model": MODEL, **BODIES[endpoint], **more}).encode()


def ask(endpoint: Endpoint = Endpoint.CHAT, **more) -> Request:
    return parse(endpoint, body(endpoint, **more))


def prepare(endpoint: Endpoint = Endpoint.CHAT, rules: Rules = RULES, **more) -> Prepared:
    return ask(endpoint, **more).prepare(rules, model=MODEL)


def sent(endpoint: Endpoint = Endpoint.CHAT, rules: Rules = RULES, **more) -> dict:
    return orjson.loads(prepare(endpoint, rules, **more).body)


def refusal(endpoint: Endpoint = Endpoint.CHAT, rules: Rules = RULES, **more) -> BadRequest:
    with pytest.raises(BadRequest) as caught:
        prepare(endpoint, rules, **more)
    assert "\n" not in caught.value.message
    return caught.value


@pytest.mark.parametrize("endpoint", BODIES)
def test_a_request_that_needs_no_change_goes_up_as_the_very_same_bytes(endpoint):
    data = body(endpoint, top_k=5, chat_template_kwargs={"enable_thinking": False}, unheard_of={"a": [1]})
    request = parse(endpoint, data)
    assert (request.endpoint, request.model, request.stream) == (endpoint, MODEL, False)
    prepared = request.prepare(RULES, model=MODEL)
    assert prepared.body is data
    assert prepared.content_type == "application/json"
    assert prepared.wants_usage


@pytest.mark.parametrize("endpoint", BODIES)
@pytest.mark.parametrize("model", [None, "", 7, ["m"], {"id": "m"}, True])
def test_a_request_must_name_its_model(endpoint, model):
    assert refusal(endpoint, model=model).param == "model"


def test_a_request_without_the_member_must_name_its_model():
    with pytest.raises(BadRequest, match="`model`") as caught:
        parse(Endpoint.CHAT, b'{"messages":[{"role":"user","content":"Hi"}]}')
    assert caught.value.param == "model"


@pytest.mark.parametrize("endpoint", BODIES)
def test_the_worker_reads_its_own_name_of_the_model(endpoint):
    prepared = ask(endpoint, seed=7).prepare(RULES, model='ada/"7"')
    assert orjson.loads(prepared.body) == {"model": 'ada/"7"', **BODIES[endpoint], "seed": 7}


# Streams and their usage


@pytest.mark.parametrize("endpoint", [Endpoint.CHAT, Endpoint.COMPLETIONS])
@pytest.mark.parametrize("options", [{}, {"stream_options": None}, {"stream_options": {}}])
def test_usage_is_asked_for_behind_the_back_of_a_client_that_does_not_ask(endpoint, options):
    prepared = prepare(endpoint, stream=True, **options)
    assert prepared.stream
    assert not prepared.wants_usage
    assert orjson.loads(prepared.body)["stream_options"] == {"include_usage": True}


@pytest.mark.parametrize("endpoint", [Endpoint.CHAT, Endpoint.COMPLETIONS])
def test_a_client_that_asks_for_usage_gets_its_own_bytes_sent(endpoint):
    data = body(endpoint, stream=True, stream_options={"include_usage": True, "include_obfuscation": False})
    prepared = parse(endpoint, data).prepare(RULES, model=MODEL)
    assert prepared.body is data
    assert prepared.wants_usage


@pytest.mark.parametrize("include_usage", [True, False, None])
def test_usage_on_every_event_is_not_asked_for_and_other_options_stay(include_usage):
    options = {"include_usage": include_usage, "continuous_usage_stats": True, "include_obfuscation": False}
    prepared = prepare(stream=True, stream_options=options)
    assert orjson.loads(prepared.body)["stream_options"] == {"include_usage": True, "include_obfuscation": False}
    assert prepared.wants_usage is bool(include_usage)


@pytest.mark.parametrize("stream", [None, False])
def test_stream_options_need_a_stream(stream):
    assert refusal(stream=stream, stream_options={"include_usage": True}).param == "stream_options"
    assert prepare(stream=stream, stream_options={}).wants_usage


@pytest.mark.parametrize("options", [[1], "yes", 7, {"include_usage": "true"}, {"include_usage": 1}])
def test_stream_options_of_the_wrong_type_are_refused(options):
    assert refusal(stream=True, stream_options=options).param.startswith("stream_options")


@pytest.mark.parametrize("endpoint", [Endpoint.RESPONSES, Endpoint.MESSAGES])
def test_other_streams_tell_their_usage_unasked(endpoint):
    data = body(endpoint, stream=True)
    prepared = parse(endpoint, data).prepare(RULES, model=MODEL)
    assert (prepared.body, prepared.stream, prepared.wants_usage) == (data, True, True)


@pytest.mark.parametrize("stream", ["true", 1, [True]])
@pytest.mark.parametrize("endpoint", [Endpoint.CHAT, Endpoint.COMPLETIONS, Endpoint.RESPONSES, Endpoint.MESSAGES])
def test_stream_must_be_a_boolean(endpoint, stream):
    with pytest.raises(BadRequest) as caught:
        ask(endpoint, stream=stream)
    assert caught.value.param == "stream"


@pytest.mark.parametrize("endpoint", [Endpoint.EMBEDDINGS, Endpoint.RERANK, Endpoint.COUNT_TOKENS, Endpoint.TOKENIZE])
def test_what_never_streams_is_no_stream(endpoint):
    assert not ask(endpoint, stream=True).stream


# What is dropped and what is refused

STEERING = {
    "priority": -100,
    "request_id": "chatcmpl-of-another",
    "session_id": "s",
    "cache_salt": "x",
    "kv_transfer_params": {"do_remote_prefill": True, "remote_host": "10.0.0.1"},
    "ec_transfer_params": {"x": 1},
}


@pytest.mark.parametrize("endpoint", BODIES)
def test_what_steers_the_engine_does_not_reach_it(endpoint):
    assert sent(endpoint, **STEERING, seed=7) == {"model": MODEL, **BODIES[endpoint], "seed": 7}
    for name, value in STEERING.items():
        assert sent(endpoint, **{name: value}) == {"model": MODEL, **BODIES[endpoint]}
        assert name not in sent(endpoint, **{name: None})


@pytest.mark.parametrize("endpoint", BODIES)
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("chat_template", "{% for _ in range(10**9) %}{% endfor %}"),
        ("mm_processor_kwargs", {"num_crops": 4096}),
        ("media_io_kwargs", {"video": {"num_frames": 100_000}}),
        ("vllm_xargs", {"kv_transfer_params": {"do_remote_prefill": True}}),
        ("prompt_embeds", "AAAA"),
    ],
)
def test_what_would_change_the_answer_if_it_were_dropped_is_refused(endpoint, name, value):
    assert refusal(endpoint, **{name: value}).param == name
    assert prepare(endpoint, **{name: None})


def test_tensors_are_refused_in_place_of_a_prompt_too():
    assert refusal(Endpoint.COMPLETIONS, prompt=None, prompt_embeds="AAAA").param == "prompt_embeds"


def test_a_template_is_refused_among_the_arguments_of_the_template_too():
    assert refusal(chat_template_kwargs={"chat_template": "{{ x }}"}).param == "chat_template_kwargs.chat_template"
    assert sent(chat_template_kwargs={"chat_template": None, "enable_thinking": True})["chat_template_kwargs"]
    assert sent(chat_template_kwargs=7)["chat_template_kwargs"] == 7


@pytest.mark.parametrize("name", sorted(GUARDED))
def test_a_member_that_we_look_at_may_not_occur_twice(name):
    first = f'"{name}":null'
    again = "".join(f"\\u{ord(character):04x}" for character in name)
    with pytest.raises(BadRequest, match="occurs twice") as caught:
        parse(Endpoint.CHAT, f'{{{first},"{again}":null}}'.encode())
    assert caught.value.param == name


def test_everything_that_is_dropped_refused_or_read_is_guarded():
    assert {*STEERING, "chat_template", "model", "stream", "messages", "input", "n", "store", "max_tokens"} <= GUARDED


# Bounds

TIGHT = Rules(Bounds(max_n=4, max_logprobs=5, max_prompts=8, min_tokens=False, ignore_eos=False, beam_search=False))
LOOSE = Rules(Bounds(max_n=64, max_logprobs=100, max_prompts=4096, min_tokens=True, ignore_eos=True, beam_search=True))


@pytest.mark.parametrize(
    ("endpoint", "member", "allowed", "refused"),
    [
        (Endpoint.CHAT, "n", [1, 4, 4.0, None], [0, -1, 5, 16384, "16384", "2", True, 1.5, [2], 2**70, 1e300]),
        (Endpoint.COMPLETIONS, "n", [1, 4], [5, 2**64]),
        (Endpoint.CHAT, "best_of", [1, 4, None], [5, "9"]),
        (Endpoint.CHAT, "min_tokens", [0, None], [1, -1, "1"]),
        (Endpoint.COMPLETIONS, "logprobs", [0, 5, None], [6, -1, True, "6"]),
        (Endpoint.CHAT, "logprobs", [True, False, None], []),
        (Endpoint.CHAT, "top_logprobs", [0, 5, None], [6, 500, -1, "6"]),
        (Endpoint.RESPONSES, "top_logprobs", [5], [6]),
        (Endpoint.CHAT, "prompt_logprobs", [0, 5], [6, -1]),
        (Endpoint.CHAT, "ignore_eos", [False, None], [True, "true", 1]),
        (Endpoint.CHAT, "use_beam_search", [False, None], [True, "true", 1]),
        (Endpoint.CHAT, "stream_interval", [1, 64], [0, 65, 10**9, "9"]),
        (Endpoint.CHAT, "max_tokens", [0, 1, 128, None], [-1, "9", 2**31, True]),
        (Endpoint.CHAT, "max_completion_tokens", [1, None], [-1, "9"]),
        (Endpoint.RESPONSES, "max_output_tokens", [1, None], [-1, "9"]),
        (Endpoint.MESSAGES, "max_tokens", [1], [0, -1, "9", None]),
    ],
)
def test_bounds(endpoint, member, allowed, refused):
    for value in allowed:
        assert prepare(endpoint, TIGHT, **{member: value})
    for value in refused:
        assert refusal(endpoint, TIGHT, **{member: value}).param == member, value


def test_a_route_may_allow_what_others_do_not():
    asked = {"n": 64, "top_logprobs": 100, "logprobs": True, "min_tokens": 9, "ignore_eos": True, "use_beam_search": True}
    assert sent(Endpoint.CHAT, LOOSE, **asked) == {"model": MODEL, **BODIES[Endpoint.CHAT], **asked}


def test_a_refusal_says_the_bound():
    assert "from 1 to 4" in refusal(rules=TIGHT, n=5).message


def test_the_search_for_repetitions_is_bounded():
    assert prepare(repetition_detection={"max_pattern_size": 16, "min_count": 3})
    assert prepare(repetition_detection="?")
    assert refusal(repetition_detection={"max_pattern_size": 100_000, "min_count": 2}).param == "max_pattern_size"


@pytest.mark.parametrize(
    ("endpoint", "member", "value"),
    [
        (Endpoint.COMPLETIONS, "prompt", ["a"] * 9),
        (Endpoint.COMPLETIONS, "prompt", [[1, 2]] * 9),
        (Endpoint.EMBEDDINGS, "input", ["a"] * 9),
        (Endpoint.EMBEDDINGS, "input", [[1, 2]] * 9),
        (Endpoint.EMBEDDINGS, "messages", [[{"role": "user", "content": "Hi"}]] * 9),
        (Endpoint.RERANK, "documents", ["a"] * 9),
        (Endpoint.SCORE, "documents", ["a"] * 9),
        (Endpoint.SCORE, "queries", ["a"] * 9),
    ],
)
def test_prompts_and_documents_are_bounded(endpoint, member, value):
    assert prepare(endpoint, TIGHT, **{member: value[:8]}).num_prompts == 8
    refused = refusal(endpoint, TIGHT, **{member: value})
    assert refused.param == member
    assert "at most 8" in refused.message


def test_answers_to_many_prompts_are_bounded_together():
    assert prepare(Endpoint.COMPLETIONS, TIGHT, prompt=["a"] * 2, n=4).num_choices == 4
    assert refusal(Endpoint.COMPLETIONS, TIGHT, prompt=["a"] * 3, n=4).param == "n"
    assert prepare(Endpoint.COMPLETIONS, Rules(Bounds(max_prompts=1)), n=4).num_choices == 4


def test_what_a_request_may_cost_is_told():
    prepared = prepare(n=3, max_tokens=100, max_completion_tokens=50)
    assert (prepared.num_prompts, prepared.num_choices, prepared.max_tokens) == (1, 3, 50)
    assert prepare(max_tokens=100.0).max_tokens == 100
    assert prepare().max_tokens is None
    assert prepare(Endpoint.COMPLETIONS, max_tokens=None).max_tokens == 16
    assert prepare(Endpoint.RESPONSES, max_output_tokens=9, max_tokens=3).max_tokens == 9
    assert prepare(Endpoint.MESSAGES).max_tokens == 8
    assert prepare(Endpoint.EMBEDDINGS, max_tokens=3).max_tokens is None


# Media


def picture(url: str) -> dict:
    return {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}]}


def test_a_worker_fetches_only_from_the_hosts_of_its_route():
    rules = Rules.of("vision", Route(workers={"static": ["http://127.0.0.1:8101"]}, media_hosts=("cdn.example.com",)))
    asked = picture("https://cdn.example.com/cat.png")
    assert sent(rules=rules, **asked)["messages"] == asked["messages"]
    assert refusal(rules=rules, **picture("http://169.254.169.254/")).param == "messages[0].content[0].image_url"
    assert refusal(**asked).param == "messages[0].content[0].image_url"
    assert prepare(**picture("data:image/png;base64,iVBORw0KGgo="))


def test_rules_are_made_of_a_route():
    route = Route(workers={"static": ["http://127.0.0.1:8101"]}, bounds=Bounds(max_n=2), responses_store=True)
    rules = Rules.of("chat", route)
    assert (rules.bounds.max_n, rules.responses_store) == (2, True)


def test_a_media_host_that_is_none_is_a_mistake_in_the_configuration():
    route = Route(workers={"static": ["http://127.0.0.1:8101"]}, media_hosts=("https://a.test/x",))
    with pytest.raises(ConfigError, match=r"routes\.vision\.media_hosts: .*a\.test/x"):
        Rules.of("vision", route)


# Stored responses

STORING = Rules(responses_store=True)


@pytest.mark.parametrize(
    ("asked", "param"),
    [
        ({"store": True}, "store"),
        ({"background": True}, "background"),
        ({"store": False, "previous_response_id": "resp_1"}, "previous_response_id"),
    ],
)
def test_nothing_is_stored_where_workers_keep_nothing(asked, param):
    refused = refusal(Endpoint.RESPONSES, **asked)
    assert refused.param == param
    assert "`store`" in refused.message
    assert sent(Endpoint.RESPONSES, STORING, **asked) == {"model": MODEL, "input": "Hi", **asked}


@pytest.mark.parametrize("store", ["true", 1])
def test_store_must_be_a_boolean(store):
    assert refusal(Endpoint.RESPONSES, STORING, store=store).param == "store"


@pytest.mark.parametrize(
    ("asked", "store"), [({}, None), ({"store": None}, None), ({"store": False}, False), ({"store": True}, True)]
)
def test_a_response_tells_whether_it_shall_be_stored(asked, store):
    assert ask(Endpoint.RESPONSES, **asked).store is store


def test_a_response_tells_which_one_it_continues():
    assert ask(Endpoint.RESPONSES, previous_response_id="resp_1").previous_response_id == "resp_1"
    assert ask(Endpoint.RESPONSES).previous_response_id is None
    with pytest.raises(BadRequest, match="must be a string"):
        _ = ask(Endpoint.RESPONSES, previous_response_id=7).previous_response_id


def test_only_responses_are_stored():
    request = ask(store=True, background=True, previous_response_id="resp_1")
    assert (request.store, request.previous_response_id) == (False, None)
    assert request.prepare(RULES, model=MODEL)


def test_a_response_gets_the_id_we_give_it_and_not_the_clients():
    for asked in ({}, {"request_id": "resp_of_another"}):
        prepared = ask(Endpoint.RESPONSES, **asked).prepare(STORING, model=MODEL, response_id="resp_1")
        assert orjson.loads(prepared.body) == {"model": MODEL, "input": "Hi", "request_id": "resp_1"}


# Anything at all

scalars = st.none() | st.booleans() | st.integers(-3, 40) | st.floats(allow_nan=False) | st.text(max_size=3)
anything = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["type", "content", "image_url", "url", "uuid", "source", "output"]), inner, max_size=3
        )
    ),
    max_leaves=6,
)


@settings(derandomize=True, deadline=None, max_examples=150)
@given(st.sampled_from(sorted(BODIES)), st.dictionaries(st.sampled_from(sorted(GUARDED)), anything, max_size=3))
def test_a_request_of_any_types_is_prepared_or_a_bad_request(endpoint, members):
    try:
        prepared = parse(endpoint, body(endpoint, **members)).prepare(RULES, model="worker's")
    except BadRequest as refused:
        assert refused.status == 400
    else:
        up = orjson.loads(prepared.body)
        assert up["model"] == "worker's"
        assert not {*STEERING} & up.keys()
