"""The gateway reads what the chart renders: its own loader takes the ConfigMap, for every kind of site."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from sluice.config import ConfigError, Settings, load
from tests.deploy.tools import CI_VALUES, ROOT, Object, container, default, named, objects, of_ci, one, run

BY_NAME = pytest.mark.parametrize("values", CI_VALUES, ids=lambda path: path.stem.removesuffix("-values"))
FULL = str(next(path for path in CI_VALUES if path.stem == "full-values"))


def settings_of(found: list[Object], folder: Path) -> Settings:
    [config] = [each for each in found if each["kind"] == "ConfigMap" and "sluice.yaml" in (each.get("data") or {})]
    [name] = [name for kind, name in map(named, found) if kind == "Deployment" and name.endswith("-gateway")]
    file = folder / "sluice.yaml"
    file.write_text(config["data"]["sluice.yaml"])
    return load(file, {variable["name"]: "set" for variable in container(found, "Deployment", name)["env"]})


@BY_NAME
def test_the_gateway_accepts_the_rendered_configuration(values: Path, tmp_path: Path) -> None:
    if values.stem == "existing-everything-values":
        assert not [each for each in of_ci(values) if "sluice.yaml" in (each.get("data") or {})]
        return
    settings = settings_of(of_ci(values), tmp_path)
    assert settings.server.host == "0.0.0.0"
    assert settings.drain_timeout_s == 120


def test_a_mistake_in_what_is_passed_through_is_the_gateways_own_sentence(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="client_timeouts"):
        settings_of(default("--set=gateway.config.client_timeouts.header=5"), tmp_path)


def test_every_member_of_a_model_that_clients_see_reaches_its_route(tmp_path: Path) -> None:
    route = settings_of(objects("--values", FULL), tmp_path).routes["llama"]
    assert route.aliases == ("gpt-4o-mini", "default")
    assert route.adapters == ("sql",)
    assert route.max_retries == 3
    assert route.timeouts.first_event_s == 120
    assert route.workers.api_key_env == "SLUICE_WORKER_KEY_LLAMA"
    assert route.workers.kubernetes is not None
    assert (route.workers.kubernetes.service, route.workers.kubernetes.port_name) == ("ai-llama-worker", "http")
    assert (route.workers.kv_events, route.workers.kv_events_port) == (True, 5557)


def test_what_the_gateway_discovers_is_a_service_of_the_chart(tmp_path: Path) -> None:
    services = {name for kind, name in map(named, default()) if kind == "Service"}
    kubernetes = settings_of(default(), tmp_path).routes["llama"].workers.kubernetes
    dns = settings_of(default("--set=gateway.discovery=dns"), tmp_path).routes["llama"].workers.dns
    assert kubernetes is not None and kubernetes.service in services
    assert dns is not None and (dns.name, dns.port) == (f"{kubernetes.service}.prod.svc", 8000)


def test_gateways_count_each_other_and_a_single_one_does_not(tmp_path: Path) -> None:
    replicas = settings_of(default(), tmp_path).replicas
    assert replicas.dns == "r-gateway-metrics.prod.svc"
    assert one(default(), "Service", "r-gateway-metrics")["spec"]["clusterIP"] == "None"
    assert settings_of(default("--set=gateway.replicaCount=1"), tmp_path).replicas.dns is None


def test_limits_are_counted_where_the_values_say(tmp_path: Path) -> None:
    assert settings_of(default(), tmp_path).limits.store == "redis://r-redis.prod.svc:6379/0"
    assert one(default(), "Service", "r-redis")["spec"]["ports"][0]["port"] == 6379
    alone = ("--set=gateway.replicaCount=1", "--set=limits.store=memory")
    assert settings_of(default(*alone), tmp_path).limits.store == "memory"
    assert not [name for kind, name in map(named, default(*alone)) if name == "r-redis"]
    external = "redis.external.url=rediss://redis.example:6380/2,redis.external.username=me,redis.external.existingSecret=s"
    found = default(f"--set={external}")
    limits = settings_of(found, tmp_path).limits
    assert (limits.store, limits.store_username) == ("rediss://redis.example:6380/2", "me")
    assert limits.store_password_env == "SLUICE_REDIS_PASSWORD"
    assert not [name for kind, name in map(named, found) if name == "r-redis"]
    ports = [port["port"] for rule in one(found, "NetworkPolicy", "r-gateway")["spec"]["egress"] for port in rule["ports"]]
    assert 6380 in ports
    assert settings_of(objects("--values", FULL), tmp_path).limits.tenants["research"].rpm == 6000


def test_gateways_and_the_retrieval_store_find_each_other(tmp_path: Path) -> None:
    found = objects("--values", FULL)
    retrieval = settings_of(found, tmp_path).retrieval
    assert (retrieval.url, retrieval.token_env) == ("http://ai-retrieval.prod.svc:8010", "SLUICE_RETRIEVAL_TOKEN")
    assert (retrieval.host, retrieval.port, str(retrieval.path)) == ("0.0.0.0", 8010, "/data")
    assert retrieval.embedding_route == "embeddings"
    store = container(found, "StatefulSet", "ai-retrieval")
    assert store["args"] == ["retrieval", "--config", "/etc/sluice/config/sluice.yaml"]
    assert {"name": "data", "mountPath": "/data"} in store["volumeMounts"]
    assert "SLUICE_RETRIEVAL_TOKEN" in [variable["name"] for variable in store["env"]]
    assert settings_of(default(), tmp_path).retrieval.store is None, "a gateway has no disk to keep files on"


def test_traces_go_where_the_values_say(tmp_path: Path) -> None:
    found = objects("--values", FULL)
    tracing = settings_of(found, tmp_path).tracing
    assert (str(tracing.endpoint), tracing.sample_ratio) == ("http://collector.monitoring:4318/v1/traces", 0.5)
    assert (
        "--otlp-traces-endpoint=http://collector.monitoring:4318/v1/traces"
        in container(found, "StatefulSet", "ai-llama-worker")["args"]
    )


def test_gateways_have_one_secret_and_hold_less_than_their_memory(tmp_path: Path) -> None:
    settings = settings_of(objects("--values", FULL), tmp_path)
    assert settings.server.secret_env == "SLUICE_SECRET"
    assert settings.routes["llama"].cache_salt == "tenant"
    limit = container(objects("--values", FULL), "Deployment", "ai-gateway")["resources"]["limits"]["memory"]
    assert limit == "1Gi" and settings.server.max_buffered_bytes <= 2**30 / 2


def test_the_key_of_the_workers_comes_from_the_same_secret_on_both_sides() -> None:
    found = objects("--values", FULL)
    wanted = {"secretKeyRef": {"name": "worker-key", "key": "api-key"}}
    for each in (container(found, "Deployment", "ai-gateway"), container(found, "StatefulSet", "ai-llama-worker")):
        secrets = {variable["name"]: variable["valueFrom"] for variable in each["env"] if "valueFrom" in variable}
        assert wanted == secrets.get("SLUICE_WORKER_KEY_LLAMA", secrets.get("VLLM_API_KEY"))


def arguments_of(values: dict[str, Any]) -> list[str]:
    found = default(f"--set-json=models.llama={json.dumps(values)}")
    return list(container(found, "Deployment", "r-llama-worker")["args"])


EVERY_FLAG = {
    **{"runner": "pooling", "tensorParallelSize": 4, "pipelineParallelSize": 2, "maxModelLen": 1048576, "maxNumSeqs": 64},
    **{
        "maxNumQueuedReqs": 96,
        "gpuMemoryUtilization": 0.92,
        "dtype": "bfloat16",
        "quantization": "fp8",
        "kvCacheDtype": "fp8",
    },
    **{"enforceEager": True, "trustRemoteCode": True, "enableLora": True, "maxLoras": 4, "maxLoraRank": 64},
    **{"loraModules": {"sql": "/sql", "code": "/code"}, "toolCallParser": "hermes", "reasoningParser": "qwen3"},
    **{
        "schedulingPolicy": "priority",
        "kvEvents": True,
        "kvTransferConfig": {"kv_connector": "NixlConnector", "kv_role": "kv_both"},
    },
}


def every_argument() -> list[str]:
    return arguments_of({"model": "a/b", "revision": "main", "vllm": EVERY_FLAG, "extraArgs": ["--seed=1"]})


def test_every_typed_value_becomes_a_flag() -> None:
    arguments = every_argument()
    assert arguments[0] == "a/b"
    assert set(arguments[1:]) == {
        *("--host=0.0.0.0", "--port=8000", "--served-model-name=llama", "--shutdown-timeout=300", "--disable-fastapi-docs"),
        *("--disable-access-log-for-endpoints=/health,/metrics,/metrics/", "--revision=main", "--runner=pooling"),
        *("--tensor-parallel-size=4", "--pipeline-parallel-size=2", "--max-model-len=1048576", "--max-num-seqs=64"),
        *("--max-num-queued-reqs=96", "--gpu-memory-utilization=0.92", "--dtype=bfloat16", "--quantization=fp8"),
        *("--kv-cache-dtype=fp8", "--enforce-eager", "--trust-remote-code", "--enable-lora", "--max-loras=4"),
        *("--max-lora-rank=64", "--lora-modules", "sql=/sql", "code=/code", "--tool-call-parser=hermes"),
        *("--enable-auto-tool-choice", "--reasoning-parser=qwen3", "--scheduling-policy=priority", "--seed=1"),
        *("--enable-prompt-tokens-details", "--enable-per-request-metrics"),
        '--kv-events-config={"enable_kv_cache_events":true,"endpoint":"tcp://*:5557","publisher":"zmq","topic":"kv"}',
        '--kv-transfer-config={"kv_connector":"NixlConnector","kv_role":"kv_both"}',
    }


def test_vllm_itself_takes_every_argument_that_the_chart_can_give_it() -> None:
    """With the parser of the vLLM that `make engine` installs; nothing is loaded."""
    python = ROOT / ".venv-engine/bin/python"
    if not python.exists():
        pytest.skip("THERE IS NO vLLM HERE: `make engine` installs it")
    script = (
        "import sys\n"
        "from vllm.entrypoints.launchers.cli_args import make_arg_parser\n"
        "from vllm.utils.argparse_utils import FlexibleArgumentParser\n"
        "found = make_arg_parser(FlexibleArgumentParser()).parse_args(sys.argv[1:])\n"
        "print(found.model_tag, found.tensor_parallel_size, found.shutdown_timeout)\n"
    )
    done = run(python, "-c", script, *every_argument(), "--otlp-traces-endpoint=http://c:4318/v1/traces")
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.splitlines()[-1] == "a/b 4 300"


def test_the_simulated_worker_takes_the_arguments_that_the_chart_gives_it() -> None:
    values = next(path for path in CI_VALUES if path.stem == "cpu-dev-values")
    worker = container(of_ci(values), "Deployment", "r-sim-worker")
    arguments = [argument.replace("$(VLLM_API_KEY)", "k") for argument in worker["args"]]
    done = run(sys.executable, "-m", "loadtest.simfleet", *arguments, "--fault=kind=nonsense", cwd=ROOT)
    assert "unrecognized arguments" not in done.stderr
    assert "nonsense" in done.stderr, "it got as far as the fault, which is no fault"


def test_gpus_are_asked_for_by_the_parallelism() -> None:
    found = default("--set=models.llama.vllm.tensorParallelSize=4,models.llama.vllm.pipelineParallelSize=2")
    worker = container(found, "Deployment", "r-llama-worker")
    assert worker["resources"]["requests"]["nvidia.com/gpu"] == 8
    assert worker["resources"]["limits"]["nvidia.com/gpu"] == 8


def test_a_loading_worker_is_given_its_time() -> None:
    found = default("--set=models.llama.startup.timeoutSeconds=3595")
    worker = container(found, "Deployment", "r-llama-worker")
    assert worker["startupProbe"]["periodSeconds"] * worker["startupProbe"]["failureThreshold"] == 3600


def test_what_vllm_writes_goes_to_volumes() -> None:
    worker = container(default(), "Deployment", "r-llama-worker")
    environment = {each["name"]: each["value"] for each in worker["env"]}
    mounted = [mount["mountPath"] for mount in worker["volumeMounts"]]
    folders = {name: value for name, value in environment.items() if value.startswith("/")}
    assert {"HOME", "TMPDIR", "HF_HOME", "VLLM_CACHE_ROOT", "TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR"} <= set(folders)
    assert all(value.startswith(tuple(mounted)) for value in folders.values())
