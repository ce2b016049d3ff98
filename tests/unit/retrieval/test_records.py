"""What was injected is shown to its owner, for a while, within a bound."""

from sluice.retrieval.base import Passage
from sluice.retrieval.given import Given
from sluice.retrieval.prompt_block import Source
from sluice.retrieval.records import Records


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def given(id: str, text: str = "text") -> Given:
    passage = Passage("c", "f", "f.md", text, 0.5, "vs", {"lang": "zh"})
    return Given(id, sources=(Source(1, passage, "f.md", text, 3),), prompt="block")


def test_a_record_is_its_owners_and_nobody_elses():
    records = Records(Clock())
    records.keep("acme", given("req-1"), created_at=7.9)

    found = records.get("acme", "req-1")

    assert found is not None and (found["prompt"], found["created_at"], found["object"]) == ("block", 7, "retrieval")
    assert found["citations"][0]["content"] == "text"
    assert records.get("globex", "req-1") is None and records.get("acme", "req-2") is None


def test_records_end_with_their_time_and_the_oldest_make_room():
    clock = Clock()
    records = Records(clock, max_bytes=10_000, kept_s=60)
    for i in range(8):
        records.keep("acme", given(f"req-{i}", "x" * 500), created_at=0)
    assert records.get("acme", "req-0") is None and records.get("acme", "req-7") is not None
    clock.now = 61
    assert records.get("acme", "req-7") is None
    assert repr(records) == "<Records 0 calls, 0 bytes>"
