"""What admins see of the queues."""

import asyncio

import pytest

from sluice.admission.shedding import REASONS
from tests.support import scripts
from tests.support.scripted_worker import ScriptedWorker
from tests.unit.in_process import ASK, CHAT, Gateway, serving, settings


async def held(gateway: Gateway, num_waiting: int) -> None:
    await gateway.until(lambda: gateway.app.routes["smollm2"].admission.state().num_waiting == num_waiting)


async def test_the_queue_is_shown_with_whom_it_is_for_and_what_it_covers(tmp_path):
    async with ScriptedWorker() as worker:
        worker.on(CHAT, scripts.never_answers())
        route = {"queue": {"max_in_flight": 2}}
        async with serving(settings(tmp_path, worker, route=route, replicas={"count": 2})) as gateway:
            asking = [asyncio.create_task(gateway.request("POST", CHAT, json=ASK)) for _ in range(3)]
            await held(gateway, 2)
            shown = (await gateway.request("GET", "/v1/queue", key=gateway.keys.admin)).json()
            assert shown["object"] == "queue" and shown["replicas"] == {"covered": 1, "of": 2}
            queue = shown["routes"]["smollm2"]
            assert (queue["waiting"], queue["in_flight"], queue["in_flight_limit"]) == (2, 1, 1)
            assert (queue["tokens_per_s"], queue["predicted_wait_s"]) == (None, None)
            assert queue["waiting_tokens"] > 0 and queue["shed"] == dict.fromkeys(REASONS, 0)
            [at] = queue["workers"]
            assert (at["worker"], at["in_flight"], at["in_flight_limit"]) == (worker.url, 1, 1)
            [acme] = queue["tenants"]
            assert (acme["tenant"], acme["waiting"], acme["in_flight"], acme["people_waiting"]) == ("acme", 2, 1, 1)
            assert gateway.metric('sluice_queue_waiting{route="smollm2"}') == 2
            assert gateway.metric('sluice_in_flight_limit{route="smollm2"}') == 1
            assert gateway.metric('sluice_queue_seconds_count{route="smollm2"}') == 1
            for task in asking:
                task.cancel()
            await held(gateway, 0)
            await asyncio.gather(*asking, return_exceptions=True)


async def test_without_a_bound_there_is_no_limit_to_show(tmp_path):
    async with serving(settings(tmp_path, "http://127.0.0.1:9")) as gateway:
        shown = (await gateway.request("GET", "/v1/queue", key=gateway.keys.admin)).json()
        queue = shown["routes"]["smollm2"]
        assert queue["in_flight_limit"] is None and queue["predicted_wait_s"] == 0 and queue["tenants"] == []


async def test_what_is_shed_is_counted_with_its_reason(tmp_path):
    async with ScriptedWorker() as worker:
        worker.on(CHAT, scripts.never_answers())
        route = {"queue": {"max_in_flight": 1, "max_waiting": 0}}
        async with serving(settings(tmp_path, worker, route=route)) as gateway:
            first = asyncio.create_task(gateway.request("POST", CHAT, json=ASK))
            await worker.wait_calls(1, CHAT)
            shed = await gateway.request("POST", CHAT, json=ASK)
            assert shed.status == 429 and shed.json()["error"]["code"] == "server_overloaded"
            assert shed.header("x-should-retry") == "true" and shed.header("retry-after") == "1"
            assert gateway.metric('sluice_shed_total{reason="number",route="smollm2"}') == 1
            first.cancel()
            await asyncio.gather(first, return_exceptions=True)


async def drain(gateway: Gateway, key: str | None = None, **members: object):
    return await gateway.request("POST", "/v1/workers/drain", key=key or gateway.keys.admin, json=members)


async def test_an_admin_sends_a_worker_nothing_new_and_then_again(tmp_path):
    async with ScriptedWorker() as one, ScriptedWorker() as other:
        route = {"workers": {"static": [one.url, other.url]}}
        async with serving(settings(tmp_path, one, route=route)) as gateway:
            answer = await drain(gateway, worker=one.url + "/")
            assert answer.status == 200
            row = {"route": "smollm2", "worker": one.url, "state": "draining", "in_flight": 0}
            assert answer.json() == {"object": "list", "replicas": {"covered": 1, "of": 1}, "data": [row]}
            for _ in range(4):
                assert (await gateway.request("POST", CHAT, json=ASK)).status == 200
            assert (len(one.calls(CHAT)), len(other.calls(CHAT))) == (0, 4)
            await drain(gateway, worker=other.url, route="smollm2")
            assert (await gateway.request("POST", CHAT, json=ASK)).status == 503
            answer = await drain(gateway, worker=one.url, draining=False)
            assert answer.json()["data"][0]["state"] != "draining"
            assert (await gateway.request("POST", CHAT, json=ASK)).status == 200
            assert len(one.calls(CHAT)) == 1


async def test_who_is_no_admin_drains_nobody(tmp_path):
    async with serving(settings(tmp_path, "http://127.0.0.1:9")) as gateway:
        answer = await drain(gateway, key=gateway.keys.acme, worker="http://127.0.0.1:9")
        assert answer.status == 403
        assert not gateway.pools[0].workers[0].is_draining


@pytest.mark.parametrize(
    ("members", "status", "said"),
    [
        ({}, 400, "URL of a worker"),
        ({"worker": "http://127.0.0.1:9", "draining": "no"}, 400, "true or false"),
        ({"worker": "http://127.0.0.1:9", "route": 1}, 400, "name of a route"),
        ({"worker": "http://127.0.0.1:9", "drainig": False}, 400, "known are draining, route, worker"),
        ({"worker": "http://127.0.0.1:8"}, 404, "in any route"),
        ({"worker": "http://127.0.0.1:9", "route": "other"}, 404, "in that route"),
    ],
)
async def test_what_cannot_be_drained_is_told(tmp_path, members, status, said):
    async with serving(settings(tmp_path, "http://127.0.0.1:9")) as gateway:
        answer = await drain(gateway, **members)
        assert answer.status == status and said in answer.json()["error"]["message"]
        assert not gateway.pools[0].workers[0].is_draining
