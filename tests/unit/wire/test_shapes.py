"""What the body of each endpoint must hold."""

import pytest

from sluice.errors import BadRequest
from sluice.types import Endpoint
from sluice.wire.shapes import SHAPES

HI = {"role": "user", "content": "Hi"}
IMAGE = {"type": "image_url", "image_url": {"url": "https://a.test/cat.png"}}
SHOWS = {"role": "user", "content": [IMAGE]}


def test_every_endpoint_with_a_json_body_has_a_shape():
    assert set(SHAPES) == set(Endpoint) - {Endpoint.TRANSCRIPTIONS}


@pytest.mark.parametrize(
    ("endpoint", "members", "num_prompts"),
    [
        (Endpoint.CHAT, {"messages": [HI]}, 1),
        (Endpoint.CHAT, {"messages": [{}]}, 1),
        (Endpoint.CHAT, {"messages": [{"role": "tool", "tool_call_id": "c", "content": None}]}, 1),
        (Endpoint.COMPLETIONS, {"prompt": "Once"}, 1),
        (Endpoint.COMPLETIONS, {"prompt": ""}, 1),
        (Endpoint.COMPLETIONS, {"prompt": ["a", "b"]}, 2),
        (Endpoint.COMPLETIONS, {"prompt": [1, 2, 3]}, 1),
        (Endpoint.COMPLETIONS, {"prompt": [1.0, 2.0]}, 1),
        (Endpoint.COMPLETIONS, {"prompt": [[1], [2, 3]]}, 2),
        (Endpoint.EMBEDDINGS, {"input": "a"}, 1),
        (Endpoint.EMBEDDINGS, {"input": ["a", "b", "c"]}, 3),
        (Endpoint.EMBEDDINGS, {"input": [101, 102]}, 1),
        (Endpoint.EMBEDDINGS, {"input": [[101], [102], []]}, 3),
        (Endpoint.EMBEDDINGS, {"input": [[], [102]]}, 2),
        (Endpoint.EMBEDDINGS, {"input": [HI, HI]}, 1),
        (Endpoint.EMBEDDINGS, {"input": [[HI], [HI, HI]]}, 2),
        (Endpoint.EMBEDDINGS, {"messages": [HI, HI]}, 1),
        (Endpoint.EMBEDDINGS, {"messages": [[HI], [HI]]}, 2),
        (Endpoint.EMBEDDINGS, {"messages": [HI], "input": ["a", "b", "c"]}, 3),
        (Endpoint.RESPONSES, {"input": "Hi"}, 1),
        (Endpoint.RESPONSES, {"input": [HI, {"type": "reasoning", "summary": []}]}, 1),
        (Endpoint.MESSAGES, {"messages": [HI], "max_tokens": 1}, 1),
        (Endpoint.MESSAGES, {"messages": [HI], "max_tokens": 1, "system": "Be brief."}, 1),
        (Endpoint.MESSAGES, {"messages": [HI], "max_tokens": 1, "system": [{"type": "text", "text": "Be brief."}]}, 1),
        (Endpoint.COUNT_TOKENS, {"messages": [HI]}, 1),
        (Endpoint.RERANK, {"query": "q", "documents": "d"}, 1),
        (Endpoint.RERANK, {"query": "q", "documents": ["a", "b"]}, 2),
        (Endpoint.RERANK, {"query": {"content": [IMAGE]}, "documents": {"content": [IMAGE]}}, 1),
        (Endpoint.SCORE, {"queries": "q", "documents": ["a", "b", "c"]}, 3),
        (Endpoint.SCORE, {"queries": ["q", "r"], "items": ["a", "b"]}, 2),
        (Endpoint.SCORE, {"text_1": "q", "text_2": ["a", "b"]}, 2),
        (Endpoint.SCORE, {"data_1": ["q", "r"], "data_2": "a"}, 2),
        (Endpoint.TOKENIZE, {"prompt": "Hi"}, 1),
        (Endpoint.TOKENIZE, {"messages": [HI]}, 1),
        (Endpoint.DETOKENIZE, {"tokens": [1, 2, 3]}, 1),
        (Endpoint.DETOKENIZE, {"tokens": []}, 1),
    ],
)
def test_shapes_that_vllm_takes_pass_and_are_counted(endpoint, members, num_prompts):
    assert SHAPES[endpoint](members).num_prompts == num_prompts


@pytest.mark.parametrize(
    ("endpoint", "members", "param"),
    [
        (Endpoint.CHAT, {}, "messages"),
        (Endpoint.CHAT, {"messages": None}, "messages"),
        (Endpoint.CHAT, {"messages": "Hi"}, "messages"),
        (Endpoint.CHAT, {"messages": HI}, "messages"),
        (Endpoint.CHAT, {"messages": []}, "messages"),
        (Endpoint.CHAT, {"messages": [HI, "Hi"]}, "messages[1]"),
        (Endpoint.CHAT, {"messages": [[HI]]}, "messages[0]"),
        (Endpoint.COMPLETIONS, {}, "prompt"),
        (Endpoint.COMPLETIONS, {"prompt": {}}, "prompt"),
        (Endpoint.COMPLETIONS, {"prompt": 7}, "prompt"),
        (Endpoint.COMPLETIONS, {"prompt": []}, "prompt"),
        (Endpoint.EMBEDDINGS, {}, "input"),
        (Endpoint.EMBEDDINGS, {"input": []}, "input"),
        (Endpoint.EMBEDDINGS, {"input": {"text": "a"}}, "input"),
        (Endpoint.EMBEDDINGS, {"messages": "Hi"}, "messages"),
        (Endpoint.EMBEDDINGS, {"messages": [], "input": "a"}, "messages"),
        (Endpoint.RESPONSES, {}, "input"),
        (Endpoint.RESPONSES, {"input": 7}, "input"),
        (Endpoint.RESPONSES, {"input": {"role": "user"}}, "input"),
        (Endpoint.MESSAGES, {"messages": [HI]}, "max_tokens"),
        (Endpoint.MESSAGES, {"max_tokens": 1}, "messages"),
        (Endpoint.MESSAGES, {"messages": [HI], "max_tokens": 1, "system": 7}, "system"),
        (Endpoint.COUNT_TOKENS, {"system": "Be brief."}, "messages"),
        (Endpoint.RERANK, {"documents": ["a"]}, "query"),
        (Endpoint.RERANK, {"query": "q"}, "documents"),
        (Endpoint.RERANK, {"query": ["q"], "documents": ["a"]}, "query"),
        (Endpoint.RERANK, {"query": "q", "documents": 7}, "documents"),
        (Endpoint.SCORE, {}, "queries"),
        (Endpoint.SCORE, {"queries": 7, "documents": "a"}, "queries"),
        (Endpoint.TOKENIZE, {}, "prompt"),
        (Endpoint.TOKENIZE, {"prompt": ["a"]}, "prompt"),
        (Endpoint.TOKENIZE, {"messages": []}, "messages"),
        (Endpoint.DETOKENIZE, {}, "tokens"),
        (Endpoint.DETOKENIZE, {"tokens": "1 2"}, "tokens"),
    ],
)
def test_other_shapes_are_refused_and_the_member_named(endpoint, members, param):
    with pytest.raises(BadRequest, match=param.partition("[")[0]) as caught:
        SHAPES[endpoint](members)
    assert caught.value.param == param


@pytest.mark.parametrize(
    ("endpoint", "members", "path"),
    [
        (Endpoint.CHAT, {"messages": [HI, SHOWS]}, "messages[1].content[0].image_url"),
        (Endpoint.EMBEDDINGS, {"messages": [SHOWS]}, "messages[0].content[0].image_url"),
        (Endpoint.EMBEDDINGS, {"input": [SHOWS]}, "input[0].content[0].image_url"),
        (Endpoint.EMBEDDINGS, {"input": [[HI], [SHOWS]]}, "input[1][0].content[0].image_url"),
        (Endpoint.EMBEDDINGS, {"messages": [SHOWS], "input": "a"}, "messages[0].content[0].image_url"),
        (Endpoint.RESPONSES, {"input": [SHOWS]}, "input[0].content[0].image_url"),
        (
            Endpoint.RESPONSES,
            {"input": "a", "previous_input_messages": [SHOWS]},
            "previous_input_messages[0].content[0].image_url",
        ),
        (Endpoint.MESSAGES, {"messages": [SHOWS], "max_tokens": 1}, "messages[0].content[0].image_url"),
        (Endpoint.COUNT_TOKENS, {"messages": [HI], "system": [IMAGE]}, "system[0].image_url"),
        (Endpoint.RERANK, {"query": {"content": [IMAGE]}, "documents": "a"}, "query[0].content[0].image_url"),
        (Endpoint.RERANK, {"query": "q", "documents": ["a", {"content": [IMAGE]}]}, "documents[1].content[0].image_url"),
        (Endpoint.SCORE, {"data_1": "q", "data_2": [{"content": [IMAGE]}]}, "data_2[0].content[0].image_url"),
        (Endpoint.TOKENIZE, {"messages": [SHOWS]}, "messages[0].content[0].image_url"),
    ],
)
def test_urls_are_found_wherever_the_worker_would_fetch_them(endpoint, members, path):
    assert [one.path for one in SHAPES[endpoint](members).media] == [path]
