"""What admins see of the queues."""

import asyncio

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
