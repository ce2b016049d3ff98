"""The keys file: a YAML list of keys as hashes, each with its tenant; read whole, changed whole, never seen half.

A key is `sk-` and 43 url-safe characters, which are 256 random bits. That is why a plain sha256 is enough: salt and
slow hashes protect what people choose, and nobody guesses 256 bits however cheap a guess is. It is also why the file is
no secret, only precious: who may write it may let anybody in.

A file that is absent, broken or held by somebody else is a `ConfigError` in one line, and is left as it was.
"""

import fcntl
import hashlib
import os
import re
import secrets
import stat
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, RootModel, model_validator

from sluice.config import ConfigError, Section
from sluice.config.base import Positive
from sluice.yaml_lines import Mistake, load_with_lines, parse, read_text

Scope = Literal["admin"]
LOCK_POLL_S = 0.05


def instant(value: object) -> datetime:
    """A date (its first moment, UTC) or a date with a time (UTC where it names no zone)."""
    try:
        if isinstance(value, datetime):
            moment = value
        elif isinstance(value, date):
            moment = datetime(value.year, value.month, value.day)
        else:
            moment = datetime.fromisoformat(str(value))
    except ValueError as exc:
        raise ValueError("a date is written 2030-12-31 or 2030-12-31T18:00:00Z") from exc
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def checked_name(text: str) -> str:
    if not text or len(text) > 256 or not text.isprintable() or text != text.strip():
        raise ValueError("a name is 1 to 256 printable characters with no space around them")
    return text


Name = Annotated[str, AfterValidator(checked_name)]
Instant = Annotated[datetime, BeforeValidator(instant)]


class KeyEntry(Section):
    """One key of the file. `expires` is the first moment at which the key is refused."""

    id: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]
    hash: Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")]
    tenant: Name
    created: Instant
    scopes: tuple[Scope, ...] = ()
    routes: Annotated[tuple[Name, ...], Field(min_length=1)] | None = None  # None: every route
    disabled: bool = False
    expires: Instant | None = None
    rpm: Positive | None = None
    tpm: Positive | None = None
    concurrency: Positive | None = None
    priority: Annotated[int, Field(ge=-10, le=10)] = 0
    weight: Annotated[int, Field(ge=1, le=1000)] = 1
    names_users: bool = False
    vector_store_ids: Annotated[tuple[Name, ...], Field(max_length=8)] = ()

    @property
    def digest(self) -> bytes:
        return bytes.fromhex(self.hash.removeprefix("sha256:"))


class KeysFile(RootModel[tuple[KeyEntry, ...]]):
    model_config = ConfigDict(frozen=True)

    @model_validator(mode="after")
    def _each_once(self) -> Self:
        seen: set[str] = set()
        for position, entry in enumerate(self.root):
            for member, value in (("id", entry.id), ("hash", entry.hash)):
                if value in seen:
                    raise Mistake(f"another key of the file has this {member}", position, member)
                seen.add(value)
        return self


def new_key(
    tenant: str,
    *,
    scopes: Sequence[Scope] = (),
    routes: Sequence[str] | None = None,
    expires: datetime | None = None,
    now: datetime,
    **members: Any,
) -> tuple[str, KeyEntry]:
    """A fresh key in clear, which exists nowhere else, and the entry that knows it by its hash and has these `members`."""
    key = f"sk-{secrets.token_urlsafe(32)}"
    entry = KeyEntry(
        id=f"key_{secrets.token_hex(6)}",
        hash=f"sha256:{hashlib.sha256(key.encode()).hexdigest()}",
        tenant=tenant,
        created=now.replace(microsecond=0),
        scopes=tuple(scopes),
        routes=None if routes is None else tuple(routes),
        expires=expires,
        **members,
    )
    return key, entry


def read_keys(path: Path) -> tuple[KeyEntry, ...]:
    """The entries of the file. An empty file is a mistake and not a list of no keys: editors truncate, then write."""
    return _entries(path, read_text(path))


def add_to_file(path: Path, entry: KeyEntry, *, lock_wait_s: float = 10.0) -> None:
    """Put `entry` at the end of the file, which is created (mode 0600) where there is none; comments stay."""
    with _locked(path, lock_wait_s):
        old = read_text(path) if path.exists() else ""
        new = old + ("" if not old or old.endswith("\n") else "\n") + _dump([entry])
        try:
            _entries(path, new)
        except ConfigError:  # not a list of one entry below the other: write it anew, if it is a list at all
            new = _dump([*_entries(path, old), entry])
            _entries(path, new)
        _replace(path, new)


def revoke_in_file(path: Path, key_id: str, *, lock_wait_s: float = 10.0) -> bool:
    """Mark the key as disabled (its line stays, for the record); False where the file has no such key."""
    with _locked(path, lock_wait_s):
        old = read_text(path)
        entries = list(_entries(path, old))
        position = next((n for n, entry in enumerate(entries) if entry.id == key_id), None)
        if position is None:
            return False
        entries[position] = entries[position].model_copy(update={"disabled": True})
        new = _with_line_disabled(old, position)
        if new is None or _entries(path, new) != tuple(entries):
            new = _dump(entries)
        _replace(path, new)
        return True


def _entries(path: Path, text: str) -> tuple[KeyEntry, ...]:
    return parse(path, text, KeysFile).root


def _dump(entries: Sequence[KeyEntry]) -> str:
    data = [entry.model_dump(mode="json") for entry in entries]
    return str(yaml.safe_dump(data, sort_keys=False, allow_unicode=True, default_flow_style=None, width=1000))


def _with_line_disabled(text: str, position: int) -> str | None:
    """The same text but for the word after `disabled:`, so that comments stay; None where there is no such line."""
    _, lines = load_with_lines(text)
    number = lines.get((str(position), "disabled"))
    if number is None:
        return None
    parts = text.splitlines(keepends=True)
    parts[number - 1] = re.sub(r"(disabled\S?\s*:\s*)\w+", r"\1true", parts[number - 1], count=1)
    return "".join(parts)


@contextmanager
def _locked(path: Path, wait_s: float) -> Iterator[None]:
    """One writer at a time. The lock is on a file beside it that stays: each writer replaces the keys file itself."""
    try:
        lock = os.open(path.with_name(f".{path.name}.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as exc:
        raise ConfigError(f"{path}: cannot be written: {exc.strerror}") from exc
    try:
        give_up_at = time.monotonic() + wait_s
        while not _lock_now(lock):
            if time.monotonic() >= give_up_at:
                raise ConfigError(f"{path}: another `sluice key` command is writing it; try again")
            time.sleep(LOCK_POLL_S)
        yield
    finally:
        os.close(lock)


def _lock_now(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _replace(path: Path, text: str) -> None:
    """Readers see the old file or the new one; a crash leaves one of them. Owner and mode stay, or nothing changes."""
    path = path.resolve()
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # mode 0600
        try:
            with open(handle, "w", encoding="utf-8") as file:
                if path.exists():
                    before = path.stat()
                    os.fchown(handle, before.st_uid, before.st_gid)
                    os.fchmod(handle, stat.S_IMODE(before.st_mode))
                file.write(text)
                file.flush()
                os.fsync(handle)
            os.replace(temporary, path)
        finally:
            with suppress(FileNotFoundError):
                os.unlink(temporary)
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as exc:
        raise ConfigError(f"{path}: cannot be written: {exc.strerror}") from exc
