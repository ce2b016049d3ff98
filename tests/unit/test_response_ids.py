"""Ids of stored responses: read by every replica with the secret, and by nobody for another tenant."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sluice.errors import NotFound
from sluice.response_ids import ResponseIds, worker_mark

SECRET = b"s" * 32
URLS = st.sampled_from(["http://10.0.0.1:8000", "http://10.0.0.2:8000", "https://worker.example"])
TENANTS = st.sampled_from(["acme", "globex", "", "acme\0", "Ä", "a" * 300])


def refusal(ids: ResponseIds, response_id: str, tenant: str) -> dict[str, object]:
    with pytest.raises(NotFound) as caught:
        ids.worker_mark(response_id, tenant)
    return caught.value.envelope()


@given(url=URLS, tenant=TENANTS)
def test_any_replica_with_the_secret_finds_the_worker(url, tenant):
    response_id = ResponseIds(SECRET).new(url, tenant)
    assert re.fullmatch(r"resp_[0-9a-f]{56}", response_id)
    assert ResponseIds(SECRET).worker_mark(response_id, tenant) == worker_mark(url)


@given(url=URLS, tenant=TENANTS, other=TENANTS, secret=st.binary())
def test_another_tenant_and_another_secret_find_nothing(url, tenant, other, secret):
    ids = ResponseIds(SECRET)
    response_id = ids.new(url, tenant)
    if other != tenant:
        refusal(ids, response_id, other)
    if secret != SECRET:
        refusal(ResponseIds(secret), response_id, tenant)


@given(at=st.integers(0, 60), by=st.characters())
def test_an_id_in_which_one_character_was_changed_is_none(at, by):
    ids = ResponseIds(SECRET)
    response_id = ids.new("http://10.0.0.1:8000", "acme")
    tampered = response_id[:at] + by + response_id[at + 1 :]
    if tampered != response_id:
        refusal(ids, tampered, "acme")


@given(st.data())
def test_an_id_that_was_cut_or_lengthened_is_none(data):
    ids = ResponseIds(SECRET)
    response_id = ids.new("http://10.0.0.1:8000", "acme")
    cut = data.draw(st.integers(0, len(response_id) - 1))
    for changed in (
        response_id[:cut],
        response_id[cut + 1 :],
        response_id + data.draw(st.text(min_size=1)),
        response_id.upper(),
    ):
        refusal(ids, changed, "acme")


@given(st.one_of(st.text(), st.from_regex(r"resp_[0-9a-f]{56}", fullmatch=True), st.from_regex(r"resp_\w*", fullmatch=True)))
def test_an_id_that_was_never_given_out_is_none(response_id):
    refusal(ResponseIds(SECRET), response_id, "acme")


@pytest.mark.parametrize("response_id", ["", "resp_", "resp_" + "\ud800" * 56, "resp_" + "٣" * 56, "resp_" + "0" * 56 + "\n"])
def test_odd_texts_are_none_either(response_id):
    refusal(ResponseIds(SECRET), response_id, "acme")


def test_a_foreign_id_cannot_be_told_from_one_that_does_not_exist():
    ids = ResponseIds(SECRET)
    foreign = refusal(ids, ids.new("http://10.0.0.1:8000", "globex"), "acme")
    assert foreign == refusal(ids, "resp_" + "0" * 56, "acme") == refusal(ids, "nonsense", "acme")
    assert foreign["error"] == {
        "message": "No such response.",
        "type": "invalid_request_error",
        "param": "response_id",
        "code": None,
    }


def test_ids_differ_from_call_to_call_and_carry_no_address():
    ids = ResponseIds(SECRET)
    made = {ids.new("http://10.0.0.1:8000", "acme") for _ in range(100)}
    assert len(made) == 100
    assert len({response_id[29:37] for response_id in made}) == 1
    assert worker_mark("http://10.0.0.1:8000") != worker_mark("http://10.0.0.2:8000")


def test_the_placeholder_is_as_long_as_an_id_and_is_none():
    ids = ResponseIds(SECRET)
    assert len(ids.placeholder) == len(ids.new("http://10.0.0.1:8000", "acme"))
    assert ids.placeholder != ResponseIds(SECRET).placeholder
    refusal(ids, ids.placeholder, "acme")
