{{/* An image: registry, repository and digest or tag. Takes (dict "root" $ "image" .Values.image.NAME). */}}
{{- define "esper.image" -}}
{{- $name := .image.repository -}}
{{- if .root.Values.image.registry -}}{{- $name = printf "%s/%s" .root.Values.image.registry $name -}}{{- end -}}
{{- if .image.digest -}}{{ printf "%s@%s" $name .image.digest }}
{{- else -}}{{ printf "%s:%s" $name (default .root.Chart.AppVersion .image.tag) }}{{- end -}}
{{- end }}

{{/* Labels of an object. Takes (dict "root" $ "component" NAME). */}}
{{- define "esper.labels" -}}
{{ include "esper.selector" . }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version }}
{{- end }}

{{/* Labels that pods are selected by: they never change. */}}
{{- define "esper.selector" -}}
app.kubernetes.io/name: esper
app.kubernetes.io/component: {{ .component }}
{{- end }}

{{- define "esper.serviceAccount" -}}
{{- if .Values.serviceAccount.create }}{{ default "esper-operator" .Values.serviceAccount.name }}
{{- else }}{{ required "serviceAccount.name: with serviceAccount.create false, name the account that the operator is to have" .Values.serviceAccount.name }}{{ end }}
{{- end }}

{{- define "esper.busSecret" -}}{{ default "esper-bus" .Values.nats.busSecret }}{{- end }}

{{- define "esper.natsUrl" -}}
{{- if .Values.nats.deploy -}}
{{ ternary "tls" "nats" .Values.nats.tls }}://esper-nats.{{ .Release.Namespace }}.svc:4222
{{- else -}}{{ .Values.nats.url }}{{- end -}}
{{- end }}

{{- define "esper.priority.training" -}}
{{- if .Values.priorityClasses.training }}{{ .Values.priorityClasses.training }}
{{- else if .Values.priorityClasses.create }}esper-training{{ end }}
{{- end }}

{{- define "esper.priority.workers" -}}
{{- if .Values.priorityClasses.workers }}{{ .Values.priorityClasses.workers }}
{{- else if .Values.priorityClasses.create }}esper-workers{{ end }}
{{- end }}

{{/* What every pod of the release is allowed: nothing. */}}
{{- define "esper.podSecurity" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
fsGroup: 10001
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "esper.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}

{{/* Claim or EmptyDir: what the StatefulSet has already stays as it is, since a claim cannot be added to one. */}}
{{- define "esper.natsStorage" -}}
{{- $kind := .Values.nats.storage.kind -}}
{{- if eq $kind "Auto" -}}
{{- $kind = "Claim" -}}
{{- $there := lookup "apps/v1" "StatefulSet" .Release.Namespace "esper-nats" -}}
{{- $classes := lookup "storage.k8s.io/v1" "StorageClass" "" "" -}}
{{- if $there -}}
{{- if not $there.spec.volumeClaimTemplates }}{{ $kind = "EmptyDir" }}{{ end -}}
{{- else if and $classes (not .Values.nats.storage.storageClassName) -}}
{{- $kind = "EmptyDir" -}}
{{- range $classes.items -}}
{{- if eq (dig "metadata" "annotations" "storageclass.kubernetes.io/is-default-class" "" .) "true" }}{{ $kind = "Claim" }}{{ end -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- $kind -}}
{{- end }}
