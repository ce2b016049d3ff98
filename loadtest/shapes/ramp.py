"""More and more users, up to `-u`, over the whole `-t`: where does it begin to hurt?"""

from __future__ import annotations

from locust import LoadTestShape

STEPS = 20


class Ramp(LoadTestShape):
    use_common_options = True

    def tick(self) -> tuple[int, float] | None:
        asked = self.runner.environment.parsed_options  # type: ignore[union-attr]
        took_s, whole_s = self.get_run_time(), asked.run_time or 600
        if took_s > whole_s:
            return None
        users = max(1, asked.num_users or 10)
        step = min(STEPS, int(took_s / whole_s * STEPS) + 1)
        return max(1, users * step // STEPS), max(1.0, users / STEPS)
