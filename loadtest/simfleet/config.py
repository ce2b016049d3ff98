"""What is set once for a worker; vLLM's flags under vLLM's names."""

from dataclasses import dataclass, field

from loadtest.simfleet.profile import Profile

VERSION = "0.32.0"
FINGERPRINT = f"vllm-{VERSION}-simfleet"


@dataclass(frozen=True)
class WorkerConfig:
    """One worker's configuration. Times in seconds of the worker, that is before time warp, but for `keep_alive_s`."""

    profile: Profile
    served_model_name: tuple[str, ...] = ("sim",)
    api_key: str | None = None
    max_num_queued_reqs: int | None = None
    max_num_queued_tokens: int | None = None
    max_loras: int = 4
    stream_interval: int = 1
    shutdown_timeout_s: float = 0.0
    enable_prompt_tokens_details: bool = True
    enable_per_request_metrics: bool = False
    enable_force_include_usage: bool = False
    enable_server_load_tracking: bool = False
    enable_auto_tool_choice: bool = True  # tools are accepted; the answer is text nevertheless

    # Not vLLM's
    trim_template: bool = False  # the chat template strips the content of messages, as Llama-3's does
    old_kv_names: bool = False  # metrics under the names of older versions too
    embedding_dimensions: int = 384
    keep_alive_s: float = 5.0  # VLLM_HTTP_TIMEOUT_KEEP_ALIVE, on the wall clock
    lora_modules: dict[str, str] = field(default_factory=dict)  # adapters loaded at the start: name -> path

    @property
    def model_name(self) -> str:
        return self.served_model_name[0]
