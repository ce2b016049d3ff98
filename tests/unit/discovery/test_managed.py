"""The file of a supervisor: who runs here, and who was started anew."""

from pathlib import Path

import pytest

from sluice.discovery.base import Found
from sluice.discovery.managed import LOOK_EVERY_S, ManagedDiscovery, write_workers

URL = "http://127.0.0.1:8101"


class Follower:
    """A discovery on a file; what happens to the file while it sleeps is `acts`, in turn."""

    def __init__(self, path: Path) -> None:
        self.acts: list[object] = []
        self.path = path
        self.num_naps = 0
        self.discovery = ManagedDiscovery("routes.a.workers", "a", path, lambda: 5.0, self._sleep)
        self._sets = self.discovery.watch()

    async def _sleep(self, seconds: float) -> None:
        assert seconds == LOOK_EVERY_S
        self.num_naps += 1
        act = self.acts.pop(0)
        if isinstance(act, bytes):
            self.path.write_bytes(act)
        elif isinstance(act, dict):
            write_workers(self.path, act)

    async def next(self) -> set[Found]:
        return set(await anext(self._sets))


async def test_a_restarted_worker_has_another_identity(tmp_path):
    follower = Follower(tmp_path / "workers.json")
    write_workers(follower.path, {"a": {URL: "1"}, "b": {"http://127.0.0.1:8102": "7"}})
    assert await follower.next() == {Found(URL, "1")}
    assert follower.discovery.confirmed_at is None  # only when it goes on
    follower.acts = [None, {"a": {URL: "2"}}]
    assert await follower.next() == {Found(URL, "2")}
    assert follower.discovery.confirmed_at == 5.0
    assert [path.name for path in tmp_path.iterdir()] == ["workers.json"]


@pytest.mark.parametrize(
    "damage", [b"", b"[]", b'{"a": []}', b'{"a": {"http://x:1": 7}}', b'{"a": {"file:///etc/passwd": "1"}}', b"\xff"]
)
async def test_a_missing_or_damaged_file_keeps_the_last_set(tmp_path, damage):
    follower = Follower(tmp_path / "workers.json")
    follower.acts = [damage, damage, {"b": {}}]
    assert await follower.next() == set()
    assert follower.discovery.num_failures == 3
