{{/* (list $ key model): the template of a worker's pod. */}}
{{- define "sluice.workerPod" -}}
{{- $root := index . 0 -}}
{{- $key := index . 1 -}}
{{- $model := index . 2 -}}
{{- $name := include "sluice.name" (list $root (printf "%s-worker" $key)) -}}
{{- $gpus := default (mul (int $model.vllm.tensorParallelSize) (int $model.vllm.pipelineParallelSize)) $model.accelerator.count -}}
{{- $isVllm := eq $model.engine "vllm" -}}
{{- $usesGpu := and $isVllm $model.accelerator.resourceName (not $model.accelerator.resourceClaims) -}}
metadata:
  labels:
    {{- include "sluice.selector" (list $root "worker" $key) | nindent 4 }}
    {{- with mergeOverwrite (deepCopy $root.Values.global.labels) $model.podLabels }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  {{- with $model.podAnnotations }}
  annotations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
spec:
  automountServiceAccountToken: false
  enableServiceLinks: false
  terminationGracePeriodSeconds: {{ include "sluice.grace" (list $model.drain.preStopSeconds $model.drain.shutdownTimeoutSeconds $model.terminationGracePeriodSeconds (printf "models.%s.terminationGracePeriodSeconds" $key)) }}
  securityContext:
    {{- include "sluice.podSecurity" (list $root 2000) | nindent 4 }}
  {{- with include "sluice.placement" (list $root $model) | trim }}{{ . | nindent 2 }}{{- end }}
  {{- with $model.topologySpreadConstraints }}
  topologySpreadConstraints:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with $model.accelerator.runtimeClassName }}
  runtimeClassName: {{ . }}
  {{- end }}
  {{- with $model.accelerator.resourceClaims }}
  resourceClaims:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with $model.initContainers }}
  initContainers:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  containers:
    - name: sluice-worker
      image: {{ include "sluice.image" (list $root $model.image) }}
      imagePullPolicy: {{ $model.image.pullPolicy }}
      {{- if $model.command }}
      command:
        {{- toYaml $model.command | nindent 8 }}
      {{- else if $isVllm }}
      command: [vllm, serve]
      {{- end }}
      args:
        {{- include (ternary "sluice.vllmArguments" "sluice.simulatedArguments" $isVllm) (list $key $model) | nindent 8 }}
        {{- if and $root.Values.tracing.enabled $isVllm }}
        - --otlp-traces-endpoint={{ $root.Values.tracing.otlpEndpoint }}/v1/traces
        {{- end }}
      ports:
        - {name: http, containerPort: 8000, protocol: TCP}
        {{- if $model.vllm.kvEvents }}
        - {name: kv-events, containerPort: 5557, protocol: TCP}
        {{- end }}
      env:
        {{- include "sluice.workerEnvironment" (list $root $model) | nindent 8 }}
        {{- with $model.env }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
      {{- with $model.envFrom }}
      envFrom:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      # The port opens when the model is loaded; until then nothing but this probe's patience counts.
      startupProbe:
        httpGet: {path: /health, port: http}
        periodSeconds: 10
        timeoutSeconds: 5
        failureThreshold: {{ div (add (int $model.startup.timeoutSeconds) 9) 10 }}
      livenessProbe:
        httpGet: {path: /health, port: http}
        {{- toYaml $model.liveness | nindent 8 }}
      readinessProbe:
        httpGet: {path: /health, port: http}
        {{- toYaml $model.readiness | nindent 8 }}
      lifecycle:
        {{- include "sluice.preStop" (list $root $model.drain.preStopSeconds) | nindent 8 }}
      resources:
        requests:
          {{- with $model.resources.requests }}{{- toYaml . | nindent 10 }}{{- end }}
          {{- if $usesGpu }}
          {{ $model.accelerator.resourceName }}: {{ $gpus }}
          {{- end }}
        limits:
          {{- with $model.resources.limits }}{{- toYaml . | nindent 10 }}{{- end }}
          {{- if $usesGpu }}
          {{ $model.accelerator.resourceName }}: {{ $gpus }}
          {{- end }}
        {{- with $model.accelerator.resourceClaims }}
        claims:
          {{- range . }}
          - name: {{ .name }}
          {{- end }}
        {{- end }}
      securityContext:
        {{- include "sluice.containerSecurity" $root | nindent 8 }}
      volumeMounts:
        - {name: cache, mountPath: /cache}
        - {name: home, mountPath: /home/worker}
        - {name: tmp, mountPath: /tmp}
        - {name: shm, mountPath: /dev/shm}
        {{- with $model.extraVolumeMounts }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
  volumes:
    {{- if eq $model.cache.type "existingClaim" }}
    - name: cache
      persistentVolumeClaim: {claimName: {{ $model.cache.existingClaim }}}
    {{- else if eq $model.cache.type "emptyDir" }}
    - name: cache
      emptyDir: {sizeLimit: {{ $model.cache.size }}}
    {{- else if eq $model.kind "Deployment" }}
    - name: cache
      persistentVolumeClaim: {claimName: {{ $name }}}
    {{- end }}
    - name: home
      emptyDir: {sizeLimit: 10Gi}
    - name: tmp
      emptyDir: {sizeLimit: 10Gi}
    - name: shm
      emptyDir: {medium: Memory, sizeLimit: {{ $model.shm.sizeLimit }}}
    {{- with $model.extraVolumes }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
{{- end -}}

{{/* (list $ model): everything that vLLM and what is under it would write goes to volumes, and nothing is reported home. */}}
{{- define "sluice.workerEnvironment" -}}
{{- $root := first . -}}
{{- $model := last . -}}
- {name: HOME, value: /home/worker}
- {name: TMPDIR, value: /tmp}
{{- if eq $model.engine "vllm" }}
- {name: USER, value: worker}
- {name: LOGNAME, value: worker}
- {name: HF_HOME, value: /cache/huggingface}
- {name: VLLM_CACHE_ROOT, value: /cache/vllm}
- {name: TRITON_CACHE_DIR, value: /cache/triton}
- {name: TORCHINDUCTOR_CACHE_DIR, value: /cache/torchinductor}
- {name: FLASHINFER_WORKSPACE_BASE, value: /cache}
- {name: NUMBA_CACHE_DIR, value: /cache/numba}
- {name: XDG_CACHE_HOME, value: /cache/xdg}
- {name: XDG_CONFIG_HOME, value: /home/worker/.config}
- {name: VLLM_NO_USAGE_STATS, value: "1"}
- {name: DO_NOT_TRACK, value: "1"}
- {name: HF_HUB_DISABLE_TELEMETRY, value: "1"}
# The gateway keeps idle connections; vLLM's own 5 s would close them under its hands.
- {name: VLLM_HTTP_TIMEOUT_KEEP_ALIVE, value: "75"}
{{- if $model.offline }}
- {name: HF_HUB_OFFLINE, value: "1"}
- {name: TRANSFORMERS_OFFLINE, value: "1"}
{{- end }}
{{- if $root.Values.tracing.enabled }}
- {name: OTEL_EXPORTER_OTLP_TRACES_PROTOCOL, value: http/protobuf}
- {name: OTEL_SERVICE_NAME, value: vllm}
{{- end }}
{{- end }}
{{- with $model.hfToken.existingSecret }}
- name: HF_TOKEN
  valueFrom:
    secretKeyRef: {name: {{ . }}, key: {{ $model.hfToken.key }}}
{{- end }}
{{- with $model.apiKey.existingSecret }}
- name: VLLM_API_KEY
  valueFrom:
    secretKeyRef: {name: {{ . }}, key: {{ $model.apiKey.key }}}
{{- end }}
{{- end -}}
