"""Two real gateways on one real Redis, in front of a simulated fleet: the short form of `make limits-study`."""

import pytest

from loadtest.limits_study import crash, outage, plain
from tests.support.redis_server import find_redis

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(find_redis() is None, reason="NO redis-server HERE: limits over several gateways are not tested"),
]


async def test_what_two_gateways_admit_is_what_the_bucket_gave_to_the_call():
    found = await plain(2000, 16, 600)

    assert found["admitted"] == pytest.approx(found["given by the bucket"], abs=0.01)
    assert found["statuses"].keys() == {"200", "429 rate_limit_exceeded"}


@pytest.mark.parametrize("fail", ["open", "local", "closed"])
async def test_while_redis_is_killed_and_started_again_without_its_counters(fail: str):
    found = await outage(fail, 3000, 16, 600, away_s=0.5)

    assert found["too many besides"] <= found["at most"], found
    assert not any(status.startswith(("401", "5")) for status in found["statuses"]), found
    assert found["slowest_s"] < 10


async def test_a_gateway_that_is_killed_frees_its_places_within_half_a_minute():
    found = await crash()

    assert found["before"] == "429 rate_limit_exceeded" and found["after"] == "200"
    assert found["freed_s"] <= 31
