"""How many gateways share the workers."""

import asyncio
import logging

import pytest

from sluice.admission.replicas import ReplicaCount, addresses_of
from sluice.config import Replicas


async def test_without_a_name_it_is_what_the_configuration_says():
    count = ReplicaCount(Replicas(count=4))
    await count.watch()
    assert count.number == 4 and count.share == 0.25


async def test_it_is_the_number_of_addresses_that_the_name_has(caplog):
    answers = [{"10.0.0.1", "10.0.0.2"}, OSError("no such name"), OSError("still not"), set(), {"10.0.0.1"} | set("abc")]
    counted = []
    count = ReplicaCount(Replicas(count=3, dns="gateways.local", refresh_s=7))

    async def resolve(name: str) -> set[str]:
        assert name == "gateways.local"
        answer = answers.pop(0)
        if isinstance(answer, OSError):
            raise answer
        return answer

    async def sleep(seconds: float) -> None:
        assert seconds == 7
        counted.append(count.number)
        if not answers:
            raise asyncio.CancelledError

    with caplog.at_level(logging.WARNING), pytest.raises(asyncio.CancelledError):
        await count.watch(sleep, resolve)
    assert counted == [2, 2, 2, 1, 4]
    assert [record.message for record in caplog.records] == [
        "replicas: gateways.local is not resolved, still counting 2: no such name"
    ]


async def test_a_name_is_looked_up():
    assert "127.0.0.1" in await addresses_of("localhost")
