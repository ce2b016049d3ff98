"""From the headers of a request to its tenant: by keys from a file of hashes, or, in open mode, without asking.

The hot path reads no file and keeps no key: one sha256, one look into a dict by the digest (whoever guesses cannot
steer a digest, so its timing tells nothing), one comparison in constant time. The file is looked at in the background;
while it is absent or broken the keys of before go on working, and the log says so once.

After `max_failures_per_minute` an address that goes on failing is told to wait, but a good key from there is never held
up: behind a proxy that hides its clients, all of them share one address.
"""

import asyncio
import ipaddress
import logging
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from hashlib import sha256
from hmac import compare_digest
from pathlib import Path
from typing import Protocol

from sluice.config import Auth, ConfigError
from sluice.errors import GatewayError, RateLimited, Unauthenticated
from sluice.keys_file import KeyEntry, read_keys
from sluice.types import Tenant

logger = logging.getLogger(__name__)

MAX_KEY_BYTES = 512  # longer ones are not hashed: no key of ours is
MAX_ADDRESSES = 4096
WINDOW_S = 60.0

# What tells that a file was written: also a change of owner or mode, after which it may be readable again.
Signature = tuple[int, int, int, int]
NEVER: Signature = (0, 0, 0, 0)


class Door(Protocol):
    """Who may come in. The caller never asks which door it holds."""

    def resolve(self, authorization: bytes | None, x_api_key: bytes | None, *, address: str, now: float) -> Tenant:
        """The tenant of these headers; raises `Unauthenticated`, or `RateLimited` on too many failures.

        `now` is the event loop's clock.
        """

    async def watch(self, interval_s: float, sleep: Callable[[float], Awaitable[object]] = asyncio.sleep) -> None:
        """Follow what the answer depends on, until cancelled or until there is nothing to follow."""


def door(auth: Auth) -> Door:
    """The door that the configuration asks for; raises `ConfigError` where its keys cannot be read."""
    if auth.mode == "open":
        return OpenDoor()
    keys = Keys(auth.keys_file, max_failures_per_minute=auth.max_failures_per_minute)
    keys.load()
    return keys


class OpenDoor:
    """Everybody is the same tenant, who may use every route and is no admin."""

    def __init__(self) -> None:
        self._everybody = Tenant(name="anonymous", key_id="none")

    def resolve(self, authorization: bytes | None, x_api_key: bytes | None, *, address: str, now: float) -> Tenant:
        return self._everybody

    async def watch(self, interval_s: float, sleep: Callable[[float], Awaitable[object]] = asyncio.sleep) -> None:
        return


@dataclass(frozen=True, slots=True)
class Known:
    """A key of the file, ready for the hot path."""

    digest: bytes
    tenant: Tenant
    disabled: bool
    expires_at: float | None  # Unix time


@dataclass(frozen=True, slots=True)
class Look:
    """What a look at a file that has changed showed: its keys, or why it cannot be used."""

    signature: Signature | None  # None: there is no file
    known: dict[bytes, Known]
    mistake: str | None = None


class Keys:
    """The keys of a file, followed while it changes."""

    def __init__(self, path: Path, *, max_failures_per_minute: int, wall_clock: Callable[[], float] = time.time) -> None:
        self._path = path
        self._wall_clock = wall_clock  # for expiry alone; the loop's clock does not know the date
        self._failures = Failures(max_failures_per_minute)
        # What changes: only load() and reload() do it, and they swap the dict whole.
        self._known: dict[bytes, Known] = {}
        self._signature: Signature | None = None

    def __repr__(self) -> str:
        return f"<Keys {self._path} [{len(self._known)} keys]>"

    def load(self) -> None:
        """Read the file for the first time; raises `ConfigError`."""
        look = _look(self._path, NEVER)
        if look is None or look.signature is None:
            raise ConfigError(f"{self._path}: there is no such keys file; `sluice key new --tenant NAME` makes it")
        if look.mistake:
            raise ConfigError(look.mistake)
        self._known, self._signature = look.known, look.signature

    def resolve(self, authorization: bytes | None, x_api_key: bytes | None, *, address: str, now: float) -> Tenant:
        key = x_api_key
        if authorization is not None and authorization[:7].lower() == b"bearer ":
            key = authorization[7:].strip() or x_api_key
        known = None
        if key and len(key) <= MAX_KEY_BYTES:
            digest = sha256(key).digest()
            known = self._known.get(digest)
            if known is not None and compare_digest(digest, known.digest) and not known.disabled:
                if known.expires_at is None or self._wall_clock() < known.expires_at:
                    return known.tenant
        raise self._refusal(bool(key), known, address, now)

    async def watch(self, interval_s: float, sleep: Callable[[float], Awaitable[object]] = asyncio.sleep) -> None:
        while True:
            await sleep(interval_s)
            await self.reload()

    async def reload(self) -> None:
        """Take the file's keys if it has changed; where it is unusable, keep those of before and say so once."""
        look = await asyncio.to_thread(_look, self._path, self._signature)
        if look is None:
            return
        self._signature = look.signature
        if look.mistake:
            logger.error("keys: the %d keys of before stay in use: %s", len(self._known), look.mistake.splitlines()[0])
        else:
            self._known = look.known
            logger.info("keys: %d keys read from %s", len(self._known), self._path)

    def _refusal(self, key_was_sent: bool, known: Known | None, address: str, now: float) -> GatewayError:
        wait_s = self._failures.count(address, now)
        if wait_s is not None:
            return RateLimited("Too many requests without a valid API key from this address.", retry_after_s=wait_s)
        if not key_was_sent:
            said = "No API key was sent: it goes into the header as `Authorization: Bearer sk-...`."
        elif known is None:
            said = "The API key is not known here."
        else:
            said = f"The API key {known.tenant.key_id} {'is disabled' if known.disabled else 'has expired'}."
        return Unauthenticated(said, key_was_sent=key_was_sent)


class Failures:
    """Failed attempts of each address in windows of a minute, for the `MAX_ADDRESSES` that failed last."""

    def __init__(self, max_per_window: int) -> None:
        self._max = max_per_window
        self._windows: OrderedDict[str, tuple[float, int]] = OrderedDict()  # since when, how many

    def __len__(self) -> int:
        return len(self._windows)

    def count(self, address: str, now: float) -> float | None:
        """One more of `address`; the seconds to wait, where that is too many."""
        network = _network(address)
        since, number = self._windows.pop(network, (now, 0))
        if now - since >= WINDOW_S:
            since, number = now, 0
        self._windows[network] = (since, number + 1)
        if len(self._windows) > MAX_ADDRESSES:
            self._windows.popitem(last=False)
        return since + WINDOW_S - now if number >= self._max else None


def _network(address: str) -> str:
    """Who is behind an address: with IPv6 a whole /64, of which one host may use any."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:  # a unix socket's peer has none
        return address
    if isinstance(parsed, ipaddress.IPv6Address) and parsed.ipv4_mapped is None:
        return str(ipaddress.ip_network((parsed, 64), strict=False))
    return address


def _look(path: Path, seen: Signature | None) -> Look | None:
    """Read the file unless it is as it was `seen` (None: absent). Blocks: not for the event loop."""
    try:
        status = path.stat()
        signature = (status.st_mtime_ns, status.st_ctime_ns, status.st_size, status.st_ino)
    except OSError as exc:
        return None if seen is None else Look(None, {}, f"{path}: cannot be found: {exc.strerror}")
    if signature == seen:
        return None
    try:
        return Look(signature, {entry.digest: _known(entry) for entry in read_keys(path)})
    except ConfigError as exc:
        return Look(signature, {}, str(exc))


def _known(entry: KeyEntry) -> Known:
    routes = None if entry.routes is None else frozenset(entry.routes)
    tenant = Tenant(
        name=entry.tenant,
        key_id=entry.id,
        scopes=frozenset(entry.scopes),
        routes=routes,
        names_users=entry.names_users,
        priority=entry.priority,
        weight=entry.weight,
        rpm=entry.rpm,
        tpm=entry.tpm,
        concurrency=entry.concurrency,
        vector_store_ids=entry.vector_store_ids,
    )
    return Known(entry.digest, tenant, entry.disabled, entry.expires.timestamp() if entry.expires else None)
