"""A tenth of `-u` users, all of them in the middle third of `-t`, and a tenth again: is it as quick afterwards as before?"""

from __future__ import annotations

from locust import LoadTestShape


class Spike(LoadTestShape):
    use_common_options = True

    def tick(self) -> tuple[int, float] | None:
        asked = self.runner.environment.parsed_options  # type: ignore[union-attr]
        took_s, whole_s = self.get_run_time(), asked.run_time or 300
        if took_s > whole_s:
            return None
        users = max(1, asked.num_users or 10)
        is_spike = whole_s / 3 <= took_s < whole_s * 2 / 3
        return (users if is_spike else max(1, users // 10)), float(users)
