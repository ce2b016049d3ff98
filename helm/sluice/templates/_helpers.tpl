{{/* Names, labels and images. Object names are at most 52 characters, so that pods and their labels fit into 63. */}}

{{- define "sluice.fullname" -}}
{{- default .Release.Name .Values.fullnameOverride -}}
{{- end -}}

{{/* (list $ "gateway"): the release's name and a suffix; cut, and made unique again, where it is too long. */}}
{{- define "sluice.name" -}}
{{- $name := printf "%s-%s" (include "sluice.fullname" (first .)) (last .) -}}
{{- if gt (len $name) 52 -}}
{{- $name = printf "%s-%s" (trunc 43 $name | trimSuffix "-") (sha256sum $name | trunc 8) -}}
{{- end -}}
{{- $name -}}
{{- end -}}

{{/* (list $ "gateway" ["model"]): what selects the pods of a component. Never changes between versions of the chart. */}}
{{- define "sluice.selector" -}}
app.kubernetes.io/name: sluice
app.kubernetes.io/instance: {{ (first .).Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- if and (gt (len .) 2) (index . 2) }}
sluice/model: {{ index . 2 }}
{{- end }}
{{- end -}}

{{/* (list $ "gateway" ["model" [annotations]]): metadata of an object but for its name. */}}
{{- define "sluice.metadata" -}}
{{- $root := first . -}}
namespace: {{ $root.Release.Namespace }}
labels:
  {{- include "sluice.selector" . | nindent 2 }}
  app.kubernetes.io/version: {{ $root.Chart.AppVersion | quote }}
  app.kubernetes.io/managed-by: {{ $root.Release.Service }}
  helm.sh/chart: {{ printf "%s-%s" $root.Chart.Name $root.Chart.Version | replace "+" "_" }}
  {{- with $root.Values.global.labels }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- $own := dict -}}
{{- if gt (len .) 3 }}{{- $own = index . 3 -}}{{- end }}
{{- with merge (deepCopy $own) $root.Values.global.annotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* (list $ image): the reference; a digest wins, and a repository that begins with a host keeps it. */}}
{{- define "sluice.image" -}}
{{- $root := first . -}}
{{- $image := last . -}}
{{- $repository := $image.repository -}}
{{- if and $root.Values.global.imageRegistry (not (regexMatch "^([^/]+[.:][^/]*|localhost)/" $repository)) -}}
{{- $repository = printf "%s/%s" $root.Values.global.imageRegistry $repository -}}
{{- end -}}
{{- if $image.digest -}}
{{- printf "%s@%s" $repository $image.digest -}}
{{- else -}}
{{- printf "%s:%s" $repository (default $root.Chart.AppVersion $image.tag) -}}
{{- end -}}
{{- end -}}

{{/* What a model is called by clients: (list key model). */}}
{{- define "sluice.served" -}}
{{- default (first .) (last .).servedModelName -}}
{{- end -}}

{{/* The models that run, with the defaults under them, as JSON by key. */}}
{{- define "sluice.models" -}}
{{- $models := dict -}}
{{- range $key, $own := .Values.models -}}
{{- $model := mergeOverwrite (deepCopy $.Values.modelDefaults) (deepCopy ($own | default dict)) -}}
{{- if $model.enabled -}}
{{- $_ := set $models $key $model -}}
{{- end -}}
{{- end -}}
{{- toJson $models -}}
{{- end -}}

{{- define "sluice.serviceAccount" -}}
{{- if .Values.gateway.serviceAccount.create -}}
{{- default (include "sluice.name" (list . "gateway")) .Values.gateway.serviceAccount.name -}}
{{- else -}}
{{- default "default" .Values.gateway.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{/* Whether the gateway follows EndpointSlices: then, and only then, it has a token. */}}
{{- define "sluice.usesApiServer" -}}
{{- if and (eq .Values.gateway.discovery "kubernetes") .Values.models -}}true{{- end -}}
{{- end -}}

{{- define "sluice.runsRedis" -}}
{{- if and .Values.redis.enabled (eq .Values.limits.store "redis") (not .Values.redis.external.url) -}}true{{- end -}}
{{- end -}}

{{/* (list $ "serviceMonitor" "monitoring.coreos.com/v1"): whether it is wanted; an API that is not there is told. */}}
{{- define "sluice.wants" -}}
{{- $root := first . -}}
{{- $what := index . 1 -}}
{{- if or $root.Values.monitoring.enabled (index $root.Values.monitoring $what).enabled -}}
{{- if and (gt (len .) 2) (not ($root.Capabilities.APIVersions.Has (index . 2))) -}}
{{- fail (printf "monitoring.%s needs the API %s, which this cluster does not have: install the Prometheus operator, or turn it off (with `helm template`, add --api-versions %s)" $what (index . 2) (index . 2)) -}}
{{- end -}}
true
{{- end -}}
{{- end -}}
