"""`GET /v1/usage`: who sees whose, and what it says of where it comes from."""

import asyncio
import os
import time
from pathlib import Path

from sluice.usage import Ledger
from tests.support.scripted_worker import ScriptedWorker
from tests.unit.in_process import ASK, CHAT, STREAM, serving, settings, told


def ledger_in(folder: Path) -> Ledger:
    return Ledger(folder / "ledger", "one", keep_months=2, wall_clock=time.time)


async def test_an_admin_sees_everybodys_and_a_tenant_its_own(tmp_path: Path):
    async with ScriptedWorker() as worker:
        asked = settings(tmp_path, worker, ledger={"folder": "ledger"})
        with ledger_in(tmp_path) as ledger:
            async with serving(asked, ledger=ledger) as gateway:
                await gateway.request("POST", CHAT, json=ASK)
                await gateway.request("POST", CHAT, json=STREAM)
                await gateway.request("POST", CHAT, json=ASK, key=gateway.keys.globex)
        async with serving(asked) as gateway:
            everybody = await gateway.request("GET", "/v1/usage?by=tenant", key=gateway.keys.admin)
            own = await gateway.request("GET", "/v1/usage?by=tenant,route,day")
            nobody = await gateway.request("GET", "/v1/usage", key=None)

    assert [(row["tenant"], row["calls"]) for row in everybody.json()["data"]] == [("acme", 2), ("globex", 1)]
    assert everybody.json()["replicas"] == ["one"]
    [row] = own.json()["data"]
    assert (row["tenant"], row["route"], row["calls"]) == ("acme", "smollm2", 2)
    assert row["tokens"] > 0 and row["inexact_tokens"] == 0
    told(nobody, 401)


async def test_what_makes_no_sense_is_a_400_and_without_a_ledger_there_is_nothing(tmp_path: Path):
    async with ScriptedWorker() as worker:
        async with serving(settings(tmp_path, worker, ledger={"folder": "ledger"})) as gateway:
            told(await gateway.request("GET", "/v1/usage?by=colour"), 400, param="by")
            told(await gateway.request("GET", "/v1/usage?since=soon"), 400, param="since")
            empty = await gateway.request("GET", "/v1/usage")
            assert empty.json()["data"] == [] and empty.json()["replicas"] == []
        async with serving(settings(tmp_path, worker)) as gateway:
            assert "ledger.folder" in told(await gateway.request("GET", "/v1/usage"), 404)


async def test_a_file_that_is_no_ledger_is_our_trouble_and_says_nothing_of_it(tmp_path: Path):
    (tmp_path / "ledger").mkdir()
    (tmp_path / "ledger" / time.strftime("usage-%Y-%m-one.sqlite", time.gmtime())).write_bytes(os.urandom(4096))
    async with ScriptedWorker() as worker, serving(settings(tmp_path, worker, ledger={"folder": "ledger"})) as gateway:
        told(await gateway.request("GET", "/v1/usage"), 500, "internal_error")
        await asyncio.sleep(0)
