{{/* (list key model): the arguments of `vllm serve`, one an item, as YAML. Never a secret: VLLM_API_KEY is in the environment. */}}
{{- define "sluice.vllmArguments" -}}
{{- $key := first . -}}
{{- $model := last . -}}
{{- $vllm := $model.vllm -}}
{{- $served := include "sluice.served" . -}}
{{- $arguments := list $model.model "--host=0.0.0.0" "--port=8000" (printf "--served-model-name=%s" $served) -}}
{{- $arguments = append $arguments (printf "--shutdown-timeout=%d" (int $model.drain.shutdownTimeoutSeconds)) -}}
{{- $arguments = concat $arguments (list "--disable-fastapi-docs" "--disable-access-log-for-endpoints=/health,/metrics,/metrics/") -}}
{{- with $model.revision }}{{- $arguments = append $arguments (printf "--revision=%s" .) -}}{{- end -}}
{{- $plain := dict "runner" "runner" "dtype" "dtype" "quantization" "quantization" "kvCacheDtype" "kv-cache-dtype" -}}
{{- $plain = merge $plain (dict "maxModelLen" "max-model-len" "maxNumSeqs" "max-num-seqs" "maxNumQueuedReqs" "max-num-queued-reqs") -}}
{{- $plain = merge $plain (dict "maxLoras" "max-loras" "maxLoraRank" "max-lora-rank" "schedulingPolicy" "scheduling-policy") -}}
{{- $plain = merge $plain (dict "reasoningParser" "reasoning-parser" "toolCallParser" "tool-call-parser") -}}
{{- range $name, $flag := $plain -}}
{{- with get $vllm $name -}}
{{- $arguments = append $arguments (printf "--%s=%s" $flag (kindIs "string" . | ternary . (. | int | toString))) -}}
{{- end -}}
{{- end -}}
{{- with $vllm.gpuMemoryUtilization }}{{- $arguments = append $arguments (printf "--gpu-memory-utilization=%v" .) -}}{{- end -}}
{{- range $name, $flag := dict "tensorParallelSize" "tensor-parallel-size" "pipelineParallelSize" "pipeline-parallel-size" -}}
{{- if gt (int (get $vllm $name)) 1 }}{{- $arguments = append $arguments (printf "--%s=%d" $flag (int (get $vllm $name))) -}}{{- end -}}
{{- end -}}
{{- $switches := dict "enforceEager" "enforce-eager" "trustRemoteCode" "trust-remote-code" "enableLora" "enable-lora" -}}
{{- $switches = merge $switches (dict "enablePromptTokensDetails" "enable-prompt-tokens-details" "enablePerRequestMetrics" "enable-per-request-metrics") -}}
{{- range $name, $flag := $switches -}}
{{- if get $vllm $name }}{{- $arguments = append $arguments (printf "--%s" $flag) -}}{{- end -}}
{{- end -}}
{{- if $vllm.toolCallParser }}{{- $arguments = append $arguments "--enable-auto-tool-choice" -}}{{- end -}}
{{- if $vllm.kvEvents -}}
{{- $events := dict "enable_kv_cache_events" true "publisher" "zmq" "endpoint" "tcp://*:5557" "topic" "kv" -}}
{{- $arguments = append $arguments (printf "--kv-events-config=%s" (toJson $events)) -}}
{{- end -}}
{{- with $vllm.kvTransferConfig }}{{- $arguments = append $arguments (printf "--kv-transfer-config=%s" (toJson .)) -}}{{- end -}}
{{- with $vllm.loraModules -}}
{{- $arguments = append $arguments "--lora-modules" -}}
{{- range $name, $path := . }}{{- $arguments = append $arguments (printf "%s=%s" $name $path) -}}{{- end -}}
{{- end -}}
{{- toYaml (concat $arguments $model.extraArgs) -}}
{{- end -}}

{{/* (list key model): the same for the simulated worker, which knows no GPU, no file and no download. */}}
{{- define "sluice.simulatedArguments" -}}
{{- $model := last . -}}
{{- $arguments := list "--num-workers=1" "--host=0.0.0.0" "--port=8000" "--served-model-name" (include "sluice.served" .) -}}
{{- $arguments = append $arguments (printf "--shutdown-timeout=%d" (int $model.drain.shutdownTimeoutSeconds)) -}}
{{- with $model.vllm.maxModelLen }}{{- $arguments = append $arguments (printf "--max-model-len=%d" (int .)) -}}{{- end -}}
{{- with $model.vllm.maxNumSeqs }}{{- $arguments = append $arguments (printf "--max-num-seqs=%d" (int .)) -}}{{- end -}}
{{- if $model.vllm.kvEvents }}{{- $arguments = append $arguments "--kv-events-port=5557" -}}{{- end -}}
{{- if $model.vllm.enablePerRequestMetrics }}{{- $arguments = append $arguments "--enable-per-request-metrics" -}}{{- end -}}
{{- if $model.apiKey.existingSecret }}{{- $arguments = append $arguments "--api-key=$(VLLM_API_KEY)" -}}{{- end -}}
{{- toYaml (concat $arguments $model.extraArgs) -}}
{{- end -}}
