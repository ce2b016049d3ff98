"""From an upload to a file that is done: in turns, once each, and never reported before it is on the disk."""

import asyncio
from pathlib import Path

import numpy as np
import pytest

from sluice.errors import StoreNotFound
from sluice.ingest.base import Limits
from sluice.ingest.pipeline import MAX_ATTEMPTS, Ingestion
from sluice.ingest.vectors import BATCH, LEASE_S, VectorWork
from sluice.ingest.worker import Cut, FileReader, Job
from sluice.retrieval.catalog import Attachment, Catalog
from sluice.retrieval.storage import Storage
from sluice.retrieval.worklist import WorkList
from tests.unit.stores import Filled, filled

LIMITS = Limits(memory_bytes=400_000_000, text_bytes=10_000)


async def attach(here: Filled, store: str, file_id: str, tenant: str = "acme") -> None:
    await here.storage.ask(Catalog.attach, tenant, store, Attachment(file_id, {"n": 1}, 400, 60))


async def row(here: Filled, store: str, file_id: str) -> dict:
    return await here.storage.ask(Catalog.store_file, "acme", store, file_id)


class Trouble(FileReader):
    """A reader that does something before it reads, and notes what it read."""

    def __init__(self, *troubles) -> None:
        super().__init__(LIMITS)
        self.troubles = list(troubles)
        self.read_files: list[str] = []

    async def read(self, job: Job) -> Cut:
        if self.troubles:
            await self.troubles.pop(0)()
        self.read_files.append(Path(job.path).name)
        return Cut([], 1) if job.filename == "empty" else await super().read(job)


async def nothing(seconds: float) -> None:
    pass


async def test_files_become_findable_and_bad_ones_say_why(tmp_path: Path):
    async with filled(tmp_path) as here, FileReader(LIMITS) as reader:
        store = await here.new_store()
        good = await here.upload("# Ports\n\nThe gateway listens on 8443.")
        bad = await here.upload(b"\x7fELF\0", filename="a.pdf")
        large = await here.upload("x " * 10_000)
        for file_id in (good, bad, large):
            await attach(here, store, file_id)

        await Ingestion(here.storage, reader).drain()

        [passage] = (await here.search(store, query="port")).passages
        counts = (await here.storage.ask(Catalog.store, "acme", store))["counts"]
        rows = [await row(here, store, file_id) for file_id in (good, bad, large)]
    assert passage.file_id == good and passage.attributes == {"n": 1}
    assert counts == {"in_progress": 0, "completed": 1, "failed": 2, "cancelled": 0, "total": 3}
    assert [one["error_code"] for one in rows] == [None, "unsupported_file", "invalid_file"]
    assert rows[0]["usage_bytes"] == 37 and "split it" in rows[2]["error_message"]


async def test_a_file_that_is_attached_again_is_read_again_only_if_it_had_failed(tmp_path: Path):
    async with filled(tmp_path) as here, Trouble() as reader:
        store = await here.new_store()
        good, bad = await here.upload("good"), await here.upload(b"\0bad")
        ingestion = Ingestion(here.storage, reader)
        for _ in range(2):
            for file_id in (good, bad):
                await attach(here, store, file_id)
            await ingestion.drain()

        assert reader.read_files == [good, bad, bad]
        assert (await here.storage.ask(Catalog.store, "acme", store))["counts"]["total"] == 2


async def test_tenants_take_turns(tmp_path: Path):
    async with filled(tmp_path) as here, Trouble() as reader:
        files = {}
        for tenant, number in (("acme", 3), ("globex", 1), ("initech", 1)):
            store = await here.new_store(tenant)
            for at in range(number):
                file_id = await here.upload("x", tenant, "empty")
                files[file_id] = f"{tenant}{at}"
                await attach(here, store, file_id, tenant)

        await Ingestion(here.storage, reader).drain()

    assert [files[one] for one in reader.read_files] == ["acme0", "globex0", "initech0", "acme1", "acme2"]


async def test_our_own_failures_are_tried_again_and_given_up_in_the_end(tmp_path: Path, caplog):
    async def full_disk():
        raise OSError("no space left")

    async with filled(tmp_path) as here:
        store = await here.new_store()
        file_id = await here.upload("good")
        await attach(here, store, file_id)
        async with Trouble(full_disk, full_disk) as reader:
            await Ingestion(here.storage, reader, sleep=nothing).drain()
        assert (await row(here, store, file_id))["status"] == "completed"

        other = await here.upload("good")
        await attach(here, store, other)
        async with Trouble(*[full_disk] * MAX_ATTEMPTS) as reader:
            await Ingestion(here.storage, reader, sleep=nothing).drain()
        failed = await row(here, store, other)
    assert (failed["status"], failed["error_code"]) == ("failed", "server_error")
    assert "no space left" in caplog.text


@pytest.mark.parametrize("what", ["file", "store", "attributes"])
async def test_what_changes_while_a_file_is_read_holds(tmp_path: Path, what):
    async with filled(tmp_path) as here:
        store = await here.new_store()
        file_id = await here.upload("alpha")
        await attach(here, store, file_id)

        async def meanwhile():
            if what == "file":
                await here.storage.detach("acme", store, file_id)
            elif what == "store":
                await here.storage.delete_store("acme", store)
            else:
                await here.storage.set_attributes("acme", store, file_id, {"n": 2})

        async with Trouble(meanwhile) as reader:
            await Ingestion(here.storage, reader).drain()

        found = (await here.search(store, query="alpha")).passages
        assert [one.attributes for one in found] == ([{"n": 2}] if what == "attributes" else [])
        assert here.storage.engine.path_of(store).exists() == (what != "store")


async def test_a_restart_in_the_middle_does_a_file_again_without_doubling_it(tmp_path: Path):
    async with filled(tmp_path) as here:
        store = await here.new_store()
        file_id = await here.upload("alpha")
        await attach(here, store, file_id)
        # written to the store, and killed before the catalogue knew
        await here.storage.writer.put(store, file_id, "a.md", {}, here.pieces("alpha"), awaits_vectors=False)
    async with filled(tmp_path) as here, FileReader(LIMITS) as reader:
        await here.storage.tidy()
        await Ingestion(here.storage, reader).drain()

        assert len((await here.search(store, query="alpha")).passages) == 1
        assert (await row(here, store, file_id))["status"] == "completed"
        assert await here.storage.engine.texts(store, file_id) == ["alpha"]


async def test_the_loop_sleeps_until_it_is_woken(tmp_path: Path):
    async with filled(tmp_path) as here, Trouble() as reader:
        ingestion = Ingestion(here.storage, reader)
        store = await here.new_store()
        loop = asyncio.create_task(ingestion.run())
        file_id = await here.upload("x", filename="empty")
        await attach(here, store, file_id)
        ingestion.wake()
        async with asyncio.timeout(60):
            while (await row(here, store, file_id))["status"] != "completed":  # noqa: ASYNC110  of the loop's own pace
                await asyncio.sleep(0)
        loop.cancel()
        with pytest.raises(asyncio.CancelledError):
            await loop


async def test_what_expires_goes_every_few_minutes(tmp_path: Path):
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)
        if len(slept) == 2:
            raise asyncio.CancelledError

    async with filled(tmp_path) as here, FileReader(LIMITS) as reader:
        file_id = await here.upload("x", expires_s=0)
        with pytest.raises(asyncio.CancelledError):
            await Ingestion(here.storage, reader, sleep=sleep).run_expiry()
        with pytest.raises(StoreNotFound):
            await here.storage.ask(Catalog.file, "acme", file_id)
    assert slept == [600, 600]


# Vectors


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


async def ingested(here: Filled, text: str, model: str | None = "m") -> tuple[str, str]:
    store = await here.new_store(model=model)
    file_id = await here.upload(text)
    await attach(here, store, file_id)
    async with FileReader(LIMITS) as reader:
        await Ingestion(here.storage, reader).drain()
    return store, file_id


def rows_of(num: int) -> np.ndarray:
    return np.eye(8, dtype=np.float32)[[number % 8 for number in range(num)]]


async def test_a_file_is_done_when_all_its_passages_have_vectors(tmp_path: Path):
    text = "\n\n".join(f"# P{number}\n\n" + "words " * 300 for number in range(40))[:9_900]
    async with filled(tmp_path) as here:
        store, file_id = await ingested(here, text)
        assert (await row(here, store, file_id))["status"] == "in_progress"
        assert (await here.search(store, query="words")).passages  # by its words at once
        work = VectorWork(here.storage, Clock())

        while (batch := await work.take("m", wait_s=0.01)) is not None:
            assert (batch.store_id, batch.tenant) == (store, "acme") and len(batch.ids) <= BATCH
            assert all(text.startswith("P") for text in batch.texts)
            assert (await row(here, store, file_id))["status"] == "in_progress"
            await work.put(store, batch.ids, rows_of(len(batch.ids)))

        assert (await row(here, store, file_id))["status"] == "completed"
        assert (await here.search(store, query="x", vectors=[[1.0] + [0.0] * 7], mode="dense")).passages


async def test_a_batch_is_handed_out_once_until_its_lease_is_over(tmp_path: Path):
    clock = Clock()
    async with filled(tmp_path) as here:
        store, _ = await ingested(here, "alpha")
        work = VectorWork(here.storage, clock)
        first = await work.take("m", wait_s=60)
        assert await work.take("m", wait_s=0.01) is None and await work.take("other", wait_s=0.01) is None
        clock.now += LEASE_S

        assert await work.take("m", wait_s=60) == first is not None


async def test_who_waits_is_woken_by_what_arrives(tmp_path: Path):
    async with filled(tmp_path) as here:
        work = VectorWork(here.storage, Clock())
        waiting = asyncio.create_task(work.take("m", wait_s=60))
        await asyncio.sleep(0)
        await ingested(here, "alpha")
        work.wake()

        batch = await waiting
    assert batch is not None and batch.texts == ("alpha",)


async def test_who_waits_is_sent_away_when_the_process_ends_and_what_did_not_arrive_is_given_back(tmp_path: Path):
    async with filled(tmp_path) as here:
        work = VectorWork(here.storage, Clock())
        waiting = asyncio.create_task(work.take("m", wait_s=60))
        await asyncio.sleep(0)
        await ingested(here, "alpha")
        work.wake()
        batch = await waiting
        work.give_back(batch)
        assert await work.take("m", wait_s=60) == batch

        waiting = asyncio.create_task(work.take("m", wait_s=60))
        await asyncio.sleep(0)
        work.close()
        assert await waiting is None and await work.take("m", wait_s=60) is None


async def test_a_file_that_the_model_refuses_has_failed_and_is_found_by_its_words(tmp_path: Path):
    async with filled(tmp_path) as here:
        store, file_id = await ingested(here, "alpha")
        work = VectorWork(here.storage, Clock())
        batch = await work.take("m", wait_s=60)
        await work.fail(store, batch.ids)

        assert (await row(here, store, file_id))["error_code"] == "server_error"
        assert (await here.search(store, query="alpha")).passages
        assert await work.take("m", wait_s=0.01) is None


async def test_vectors_that_came_before_a_kill_are_counted_after_it(tmp_path: Path):
    async with filled(tmp_path) as here:
        store, file_id = await ingested(here, "alpha")
        [(id, _, _)] = await here.storage.writer.awaiting(store, 10)
        await here.storage.writer.put_vectors(store, [id], rows_of(1))  # and killed before the catalogue knew

    async with filled(tmp_path) as here:
        waiting = asyncio.create_task(VectorWork(here.storage, Clock()).take("m", wait_s=60))
        async with asyncio.timeout(60):
            while (await row(here, store, file_id))["status"] != "completed":  # noqa: ASYNC110  of the task's own pace
                await asyncio.sleep(0)
        waiting.cancel()


async def test_vectors_for_what_was_deleted_meanwhile_go_nowhere(tmp_path: Path):
    async with filled(tmp_path) as here:
        store, file_id = await ingested(here, "alpha")
        work = VectorWork(here.storage, Clock())
        batch = await work.take("m", wait_s=60)
        await here.storage.delete_store("acme", store)
        await work.put(store, batch.ids, rows_of(1))
        await work.fail(store, batch.ids)

        assert not here.storage.engine.path_of(store).exists()
        assert await here.storage.work(WorkList.stores_awaiting, "m") == []
        assert isinstance(here.storage, Storage) and file_id
