"""A recorded trace in front of a gateway, for locust; arrivals are the trace's, whatever the gateway does (an open loop):

    locust -f loadtest/replay.py --host http://127.0.0.1:8000 --headless -u 1 --key sk-... --model sim \\
        --trace mooncake_conversation.jsonl --trace-speed 10 --trace-scale 0.1 --report out.html
"""

import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # locust puts this folder there, and `loadtest` is above it

import gevent
from locust import events, task
from locust.exception import StopUser
from locust.runners import WorkerRunner

from loadtest.users import options
from loadtest.users.people import Person
from loadtest.users.protocol import Client
from loadtest.users.session import install
from loadtest.users.trace import Arrival, read_trace


class TraceUser(Person):
    """Sends the whole trace; locust's number of users is 1, and each call has a connection of its own."""

    fixed_count = 1

    @task
    def replay(self) -> None:
        asked = self.options
        if not asked.trace:
            raise SystemExit("--trace FILE is needed: Mooncake's .jsonl or Azure's .csv")
        calls = []
        began = time.perf_counter()
        for arrival in read_trace(Path(asked.trace))[: asked.trace_limit]:
            gevent.sleep(max(0.0, arrival.at_s / asked.trace_speed - (time.perf_counter() - began)))
            calls.append(gevent.spawn(self.send, arrival))
        gevent.joinall(calls)
        if not isinstance(self.environment.runner, WorkerRunner):
            self.environment.runner.quit()
        raise StopUser

    def send(self, arrival: Arrival) -> None:
        scale = self.options.trace_scale
        max_tokens = max(1, int(arrival.answer_tokens * scale))
        body = self.ask({"role": "user", "content": arrival.text(scale)}, max_tokens=max_tokens, ignore_eos=False)
        client = Client(self.environment.host, self.key(), timeout_s=self.options.timeout_s)
        try:
            sample = client.stream(type(self).__name__, body, self.samples.started_at)
        finally:
            client.close()
        self.tell(sample, "/v1/chat/completions (trace)")


install()
events.init_command_line_parser.add_listener(options.add_trace_to)
