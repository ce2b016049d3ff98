{{/* The gateway's sluice.yaml, from the values. Anything else of docs/configuration.md comes from gateway.config. */}}

{{- define "sluice.config" -}}
{{- $server := dict "host" "0.0.0.0" "port" .Values.gateway.ports.http "metrics_port" .Values.gateway.ports.metrics -}}
{{- $_ := set $server "max_buffered_bytes" (int64 .Values.gateway.maxBufferedBytes) -}}
{{- if .Values.gateway.secret.existingSecret }}{{- $_ := set $server "secret_env" "SLUICE_SECRET" -}}{{- end -}}
{{- $auth := dict "mode" .Values.gateway.auth.mode -}}
{{- if eq .Values.gateway.auth.mode "keys" -}}
{{- $_ := set $auth "keys_file" (printf "/etc/sluice/keys/%s" .Values.gateway.auth.secretKey) -}}
{{- else -}}
{{- $_ := set $auth "open_beyond_loopback" true -}}
{{- end -}}
{{- $routes := dict -}}
{{- range $key, $model := include "sluice.models" . | fromJson -}}
{{- $_ := set $routes (include "sluice.served" (list $key $model)) (include "sluice.route" (list $ $key $model) | fromYaml) -}}
{{- end -}}
{{- $routes = mergeOverwrite $routes (deepCopy .Values.gateway.routes) -}}
{{- $config := dict "server" $server "auth" $auth "routes" $routes "drain_timeout_s" .Values.gateway.drain.timeoutSeconds -}}
{{- if or (gt (int .Values.gateway.replicaCount) 1) (ne .Values.gateway.autoscaling.type "none") -}}
{{- $_ := set $config "replicas" (dict "dns" (printf "%s.%s.svc" (include "sluice.name" (list . "gateway-metrics")) .Release.Namespace)) -}}
{{- end -}}
{{- $limits := dict "store" "memory" -}}
{{- if eq .Values.limits.store "redis" -}}
{{- $limits = dict "store" (default (printf "redis://%s.%s.svc:6379/0" (include "sluice.name" (list . "redis")) .Release.Namespace) .Values.redis.external.url) -}}
{{- with .Values.redis.external.username }}{{- $_ := set $limits "store_username" . -}}{{- end -}}
{{- if .Values.redis.external.existingSecret }}{{- $_ := set $limits "store_password_env" "SLUICE_REDIS_PASSWORD" -}}{{- end -}}
{{- end -}}
{{- $_ := set $config "limits" $limits -}}
{{- if .Values.retrieval.enabled -}}
{{- $url := printf "http://%s.%s.svc:%d" (include "sluice.name" (list . "retrieval")) .Release.Namespace (int .Values.retrieval.port) -}}
{{- $there := dict "host" "0.0.0.0" "port" .Values.retrieval.port "path" "/data" -}}
{{- $_ := set $config "retrieval" (merge $there (dict "url" $url "token_env" "SLUICE_RETRIEVAL_TOKEN")) -}}
{{- else -}}
{{- $_ := set $config "retrieval" (dict "store" nil) -}}
{{- end -}}
{{- if .Values.tracing.enabled -}}
{{- $_ := set $config "tracing" (dict "endpoint" (printf "%s/v1/traces" .Values.tracing.otlpEndpoint) "sample_ratio" .Values.tracing.sampleRatio) -}}
{{- end -}}
{{- toYaml (mergeOverwrite $config (deepCopy .Values.gateway.config)) -}}
{{- end -}}

{{/* (list $ key model): the route to the workers of one model. */}}
{{- define "sluice.route" -}}
{{- $root := index . 0 -}}
{{- $key := index . 1 -}}
{{- $model := index . 2 -}}
{{- $service := include "sluice.name" (list $root (printf "%s-worker" $key)) -}}
{{- $workers := dict "kubernetes" (dict "service" $service "port_name" "http") -}}
{{- if eq $root.Values.gateway.discovery "dns" -}}
{{- $workers = dict "dns" (dict "name" (printf "%s.%s.svc" $service $root.Release.Namespace) "port" 8000) -}}
{{- end -}}
{{- if $model.vllm.kvEvents -}}
{{- $workers = merge $workers (dict "kv_events" true "kv_events_port" 5557) -}}
{{- end -}}
{{- if $model.apiKey.existingSecret -}}
{{- $_ := set $workers "api_key_env" (include "sluice.keyVariable" $key) -}}
{{- end -}}
{{- $route := dict "workers" $workers -}}
{{- with $model.aliases }}{{- $_ := set $route "aliases" . -}}{{- end -}}
{{- with $model.vllm.loraModules }}{{- $_ := set $route "adapters" (keys . | sortAlpha) -}}{{- end -}}
{{- toYaml (mergeOverwrite $route (deepCopy $model.route)) -}}
{{- end -}}

{{/* The variable of the gateway that has the key of a model's workers. */}}
{{- define "sluice.keyVariable" -}}
{{- printf "SLUICE_WORKER_KEY_%s" (. | upper | replace "-" "_") -}}
{{- end -}}
