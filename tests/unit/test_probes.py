"""Probes: a worker is well when it is up and serves the model; whatever else it does is said as its trouble."""

import asyncio
import logging
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trustme
from hypothesis import given, settings
from hypothesis import strategies as st

from sluice.config import Probes
from sluice.http_json import HttpJsonError
from sluice.probes import MAX_MODELS, MODELS_EVERY, PAUSES, SLOW_PROBES, Prober, parse_models
from sluice.upstream.connections import Connections
from sluice.worker import ModelInfo, Worker
from tests.support import scripts
from tests.support import vllm_shapes as vllm
from tests.support.scripted_worker import ScriptedWorker

PATIENT = Probes(timeout_s=10)
MODELS = "/v1/models"


@asynccontextmanager
async def probing(
    scripted: ScriptedWorker, settings: Probes = PATIENT, *, served_model: str = "smollm2", **needs: Any
) -> AsyncIterator[tuple[Worker, Prober]]:
    """A worker that nobody has looked at yet, and its prober; `needs` is what the connections to it want."""
    worker = Worker(scripted.url, Connections(scripted.url, **needs))
    try:
        yield worker, Prober(worker, settings, served_model=served_model)
    finally:
        worker.connections.close()


def asked(scripted: ScriptedWorker) -> list[str]:
    """The questions about health; those about pauses have their own tests."""
    return [request.path for request in scripted.requests if request.path not in PAUSES]


async def test_a_worker_is_well_when_it_is_up_and_serves_the_model():
    async with ScriptedWorker(max_model_len=2048) as scripted, probing(scripted) as (worker, prober):
        assert worker.is_healthy is None
        await prober.probe()
        assert (worker.is_healthy, worker.trouble) == (True, "")
        assert worker.models == (ModelInfo("smollm2", created=vllm.CREATED, max_model_len=2048),)
        assert asked(scripted) == ["/health", MODELS]


NOT_A_LIST = "/v1/models is not a list of models"


@pytest.mark.parametrize(
    ("path", "script", "trouble"),
    [
        ("/health", scripts.empty(503), "answered 503"),
        ("/health", scripts.html_error(502), "answered 502"),
        ("/health", scripts.never_answers(), "no answer within 0.05 s"),
        ("/health", scripts.reset_before_any_byte(), "closed the connection before it answered"),
        ("/health", scripts.garbage(), "not HTTP"),
        (MODELS, scripts.string_error(401), "answered 401"),
        (MODELS, scripts.never_answers(), "no answer within 0.05 s"),
        (MODELS, scripts.reply(200, b"<html>", content_type="text/html"), "not JSON"),
        (MODELS, scripts.reply(200, b"x" * 1_100_000), "larger than 1048576 bytes"),
        (MODELS, scripts.reply(200, {"object": "list"}), NOT_A_LIST),
        (MODELS, scripts.reply(200, {"data": {"smollm2": {}}}), NOT_A_LIST),
        (MODELS, scripts.reply(200, b"[]"), NOT_A_LIST),
        (MODELS, scripts.reply(200, {"data": []}), "it does not serve smollm2 but nothing; set the route's served_model"),
        (MODELS, scripts.reply(200, vllm.model_list("other", max_model_len=1)), "does not serve smollm2 but other;"),
    ],
)
async def test_what_is_wrong_with_a_worker_is_its_trouble(path, script, trouble):
    short = Probes(timeout_s=0.05) if "0.05" in trouble else PATIENT
    async with ScriptedWorker() as scripted, probing(scripted, short) as (worker, prober):
        scripted.on(path, script)
        await prober.probe()
        assert worker.is_healthy is False
        assert trouble in worker.trouble and "\n" not in worker.trouble


async def test_a_worker_that_is_not_there_is_in_trouble():
    async with ScriptedWorker() as scripted, probing(scripted) as (worker, prober):
        await scripted.stop()
        await prober.probe()
        assert worker.is_healthy is False and "cannot be reached" in worker.trouble


async def test_other_models_are_named_but_not_all_of_them():
    data = [{"id": f"model-{k}"} for k in range(9)] + [{"id": "bad\nname"}]
    async with ScriptedWorker() as scripted, probing(scripted) as (worker, prober):
        scripted.on(MODELS, scripts.reply(200, {"data": data}))
        await prober.probe()
        assert "model-4;" in worker.trouble and "model-5" not in worker.trouble
        assert len(worker.models) == 9


async def test_a_worker_recovers_and_is_asked_for_its_models_anew():
    async with ScriptedWorker() as scripted, probing(scripted) as (worker, prober):
        scripted.on("/health", None, scripts.empty(503), scripts.empty(503), None)
        seen = []
        for _ in range(4):
            await prober.probe()
            seen.append(worker.is_healthy)
        assert seen == [True, False, False, True]
        assert worker.trouble == ""
        assert asked(scripted) == ["/health", MODELS, "/health", "/health", "/health", MODELS]


async def test_a_busy_worker_that_misses_a_probe_stays_well_and_one_that_misses_three_does_not():
    slow = scripts.never_answers()
    async with ScriptedWorker() as scripted, probing(scripted, Probes(timeout_s=0.1)) as (worker, prober):
        while not worker.is_healthy:
            await prober.probe()
        scripted.on("/health", slow, slow, None, *[slow] * SLOW_PROBES)
        seen = []
        for _ in range(3 + SLOW_PROBES):
            await prober.probe()
            seen.append(worker.is_healthy)
        assert seen == [True] * (2 + SLOW_PROBES) + [False]


async def test_models_are_asked_for_now_and_then():
    async with ScriptedWorker() as scripted, probing(scripted) as (worker, prober):
        for _ in range(1 + 2 * MODELS_EVERY):
            await prober.probe()
        assert asked(scripted).count("/health") == 1 + 2 * MODELS_EVERY
        assert asked(scripted).count(MODELS) == 3


async def test_a_model_that_vanishes_makes_the_worker_ill():
    async with ScriptedWorker() as scripted, probing(scripted) as (worker, prober):
        scripted.on(MODELS, None, scripts.reply(200, {"data": []}))
        for _ in range(1 + MODELS_EVERY):
            await prober.probe()
        assert worker.is_healthy is False and "does not serve" in worker.trouble
        assert worker.models == ()


async def test_the_workers_key_is_sent():
    async with ScriptedWorker(api_key="sk-worker") as scripted, probing(scripted, api_key="sk-worker") as (worker, prober):
        await prober.probe()
        assert worker.is_healthy
        assert {request.header("authorization") for request in scripted.requests} == {"Bearer sk-worker"}


async def test_a_wrong_key_is_trouble_and_not_shown():
    async with ScriptedWorker(api_key="sk-worker") as scripted, probing(scripted, api_key="sk-wrong") as (worker, prober):
        await prober.probe()
        assert "answered 401" in worker.trouble and "sk-" not in worker.trouble


async def test_a_private_authority_is_trusted_where_it_is_named(tmp_path):
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(tls)
    async with ScriptedWorker(tls=tls) as scripted:
        async with probing(scripted, ca_file=tmp_path / "ca.pem") as (worker, prober):
            await prober.probe()
            assert worker.is_healthy
        async with probing(scripted) as (worker, prober):
            await prober.probe()
            assert worker.is_healthy is False and "certificate could not be verified" in worker.trouble


async def test_a_change_of_health_is_one_line_in_the_log(caplog):
    async with ScriptedWorker() as scripted, probing(scripted) as (_, prober):
        scripted.on("/health", None, None, scripts.empty(503), scripts.empty(500), None)
        with caplog.at_level(logging.WARNING, "sluice.probes"):
            for _ in range(5):
                await prober.probe()
        lines = [record.getMessage().replace(scripted.url, "URL") for record in caplog.records]
    assert lines == [
        "worker URL is healthy",
        "worker URL is not healthy: URL/health: answered 503",
        "worker URL is healthy",
    ]


async def test_a_prober_looks_and_sleeps_until_it_is_cancelled():
    naps: list[float] = []

    async def sleep(seconds: float) -> None:
        naps.append(seconds)
        if len(naps) == 3:
            raise asyncio.CancelledError

    async with ScriptedWorker() as scripted, probing(scripted, Probes(health_interval_s=7)) as (_, prober):
        with pytest.raises(asyncio.CancelledError):
            await prober.run(sleep)
        assert naps == [7, 7, 7]
        assert asked(scripted) == ["/health", MODELS, "/health", "/health"]


# Workers that sleep or are paused: they let calls wait


@pytest.mark.parametrize(("path", "member"), PAUSES.items())
async def test_a_worker_that_sleeps_or_is_paused_is_well_and_gets_no_calls(path, member):
    async with ScriptedWorker() as scripted, probing(scripted) as (worker, prober):
        scripted.on(path, *[scripts.reply(200, {member: is_so}) for is_so in (False, True, True, False)])
        seen = []
        for _ in range(4):
            await prober.probe()
            seen.append((worker.is_healthy, worker.is_asleep))
        assert seen == [(True, False), (True, True), (True, True), (True, False)]


async def test_a_worker_that_cannot_tell_is_asked_once_each_time_it_comes_up():
    async with ScriptedWorker() as scripted, probing(scripted) as (worker, prober):
        scripted.on("/health", None, None, None, scripts.empty(503), None)
        num_asked = []
        for _ in range(6):
            await prober.probe()
            num_asked.append(sum(request.path in PAUSES for request in scripted.requests))
        assert num_asked == [2, 2, 2, 2, 4, 4]
        assert worker.state == "healthy"


@pytest.mark.parametrize("answer", [{"is_paused": "yes"}, {}, [], 7])
async def test_nonsense_about_pauses_is_no_pause(answer):
    async with ScriptedWorker() as scripted, probing(scripted) as (worker, prober):
        scripted.on("/is_paused", scripts.reply(200, answer))
        await prober.probe()
        assert worker.state == "healthy"


# What a worker may say of its models

JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.sampled_from(["id", "parent", "created"]), inner),
    max_leaves=12,
)
ENTRIES = st.fixed_dictionaries({}, optional={name: JSON for name in ("id", "created", "max_model_len", "parent", "root")})


@settings(max_examples=60)
@given(JSON | st.fixed_dictionaries({"data": JSON | st.lists(JSON | ENTRIES)}))
def test_any_json_is_either_models_or_garbage(answer):
    try:
        models = parse_models(answer)
    except HttpJsonError as exc:
        assert exc.kind == "garbage"
        return
    for model in models:
        assert isinstance(model.id, str) and 0 < len(model.id) <= 256 and model.id.isprintable()
        assert type(model.created) is int
        assert model.max_model_len is None or type(model.max_model_len) is int
        assert model.parent is None or isinstance(model.parent, str)


def test_members_of_the_wrong_type_are_left_out_and_the_path_on_the_worker_too():
    entry = {"id": "a", "created": "now", "max_model_len": True, "parent": 7, "root": "/models/a", "permission": []}
    [model] = parse_models({"data": [entry, {"id": 7}, {"id": ""}, {"id": "a\nb"}, {"id": "x" * 257}, "b", None]})
    assert model == ModelInfo("a")
    assert "/models" not in repr(model)


def test_an_adapter_names_its_parent():
    [model] = parse_models({"data": [{"id": "pirate", "parent": "smollm2", "max_model_len": 9}]})
    assert model == ModelInfo("pirate", max_model_len=9, parent="smollm2")


def test_a_worker_does_not_fill_our_memory_with_models():
    assert len(parse_models({"data": [{"id": f"m{k}"} for k in range(MAX_MODELS + 5)]})) == MAX_MODELS
