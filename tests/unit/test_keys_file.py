"""The keys file: what stands in it, and that writers leave it whole, readable and with its comments."""

import fcntl
import hashlib
import os
import stat
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from pydantic import ValidationError

from sluice.config import ConfigError
from sluice.keys_file import KeyEntry, add_to_file, new_key, read_keys, revoke_in_file

NOW = datetime(2026, 11, 21, 12, 0, 0, 123, tzinfo=UTC)
HASH = "sha256:" + "0" * 64


def entry(key_id: str = "a", **members: object) -> KeyEntry:
    fields = {"id": key_id, "hash": f"sha256:{hashlib.sha256(key_id.encode()).hexdigest()}", "tenant": "t"}
    return KeyEntry.model_validate({**fields, "created": NOW.replace(microsecond=0), **members})


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "keys.yaml"


@pytest.fixture
def refusal(path: Path):
    def refusal(text: str) -> str:
        path.write_text(text)
        with pytest.raises(ConfigError) as caught:
            read_keys(path)
        return str(caught.value).removeprefix(f"{path.parent}/")

    return refusal


def test_a_new_key_is_43_random_characters_of_which_only_the_hash_is_kept():
    key, kept = new_key("research", scopes=["admin"], routes=["a", "b"], expires=NOW + timedelta(days=1), now=NOW)
    other, _ = new_key("research", now=NOW)

    assert key.startswith("sk-") and len(key) == 46 and key != other
    assert set(key[3:]) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_")
    assert kept.hash == f"sha256:{hashlib.sha256(key.encode()).hexdigest()}"
    assert key not in kept.model_dump_json() and key[3:] not in kept.model_dump_json()
    assert (kept.tenant, kept.scopes, kept.routes) == ("research", ("admin",), ("a", "b"))
    assert kept.created == datetime(2026, 11, 21, 12, tzinfo=UTC)


def test_what_is_added_is_read_back(path):
    entries = [entry("a"), entry("b", scopes=["admin"], routes=["r", "s"], expires="2030-01-01", disabled=True)]
    for one in entries:
        add_to_file(path, one)

    assert read_keys(path) == tuple(entries)


def test_a_file_that_is_created_is_for_its_owner_alone(path):
    add_to_file(path, entry())

    assert [stat.S_IMODE(made.stat().st_mode) for made in path.parent.iterdir()] == [0o600, 0o600]  # and its lock


def test_a_file_that_exists_keeps_its_mode_its_comments_and_its_name_under_a_link(path, tmp_path):
    path.write_text(f"# ours\n- {{id: x, hash: '{HASH}', tenant: t, created: 2026-01-01}}  # Bob's laptop")
    path.chmod(0o640)
    link = tmp_path / "link.yaml"
    link.symlink_to(path)

    add_to_file(link, entry())

    assert link.is_symlink()
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert path.read_text().startswith("# ours\n- {id: x") and "# Bob's laptop\n- id: a\n" in path.read_text()
    assert [one.id for one in read_keys(path)] == ["x", "a"]


@pytest.mark.parametrize(
    "text", ["", "# no key yet\n", "[]\n", "[] # none\n", f"[{{id: x, hash: '{HASH}', tenant: t, created: 2026-01-01}}]\n"]
)
def test_a_key_can_be_added_to_any_list_of_keys(path, text):
    path.write_text(text)

    add_to_file(path, entry())

    assert read_keys(path)[-1] == entry()
    assert len(read_keys(path)) == 1 + text.count("id:")


def test_a_broken_file_is_left_as_it_was(path):
    path.write_text("- id: x\n")

    for change in (lambda: add_to_file(path, entry()), lambda: revoke_in_file(path, "x")):
        with pytest.raises(ConfigError, match=r"keys.yaml:1: 0.hash: is missing"):
            change()

    assert path.read_text() == "- id: x\n"
    assert sorted(os.listdir(path.parent)) == [".keys.yaml.lock", "keys.yaml"]


def test_a_key_cannot_be_added_twice(path):
    add_to_file(path, entry())

    with pytest.raises(ConfigError, match="another key of the file has this id"):
        add_to_file(path, entry())

    assert len(read_keys(path)) == 1


def test_two_writers_do_not_lose_each_others_keys(path):
    add_to_file(path, entry("a"))

    with path.with_name(".keys.yaml.lock").open() as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(ConfigError, match="another `sluice key` command is writing it"):
            add_to_file(path, entry("b"), lock_wait_s=0)
    add_to_file(path, entry("b"), lock_wait_s=0)

    assert [one.id for one in read_keys(path)] == ["a", "b"]


def test_revoking_changes_one_word(path):
    for key_id in "abc":
        add_to_file(path, entry(key_id))
    before = path.read_text()

    assert revoke_in_file(path, "b")

    assert [one.disabled for one in read_keys(path)] == [False, True, False]
    changed = [(a, b) for a, b in zip(before.splitlines(), path.read_text().splitlines(), strict=True) if a != b]
    assert changed == [("  disabled: false", "  disabled: true")]


@pytest.mark.parametrize(
    "text",
    [
        f"- {{id: x, hash: '{HASH}', tenant: t, created: 2026-01-01}}\n",
        f"- {{id: x, hash: '{HASH}', disabled: 'no', tenant: t, created: 2026-01-01}}\n",
        f"- {{id: x, hash: '{HASH}', tenant: 'disabled: t', disabled: no, created: 2026-01-01}}\n",
    ],
)
def test_a_key_can_be_revoked_however_it_is_written(path, text):
    path.write_text(text)
    [before] = read_keys(path)

    assert revoke_in_file(path, "x")

    assert read_keys(path) == (before.model_copy(update={"disabled": True}),)


def test_revoking_an_unknown_key_changes_nothing(path):
    add_to_file(path, entry())
    before = path.stat().st_ino

    assert not revoke_in_file(path, "b")
    assert path.stat().st_ino == before


def test_revoking_in_an_absent_file_says_so(path):
    with pytest.raises(ConfigError, match="No such file"):
        revoke_in_file(path, "a")


def test_a_folder_that_is_absent_is_said_in_one_line(tmp_path):
    with pytest.raises(ConfigError, match=r"no/keys.yaml: cannot be written: No such file or directory"):
        add_to_file(tmp_path / "no" / "keys.yaml", entry())


def test_a_file_that_cannot_be_replaced_is_said_in_one_line_and_leaves_nothing_behind(path):
    path.mkdir()
    path.with_name(".keys.yaml.lock").touch()

    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        add_to_file(path, entry())

    assert sorted(os.listdir(path.parent)) == [".keys.yaml.lock", "keys.yaml"]


def test_an_unknown_member_is_named_with_its_line(refusal):
    text = f"- id: a\n  hash: '{HASH}'\n  tenant: t\n  created: 2026-01-01\n  expire: 2030-01-01\n"

    assert refusal(text) == "keys.yaml:5: 0.expire: no such setting; did you mean expires?"


@pytest.mark.parametrize("member", ["id: b", f"hash: '{HASH}'", "tenant: t", "created: 2026-01-01"])
def test_a_missing_member_is_named_with_its_line(refusal, member):
    members = ["id: b", f"hash: '{HASH}'", "tenant: t", "created: 2026-01-01"]
    members.remove(member)

    assert refusal(f"# keys\n- {{{', '.join(members)}}}\n") == f"keys.yaml:2: 0.{member.split(':')[0]}: is missing"


@pytest.mark.parametrize(
    "member, said",
    [
        ("hash: sk-cleartext", "0.hash: String should match pattern"),
        ("hash: 'sha256:AB'", "0.hash: String should match pattern"),
        ("id: 'a b'", "0.id: String should match pattern"),
        ("tenant: ''", "0.tenant: a name is 1 to 256 printable characters"),
        ("tenant: ' t'", "0.tenant: a name is 1 to 256 printable characters"),
        ('tenant: "a\\nb"', "0.tenant: a name is 1 to 256 printable characters"),
        ("scopes: [amdin]", "0.scopes.0: Input should be 'admin'"),
        ("routes: []", "0.routes: Tuple should have at least 1 item"),
        ("expires: tomorrow", "0.expires: a date is written 2030-12-31 or 2030-12-31T18:00:00Z"),
        ("expires: 1.5", "0.expires: a date is written"),
        ("disabled: perhaps", "0.disabled: Input should be a valid boolean"),
    ],
)
def test_a_bad_member_is_named_and_not_repeated(refusal, member, said):
    members = {"id": "a", "hash": f"'{HASH}'", "tenant": "t", "created": "2026-01-01"}
    name, value = member.split(": ", 1)
    text = "".join(f"{key}: {text}\n  " for key, text in {**members, name: value}.items())

    answer = refusal(f"- {text}\n")

    assert f": {said}" in answer
    assert "sk-cleartext" not in answer


def test_ids_and_hashes_are_unique(refusal):
    one = f"- {{id: a, hash: '{HASH}', tenant: t, created: 2026-01-01}}\n"

    assert refusal(one + one) == "keys.yaml:2: 1.id: another key of the file has this id"
    assert refusal(one + one.replace("id: a", "id: b")) == "keys.yaml:2: 1.hash: another key of the file has this hash"


def test_an_empty_file_is_a_mistake_and_an_empty_list_is_none(path, refusal):
    assert refusal("") == "keys.yaml: must hold a list"

    path.write_text("[]\n")
    assert read_keys(path) == ()


@pytest.mark.parametrize(
    "written, moment",
    [
        ("2030-12-31", datetime(2030, 12, 31, tzinfo=UTC)),
        ("'2030-12-31'", datetime(2030, 12, 31, tzinfo=UTC)),
        ("2030-12-31T18:00:00", datetime(2030, 12, 31, 18, tzinfo=UTC)),
        ("2030-12-31 18:00:00", datetime(2030, 12, 31, 18, tzinfo=UTC)),
        ("'2030-12-31T18:00:00Z'", datetime(2030, 12, 31, 18, tzinfo=UTC)),
        ("2030-12-31T18:00:00+02:00", datetime(2030, 12, 31, 16, tzinfo=UTC)),
    ],
)
def test_dates_are_utc_unless_they_say_otherwise(path, written, moment):
    path.write_text(f"- {{id: a, hash: '{HASH}', tenant: t, created: 2026-01-01, expires: {written}}}\n")

    assert read_keys(path)[0].expires == moment


def test_entries_cannot_be_changed():
    with pytest.raises(ValidationError):
        entry().disabled = True


def test_a_writer_waits_for_the_one_before(path):
    add_to_file(path, entry("a"))
    with path.with_name(".keys.yaml.lock").open() as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        second = threading.Thread(target=add_to_file, args=(path, entry("b")))
        second.start()
        assert [one.id for one in read_keys(path)] == ["a"]
    second.join(timeout=60)

    assert [one.id for one in read_keys(path)] == ["a", "b"]


def test_a_file_that_cannot_be_written_is_said_in_one_line_and_leaves_nothing_behind(tmp_path):
    path = tmp_path / ("k" * 248)  # the lock's name is the longest that a file system takes, the new file's is longer

    with pytest.raises(ConfigError, match="k: cannot be written: File name too long"):
        add_to_file(path, entry())

    assert not path.exists() and len(os.listdir(tmp_path)) == 1
