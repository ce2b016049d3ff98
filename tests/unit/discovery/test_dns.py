"""Workers by name, from a real DNS server on loopback."""

import asyncio
from typing import Any

import dns.rcode
import pytest
from pydantic import ValidationError

from sluice.config import Dns
from sluice.discovery.dns import DnsDiscovery
from tests.support.name_server import NameServer

NAME = "vllm.internal"


class Asker:
    """A discovery whose pauses the test ends; `naps` is how long each would have been."""

    def __init__(self, server: NameServer, **settings: Any) -> None:
        asked = {"name": NAME, "nameserver": server.address} | settings
        asked |= {} if asked.get("record") == "srv" else {"port": 8000}
        self.naps: list[float] = []
        self.now = 100.0
        self.discovery = DnsDiscovery("routes.a.workers", Dns.model_validate(asked), lambda: self.now, self._sleep)
        self._sets = self.discovery.watch()

    async def _sleep(self, seconds: float) -> None:
        self.naps.append(seconds)
        if self.discovery.num_failures >= 3:
            raise asyncio.CancelledError

    async def next(self) -> list[str]:
        return sorted(found.url for found in await anext(self._sets))


async def test_addresses_are_workers_and_are_asked_for_again():
    async with NameServer() as server:
        asker = Asker(server)
        server.zone[NAME, "A"] = (30, ["10.0.0.1", "10.0.0.2"])
        assert await asker.next() == ["http://10.0.0.1:8000", "http://10.0.0.2:8000"]
        server.zone[NAME, "A"] = (30, ["10.0.0.2", "10.0.0.3"])
        assert await asker.next() == ["http://10.0.0.2:8000", "http://10.0.0.3:8000"]


@pytest.mark.parametrize(
    ("settings", "kind", "records", "urls"),
    [
        ({"record": "aaaa"}, "AAAA", ["fd00::1"], ["http://[fd00::1]:8000"]),
        ({"scheme": "https"}, "A", ["10.0.0.1"], ["https://10.0.0.1:8000"]),
        (
            {"record": "srv"},
            "SRV",
            ["0 5 8000 one.internal.", "9 5 8001 two.internal.", "0 0 0 none.", "0 0 80 .", r"0 0 80 [bad\032host."],
            ["http://one.internal:8000", "http://two.internal:8001"],
        ),
    ],
)
async def test_every_kind_of_record(settings, kind, records, urls):
    async with NameServer() as server:
        server.zone[NAME, kind] = (30, records)
        assert await Asker(server, **settings).next() == urls


@pytest.mark.parametrize(("ttl", "nap"), [(3, 3), (60, 10), (0, 1)])
async def test_the_next_question_comes_when_the_records_expire_but_not_too_soon_nor_too_late(ttl, nap):
    async with NameServer() as server:
        asker = Asker(server)
        server.zone[NAME, "A"] = (ttl, ["10.0.0.1"])
        await asker.next()
        await asker.next()
        [slept] = asker.naps
        assert 0.9 * nap <= slept <= 1.1 * nap


async def test_a_name_that_is_not_there_any_more_has_no_workers():
    async with NameServer() as server:
        asker = Asker(server)
        assert await asker.next() == []
        server.zone[NAME, "TXT"] = (30, ["nothing"])
        assert await asker.next() == []
        assert asker.discovery.num_failures == 0


async def test_a_server_that_fails_is_no_answer_and_is_said_once(caplog):
    async with NameServer() as server:
        server.zone[NAME, "A"] = (30, ["10.0.0.1"])
        asker = Asker(server)
        assert await asker.next() == ["http://10.0.0.1:8000"]
        assert asker.discovery.confirmed_at == 100.0
        asker.now = 200.0
        server.rcode = dns.rcode.SERVFAIL
        with pytest.raises(asyncio.CancelledError):
            await asker.next()
    assert asker.discovery.num_failures == 3 and asker.discovery.confirmed_at == 100.0
    [line] = [record.getMessage() for record in caplog.records]
    assert line.startswith("routes.a.workers: workers cannot be found, the last ones stay: vllm.internal: ")


async def test_a_server_that_is_found_again_is_said_too(caplog):
    async with NameServer() as server:
        server.zone[NAME, "A"] = (30, ["10.0.0.1"])
        asker = Asker(server)
        asker.discovery.failed("it was away")
        await asker.next()
    assert [record.getMessage() for record in caplog.records][1:] == ["routes.a.workers: workers can be found again"]
    assert asker.discovery.trouble == ""


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"name": "http://vllm"}, "a host name is"),
        ({"name": "vllm"}, "a and aaaa need one here"),
        ({"name": "vllm", "record": "srv", "port": 80}, "SRV records have a port of their own"),
        ({"name": "vllm", "port": 80, "nameserver": "dns.internal"}, "a name server is an address"),
        ({"name": "vllm", "port": 80, "nameserver": "10.0.0.1:x"}, "a name server is an address"),
        ({"name": "vllm", "port": 80, "nameserver": "10.0.0.1:0"}, "a name server is an address"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings, said):
    with pytest.raises(ValidationError, match=said):
        Dns.model_validate(settings)


@pytest.mark.parametrize("address", ["10.0.0.1", "10.0.0.1:5353", "fd00::a", "[fd00::a]:53"])
def test_a_name_server_is_an_address(address):
    assert Dns(name="vllm", port=80, nameserver=address).nameserver == address
