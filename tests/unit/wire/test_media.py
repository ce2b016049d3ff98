"""Media by URL: which hosts a worker may fetch from, and where in a request URLs can hide."""

import ipaddress
from urllib.parse import urlsplit

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sluice.errors import BadRequest
from sluice.wire.media import MAX_URL_CHARACTERS, MediaHosts, RemoteMedia, remote_media

HOSTS = MediaHosts(["cdn.example.com", "*.images.example.org", "http://minio:9000", "Files.Example.NET:8443", "192.0.2.7"])
PNG = "data:image/png;base64,iVBORw0KGgo="
EVIL = "http://169.254.169.254/latest/meta-data"

# Which URLs may be fetched


@pytest.mark.parametrize(
    "url",
    [
        "https://cdn.example.com/cat.png",
        "https://cdn.example.com",
        "https://cdn.example.com?id=1",
        "https://cdn.example.com#top",
        "HTTPS://CDN.Example.COM/Cat.png",
        "https://cdn.example.com:443/cat.png",
        "https://cdn.example.com/a@b:c/%2e%2e/größe.png",
        "https://a.images.example.org/cat.png",
        "https://a.b.images.example.org/cat.png",
        "http://minio:9000/bucket/cat.png",
        "https://files.example.net:8443/cat.png",
        "https://192.0.2.7/cat.png",
    ],
)
def test_urls_of_listed_hosts_are_allowed(url):
    assert HOSTS.allow(url)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "cat.png",
        "/etc/passwd",
        "//cdn.example.com/cat.png",
        "file:///etc/passwd",
        "file://cdn.example.com/etc/passwd",
        "ftp://cdn.example.com/cat.png",
        "https:cdn.example.com/cat.png",
        "https:/cdn.example.com/cat.png",
        "https:///cdn.example.com/cat.png",
        " https://cdn.example.com/cat.png",
        "https://cdn.example.com/cat.png ",
        "https://cdn.example.com/cat.png\n",
        "https://cdn.example.com\n.evil.test/cat.png",
        "ht\ntps://cdn.example.com/cat.png",
        "https://cdn.example.com\t/cat.png",
        "https://cdn.example.com\\@evil.test/cat.png",
        "https:\\\\cdn.example.com/cat.png",
        "https://evil.test\\.images.example.org/",
        "https://cdn.example.com@evil.test/cat.png",
        "https://user:secret@cdn.example.com/cat.png",
        "https://cdn.example.com:443@evil.test/",
        "https://evil.test/cdn.example.com",
        "https://evil.test#@cdn.example.com/",
        "https://evil.test?.images.example.org",
        "https://cdn.example.com.evil.test/",
        "https://evilcdn.example.com/",
        "https://images.example.org/cat.png",
        "https://evilimages.example.org/",
        "https://.images.example.org/",
        "https://a..images.example.org/",
        "https://cdn.example.com./cat.png",
        "http://cdn.example.com/cat.png",
        "http://cdn.example.com:443/cat.png",
        "https://cdn.example.com:8443/cat.png",
        "https://cdn.example.com:/cat.png",
        "https://cdn.example.com:0443x/cat.png",
        "https://cdn.example.com:99999999/cat.png",
        "https://minio:9000/cat.png",
        "http://minio/cat.png",
        "https://files.example.net/cat.png",
        "https://cdn%2eexample.com/cat.png",
        "https://cdn。example。com/cat.png",
        "https://ｃdn.example.com/cat.png",
        "https://cdn.example.com\u200b/cat.png",
        "https://\u212bcdn.example.com/cat.png",
        "https://[::ffff:192.0.2.7]/cat.png",
        "https://[192.0.2.7]/cat.png",
        "https://192.0.2.07/cat.png",
        "https://3221225991/cat.png",
        "https://0xc0000207/cat.png",
        "https://192.0.519/cat.png",
        "https://" + "a" * 300 + ".images.example.org/",
        "https://" + "a." * 200 + "images.example.org/",
        "https://cdn.example.com/" + "a" * MAX_URL_CHARACTERS,
        EVIL,
        "http://localhost:8000/",
    ],
)
def test_other_urls_are_not_allowed(url):
    assert not HOSTS.allow(url)


def test_no_host_is_allowed_where_none_is_listed():
    assert not MediaHosts(()).allow("https://cdn.example.com/cat.png")


@pytest.mark.parametrize(
    "entry",
    [
        "",
        "*",
        "*.",
        "cdn.*.com",
        "https://",
        "ftp://cdn.example.com",
        "cdn.example.com/",
        "https://cdn.example.com/path",
        "user@cdn.example.com",
        "cdn.example.com:",
        "cdn.example.com:123456",
        "bücher.example",
        "[::1]",
        "cdn..example.com",
        "cdn.example.com\n",
        " cdn.example.com",
        "-cdn.example.com",
    ],
)
def test_an_entry_that_is_no_host_is_a_mistake(entry):
    with pytest.raises(ValueError, match="is not a host"):
        MediaHosts([entry])


pieces = st.sampled_from(
    [
        "https://",
        "http://",
        "cdn.example.com",
        "evil.test",
        "@",
        ":",
        "443",
        "/",
        "\\",
        "#",
        "?",
        ".",
        "%2e",
        "\t",
        " ",
        "[",
        "]",
    ]
)


@settings(derandomize=True, deadline=None, max_examples=200)
@given(st.lists(pieces | st.text(max_size=2), max_size=8).map("".join))
def test_an_allowed_url_names_a_listed_host_to_other_parsers_too(url):
    if HOSTS.allow(url):
        split = urlsplit(url)
        assert split.hostname == "cdn.example.com"
        assert split.scheme == "https"
        assert split.username is None
        assert split.port in (None, 443)


def test_private_addresses_are_no_hosts_of_a_wildcard():
    for address in ("127.0.0.1", "10.0.0.1", "169.254.169.254"):
        assert ipaddress.ip_address(address).is_private
        assert not HOSTS.allow(f"https://{address}/")


# Where URLs are found


def user(*parts) -> list:
    return [{"role": "user", "content": list(parts)}]


@pytest.mark.parametrize(
    ("part", "where"),
    [
        ({"type": "image_url", "image_url": {"url": EVIL}}, "image_url"),
        ({"type": "image_url", "image_url": EVIL}, "image_url"),
        ({"image_url": EVIL}, "image_url"),
        ({"type": "text", "text": "hi", "image_url": EVIL}, "image_url"),
        ({"type": ["image_url"], "image_url": EVIL}, "image_url"),
        ({"type": "audio_url", "audio_url": {"url": EVIL}}, "audio_url"),
        ({"type": "video_url", "video_url": {"url": EVIL}}, "video_url"),
        ({"type": "input_image", "image_url": EVIL, "detail": "auto"}, "image_url"),
        ({"type": "input_file", "file_url": EVIL}, "file_url"),
        ({"type": "image", "source": {"type": "url", "url": EVIL}}, "source"),
    ],
)
def test_a_url_is_found_in_every_kind_of_part(part, where):
    assert remote_media("messages", user({"type": "text", "text": "What is it?"}, part)) == [
        RemoteMedia(f"messages[0].content[1].{where}", EVIL)
    ]


def test_urls_are_found_wherever_parts_may_stand():
    image = {"type": "image_url", "image_url": {"url": EVIL}}
    tool_result = {"type": "tool_result", "tool_use_id": "t", "content": [{"type": "text", "text": "x"}, image]}
    assert [one.path for one in remote_media("messages", user("plain", tool_result))] == [
        "messages[0].content[1].content[1].image_url"
    ]
    items = [{"type": "function_call_output", "call_id": "c", "output": [{"type": "input_image", "image_url": EVIL}]}]
    assert [one.path for one in remote_media("input", items)] == ["input[0].output[0].image_url"]
    screenshot = [{"type": "computer_call_output", "output": {"type": "computer_screenshot", "image_url": EVIL}}]
    assert [one.path for one in remote_media("input", screenshot)] == ["input[0].output[0].image_url"]
    assert [one.path for one in remote_media("messages", [user(image)])] == ["messages[0][0].content[0].image_url"]
    assert [one.path for one in remote_media("documents", {"content": [image]})] == ["documents[0].content[0].image_url"]


@pytest.mark.parametrize(
    "part",
    [
        "plain",
        {"type": "text", "text": EVIL},
        {"type": "text", "text": EVIL, "cache_control": {"type": "ephemeral"}},
        {"type": "image_url", "image_url": {"url": PNG}},
        {"type": "image_url", "image_url": {"url": PNG.replace("data:", "DATA:")}},
        {"type": "image_url", "image_url": None},
        {"type": "image_url", "image_url": {"url": 7}},
        {"type": "input_audio", "input_audio": {"data": "UklGRg==", "format": "wav"}},
        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "iVBORw0KGgo="}},
        {"type": "tool_use", "id": "t", "name": "fetch", "input": {"image_url": EVIL, "uuid": "x"}},
        {"type": "document", "source": {"type": "text", "url": EVIL}},
        {"type": "image_url", "image_url": {"url": PNG}, "uuid": None},
        7,
        None,
    ],
)
def test_what_is_no_remote_url_is_left_alone(part):
    assert remote_media("messages", user(part)) == []


def test_a_plain_conversation_names_nothing():
    messages = [{"role": "system", "content": EVIL}, {"role": "user", "content": EVIL, "name": "x"}, {"role": "assistant"}]
    assert remote_media("messages", messages) == []


def test_a_message_may_carry_an_id_of_its_own():
    assert remote_media("messages", [{"role": "user", "content": "hi", "uuid": "7"}]) == []


def test_a_part_with_an_id_for_the_cache_is_refused():
    """vLLM takes it for the hash of the image: another tenant's image could be asked for by it."""
    with pytest.raises(BadRequest) as caught:
        remote_media("messages", user({"type": "image_url", "image_url": None, "uuid": "of-another-tenant"}))
    assert caught.value.param == "messages[0].content[0].uuid"


@pytest.mark.parametrize("kind", ["image_embeds", "audio_embeds", "video_embeds", "prompt_embeds"])
def test_parts_that_are_tensors_are_refused(kind):
    for part in ({"type": kind, "data": "AAAA"}, {kind: "AAAA"}, {"type": "text", "text": "x", kind: "AAAA"}):
        with pytest.raises(BadRequest, match="embeddings") as caught:
            remote_media("messages", user(part))
        assert caught.value.param == "messages[0].content[0]"


def test_parts_nested_deeper_than_the_stack_are_looked_through():
    part = {"type": "image_url", "image_url": EVIL}
    for _ in range(5000):
        part = {"type": "tool_result", "content": [part]}
    assert len(remote_media("messages", [part])) == 1


def test_the_first_url_that_may_not_be_fetched_is_named():
    media = [RemoteMedia("a", "https://cdn.example.com/x"), RemoteMedia("b", EVIL)]
    with pytest.raises(BadRequest, match="`data:`") as caught:
        HOSTS.check(media)
    assert caught.value.param == "b"
    assert EVIL not in caught.value.message
    HOSTS.check(media[:1])
