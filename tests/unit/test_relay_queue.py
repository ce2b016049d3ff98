"""What a client is told while its call waits for a worker."""

import asyncio

from sluice.relay import Relay
from sluice.types import Call, Outcome
from tests.support import scripts
from tests.support.raw_server import Connection, Request
from tests.unit.hot_path import CHAT, Client, Line, line, now

ONE_SLOT = {"max_in_flight": 1, "comments_s": 0.02}


def relaying(here: Line, client: Client, call: Call) -> "asyncio.Task[Outcome]":
    relay = Relay(here.gateway, call, now, place_s=here.settings.queue.comments_s)

    async def run() -> Outcome:
        async with client as downstream:
            return await relay.run(downstream)

    return asyncio.create_task(run())


async def test_a_stream_that_waits_is_told_its_place_and_then_gets_its_answer():
    async with line(queue=ONE_SLOT) as (here, worker):
        gate = asyncio.Event()

        async def when_let(request: Request, connection: Connection) -> None:
            await gate.wait()
            await scripts.chat_stream()(request, connection)

        worker.on(CHAT, when_let)
        first, second = Client(), Client()
        tasks = [relaying(here, first, here.call(stream=True))]
        await worker.wait_calls(1, CHAT)
        tasks.append(relaying(here, second, here.call(stream=True)))
        await second.read_until(b": queue position=1\n\n", times=2)
        assert second.status == 200 and second.header("x-queue-position") == "1" and second.header("x-queue-eta-ms") is None
        assert not first.started  # it does not wait here
        gate.set()
        outcomes = await asyncio.gather(*tasks)
        assert second.body.endswith(b"data: [DONE]\n\n") and b": queue" not in first.body
        assert second.body.count(b"data: ") == first.body.count(b"data: ")
        assert outcomes[0].queued_s == 0 and outcomes[1].queued_s >= 0.02
        waited = outcomes[1]
        assert waited.overhead_s is not None and waited.first_event_s is not None
        assert waited.queued_s + waited.overhead_s < waited.first_event_s  # waiting is not the gateway's own time


async def test_one_that_is_shed_after_it_was_told_its_place_is_told_so_by_an_event():
    async with line(queue=ONE_SLOT | {"timeout_s": 0.05}) as (here, worker):
        worker.on(CHAT, scripts.never_answers())
        first, second = Client(), Client()
        holding = relaying(here, first, here.call(stream=True))
        await worker.wait_calls(1, CHAT)
        waiting = relaying(here, second, here.call(stream=True))
        await second.read_until(b": queue position=1")
        await asyncio.sleep(0.05)
        here.admission.tick()
        outcome = await waiting
        assert b'"code":"server_overloaded"' in second.body and b"[DONE]" not in second.body
        assert (outcome.status, outcome.code) == (429, "server_overloaded")
        first.leave()
        await holding


async def test_the_time_that_is_expected_is_told_where_it_is_known():
    async with line(queue=ONE_SLOT) as (here, worker):
        drain = here.admission._drain
        drain.begin(now() - 10)
        drain.started(1000, now())  # a hundred tokens a second
        drain.end()
        worker.on(CHAT, scripts.never_answers())
        first, second = Client(), Client()
        tasks = [relaying(here, first, here.call(stream=True))]
        await worker.wait_calls(1, CHAT)
        tasks.append(relaying(here, second, here.call(stream=True, prompt_tokens=100)))
        await second.read_until(b": queue position=1 eta_ms=100")
        assert 1000 <= int(second.header("x-queue-eta-ms") or 0) <= 1009
        for client in (first, second):
            client.leave()
        await asyncio.gather(*tasks)


async def test_whole_answers_and_gateways_that_are_not_asked_to_tell_nothing():
    for settings, stream in ((ONE_SLOT, False), ({"max_in_flight": 1}, True)):
        async with line(queue=settings) as (here, worker):
            worker.on(CHAT, scripts.never_answers())
            clients = [Client(), Client()]
            tasks = [relaying(here, clients[0], here.call(stream=stream))]
            await worker.wait_calls(1, CHAT)
            tasks.append(relaying(here, clients[1], here.call(stream=stream)))
            await asyncio.sleep(0.05)
            assert not clients[1].started
            for client in clients:
                client.leave()
            await asyncio.gather(*tasks)
