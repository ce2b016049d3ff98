{{/* What all pods have in common: everything that Pod Security "restricted" asks for, and a root that cannot be written. */}}

{{/* (list $ uid): of the pod. */}}
{{- define "sluice.podSecurity" -}}
runAsNonRoot: true
{{- if not (first .).Values.openshift.enabled }}
runAsUser: {{ last . }}
runAsGroup: {{ last . }}
fsGroup: {{ last . }}
fsGroupChangePolicy: OnRootMismatch
{{- end }}
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{/* Of each container. */}}
{{- define "sluice.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
runAsNonRoot: true
capabilities:
  drop: [ALL]
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{/* (list $ settings): where the pods may run. */}}
{{- define "sluice.placement" -}}
{{- $settings := last . -}}
{{- with (first .).Values.global.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $settings.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $settings.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $settings.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $settings.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- end -}}

{{/* (list $ seconds): a wait before SIGTERM. The native one needs no program in the image, and Kubernetes 1.30. */}}
{{- define "sluice.preStop" -}}
preStop:
  {{- if semverCompare ">=1.30.0-0" (first .).Capabilities.KubeVersion.Version }}
  sleep:
    seconds: {{ last . }}
  {{- else }}
  exec:
    command: [python3, -c, "import time; time.sleep({{ last . }})"]
  {{- end }}
{{- end -}}

{{/* (list preStop drain given where): how long a pod has to go; refused where that is too short for what it must do. */}}
{{- define "sluice.grace" -}}
{{- $preStop := int (index . 0) -}}
{{- $drain := int (index . 1) -}}
{{- $given := index . 2 -}}
{{- if kindIs "invalid" $given -}}
{{- add $preStop $drain 15 -}}
{{- else if le (int $given) (add $preStop $drain | int) -}}
{{- fail (printf "%s: %d s are too few: the pod waits %d s and then drains for up to %d s, so it would be killed with streams open; leave it null to have it computed" (index . 3) (int $given) $preStop $drain) -}}
{{- else -}}
{{- int $given -}}
{{- end -}}
{{- end -}}

{{/* Egress to names. Any address, for a node-local cache has one of the node. */}}
{{- define "sluice.egressDns" -}}
- ports:
    - {port: 53, protocol: UDP}
    - {port: 53, protocol: TCP}
{{- end -}}

{{/* Egress to the collector of traces, by its port. */}}
{{- define "sluice.egressTraces" -}}
{{- if .Values.tracing.enabled -}}
- ports:
    - {port: {{ include "sluice.portOf" .Values.tracing.otlpEndpoint }}, protocol: TCP}
{{- end -}}
{{- end -}}

{{/* The port of a URL. */}}
{{- define "sluice.portOf" -}}
{{- $url := urlParse . -}}
{{- $port := regexFind ":[0-9]+$" $url.host | trimPrefix ":" -}}
{{- default (ternary "443" "80" (eq $url.scheme "https")) $port -}}
{{- end -}}

{{/* (list persistence accessModes): the spec of a claim. */}}
{{- define "sluice.claim" -}}
accessModes:
  {{- toYaml (last .) | nindent 2 }}
{{- with (first .).storageClassName }}
storageClassName: {{ . }}
{{- end }}
resources:
  requests:
    storage: {{ (first .).size }}
{{- end -}}
