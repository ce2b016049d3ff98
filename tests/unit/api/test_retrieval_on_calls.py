"""Calls with retrieval through the whole gateway: what goes up, what comes down, and what goes wrong."""

import asyncio
import re
from collections.abc import AsyncIterator
from typing import Any

import orjson
import pytest
import pytest_asyncio

from tests.support import scripts, vllm_agents
from tests.support import vllm_shapes as vllm
from tests.support.knowledge_server import KnowledgeServer, record
from tests.support.raw_http import Response
from tests.support.scripted_worker import ScriptedWorker
from tests.unit.in_process import CHAT, Gateway, serving, settings, told

RESPONSES = "/v1/responses"
PORT = "The gateway listens on port 8443."
HOURS = "办公时间是九点到五点。"
QUESTION = "Which port is it?"
ASK: dict[str, Any] = {"model": "smollm2", "messages": [{"role": "user", "content": QUESTION}]}
WITH = {"retrieval": {"vector_store_ids": ["handbook"]}}
TOOL = {"type": "file_search", "vector_store_ids": ["handbook"]}
CITING = ("It is ", "8443 ", "[1], ", "时间 ", "［2］。", " Not [7], nor `x[1]`.")
TEXT = "".join(CITING)
# Retrievers for a test each: what fails five times is left alone for a while.
FRAIL = ["slow", "late", "garbled0", "garbled1", "garbled2", "garbled3"]


def of(*stores: str) -> dict[str, Any]:
    return {"retrieval": {"vector_store_ids": list(stores)}}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def knowledge() -> AsyncIterator[KnowledgeServer]:
    records = {
        "handbook": [record(PORT, "deploy.md", document_id="doc-1"), record(HOURS, "hours.md", url="https://a.example/h")],
        "empty": [],
    }
    async with KnowledgeServer(records) as server:
        yield server


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(
    tmp_path_factory: pytest.TempPathFactory, knowledge: KnowledgeServer
) -> AsyncIterator[tuple[Gateway, ScriptedWorker]]:
    async with ScriptedWorker(max_model_len=8192) as worker:
        stores = ["handbook", "empty", "gone"]
        secret = {"type": "http", "url": knowledge.url + "/retrieval", "tenants": ["globex"], "stores": ["secret"]}
        retrieval = {
            "retrievers": {
                "kb": {"type": "http", "url": knowledge.url + "/retrieval", "stores": stores},
                "theirs": secret,
                **{name: {"type": "http", "url": knowledge.url + "/retrieval"} for name in FRAIL},
                "dead": {"type": "http", "url": "http://127.0.0.1:1/retrieval"},
            },
            "on_call": {"public_url": "https://gw.example", "search_timeout_s": 1.5},
        }
        folder = tmp_path_factory.mktemp("gateway")
        routes = {
            "grounded": {
                "workers": {"static": [worker.url]},
                "served_model": "smollm2",
                "retrieval": {"vector_store_ids": ["handbook"]},
            }
        }
        async with serving(settings(folder, worker, retrieval=retrieval, routes=routes)) as gateway:
            await gateway.until(lambda: all(one.is_healthy for pool in gateway.pools for one in pool.workers))
            yield gateway, worker


@pytest_asyncio.fixture(loop_scope="module")
async def worker(shared: tuple[Gateway, ScriptedWorker], knowledge: KnowledgeServer) -> ScriptedWorker:
    shared[1].forget()
    knowledge.script = None
    knowledge.requests.clear()
    return shared[1]


@pytest_asyncio.fixture(loop_scope="module")
async def gateway(shared: tuple[Gateway, ScriptedWorker], worker: ScriptedWorker) -> AsyncIterator[Gateway]:
    yield shared[0]
    await shared[0].holds_nothing()


pytestmark = pytest.mark.asyncio(loop_scope="module")


def writes(worker: ScriptedWorker, words: tuple[str, ...] = CITING) -> None:
    """The worker's next answers are these words."""
    whole = vllm.chat_reply({"content": "".join(words)}, model="smollm2", id="chatcmpl-1", prompt=5, completion=len(words))
    worker.on(CHAT, scripts.reply(200, whole))


def streams(worker: ScriptedWorker, words: tuple[str, ...] = CITING, **more: Any) -> list[bytes]:
    events = vllm.chat_events(vllm.content_deltas(words), model="smollm2", **more)
    worker.on(CHAT, scripts.stream(events))
    return events


def chunks(response: Response) -> list[dict[str, Any]]:
    payloads = [event.removeprefix(b"data: ") for event in response.body.split(b"\n\n") if event]
    assert payloads[-1] == b"[DONE]"
    return [orjson.loads(payload) for payload in payloads[:-1]]


async def test_sources_go_before_the_question_and_nothing_else_goes_up(gateway: Gateway, worker: ScriptedWorker):
    system = {"role": "system", "content": "Be brief."}
    asked = ASK | {"messages": [system, *ASK["messages"]], "temperature": 0} | WITH

    response = await gateway.request("POST", CHAT, json=asked)

    assert response.status == 200, response
    [request] = worker.calls(CHAT)
    sent = request.json()
    assert sent.keys() == {"model", "messages", "temperature"}
    assert sent["messages"][0] == system
    said = sent["messages"][1]["content"]
    found = re.fullmatch(r"Sources retrieved .*\n<sources-(\w+)>\n(.*)</sources-\1>\nQuestion: (.*)", said, re.DOTALL)
    assert found, said
    assert found[2] == f"[1] title: deploy.md\n{PORT}\n[2] title: hours.md\n{HOURS}\n"
    assert found[3] == QUESTION


async def test_an_answer_shows_what_was_given_and_what_was_cited(gateway: Gateway, worker: ScriptedWorker):
    writes(worker)

    response = await gateway.request("POST", CHAT, json=ASK | WITH)

    reply = response.json()
    message = reply["choices"][0]["message"]
    assert message["content"] == TEXT
    cited = [one["url_citation"] for one in message["annotations"]]
    assert [TEXT[one["start_index"] : one["end_index"]] for one in cited] == ["[1]", "［2］"]
    assert [one["url"] for one in cited] == ["https://gw.example/v1/files/doc-1/content", "https://a.example/h"]
    given = message["context"]["citations"]
    assert [(one["index"], one["title"], one["content"]) for one in given] == [
        (1, "deploy.md", PORT),
        (2, "hours.md", HOURS),
    ]
    assert given[0]["spans"] == [{"start_index": 11, "end_index": 14}]
    assert orjson.loads(message["context"]["intent"]) == [QUESTION]
    told_ = reply["retrieval"]
    assert (told_["status"], told_["results"], told_["used"], told_["failures"]) == ("completed", 2, 2, [])
    assert reply["usage"]["prompt_tokens_details"]["retrieval_tokens"] > 10
    assert (response.header("x-retrieval-status"), response.header("x-retrieval-count")) == ("hit", "2")
    assert float(response.header("x-retrieval-ms") or "") > 0


async def test_a_stream_has_its_sources_first_and_its_annotations_last_and_the_rest_as_it_came(
    gateway: Gateway, worker: ScriptedWorker
):
    events = streams(worker, include_usage=True)

    asked = ASK | WITH | {"stream": True, "stream_options": {"include_usage": True}}
    response = await gateway.request("POST", CHAT, json=asked)

    assert response.header("x-retrieval-status") == "hit"
    first, *between, last, usage = chunks(response)
    assert [one["title"] for one in first["choices"][0]["delta"]["context"]["citations"]] == ["deploy.md", "hours.md"]
    assert first["retrieval"]["used"] == 2 and first["choices"][0]["delta"]["role"] == "assistant"
    for event in events[1:-3]:
        assert event in response.body
    assert len(between) == len(CITING) - 1
    cited = [one["url_citation"] for one in last["choices"][0]["delta"]["annotations"]]
    assert [TEXT[one["start_index"] : one["end_index"]] for one in cited] == ["[1]", "［2］"]
    assert usage["usage"]["prompt_tokens_details"]["retrieval_tokens"] > 10


async def test_each_choice_of_a_stream_has_annotations_of_its_own(gateway: Gateway, worker: ScriptedWorker):
    streams(worker, ("a [1]", " b"), n=2)

    response = await gateway.request("POST", CHAT, json=ASK | WITH | {"stream": True, "n": 2})

    finished = [c["choices"][0] for c in chunks(response) if c["choices"] and c["choices"][0]["finish_reason"]]
    assert [one["index"] for one in finished] == [0, 1]
    assert [len(one["delta"]["annotations"]) for one in finished] == [1, 1]


@pytest.mark.parametrize("others", [[], [{"type": "function", "function": {"name": "f", "parameters": {}}}]])
async def test_a_file_search_tool_is_taken_out_and_other_tools_stay(
    gateway: Gateway, worker: ScriptedWorker, others: list[Any]
):
    asked = ASK | {"tools": [TOOL, *others], "tool_choice": "auto"}

    response = await gateway.request("POST", CHAT, json=asked)

    sent = worker.calls(CHAT)[0].json()
    assert sent.get("tools", []) == others
    assert ("tool_choice" in sent) == bool(others)
    assert PORT in sent["messages"][0]["content"]
    assert response.json()["retrieval"]["used"] == 2


async def test_a_question_in_parts_gets_its_sources_as_a_part_before_them(gateway: Gateway, worker: ScriptedWorker):
    parts = [{"type": "text", "text": "Which port"}, {"type": "text", "text": "is it?"}]
    asked = ASK | {"messages": [{"role": "user", "content": parts}]} | WITH

    response = await gateway.request("POST", CHAT, json=asked)

    first, *rest = worker.calls(CHAT)[0].json()["messages"][0]["content"]
    assert rest == parts and first["type"] == "text" and PORT in first["text"]
    assert response.json()["retrieval"]["queries"] == ["Which port\nis it?"]


async def test_a_body_of_many_pieces_gets_its_sources_too(gateway: Gateway, worker: ScriptedWorker, knowledge: KnowledgeServer):
    long = [{"role": "user", "content": "x" * 400_000}, {"role": "assistant", "content": "y"}, *ASK["messages"]]
    worker.on("/tokenize", scripts.reply(200, {"count": 100, "max_model_len": 8192}))

    response = await gateway.request("POST", CHAT, json=ASK | {"messages": long} | {"retrieval": WITH["retrieval"]})

    assert response.status == 200
    sent = worker.calls(CHAT)[0].json()["messages"]
    assert [one["content"][:3] for one in sent[:2]] == ["xxx", "y"]
    # Nobody counts so large a prompt, and so nothing is promised to fit.
    assert sent[2]["content"] == QUESTION
    assert response.json()["retrieval"]["notes"] == ["no_room"]
    assert response.header("x-retrieval-status") == "degraded"


async def test_the_responses_endpoint_answers_as_openai_does(gateway: Gateway, worker: ScriptedWorker):
    whole = vllm_agents.response_object(TEXT, model="smollm2", id="resp_1", prompt=5, completion=5)
    worker.on(RESPONSES, scripts.reply(200, whole))
    asked = {"model": "smollm2", "input": QUESTION, "tools": [TOOL], "store": False}

    response = await gateway.request("POST", RESPONSES, json=asked)

    sent = worker.calls(RESPONSES)[0].json()
    assert "tools" not in sent and PORT in sent["input"] and sent["input"].endswith(f"Question: {QUESTION}")
    search, message = response.json()["output"]
    assert (search["type"], search["status"], search["queries"], search["results"]) == (
        "file_search_call",
        "completed",
        [QUESTION],
        None,
    )
    cited = message["content"][0]["annotations"]
    assert [(one["type"], one["file_id"], TEXT[one["index"] :][:3]) for one in cited][0] == ("file_citation", "doc-1", "[1]")


async def test_the_responses_endpoint_shows_results_where_they_are_included(gateway: Gateway, worker: ScriptedWorker):
    asked = {"model": "smollm2", "input": [{"role": "user", "content": [{"type": "input_text", "text": QUESTION}]}]}
    asked |= {"tools": [TOOL], "store": False, "include": ["file_search_call.results"]}

    response = await gateway.request("POST", RESPONSES, json=asked)

    sent = worker.calls(RESPONSES)[0].json()["input"][0]["content"]
    assert sent[0]["type"] == "input_text" and PORT in sent[0]["text"] and sent[1]["text"] == QUESTION
    results = response.json()["output"][0]["results"]
    assert [(one["filename"], one["text"]) for one in results] == [("deploy.md", PORT), ("hours.md", HOURS)]


async def test_a_responses_stream_has_the_events_of_a_search_and_of_annotations(gateway: Gateway, worker: ScriptedWorker):
    worker.on(RESPONSES, scripts.stream(vllm_agents.response_events(CITING, model="smollm2", id="resp_1", prompt=5)))
    asked = {"model": "smollm2", "input": QUESTION, "tools": [TOOL], "store": False, "stream": True}

    response = await gateway.request("POST", RESPONSES, json=asked)

    events = [orjson.loads(event.partition(b"data: ")[2]) for event in response.body.split(b"\n\n") if event]
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    kinds = [event["type"].removeprefix("response.") for event in events]
    assert kinds[:7] == [
        *("created", "in_progress", "output_item.added", "file_search_call.in_progress", "file_search_call.searching"),
        *("file_search_call.completed", "output_item.done"),
    ]
    assert kinds[7] == "output_item.added" and events[7]["output_index"] == 1
    deltas = [event for event in events if event["type"] == "response.output_text.delta"]
    assert {event["output_index"] for event in deltas} == {1} and "".join(e["delta"] for e in deltas) == TEXT
    added = [event for event in events if event["type"] == "response.output_text.annotation.added"]
    assert [(one["annotation_index"], one["annotation"]["filename"]) for one in added] == [(0, "deploy.md"), (1, "hours.md")]
    assert kinds.index("output_text.annotation.added") < kinds.index("output_text.done")
    whole = events[-1]["response"]
    assert [item["type"] for item in whole["output"]] == ["file_search_call", "message"]
    assert len(whole["output"][1]["content"][0]["annotations"]) == 2


@pytest.mark.parametrize(
    "more, param, words",
    [
        ({"retrieval": {"vector_store_ids": ["handbook"], "depth": 3}}, "retrieval", "`retrieval.depth` is unknown"),
        ({"retrieval": {}}, "retrieval", "`vector_store_ids` must be a list"),
        ({"retrieval": []}, "retrieval", "must be an object"),
        ({"retrieval": {"vector_store_ids": ["a"], "mode": "magic"}}, "retrieval", "`mode` must be one of"),
        ({"retrieval": {"vector_store_ids": ["a"] * 9}}, "retrieval", "1 to 8"),
        ({"retrieval": {"vector_store_ids": [7]}}, "retrieval", "no id"),
        ({"retrieval": {"vector_store_ids": ["a"], "max_num_results": 51}}, "retrieval", "from 1 to 50"),
        ({"retrieval": {"vector_store_ids": ["a"], "filters": {"type": "eq"}}}, "retrieval", "comparison"),
        ({"retrieval": {"vector_store_ids": ["a"], "ranking_options": {"x": 1}}}, "retrieval", "ranking_options"),
        ({"retrieval": {"vector_store_ids": ["a"], "citations": "yes"}}, "retrieval", "true or false"),
        ({"retrieval": {"vector_store_ids": ["a"], "query": " "}}, "retrieval", "must be a text"),
        ({"retrieval": {"vector_store_ids": ["handbook"], "rewrite": "fusion"}}, "retrieval", "rewrite_route"),
        ({"tools": [TOOL | {"depth": 1}]}, "tools", "file_search has no `depth`"),
        ({"tools": [TOOL, TOOL]}, "tools", "more than one"),
        ({"tools": [{"type": "file_search"}]}, "tools", "`vector_store_ids` must be a list"),
    ],
)
async def test_a_wish_that_is_not_understood_is_refused(
    gateway: Gateway, worker: ScriptedWorker, more: dict[str, Any], param: str, words: str
):
    response = await gateway.request("POST", CHAT, json=ASK | more)

    assert words in told(response, 400, param=param)
    assert not worker.calls()


async def test_azures_data_sources_are_refused_with_a_hint(gateway: Gateway):
    response = await gateway.request("POST", CHAT, json=ASK | {"data_sources": [{"type": "azure_search"}]})

    assert "retrieval.vector_store_ids" in told(response, 400, "unsupported_parameter", param="data_sources")


@pytest.mark.parametrize("endpoint, more", [("/v1/completions", {"prompt": "x"}), ("/v1/embeddings", {"input": "x"})])
async def test_an_endpoint_that_cannot_retrieve_says_so(gateway: Gateway, endpoint: str, more: dict[str, Any]):
    response = await gateway.request("POST", endpoint, json={"model": "smollm2"} | more | WITH)

    assert "is for /v1/chat/completions" in told(response, 400, "unsupported_parameter", param="retrieval")


async def test_a_conversation_without_a_users_text_cannot_be_searched_for(gateway: Gateway):
    asked = {"model": "smollm2", "messages": [{"role": "assistant", "content": "x"}]} | WITH

    assert "no text of a user" in told(await gateway.request("POST", CHAT, json=asked), 400, param="messages")


@pytest.mark.parametrize("id", ["secret", "vs_of_nobody", "gone"])
async def test_an_unknown_store_and_a_foreign_one_are_the_same_404(gateway: Gateway, worker: ScriptedWorker, id: str):
    response = await gateway.request("POST", CHAT, json=ASK | {"retrieval": {"vector_store_ids": [id], "on_error": "open"}})

    assert told(response, 404) == f"No vector store found with id `{id}`."
    assert not worker.calls()


async def test_who_may_search_a_store_searches_it(gateway: Gateway, knowledge: KnowledgeServer, worker: ScriptedWorker):
    knowledge.records["secret"] = [record("It is a secret.", "s.md")]

    asked = ASK | {"retrieval": {"vector_store_ids": ["secret"]}}
    response = await gateway.request("POST", CHAT, json=asked, key=gateway.keys.globex)

    assert response.json()["retrieval"]["used"] == 1
    assert knowledge.requests[-1].header("x-sluice-tenant") == "globex"


async def test_a_store_that_is_down_is_a_503_unless_the_client_would_do_without(gateway: Gateway, worker: ScriptedWorker):
    wish = {"vector_store_ids": ["handbook", "dead"]}

    closed = await gateway.request("POST", CHAT, json=ASK | {"retrieval": wish})
    opened = await gateway.request("POST", CHAT, json=ASK | {"retrieval": wish | {"on_error": "open"}})

    told(closed, 503, "retrieval_unavailable")
    assert closed.header("x-retrieval-status") == "error"
    reply = opened.json()["retrieval"]
    assert (reply["status"], reply["used"]) == ("degraded", 2)
    assert reply["failures"] == [{"vector_store_id": "dead", "code": "unavailable"}]
    assert opened.header("x-retrieval-status") == "degraded"


async def test_a_store_that_does_not_answer_in_time_is_a_504(
    gateway: Gateway, knowledge: KnowledgeServer, worker: ScriptedWorker
):
    knowledge.script = scripts.never_answers()

    closed = await gateway.request("POST", CHAT, json=ASK | of("late"))

    told(closed, 504, "retrieval_timeout")
    assert not worker.calls()


BROKEN = [
    scripts.reply(200, {"records": "many"}),
    scripts.reply(200, b"<html>", content_type="text/html"),
    scripts.reply(500, {"error_code": 500, "error_msg": "secret inner words"}),
    scripts.garbage(),
]


@pytest.mark.parametrize("number", range(len(BROKEN)))
async def test_a_store_that_answers_garbage_is_a_503_without_its_words(
    gateway: Gateway, knowledge: KnowledgeServer, number: int
):
    knowledge.script = BROKEN[number]

    said = told(await gateway.request("POST", CHAT, json=ASK | of(f"garbled{number}")), 503, "retrieval_unavailable")

    assert "secret" not in said and len(knowledge.requests) == 1


async def test_a_store_that_fails_again_and_again_is_left_alone(gateway: Gateway, knowledge: KnowledgeServer):
    knowledge.script = scripts.garbage()

    for _ in range(8):
        told(await gateway.request("POST", CHAT, json=ASK | of("garbled0")), 503, "retrieval_unavailable")

    assert len(knowledge.requests) <= 5


async def test_nothing_found_is_an_answer(gateway: Gateway, worker: ScriptedWorker):
    response = await gateway.request("POST", CHAT, json=ASK | {"retrieval": {"vector_store_ids": ["empty"]}})

    assert worker.calls(CHAT)[0].json()["messages"] == ASK["messages"]
    assert response.header("x-retrieval-status") == "empty"
    assert response.json()["choices"][0]["message"]["context"]["citations"] == []


async def test_a_route_can_retrieve_without_being_asked_and_a_header_switches_it_off(gateway: Gateway, worker: ScriptedWorker):
    asked = ASK | {"model": "grounded"}

    on = await gateway.request("POST", CHAT, json=asked)
    off = await gateway.request("POST", CHAT, json=asked, headers=[("x-retrieval", "off")])
    explicit = await gateway.request("POST", CHAT, json=asked | WITH, headers=[("x-retrieval", "off")])
    wrong = await gateway.request("POST", CHAT, json=ASK, headers=[("x-retrieval", "on")])

    first, second, third, _ = worker.calls(CHAT)
    assert PORT in first.json()["messages"][0]["content"] and on.header("x-retrieval-status") == "hit"
    for response, request in ((off, second), (explicit, third)):
        assert request.json() == ASK and response.header("x-retrieval-status") == "skipped"
        assert "retrieval" not in response.json()
    assert wrong.status == 200  # of a call that retrieves nothing it is nobody's business


async def test_what_was_given_is_shown_to_its_owner_alone(gateway: Gateway):
    response = await gateway.request("POST", CHAT, json=ASK | WITH)
    id = response.json()["retrieval"]["id"]

    own = await gateway.request("GET", f"/v1/retrieval/{id}")
    foreign = await gateway.request("GET", f"/v1/retrieval/{id}", key=gateway.keys.globex)
    random = await gateway.request("GET", "/v1/retrieval/req-000000000000-1", key=gateway.keys.globex)

    shown = own.json()
    assert shown["prompt"].endswith("Question: ") and PORT in shown["prompt"]
    assert [one["title"] for one in shown["citations"]] == ["deploy.md", "hours.md"]
    assert shown["vector_store_ids"] == ["handbook"]
    assert told(foreign, 404).replace(id, "ID") == told(random, 404).replace("req-000000000000-1", "ID")


async def test_dify_can_ask_us_what_it_asks_others(gateway: Gateway):
    asked = {"knowledge_id": "handbook", "query": "port", "retrieval_setting": {"top_k": 1, "score_threshold": 0.5}}

    for path in ("/v1/retrieval", "/retrieval"):
        response = await gateway.request("POST", path, json=asked)
        [found] = response.json()["records"]
        assert (found["content"], found["title"], found["score"]) == (PORT, "deploy.md", 0.9)
        assert found["metadata"]["document_id"] == "doc-1"


@pytest.mark.parametrize("id", ["secret", "vs_of_nobody"])
async def test_dify_is_told_the_same_of_an_unknown_knowledge_and_of_a_foreign_one(gateway: Gateway, id: str):
    asked = {"knowledge_id": id, "query": "port", "retrieval_setting": {"top_k": 1, "score_threshold": 0.5}}

    response = await gateway.request("POST", "/retrieval", json=asked)

    assert response.status == 404
    assert response.json() == {"error_code": 2001, "error_msg": "The knowledge does not exist."}


@pytest.mark.parametrize("query, words", [("x", "The sources hold no answer"), ("端口", "没有这个问题的答案")])
@pytest.mark.parametrize("stream", [False, True])
async def test_a_call_that_wants_no_answer_without_sources_gets_ours(
    gateway: Gateway, worker: ScriptedWorker, query: str, words: str, stream: bool
):
    wish = {"vector_store_ids": ["empty"], "on_empty": "refuse", "query": query}

    response = await gateway.request("POST", CHAT, json=ASK | {"retrieval": wish, "stream": stream})

    assert not worker.calls()
    assert (response.status, response.header("x-retrieval-status")) == (200, "empty")
    if not stream:
        reply = response.json()
        assert words in reply["choices"][0]["message"]["content"] and reply["model"] == "smollm2"
        assert reply["retrieval"]["used"] == 0
        return
    assert response.header("content-length") is None
    found = chunks(response)
    assert words in "".join(one["choices"][0]["delta"].get("content", "") for one in found)
    assert found[0]["retrieval"]["used"] == 0 and found[-1]["choices"][0]["finish_reason"] == "stop"


@pytest.mark.parametrize("stream", [False, True])
async def test_a_response_that_wants_sources_gets_our_answer_too(gateway: Gateway, worker: ScriptedWorker, stream: bool):
    wish = {"vector_store_ids": ["empty"], "on_empty": "refuse"}
    asked = {"model": "smollm2", "input": QUESTION, "store": False, "stream": stream, "retrieval": wish}

    response = await gateway.request("POST", RESPONSES, json=asked)

    assert not worker.calls()
    whole = orjson.loads(response.body.split(b"\n\n")[-2].partition(b"data: ")[2])["response"] if stream else response.json()
    assert [item["type"] for item in whole["output"]] == ["file_search_call", "message"]
    assert whole["output"][1]["content"][0]["text"].startswith("The sources hold no answer")


CONDITION = {"name": ["lang"], "comparison_operator": "is", "value": "zh"}


async def test_difys_conditions_are_filters(gateway: Gateway, knowledge: KnowledgeServer):
    asked = {"knowledge_id": "handbook", "query": "port", "retrieval_setting": {"top_k": 2, "score_threshold": 0}}
    several = CONDITION | {"name": ["lang", "tongue"], "comparison_operator": "in", "value": ["zh", "de"]}
    condition = {"logical_operator": "and", "conditions": [CONDITION | {"comparison_operator": "≥", "value": 7}]}

    response = await gateway.request("POST", "/retrieval", json=asked | {"metadata_condition": condition})
    nested = await gateway.request("POST", "/retrieval", json=asked | {"metadata_condition": {"conditions": [several]}})

    assert response.status == 200
    sent = knowledge.asked()[0]["metadata_condition"]
    assert sent == {"logical_operator": "and", "conditions": [CONDITION | {"comparison_operator": "≥", "value": 7.0}]}
    assert (nested.status, nested.json()["error_code"]) == (400, 400)  # that service takes one level
    assert (await gateway.request("POST", "/retrieval", json=asked | {"metadata_condition": {"conditions": []}})).status == 200


@pytest.mark.parametrize(
    "more",
    [
        {"knowledge_id": 7},
        {"knowledge_id": ""},
        {"query": " "},
        {"query": None},
        {"retrieval_setting": None},
        {"retrieval_setting": {"top_k": 0, "score_threshold": 0}},
        {"retrieval_setting": {"top_k": 1, "score_threshold": 7}},
        {"metadata_condition": {"conditions": [CONDITION | {"comparison_operator": "contains"}]}},
        {"metadata_condition": {"conditions": ["x"]}},
        {"metadata_condition": {"logical_operator": "xor", "conditions": [CONDITION]}},
        {"metadata_condition": {"conditions": [CONDITION | {"name": [7]}]}},
    ],
)
async def test_what_dify_asks_wrongly_is_refused_in_its_own_words(gateway: Gateway, more: dict[str, Any]):
    asked = {"knowledge_id": "handbook", "query": "port", "retrieval_setting": {"top_k": 2, "score_threshold": 0}}

    response = await gateway.request("POST", "/retrieval", json=asked | more)

    assert response.status == 400, response
    assert response.json().keys() == {"error_code", "error_msg"} and response.json()["error_code"] == 400


@pytest.mark.parametrize("body", [b"{", b"[]", b""])
async def test_what_is_no_json_is_refused_in_difys_words_too(gateway: Gateway, body: bytes):
    response = await gateway.request("POST", "/retrieval", body=body, headers=[("content-type", "application/json")])

    assert (response.status, response.json()["error_code"]) == (400, 400)


async def test_dify_without_a_key_is_told_so_in_its_words(gateway: Gateway):
    response = await gateway.request("POST", "/retrieval", key=None, json={})

    assert (response.status, response.json()["error_code"]) == (401, 1002)


async def test_one_tenants_searches_are_bounded_and_another_ones_go_on(
    gateway: Gateway, knowledge: KnowledgeServer, worker: ScriptedWorker
):
    knowledge.script = scripts.never_answers()
    slow = ASK | of("slow")
    waiting = [asyncio.create_task(gateway.request("POST", CHAT, json=slow)) for _ in range(16)]
    await knowledge.until(lambda: len(knowledge.requests) == 16)

    told(await gateway.request("POST", CHAT, json=slow), 429, "server_overloaded")
    other = {"retrieval": {"vector_store_ids": ["dead"], "on_error": "open"}}
    assert (await gateway.request("POST", CHAT, json=ASK | other, key=gateway.keys.globex)).status == 200
    assert {(await one).status for one in waiting} == {504}


async def test_a_client_that_leaves_ends_its_search(gateway: Gateway, knowledge: KnowledgeServer, worker: ScriptedWorker):
    knowledge.script = scripts.never_answers()
    async with gateway.connect() as client:
        await client.send(gateway.bytes("POST", CHAT, json=ASK | WITH))
        await knowledge.until(lambda: len(knowledge.requests) == 1)
    await knowledge.until(lambda: not knowledge.num_running)
    assert not worker.calls()


async def test_a_header_that_would_switch_on_is_refused_where_something_is_asked(gateway: Gateway):
    told(await gateway.request("POST", CHAT, json=ASK | WITH, headers=[("x-retrieval", "on")]), 400)


async def test_a_turn_of_images_alone_needs_a_query(gateway: Gateway, worker: ScriptedWorker):
    asked = {"model": "smollm2", "messages": [{"role": "user", "content": [{"type": "refusal", "refusal": "x"}]}]}

    assert "retrieval.query" in told(await gateway.request("POST", CHAT, json=asked | WITH), 400)
    named = await gateway.request("POST", CHAT, json=asked | {"retrieval": WITH["retrieval"] | {"query": "port"}})
    assert named.json()["retrieval"]["queries"] == ["port"]
    plain = await gateway.request("POST", CHAT, json=asked | {"model": "grounded"})
    assert plain.header("x-retrieval-status") == "empty"
