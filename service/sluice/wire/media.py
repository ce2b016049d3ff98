"""Media that requests name by URL: found in their parts, and held to the hosts that a route lets its workers fetch from.

A worker fetches whatever URL it is given, from where the worker stands: inside the cluster. So only `data:` URLs pass, and
URLs of listed hosts, which must be written so plainly that no two parsers can read different hosts in them. What a listed
host redirects to is beyond us: run workers with VLLM_MEDIA_URL_ALLOW_REDIRECTS=0.

Source: vLLM 0.32 `renderers/chat_utils.py` (which members of a part are read, whatever its type says),
`multimodal/media/connector.py` (how a URL is parsed), `anthropic/serving.py`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, NamedTuple

from sluice.errors import BadRequest

MAX_URL_CHARACTERS = 8192
MAX_HOST_CHARACTERS = 253
DEFAULT_PORTS = {"http": 80, "https": 443}

_LABEL = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
_HOST = rf"{_LABEL}(?:\.{_LABEL})*"
_AUTHORITY = re.compile(rf"(https?)://({_HOST})(?::([0-9]{{1,5}}))?(?=[/?#]|\Z)", re.IGNORECASE | re.ASCII)
_ENTRY = re.compile(rf"(?:(https?)://)?(\*\.)?({_HOST})(?::([0-9]{{1,5}}))?", re.IGNORECASE | re.ASCII)

# What a part may hold besides text. Parts stand in lists, those in a message's or an item's `content` or `output`.
URL_MEMBERS = ("image_url", "audio_url", "video_url", "file_url")
EMBEDDINGS = frozenset({"image_embeds", "audio_embeds", "video_embeds", "prompt_embeds"})
WATCHED = frozenset({*URL_MEMBERS, *EMBEDDINGS, "source", "uuid"})

_Place = tuple[Any, str | int]  # the place around this one (None: there is none), and the step from it to here


class RemoteMedia(NamedTuple):
    """A URL that the worker would have to fetch, and where in the request it stands."""

    path: str
    url: str


class MediaHosts:
    """The hosts that a route's workers may fetch media from: `host`, `*.domain`, `host:port`, `http://host`."""

    __slots__ = ("_domains", "_entries", "_hosts")

    def __init__(self, entries: Iterable[str]) -> None:
        """Raises `ValueError` for an entry that is none of these. Without a scheme it means https, without a port 443."""
        self._entries = tuple(entries)
        hosts: set[tuple[str, str, int]] = set()
        domains: set[tuple[str, str, int]] = set()
        for entry in self._entries:
            match = _ENTRY.fullmatch(entry)
            if match is None:
                raise ValueError(
                    f"{entry!r} is not a host: write host, *.domain, host:port or http://host, and names that are not "
                    "ASCII in punycode"
                )
            scheme = (match[1] or "https").lower()
            port = int(match[4]) if match[4] else DEFAULT_PORTS[scheme]
            (domains if match[2] else hosts).add((scheme, match[3].lower(), port))
        self._hosts = frozenset(hosts)
        self._domains = frozenset(domains)

    def __reduce__(self) -> tuple[type[MediaHosts], tuple[tuple[str, ...]]]:
        """It goes to the process that reads large bodies."""
        return MediaHosts, (self._entries,)

    def allow(self, url: str) -> bool:
        """Whether the worker may fetch `url`. A URL that could be read in two ways is not allowed."""
        if len(url) > MAX_URL_CHARACTERS or not url.isprintable() or " " in url or "\\" in url:
            return False
        match = _AUTHORITY.match(url)
        if match is None or len(match[2]) > MAX_HOST_CHARACTERS:
            return False
        scheme, host = match[1].lower(), match[2].lower()
        port = int(match[3]) if match[3] else DEFAULT_PORTS[scheme]
        if (scheme, host, port) in self._hosts:
            return True
        labels = host.split(".")
        return any((scheme, ".".join(labels[i:]), port) in self._domains for i in range(1, len(labels)))

    def check(self, media: Iterable[RemoteMedia]) -> None:
        """Raises `BadRequest` for the first URL that may not be fetched."""
        for path, url in media:
            if not self.allow(url):
                raise BadRequest(
                    f"`{path}` names something that this model's worker may not fetch: send the content itself, as a "
                    "URL that begins with `data:`.",
                    param=path,
                )


def remote_media(name: str, root: Any) -> list[RemoteMedia]:
    """Every URL in the parts of `root` that is not a `data:` URL. `root` is a message, item or part, or lists of them.

    Raises `BadRequest` for parts that no tenant may send: tensors, and media under an id of the client's choice.
    """
    found: list[RemoteMedia] = []
    waiting: list[tuple[_Place, list[Any], bool]] = [((None, name), root if type(root) is list else [root], False)]
    while waiting:  # and not recursion: a body may be nested deeper than our stack
        place, items, are_parts = waiting.pop()
        for i, item in enumerate(items):
            kind = type(item)
            if kind is dict:
                if _is_plain(item):
                    continue
                for holder in ("content", "output"):
                    inner = item.get(holder)
                    if type(inner) is list or type(inner) is dict:
                        waiting.append((((place, i), holder), inner if type(inner) is list else [inner], True))
                if not WATCHED.isdisjoint(item) or _is_embedding(item.get("type")):
                    found += _of_part(_written((place, i)), item, is_part=are_parts)
            elif kind is list:
                waiting.append(((place, i), item, are_parts))
    return found


def _is_plain(item: dict[str, Any]) -> bool:
    """A message of one text, or a text part: what most requests are made of."""
    if len(item) != 2:
        return False
    return (type(item.get("content")) is str and "role" in item) or (type(item.get("text")) is str and "type" in item)


def _written(place: _Place | None) -> str:
    """A place as people write it: `messages[0].content[2]`."""
    steps = []
    while place is not None:
        place, step = place
        steps.append(f"[{step}]" if isinstance(step, int) else f".{step}")
    return "".join(reversed(steps)).removeprefix(".")


def _is_embedding(kind: Any) -> bool:
    return type(kind) is str and kind in EMBEDDINGS


def _of_part(path: str, part: dict[str, Any], *, is_part: bool) -> list[RemoteMedia]:
    kind = part.get("type")
    if _is_embedding(kind) or not EMBEDDINGS.isdisjoint(part):
        # A worker that accepts them deserialises the tensors of whoever may call it.
        raise BadRequest(f"`{path}` holds embeddings, which are not accepted: send the content itself.", param=path)
    if is_part and part.get("uuid") is not None:
        # vLLM takes it for the hash of the content: tenants could read, and replace, what others have in the cache.
        raise BadRequest(f"`{path}.uuid` is not accepted: media are known by their content.", param=f"{path}.uuid")
    places = [(name, part.get(name)) for name in URL_MEMBERS]
    if kind == "image":
        places.append(("source", part.get("source")))
    found = []
    for name, value in places:
        url = value.get("url") if type(value) is dict else value
        if type(url) is str and url[:5].lower() != "data:":
            found.append(RemoteMedia(f"{path}.{name}", url))
    return found
