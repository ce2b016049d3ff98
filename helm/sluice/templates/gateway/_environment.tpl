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
{{- end -}}

{{- define "sluice.gatewayMounts" -}}
- {name: config, mountPath: /etc/sluice/config, readOnly: true}
{{- if eq .Values.gateway.auth.mode "keys" }}
- {name: keys, mountPath: /etc/sluice/keys, readOnly: true}
{{- end }}
- {name: tmp, mountPath: /tmp}
{{- end -}}

{{/* Whole folders, not single files: so a changed Secret reaches the pod, and the keys are followed while it runs. */}}
{{- define "sluice.gatewayVolumes" -}}
- name: config
  configMap:
    name: {{ default (include "sluice.name" (list . "gateway")) .Values.gateway.existingConfigMap }}
{{- if eq .Values.gateway.auth.mode "keys" }}
- name: keys
  secret:
    secretName: {{ .Values.gateway.auth.existingSecret }}
    defaultMode: 0440
{{- end }}
- name: tmp
  emptyDir: {sizeLimit: 1Gi}
{{- end -}}
