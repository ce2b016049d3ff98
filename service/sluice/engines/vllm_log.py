"""What vLLM's log says: how far a start has come, and why a process ended. Read off vLLM 0.32."""

import re
from itertools import pairwise

# "(EngineCore pid=1) ERROR 11-22 00:02:26 [core.py:1510] ", before each line of what the process logs.
PREFIX = re.compile(r"^\(\w[\w -]* pid=\d+\) (?:[A-Z]+ [\d-]+ [\d:]+ \[[^]]*\] ?)?")
FAILURE = re.compile(r"^(?:[\w.]+\.)?(\w*(?:Error|Exception|Interrupt)): *(.*)")
# A wrong flag: argparse names the program first.
USAGE = re.compile(r"^\S+: error: (.*)")
# Says only that something else failed, which stands above it.
CONSEQUENCES = ("Engine core initialization failed", "EngineCore encountered an issue", "Cancelled")
REASON_LINES = 400
MAX_REASON_CHARS = 300

STAGES = (
    ("Application startup complete", "ready"),
    ("Starting vLLM server", "opening its port"),
    ("Loading weights took", "warming up"),
    ("Starting to load model", "loading the weights"),
    ("Initializing a V1 LLM engine", "starting the engine"),
    ("non-default args", "reading the model's configuration"),
)


class VllmLog:
    """The reader for `Job`s that run vLLM."""

    def stage(self, text: str) -> str:
        return next((stage for sign, stage in STAGES if sign in text), "importing vLLM")

    def reason(self, text: str) -> str:
        """The first exception among the last lines: the ones after it are what it led to."""
        lines = [PREFIX.sub("", line).rstrip() for line in text.splitlines()[-REASON_LINES:]]
        for line, following in pairwise([*lines, ""]):
            if (usage := USAGE.match(line)) is not None:
                return usage[1][:MAX_REASON_CHARS]
            found = FAILURE.match(line)
            if found is None or found[2].startswith(CONSEQUENCES):
                continue
            # Pydantic counts the errors in the first line and names them below.
            said = following.strip() if "validation error" in found[2] else found[2]
            return f"{found[1]}: {said}".removesuffix(": ")[:MAX_REASON_CHARS]
        return next((line for line in reversed(lines) if line), "it wrote nothing")[:MAX_REASON_CHARS]
