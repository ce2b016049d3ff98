{{/* What every process that reads sluice.yaml is given: gateways, and the retrieval store. */}}

{{- define "sluice.gatewayEnvironment" -}}
- {name: TMPDIR, value: /tmp}
- {name: HOME, value: /tmp}
{{- range $key, $model := include "sluice.models" . | fromJson }}
{{- if $model.apiKey.existingSecret }}
- name: {{ include "sluice.keyVariable" $key }}
  valueFrom:
    secretKeyRef: {name: {{ $model.apiKey.existingSecret }}, key: {{ $model.apiKey.key }}}
{{- end }}
{{- end }}
{{- with .Values.gateway.secret.existingSecret }}
- name: SLUICE_SECRET
  valueFrom:
    secretKeyRef: {name: {{ . }}, key: {{ $.Values.gateway.secret.key }}}
{{- end }}
{{- if and (eq .Values.limits.store "redis") .Values.redis.external.existingSecret }}
- name: SLUICE_REDIS_PASSWORD
  valueFrom:
    secretKeyRef: {name: {{ .Values.redis.external.existingSecret }}, key: {{ .Values.redis.external.key }}}
{{- end }}
{{- if .Values.retrieval.enabled }}
- name: SLUICE_RETRIEVAL_TOKEN
  valueFrom:
    secretKeyRef: {name: {{ .Values.retrieval.existingSecret }}, key: {{ .Values.retrieval.key }}}
{{- end }}
{{- end -}}

{{/* Whole folders, not single files: so a changed Secret reaches the pod, and the keys are followed while it runs. */}}
{{- define "sluice.commonMounts" -}}
- {name: config, mountPath: /etc/sluice/config, readOnly: true}
- {name: tmp, mountPath: /tmp}
{{- end -}}

{{- define "sluice.commonVolumes" -}}
- name: config
  configMap:
    name: {{ default (include "sluice.name" (list . "gateway")) .Values.gateway.existingConfigMap }}
- name: tmp
  emptyDir: {sizeLimit: 1Gi}
{{- end -}}
