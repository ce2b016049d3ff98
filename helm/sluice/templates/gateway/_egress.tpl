{{/* What a gateway reaches: its workers, the API server, Redis, the retrieval store, the collector, and nothing else. */}}
{{- define "sluice.egressOfGateway" -}}
{{- if .Values.models }}
- to:
    - podSelector:
        matchLabels:
          {{- include "sluice.selector" (list . "worker") | nindent 10 }}
  ports:
    - {port: 8000, protocol: TCP}
    - {port: 5557, protocol: TCP}
{{- end }}
{{- if include "sluice.usesApiServer" . }}
- ports:
    {{- range .Values.gateway.networkPolicy.apiServerPorts }}
    - {port: {{ . }}, protocol: TCP}
    {{- end }}
  {{- with .Values.gateway.networkPolicy.apiServerCIDRs }}
  to:
    {{- range . }}
    - ipBlock: {cidr: {{ . }}}
    {{- end }}
  {{- end }}
{{- end }}
{{- if include "sluice.runsRedis" . }}
- to:
    - podSelector:
        matchLabels:
          {{- include "sluice.selector" (list . "redis") | nindent 10 }}
  ports:
    - {port: 6379, protocol: TCP}
{{- else if eq .Values.limits.store "redis" }}
- ports:
    - {port: {{ default "6379" (regexFind ":[0-9]+(/|$)" .Values.redis.external.url | trimPrefix ":" | trimSuffix "/") }}, protocol: TCP}
{{- end }}
{{- if .Values.retrieval.enabled }}
- to:
    - podSelector:
        matchLabels:
          {{- include "sluice.selector" (list . "retrieval") | nindent 10 }}
  ports:
    - {port: {{ .Values.retrieval.port }}, protocol: TCP}
{{- end }}
{{- $ports := list }}
{{- range $name, $route := .Values.gateway.routes }}
{{- range dig "workers" "static" list $route }}
{{- $ports = append $ports (include "sluice.portOf" .) }}
{{- end }}
{{- end }}
{{- with uniq $ports }}
- ports:
    {{- range . }}
    - {port: {{ . }}, protocol: TCP}
    {{- end }}
{{- end }}
{{ include "sluice.egressTraces" . }}
{{- end -}}
