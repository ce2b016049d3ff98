"""People and apps in front of an OpenAI-compatible gateway, for locust:

    locust -f loadtest/locustfile.py --host http://127.0.0.1:8000 --key sk-... --model smollm2
    locust -f loadtest/locustfile.py --host ... --headless -u 50 -r 5 -t 2m --slo 'ttft_p95_ms<=2000' --report out.html
    locust -f loadtest/locustfile.py,loadtest/shapes/spike.py --host ...     # a load that changes
    locust -f loadtest/locustfile.py --host ... StreamUser ChatUser         # these alone

For a recorded trace see loadtest/replay.py.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # locust puts this folder there, and `loadtest` is above it

from loadtest.users.people import (
    AbusiveUser,
    ChatUser,
    ConversationUser,
    EmbeddingsUser,
    LeavingUser,
    LongPromptUser,
    RagUser,
    StreamUser,
)
from loadtest.users.session import install

__all__ = [
    "AbusiveUser",
    "ChatUser",
    "ConversationUser",
    "EmbeddingsUser",
    "LeavingUser",
    "LongPromptUser",
    "RagUser",
    "StreamUser",
]

install()
