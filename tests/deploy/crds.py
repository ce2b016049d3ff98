"""What the definitions of other operators' kinds admit, as far as the chart uses them: an unknown member is refused.

kubernetes-validate knows Kubernetes' own kinds alone, and lets others pass with a warning.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Strings = dict[str, str]
Duration = Annotated[str, Field(pattern=r"^([0-9]+(ms|s|m|h|d))+$")]
HttpRouteDuration = Annotated[str, Field(pattern=r"^([0-9]{1,5}(h|m|s|ms)){1,4}$")]
NamespacedName = Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", max_length=253)]


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Metadata(Strict):
    name: NamespacedName
    namespace: NamespacedName
    labels: Strings = {}
    annotations: Strings = {}


class Kind(Strict):
    apiVersion: str
    kind: str
    metadata: Metadata


class Selector(Strict):
    matchLabels: Strings = {}


class Relabeling(Strict):
    action: Literal["replace", "keep", "drop", "labelmap", "labeldrop", "labelkeep"] = "replace"
    targetLabel: str | None = None
    replacement: str | None = None
    sourceLabels: list[str] = []
    regex: str | None = None


class Endpoint(Strict):
    port: str
    path: str = "/metrics"
    interval: Duration | None = None
    relabelings: list[Relabeling] = []


class ServiceMonitorSpec(Strict):
    selector: Selector
    jobLabel: str | None = None
    endpoints: Annotated[list[Endpoint], Field(min_length=1)]


class ServiceMonitor(Kind):
    spec: ServiceMonitorSpec


class PodMonitorSpec(Strict):
    selector: Selector
    podMetricsEndpoints: Annotated[list[Endpoint], Field(min_length=1)]


class PodMonitor(Kind):
    spec: PodMonitorSpec


class Rule(BaseModel):
    model_config = ConfigDict(extra="forbid")
    alert: str
    expr: str
    for_: Annotated[Duration, Field(alias="for")] = "0s"
    labels: Strings = {}
    annotations: Strings = {}


class RuleGroup(Strict):
    name: str
    rules: list[Rule]


class PrometheusRuleSpec(Strict):
    groups: list[RuleGroup]


class PrometheusRule(Kind):
    spec: PrometheusRuleSpec


class ScaleTarget(Strict):
    apiVersion: str
    kind: Literal["Deployment", "StatefulSet"]
    name: NamespacedName


class Fallback(Strict):
    failureThreshold: int
    replicas: int


class HpaConfig(Strict):
    behavior: dict[str, Any]


class Advanced(Strict):
    horizontalPodAutoscalerConfig: HpaConfig


class Trigger(Strict):
    type: Literal["prometheus"]
    metricType: Literal["AverageValue"]  # with another one KEDA refuses a fallback
    metadata: Strings


class ScaledObjectSpec(Strict):
    scaleTargetRef: ScaleTarget
    minReplicaCount: int
    maxReplicaCount: int
    cooldownPeriod: int = 300
    fallback: Fallback
    advanced: Advanced
    triggers: Annotated[list[Trigger], Field(min_length=1)]


class ScaledObject(Kind):
    spec: ScaledObjectSpec


class ParentRef(Strict):
    name: NamespacedName
    namespace: NamespacedName | None = None
    sectionName: str | None = None


class PathMatch(Strict):
    type: Literal["PathPrefix", "Exact", "RegularExpression"]
    value: Annotated[str, Field(pattern="^/")]  # a rule of the API server, not of the schema


class Match(Strict):
    path: PathMatch


class RouteTimeouts(Strict):
    request: HttpRouteDuration
    backendRequest: HttpRouteDuration


class BackendRef(Strict):
    name: NamespacedName
    port: Annotated[int, Field(ge=1, le=65535)]


class RouteRule(Strict):
    matches: list[Match]
    timeouts: RouteTimeouts
    backendRefs: list[BackendRef]


class HTTPRouteSpec(Strict):
    parentRefs: Annotated[list[ParentRef], Field(min_length=1)]
    hostnames: list[str] = []
    rules: list[RouteRule]


class HTTPRoute(Kind):
    spec: HTTPRouteSpec


KINDS: dict[tuple[str, str], type[Kind]] = {
    ("monitoring.coreos.com/v1", "ServiceMonitor"): ServiceMonitor,
    ("monitoring.coreos.com/v1", "PodMonitor"): PodMonitor,
    ("monitoring.coreos.com/v1", "PrometheusRule"): PrometheusRule,
    ("keda.sh/v1alpha1", "ScaledObject"): ScaledObject,
    ("gateway.networking.k8s.io/v1", "HTTPRoute"): HTTPRoute,
}
