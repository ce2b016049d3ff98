"""What the tests of admission share: calls, and workers that nobody listens at."""

from itertools import count
from math import inf

from sluice.config import Queue
from sluice.policies.base import RoutingPolicy
from sluice.policies.least_inflight import LeastInflight
from sluice.pool import Pool
from sluice.types import Call, Endpoint, Tenant
from sluice.upstream.connections import Connections
from sluice.worker import EngineLoad, Worker

_numbers = count()


def a_call(
    tenant: str = "acme",
    user: str = "",
    *,
    tokens: int = 100,
    output_tokens: int = 0,
    priority: int = 0,
    weight: int = 1,
    deadline: float = inf,
    **members: object,
) -> Call:
    """A call of a tenant's person, so large, in order of arrival."""
    number = next(_numbers)
    whole: dict[str, object] = {
        "id": f"req-{number}",
        "tenant": Tenant(tenant, f"key_{tenant}", priority=priority, weight=weight),
        "route": "m",
        "endpoint": Endpoint.CHAT,
        "path": Endpoint.CHAT.value,
        "user": user,
        "prompt_tokens": tokens,
        "output_tokens": output_tokens,
        "started_at": float(number),
        "deadline": deadline,
    }
    return Call(**(whole | members))  # type: ignore[arg-type]


def a_worker(number: int = 1, window: float = inf) -> Worker:
    url = f"http://127.0.0.1:{number}"
    worker = Worker(url, Connections(url, connect_s=1))
    worker.judge(is_healthy=True)
    worker.window = window
    return worker


def a_pool(*workers: Worker, policy: RoutingPolicy | None = None) -> Pool:
    return Pool("m", workers, policy or LeastInflight(seed=1))


def load(running: int = 0, waiting: int = 0, *, kv: float = 0.0, at: float = 1.0) -> EngineLoad:
    return EngineLoad(running, waiting, waiting, kv, at)


def queue(**settings: object) -> Queue:
    return Queue.model_validate(settings)


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now
