"""`-u` users for long (`-t`, an hour by default), with a pause of a tenth of it in which all leave: does anything grow, and
does it come back down?"""

from __future__ import annotations

from locust import LoadTestShape


class Soak(LoadTestShape):
    use_common_options = True

    def tick(self) -> tuple[int, float] | None:
        asked = self.runner.environment.parsed_options  # type: ignore[union-attr]
        took_s, whole_s = self.get_run_time(), asked.run_time or 3600
        if took_s > whole_s:
            return None
        users = max(1, asked.num_users or 10)
        return (0 if 0.8 * whole_s <= took_s < 0.9 * whole_s else users), max(1.0, users / 10)
