{{/* The operator's rights where runs are. On Secrets it may create and nothing else: what may patch one may read it. */}}
{{- define "esper.rules.runs" -}}
- apiGroups: [esper.dev]
  resources: [morphogeneticruns]
  verbs: [get, list, watch, patch, delete]
- apiGroups: [esper.dev]
  resources: [morphogeneticruns/status, blueprints/status]
  verbs: [get, patch]
- apiGroups: [esper.dev]
  resources: [blueprints, compiledkernels]
  verbs: [get, list, watch]
- apiGroups: [batch]
  resources: [jobs]
  verbs: [get, list, watch, create, delete]
- apiGroups: [""]
  resources: [pods]
  verbs: [get, list, watch]
- apiGroups: [""]
  resources: [services, persistentvolumeclaims]
  verbs: [get, list, watch, create]
- apiGroups: [""]
  resources: [secrets]
  verbs: [create]
- apiGroups: [networking.k8s.io]
  resources: [networkpolicies]
  verbs: [get, create]
- apiGroups: ["", events.k8s.io]
  resources: [events]
  verbs: [get, list, create, patch]
{{- end }}

{{/* In the release's own namespace: the Lease, the Deployment that owns what the operator makes here, and what of the
     library is shown here. */}}
{{- define "esper.rules.own" -}}
- apiGroups: [coordination.k8s.io]
  resources: [leases]
  verbs: [create]
- apiGroups: [coordination.k8s.io]
  resources: [leases]
  resourceNames: [esper-operator]
  verbs: [get, watch, update]
- apiGroups: [apps]
  resources: [deployments]
  resourceNames: [esper-operator]
  verbs: [get]
- apiGroups: [esper.dev]
  resources: [blueprints, compiledkernels]
  verbs: [create, patch, delete]
- apiGroups: [esper.dev]
  resources: [compiledkernels/status]
  verbs: [get, patch]
{{- end }}

{{/* With rights in the whole cluster. */}}
{{- define "esper.rules.cluster" -}}
- apiGroups: [""]
  resources: [namespaces]
  verbs: [get, list, watch]
- apiGroups: [apiextensions.k8s.io]
  resources: [customresourcedefinitions]
  verbs: [get, list, watch]
{{- end }}

{{/* Of `helm test`: to make its run, to follow it and to remove it. */}}
{{- define "esper.rules.test" -}}
- apiGroups: [esper.dev]
  resources: [morphogeneticruns]
  verbs: [create, get, delete]
- apiGroups: [""]
  resources: [events]
  verbs: [list]
{{- end }}

{{/* All of it as JSON, by namespace (empty: all), for `esper-operator check` to ask the API server about. */}}
{{- define "esper.rights" -}}
{{- $own := dict "namespace" .Release.Namespace "rules" (include "esper.rules.own" . | fromYamlArray) -}}
{{- $runs := include "esper.rules.runs" . | fromYamlArray -}}
{{- $all := list $own -}}
{{- if .Values.watch.namespaces -}}
{{- range uniq (append .Values.watch.namespaces .Release.Namespace) -}}
{{- $all = append $all (dict "namespace" . "rules" $runs) -}}
{{- end -}}
{{- else -}}
{{- $all = append $all (dict "namespace" "" "rules" $runs) -}}
{{- $all = append $all (dict "namespace" "" "rules" (include "esper.rules.cluster" . | fromYamlArray)) -}}
{{- end -}}
{{- toJson $all -}}
{{- end }}

{{/* Where the run of `helm test` is made. */}}
{{- define "esper.testNamespace" -}}
{{- if .Values.watch.namespaces }}{{ first .Values.watch.namespaces }}{{ else }}{{ .Release.Namespace }}{{ end -}}
{{- end }}
