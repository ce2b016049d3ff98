"""The lines are vLLM 0.32's own, shortened."""

import pytest

from sluice.engines.vllm_log import VllmLog

START = """\
/engine/vllm/entrypoints/openai/api_server.py:51: DeprecationWarning: `api_server` is deprecated
(APIServer pid=7) INFO 11-21 23:47:00 [api_utils.py:286] non-default args: {'port': 1, 'model': '/m'}
(APIServer pid=7) WARNING 11-21 23:47:00 [system_utils.py:255] This can cause fd limit errors like `OSError: [Errno 24]`
(EngineCore pid=9) INFO 11-21 23:47:10 [core.py:133] Initializing a V1 LLM engine (v0.32.0) with config: model='/m'
(EngineCore pid=9) INFO 11-21 23:47:46 [cpu_model_runner.py:68] Starting to load model /m...
Loading safetensors checkpoint shards: 100% Completed | 1/1 [00:01<00:00,  1.13s/it]
(EngineCore pid=9) INFO 11-21 23:47:47 [default_loader.py:501] Loading weights took 1.14 seconds
(APIServer pid=7) INFO 11-21 23:47:56 [entry.py:140] Starting vLLM server on http://127.0.0.1:1
INFO:     Application startup complete.
"""
ENGINE_FAILED = """\
(EngineCore pid=9) ERROR 11-22 00:02:26 [core.py:1510] Traceback (most recent call last):
(EngineCore pid=9) ERROR 11-22 00:02:26 [core.py:1510]     raise ValueError(
(EngineCore pid=9) ERROR 11-22 00:02:26 [core.py:1510] ValueError: Available memory on node 0 is less than requested.
ValueError: Available memory on node 0 is less than requested.
    raise RuntimeError(
RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}
"""
PYDANTIC = """\
pydantic_core._pydantic_core.ValidationError: 1 validation error for ModelConfig
  Value error, User-specified max_model_len (99999) is greater than the derived max_model_len
    For further information visit https://errors.pydantic.dev/2.14/v/value_error
"""


@pytest.mark.parametrize(
    ("up_to", "stage"),
    [
        (1, "importing vLLM"),
        (2, "reading the model's configuration"),
        (4, "starting the engine"),
        (6, "loading the weights"),
        (7, "warming up"),
        (8, "opening its port"),
        (9, "ready"),
    ],
)
def test_the_stage_is_the_last_one_that_the_log_has_come_to(up_to: int, stage: str) -> None:
    assert VllmLog().stage("\n".join(START.splitlines()[:up_to])) == stage


@pytest.mark.parametrize(
    ("end", "reason"),
    [
        (ENGINE_FAILED, "ValueError: Available memory on node 0 is less than requested."),
        (PYDANTIC, "ValidationError: Value error, User-specified max_model_len (99999) is greater than the derived "
         "max_model_len"),
        ("api_server.py: error: unrecognized arguments: --nonsense\n", "unrecognized arguments: --nonsense"),
        ("OSError: [Errno 98] Address already in use\n", "OSError: [Errno 98] Address already in use"),
        ("safetensors._safetensors_rust.SafetensorError: incomplete\n", "SafetensorError: incomplete"),
        ("KeyboardInterrupt: \n", "KeyboardInterrupt"),
        ("", "INFO:     Application startup complete."),
    ],
)  # fmt: skip
def test_the_reason_is_the_first_exception_and_not_what_it_led_to(end: str, reason: str) -> None:
    assert VllmLog().reason(START + end) == reason


def test_an_error_of_long_ago_is_not_the_reason() -> None:
    assert VllmLog().reason("ValueError: a bad request\n" + "INFO: fine\n" * 400 + "Segmentation fault\n") == (
        "Segmentation fault"
    )


@pytest.mark.parametrize("text", ["", "\n \n"])
def test_an_empty_log_is_said_to_be_empty(text: str) -> None:
    assert VllmLog().reason(text) == "it wrote nothing"


def test_a_reason_is_a_line_of_bounded_length() -> None:
    assert len(VllmLog().reason(f"ValueError: {'x' * 10_000}\n")) == 300
