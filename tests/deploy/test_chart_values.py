"""Bad values are refused, with a sentence that says what to do."""

import pytest

from tests.deploy.tools import CHART, template

VALUES = CHART / "ci/default-values.yaml"

# What is set, and what the sentence has in it.
REFUSED = [
    ("gateway.replicaCount=two", "got string, want integer"),
    ("gateway.replicaCount=0", "minimum: got 0, want 1"),
    ("gateway.replicas=3", "additional properties 'replicas' not allowed"),
    ("gatway.replicaCount=3", "additional properties 'gatway' not allowed"),
    ("limits.store=memory", "redis: limits in memory are those of one gateway, and need gateway.replicaCount 1"),
    ("gateway.replicaCount=1,gateway.autoscaling.type=hpa,limits.store=memory", "redis: limits in memory are those of one"),
    ("limits.store=postgres", "value must be one of 'redis', 'memory'"),
    ("redis.enabled=false", "limits.store is redis, and there is none: set redis.enabled or redis.external.url"),
    ("redis.enabled=false,redis.external.url=redis://me:secret@host:6379/0", "does not match pattern"),
    ("gateway.auth.existingSecret=", "make a keys file with `sluice key new`"),
    ("gateway.auth.mode=none", "value must be one of 'keys', 'open'"),
    ("gateway.image.tag=latest", "'not' failed"),
    ("gateway.image.digest=sha256:abc", "does not match pattern"),
    ("gateway.ports.metrics=8000", "gateway.ports.http and gateway.ports.metrics are the same port"),
    ("gateway.ports.http=70000", "maximum: got 70,000, want 65,535"),
    ("gateway.terminationGracePeriodSeconds=60", "the pod waits 10 s and then drains for up to 120 s"),
    ("gateway.service.type=ExternalName", "value must be one of 'ClusterIP', 'NodePort', 'LoadBalancer'"),
    ("gateway.autoscaling.type=keda", "set monitoring.prometheusAddress"),
    ("gateway.autoscaling.minReplicas=11", "gateway.autoscaling.minReplicas is more than maxReplicas"),
    ("gateway.httpRoute.enabled=true", "needs gateway.httpRoute.parentRefs"),
    ("gateway.ingress.tls[0].hosts[0]=a.example", "gateway.ingress.tls is set and gateway.ingress.enabled is not"),
    ("gateway.resources.limit.memory=1Gi", "additional properties 'limit' not allowed"),
    ("gateway.probes.liveness.periodSecond=1", "additional properties 'periodSecond' not allowed"),
    ("gateway.config.server.metrics_port=9090", "gateway.config.server.metrics_port: the chart sets it from gateway.ports"),
    ("models.llama.model=", "models.llama.model is empty: name a model at Hugging Face, or a path in the pod"),
    ("models.Llama.model=x", "does not match pattern"),
    ("models.llama.vllm.tensorParallel=2", "additional properties 'tensorParallel' not allowed"),
    ("models.llama.vllm.gpuMemoryUtilization=2", "maximum: got 2, want 1"),
    ("models.llama.vllm.dtype=int3", "value must be one of"),
    ("models.llama.cache.type=hostPath", "value must be one of 'pvc', 'existingClaim', 'emptyDir'"),
    ("models.llama.cache.type=existingClaim", "models.llama.cache.existingClaim is empty"),
    (
        "models.llama.replicas=2",
        "cannot share a volume that is ReadWriteOnce: use kind: StatefulSet",
    ),
    ("models.llama.strategy.maxSurge=1", "the new worker would wait for the volume of the old one for ever"),
    ("models.llama.strategy.maxUnavailable=0", "maxSurge and maxUnavailable are both 0, so it could never be rolled"),
    ("models.llama.terminationGracePeriodSeconds=30", "models.llama.terminationGracePeriodSeconds: 30 s are too few"),
    ("models.llama.route.cache_salt=tenant", "responses_store and cache_salt need gateway.secret.existingSecret"),
    ("models.llama.vllm.loraModules.sql=/sql", "models.llama.vllm.loraModules needs vllm.enableLora"),
    ("models.llama.autoscaling.enabled=true,models.llama.kind=StatefulSet", "models.llama.autoscaling asks Prometheus"),
    ("models.llama.extraArgs[0]=--api-key=abc", "models.llama.extraArgs: --api-key is set by the chart"),
    ("models.other.model=x,models.other.aliases[0]=llama", 'the name "llama" belongs to models.llama already'),
    ("models.llama.enabled=false", "there is nothing to serve: name a model under `models`"),
    ("tracing.enabled=true", "tracing.enabled needs tracing.otlpEndpoint"),
    ("tracing.sampleRatio=2", "maximum: got 2, want 1"),
    ("monitoring.interval=fast", "does not match pattern"),
    ("monitoring.prometheusRule.enabled=true,monitoring.prometheusRule.overrides.Gone.for=5m", "there is no alert Gone"),
    ("redis.external.existingSecret=x", "is the password of redis.external.url, which is empty"),
    ("retrieval.enabled=true", "retrieval.existingSecret is empty: `kubectl create secret generic"),
    ("gateway.config.retrieval.path=/tmp", "gateway.config.retrieval.path: the chart sets it"),
    ("retrieval.persistence.size=big", "does not match pattern"),
]


@pytest.mark.parametrize("helm", ["helm", "helm3"])
@pytest.mark.parametrize(("setting", "sentence"), REFUSED, ids=[setting for setting, _ in REFUSED])
def test_a_bad_value_is_refused_with_a_sentence(setting: str, sentence: str, helm: str) -> None:
    done = template("--values", str(VALUES), "--set", setting, helm=helm)
    assert done.returncode != 0
    assert sentence in done.stderr
