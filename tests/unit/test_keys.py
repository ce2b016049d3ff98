"""The door: which headers lead to which tenant, who is told to wait, and what happens when the file changes."""

import asyncio
import logging
import os
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path

import pytest

from sluice.config import Auth, ConfigError
from sluice.errors import RateLimited, Unauthenticated
from sluice.keys import MAX_ADDRESSES, Failures, Keys, OpenDoor, door
from sluice.keys_file import add_to_file, new_key, revoke_in_file
from sluice.types import Tenant

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
ADDRESS = "192.0.2.7"


class WallClock:
    def __init__(self) -> None:
        self.time = NOW

    def __call__(self) -> float:
        return self.time.timestamp()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "keys.yaml"


@pytest.fixture
def clock() -> WallClock:
    return WallClock()


def made(path: Path, tenant: str = "research", **options: object) -> str:
    """A new key in the file, in clear."""
    key, entry = new_key(tenant, now=NOW, **options)  # type: ignore[arg-type]
    add_to_file(path, entry)
    return key


def loaded(path: Path, clock: WallClock | None = None, *, max_failures_per_minute: int = 100) -> Keys:
    keys = Keys(path, max_failures_per_minute=max_failures_per_minute, wall_clock=clock or WallClock())
    keys.load()
    return keys


def ask(keys: Keys, key: str | None, *, address: str = ADDRESS, now: float = 0.0) -> Tenant:
    header = None if key is None else f"Bearer {key}".encode()
    return keys.resolve(header, None, address=address, now=now)


def refusal(keys: Keys, key: str | None, **more: object) -> Unauthenticated:
    with pytest.raises(Unauthenticated) as caught:
        ask(keys, key, **more)  # type: ignore[arg-type]
    return caught.value


def test_a_tenant_has_what_its_key_says(path: Path):
    key = made(path, rpm=60, tpm=5000, concurrency=3, priority=-5, weight=4, names_users=True)

    tenant = ask(loaded(path), key)

    assert (tenant.rpm, tenant.tpm, tenant.concurrency) == (60, 5000, 3)
    assert (tenant.priority, tenant.weight, tenant.names_users) == (-5, 4, True)


def test_a_key_leads_to_its_tenant(path):
    made(path, "other")
    key = made(path, scopes=["admin"], routes=["smollm2"])

    tenant = ask(loaded(path), key)

    assert (tenant.name, tenant.scopes, tenant.routes) == ("research", {"admin"}, {"smollm2"})
    assert tenant.key_id.startswith("key_")
    assert tenant.may_use("smollm2") and not tenant.may_use("other")


@pytest.mark.parametrize("scheme", ["Bearer ", "bearer ", "BEARER ", "Bearer   "])
def test_the_scheme_may_be_written_in_any_case(path, scheme):
    key, keys = made(path), loaded(path)

    assert keys.resolve(f"{scheme}{key} ".encode(), None, address=ADDRESS, now=0).name == "research"


@pytest.mark.parametrize("authorization", [None, b"", b"Bearer", b"Bearer ", b"Basic dXNlcjpwYXNz"])
def test_anthropics_header_counts_where_there_is_no_bearer_key(path, authorization):
    key, keys = made(path), loaded(path)

    assert keys.resolve(authorization, key.encode(), address=ADDRESS, now=0).name == "research"


def test_the_bearer_key_counts_where_both_are_sent(path):
    key, keys = made(path), loaded(path)

    assert keys.resolve(f"Bearer {key}".encode(), b"sk-unknown", address=ADDRESS, now=0).name == "research"
    with pytest.raises(Unauthenticated):
        keys.resolve(b"Bearer sk-unknown", key.encode(), address=ADDRESS, now=0)


@pytest.mark.parametrize("authorization", [None, b"", b"Bearer", b"Bearer ", b"Basic dXNlcjpwYXNz", b"sk-123", b"Bearersk-123"])
def test_no_key_or_a_malformed_header_has_no_code(path, authorization):
    made(path)

    with pytest.raises(Unauthenticated) as caught:
        loaded(path).resolve(authorization, None, address=ADDRESS, now=0)

    assert (caught.value.status, caught.value.code) == (401, None)
    assert ("www-authenticate", "Bearer") in caught.value.headers()


@pytest.mark.parametrize("sent", [b"sk-unknown", b"\xff\xfe", b"sk-" + b"a" * 60_000])
def test_an_unknown_key_is_invalid_and_not_echoed(path, sent):
    made(path)

    with pytest.raises(Unauthenticated) as caught:
        loaded(path).resolve(b"Bearer " + sent, None, address=ADDRESS, now=0)

    assert caught.value.code == "invalid_api_key"
    assert sent not in caught.value.body()


def test_neither_the_hash_nor_a_part_of_a_key_is_a_key(path):
    key, keys = made(path), loaded(path)
    [line] = [line for line in path.read_text().splitlines() if "hash" in line]

    for other in (line.split()[-1], line.split(":")[-1], key[:-1], key + "A", key.upper()):
        assert refusal(keys, other).code == "invalid_api_key"


@pytest.mark.parametrize("length, works", [(512, True), (513, False)])
def test_a_header_that_is_no_key_by_its_length_is_not_even_hashed(path, length, works):
    key = "k" * length
    hashed = f"sha256:{sha256(key.encode()).hexdigest()}"
    path.write_text(f"- {{id: a, hash: '{hashed}', tenant: t, created: 2026-01-01}}\n")
    keys = loaded(path)

    if works:
        assert ask(keys, key).name == "t"
    else:
        assert refusal(keys, key).code == "invalid_api_key"


def test_an_expired_key_is_invalid_from_the_moment_it_names(path, clock):
    key = made(path, expires=datetime(2026, 12, 1, tzinfo=UTC))
    keys = loaded(path, clock)

    clock.time = datetime(2026, 11, 30, 23, 59, 59, tzinfo=UTC)
    assert ask(keys, key).name == "research"
    clock.time = datetime(2026, 12, 1, tzinfo=UTC)
    error = refusal(keys, key)

    assert error.code == "invalid_api_key" and "has expired" in error.message and key not in error.message


def test_a_disabled_key_is_invalid(path):
    key = made(path)
    revoke_in_file(path, ask(loaded(path), key).key_id)

    error = refusal(loaded(path), key)

    assert error.code == "invalid_api_key" and "is disabled" in error.message and key not in error.message


def test_an_address_that_goes_on_failing_is_told_to_wait(path):
    made(path)
    keys = loaded(path, max_failures_per_minute=3)
    for second in (0, 10, 20):
        refusal(keys, "sk-guess", now=second)

    for attempt in ("sk-guess", None):
        with pytest.raises(RateLimited) as caught:
            ask(keys, attempt, now=25)
        assert caught.value.retry_after_s == 35

    refusal(keys, "sk-guess", now=60)


def test_a_good_key_is_never_held_up(path):
    key, keys = made(path), loaded(path, max_failures_per_minute=1)
    refusal(keys, "sk-guess")
    with pytest.raises(RateLimited):
        ask(keys, "sk-guess")

    assert ask(keys, key).name == "research"


def test_failures_are_counted_for_each_address(path):
    made(path)
    keys = loaded(path, max_failures_per_minute=1)

    for address in ("192.0.2.1", "192.0.2.2", "::ffff:192.0.2.3", "::ffff:192.0.2.4", ""):
        refusal(keys, None, address=address)


def test_addresses_of_one_ipv6_network_are_one(path):
    made(path)
    keys = loaded(path, max_failures_per_minute=1)
    refusal(keys, None, address="2001:db8::1")

    with pytest.raises(RateLimited):
        ask(keys, None, address="2001:db8::ffff:2")
    refusal(keys, None, address="2001:db8:0:1::1")


def test_only_the_latest_addresses_are_remembered():
    failures = Failures(1)
    for number in range(MAX_ADDRESSES):
        failures.count(f"unix:{number}", 0)
    assert failures.count("unix:0", 0) == 60  # now the latest
    failures.count("unix:new", 0)

    assert len(failures) == MAX_ADDRESSES
    assert failures.count("unix:0", 0) == 60
    assert failures.count("unix:1", 0) is None  # was the oldest, and is forgotten


def test_an_absent_file_at_start_says_how_to_make_one(path):
    with pytest.raises(ConfigError, match=r"keys.yaml: there is no such keys file; `sluice key new --tenant NAME`"):
        door(Auth(keys_file=path))


def test_a_broken_file_at_start_is_named_with_its_line(path):
    path.write_text("- id: a\n  tenant: t\n")

    with pytest.raises(ConfigError, match=r"keys.yaml:1: 0.hash: is missing"):
        door(Auth(keys_file=path))


def test_the_door_is_the_one_that_the_configuration_asks_for(path):
    key = made(path)

    assert door(Auth(keys_file=path)).resolve(None, key.encode(), address="", now=0).name == "research"
    assert isinstance(door(Auth(mode="open", keys_file=path / "absent")), OpenDoor)


async def test_an_open_door_lets_everybody_in_as_one_tenant_without_scopes():
    everybody = OpenDoor()
    tenant = everybody.resolve(None, None, address=ADDRESS, now=0)
    await everybody.watch(1)

    assert tenant is everybody.resolve(b"Bearer sk-any", b"x", address="", now=1)
    assert (tenant.name, tenant.scopes, tenant.routes) == ("anonymous", frozenset(), None)


async def test_a_key_that_is_added_works_and_one_that_is_revoked_does_not(path):
    first, keys = made(path), loaded(path)
    second = made(path, "other")
    refusal(keys, second)

    await keys.reload()
    assert ask(keys, second).name == "other"
    revoke_in_file(path, ask(keys, first).key_id)
    await keys.reload()

    refusal(keys, first)
    assert ask(keys, second).name == "other"
    assert repr(keys) == f"<Keys {path} [2 keys]>"


@pytest.mark.parametrize("text", ["", "- id: [", "nonsense", "- {id: a}\n- {id: b}\n", None])
async def test_keys_go_on_working_while_the_file_is_broken_or_gone(path, text, caplog):
    key, keys = made(path), loaded(path)
    good = path.read_text()
    caplog.set_level(logging.INFO)

    if text is None:
        path.unlink()
    else:
        path.write_text(text)
    for _ in range(3):
        await keys.reload()
        assert ask(keys, key).name == "research"

    [record] = caplog.records
    assert record.levelno == logging.ERROR and "\n" not in record.message
    assert "the 1 keys of before stay in use" in record.message and str(path) in record.message

    path.write_text(good)
    await keys.reload()
    assert caplog.records[-1].message == f"keys: 1 keys read from {path}"
    assert ask(keys, key).name == "research"


async def test_a_file_that_was_not_written_is_not_read_again(path):
    key, keys = made(path), loaded(path)
    before = ask(keys, key)

    await keys.reload()

    assert ask(keys, key) is before


async def test_a_file_of_the_same_size_and_time_is_read_when_it_is_another_one(path, tmp_path):
    first, keys = made(path), loaded(path)
    other = tmp_path / "other.yaml"
    second = made(other)
    times = path.stat().st_atime_ns, path.stat().st_mtime_ns
    assert other.stat().st_size == path.stat().st_size

    os.utime(other, ns=times)
    other.replace(path)
    await keys.reload()

    assert ask(keys, second).name == "research"
    refusal(keys, first)


async def test_watching_looks_again_after_each_interval(path):
    made(path)
    keys = loaded(path)
    slept: list[float] = []
    key = ""

    async def sleep(interval_s: float) -> None:
        nonlocal key
        slept.append(interval_s)
        if len(slept) == 2:
            key = made(path, "late")
        if len(slept) == 3:
            raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        await keys.watch(5, sleep)

    assert slept == [5, 5, 5]
    assert ask(keys, key).name == "late"


async def test_a_file_that_cannot_be_looked_for_is_as_one_that_is_gone(path, caplog):
    key = made(path)
    folder = path.parent / "folder"
    folder.mkdir()
    path.rename(folder / "keys.yaml")
    keys = loaded(folder / "keys.yaml")

    (folder / "keys.yaml").unlink()
    folder.rmdir()
    folder.touch()  # looking below a file is another error than absence
    await keys.reload()
    await keys.reload()

    [record] = caplog.records
    assert "Not a directory" in record.message
    assert ask(keys, key).name == "research"
