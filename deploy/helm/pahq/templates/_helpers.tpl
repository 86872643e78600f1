{{- define "pahq.fullname" -}}
{{- if contains .Chart.Name .Release.Name -}}
{{- .Release.Name | trunc 52 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name .Chart.Name | trunc 52 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "pahq.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "pahq.labels" -}}
{{ include "pahq.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end -}}

{{- define "pahq.arguments" -}}
- serve
- --listen
- 0.0.0.0:7300
- --metrics-listen
- 0.0.0.0:7301
- --data-dir
- /data/jobs
- --auth
- {{ .Values.auth }}
- --log-format
- json
- --log-level
- {{ .Values.server.logLevel }}
- --weights
- {{ .Values.server.weights }}
{{- if .Values.tls.enabled }}
- --tls-cert
- /tls/tls.crt
- --tls-key
- /tls/tls.key
{{- if .Values.tls.clientCaSecretName }}
- --tls-client-ca
- /client-ca/ca.crt
{{- end }}
{{- end }}
{{- if .Values.insecure }}
- --insecure
{{- end }}
{{- range .Values.certificateAdmins }}
- --certificate-admin
- {{ . | quote }}
{{- end }}
{{- with .Values.server.memory }}
- --memory
- {{ . | quote }}
{{- end }}
{{- with .Values.server.threads }}
- --threads
- {{ . | quote }}
{{- end }}
{{- if include "pahq.ray" . }}
- --workers
- {{ .Values.workers.count | quote }}
- --worker-deadline
- {{ .Values.workers.deadlineSeconds | quote }}
{{- with .Values.workers.rayAddress }}
- --ray-address
- {{ . | quote }}
{{- end }}
{{- with .Values.workers.gpusPerWorker }}
- --gpus-per-worker
- {{ . | quote }}
{{- end }}
{{- end }}
{{- range .Values.models }}
- --model
- {{ printf "%s=%s" .name .source | quote }}
{{- end }}
{{- range .Values.server.extraArgs }}
- {{ . | quote }}
{{- end }}
{{- end -}}

{{/* Not empty where workers are processes of their own, which Ray starts. */}}
{{- define "pahq.ray" -}}
{{- if or .Values.workers.rayAddress (gt (int .Values.workers.count) 1) -}}
true
{{- end -}}
{{- end -}}

{{/* What whoever speaks with the Ray cluster has to show. */}}
{{- define "pahq.rayToken" -}}
- name: RAY_AUTH_MODE
  value: token
- name: RAY_AUTH_TOKEN
  valueFrom:
    secretKeyRef:
      name: {{ .Values.workers.tokenSecretName }}
      key: auth_token
{{- end -}}

{{/*
Whether calls are answered, not whether anything is computed: a restart would bring back no lost worker, and whoever is
kept from calling could not learn why jobs wait. The kubelet's gRPC probe knows no TLS, and it has no certificate
to show.
*/}}
{{- define "pahq.probe" -}}
{{- if not .Values.tls.enabled -}}
grpc:
  port: 7300
  service: pahq.alive
{{- else if .Values.tls.clientCaSecretName -}}
tcpSocket:
  port: grpc
{{- else -}}
exec:
  command: [pahq-server, health, --alive, --tls-ca, /tls/ca.crt, --tls-name, {{ include "pahq.fullname" . }}]
{{- end -}}
{{- end -}}
