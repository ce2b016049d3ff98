"""The pods of a Service, from an API server over TLS that speaks list and watch as the real one does."""

import asyncio
import random
import ssl
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trustme

from sluice.config import ConfigError, Kubernetes
from sluice.discovery.base import Found
from sluice.discovery.kubernetes import LONGEST_PAUSE_S, KubernetesDiscovery
from tests.support import scripts
from tests.support.kube_api import KubeApi, pod


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


class Follower:
    """A discovery and the sets that it told, for a test that waits for them."""

    def __init__(self, api: KubeApi, folder: Path, **settings: Any) -> None:
        self.token_file = folder / "token"
        self.token_file.write_text("token-1\n")
        files = {"token_file": self.token_file, "ca_file": folder / "ca.pem"}
        asked = {"service": "vllm", "namespace": "llm", "api_server": api.url} | files | settings
        self.naps: list[float] = []
        self.sets: list[frozenset[Found]] = []
        self.now = 0.0
        self._api = api
        self.discovery = KubernetesDiscovery(
            "routes.a.workers", Kubernetes.model_validate(asked), lambda: self.now, self._sleep, watch_s=3600
        )

    async def _sleep(self, seconds: float) -> None:
        self.naps.append(seconds)
        self._api.changed()
        await asyncio.sleep(0)

    async def follow(self) -> None:
        async with aclosing(self.discovery.watch()) as sets:
            async for found in sets:
                self.sets.append(found)
                self._api.changed()

    async def until(self, *addresses: str) -> None:
        """Until the last set is of these addresses."""
        wanted = {f"http://{address}:8000" for address in addresses}
        await self._api.until(lambda: bool(self.sets) and {found.url for found in self.sets[-1]} == wanted)

    async def watching(self, num: int = 1) -> None:
        await self._api.until(lambda: self._api.num_watches >= num)


@asynccontextmanager
async def following(authority: trustme.CA, folder: Path, **settings: Any) -> AsyncIterator[tuple[KubeApi, Follower]]:
    authority.cert_pem.write_to_path(str(folder / "ca.pem"))
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(tls)
    async with KubeApi(tls=tls) as api:
        api.put("vllm-1", [pod("10.0.0.1", "u1")])
        follower = Follower(api, folder, **settings)
        task = asyncio.create_task(follower.follow())
        try:
            yield api, follower
            assert not task.done(), task
        finally:
            task.cancel()
            await asyncio.wait({task})


async def test_pods_come_go_and_drain(authority, tmp_path):
    async with following(authority, tmp_path) as (api, follower):
        await follower.until("10.0.0.1")
        api.put("vllm-2", [pod("10.0.0.2", "u2")])
        await follower.until("10.0.0.1", "10.0.0.2")
        api.put("vllm-1", [pod("10.0.0.1", "u1", ready=False, terminating=True)])
        draining = Found("http://10.0.0.1:8000", "u1", is_draining=True)
        await api.until(lambda: draining in follower.sets[-1])
        api.delete("vllm-1")
        await follower.until("10.0.0.2")
        assert len(api.lists) == len(api.watches) == 1
        assert follower.discovery.num_failures == 0


async def test_the_same_address_with_another_pod_is_told(authority, tmp_path):
    async with following(authority, tmp_path) as (api, follower):
        await follower.until("10.0.0.1")
        api.put("vllm-1", [pod("10.0.0.1", "u9")])
        await api.until(lambda: follower.sets[-1] == {Found("http://10.0.0.1:8000", "u9")})


async def test_a_long_list_comes_page_by_page_and_is_told_when_it_is_whole(authority, tmp_path, monkeypatch):
    monkeypatch.setattr("sluice.discovery.kubernetes.PAGE", 2)
    async with following(authority, tmp_path) as (api, follower):
        for k in range(2, 6):
            api.put(f"vllm-{k}", [pod(f"10.0.0.{k}", f"u{k}")])
        await follower.until(*(f"10.0.0.{k}" for k in range(1, 6)))
        assert len(follower.sets) == 1 and len(api.lists) == 3


async def test_a_watch_that_ends_goes_on_from_its_last_bookmark(authority, tmp_path):
    async with following(authority, tmp_path) as (api, follower):
        await follower.watching()
        api.bookmark()
        follower.now = 50.0
        api.end_watches()
        await follower.watching(2)
        assert f"resourceVersion={api._version}" in api.watches[1].target
        assert len(api.lists) == 1
        api.put("vllm-1", [pod("10.0.0.7", "u7")])
        await follower.until("10.0.0.7")
        assert follower.naps == [pytest.approx(0.5, abs=0.5)]
        assert follower.discovery.confirmed_at == 50.0


async def test_what_happened_between_two_watches_is_not_missed(authority, tmp_path):
    async with following(authority, tmp_path) as (api, follower):
        await follower.watching()
        api.end_watches()
        api.put("vllm-2", [pod("10.0.0.2", "u2")])
        await follower.until("10.0.0.1", "10.0.0.2")
        assert len(api.lists) == 1


async def test_a_version_that_is_gone_lists_anew(authority, tmp_path):
    async with following(authority, tmp_path) as (api, follower):
        await follower.watching()
        api.compact()
        api.put("vllm-2", [pod("10.0.0.2", "u2")])
        await follower.until("10.0.0.1", "10.0.0.2")
        api.delete("vllm-1")
        api.compact()
        api.end_watches()
        await follower.watching(2)
        await follower.until("10.0.0.2")
        assert len(api.lists) == 2 and follower.discovery.num_failures == 0


async def test_a_watch_that_is_told_410_by_an_event_lists_anew(authority, tmp_path):
    async with following(authority, tmp_path) as (api, follower):
        await follower.watching()
        api.tell({"type": "ERROR", "object": {"kind": "Status", "code": 410, "reason": "Expired"}})
        await follower.watching(2)
        assert len(api.lists) == 2 and follower.discovery.num_failures == 0


async def test_an_api_server_that_is_away_keeps_the_last_set_and_is_asked_ever_more_rarely(
    authority, tmp_path, monkeypatch, caplog
):
    monkeypatch.setattr(random, "uniform", lambda low, high: high)
    async with following(authority, tmp_path) as (api, follower):
        await follower.watching()
        await api.stop()
        follower.now = 9.0
        await api.until(lambda: follower.discovery.num_failures >= 7)
        assert follower.naps[:7] == [1, 2, 4, 8, 16, LONGEST_PAUSE_S, LONGEST_PAUSE_S]
        assert follower.discovery.confirmed_at == 0.0
        assert len(follower.sets) == 1
        await api.start()
        api.put("vllm-1", [pod("10.0.0.5", "u5")])
        await follower.until("10.0.0.5")
        assert follower.discovery.confirmed_at == 9.0
    lines = [record.getMessage() for record in caplog.records if record.name == "sluice.discovery"]
    assert len(lines) == 3 and lines[1].endswith("the last ones stay: " + f"{api.url}: The API server cannot be reached.")
    assert lines[-1] == "routes.a.workers: workers can be found again"


async def test_a_new_token_is_used_for_the_next_question(authority, tmp_path):
    async with following(authority, tmp_path) as (api, follower):
        await follower.watching()
        api.token = "token-2"
        api.end_watches()
        await api.until(lambda: follower.discovery.num_failures >= 1)
        assert "says 401: the service account may not list and watch" in follower.discovery.trouble
        follower.token_file.write_text("token-2")
        api.put("vllm-1", [pod("10.0.0.2", "u2")])
        await follower.until("10.0.0.2")


@pytest.mark.parametrize("token", [None, "", "a\nb"])
async def test_without_a_token_nothing_is_asked(authority, tmp_path, token):
    async with following(authority, tmp_path) as (api, follower):
        await follower.watching()
        follower.token_file.unlink() if token is None else follower.token_file.write_text(token)
        api.end_watches()
        await api.until(lambda: follower.discovery.num_failures >= 1)
        assert str(follower.token_file) in follower.discovery.trouble or "401" in follower.discovery.trouble
        assert len(follower.sets) == 1


@pytest.mark.parametrize(
    ("script", "said"),
    [
        (scripts.reply(500, {}), "the API server says 500"),
        (scripts.reply(403, {}), "says 403"),
        (scripts.reply(200, b"<html>"), "not JSON"),
        (scripts.reply(200, b"[]"), "no object"),
        (scripts.reply(200, {"items": "none"}), "the API server's list is none"),
        (scripts.garbage(), "not HTTP"),
        (scripts.reset_before_any_byte(), "closed the connection"),
    ],
)
async def test_nonsense_is_a_failure_and_is_followed_by_another_question(authority, tmp_path, script, said):
    async with following(authority, tmp_path) as (api, follower):
        api.next = script
        await follower.until("10.0.0.1")
        assert follower.discovery.num_failures == 1


@pytest.mark.parametrize(
    "event", [{"type": "ADDED"}, {"type": "ADDED", "object": []}, {"type": "ERROR", "object": {"code": 500, "message": "etcd"}}]
)
async def test_a_bad_event_is_a_failure_and_the_set_stays(authority, tmp_path, event):
    async with following(authority, tmp_path) as (api, follower):
        await follower.watching()
        api.tell(event)
        await follower.watching(2)
        assert follower.discovery.num_failures == 1
        await follower.until("10.0.0.1")


async def test_an_authority_that_is_not_ours_is_not_believed(authority, tmp_path):
    async with following(authority, tmp_path) as (api, follower):
        await follower.watching()
        trustme.CA().cert_pem.write_to_path(str(tmp_path / "ca.pem"))
        await api.stop()
        await api.start()
        await api.until(lambda: "certificate could not be verified" in follower.discovery.trouble)
        authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
        api.put("vllm-1", [pod("10.0.0.2", "u2")])
        await follower.until("10.0.0.2")


def test_outside_of_a_cluster_it_says_what_is_missing(monkeypatch):
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    with pytest.raises(ConfigError, match="set api_server"):
        KubernetesDiscovery("routes.a.workers", Kubernetes(service="vllm"))
    with pytest.raises(ConfigError, match=r"kubernetes\.namespace: .* name it here"):
        KubernetesDiscovery("routes.a.workers", Kubernetes(service="vllm", api_server="https://10.0.0.1:6443"))


@pytest.mark.parametrize(("host", "url"), [("10.0.0.1", "https://10.0.0.1:443"), ("fd00::1", "https://[fd00::1]:443")])
def test_inside_of_a_cluster_it_knows_the_server(monkeypatch, host, url):
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", host)
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "443")
    assert KubernetesDiscovery("routes.a.workers", Kubernetes(service="vllm", namespace="llm"))._server == url
