{{- define "esper.operatorEnvironment" -}}
- {name: ESPER_OPERATOR_NAMESPACE, value: {{ .Release.Namespace | quote }}}
- name: ESPER_OPERATOR_POD
  valueFrom: {fieldRef: {fieldPath: metadata.name}}
- {name: ESPER_OPERATOR_WATCH, value: {{ join "," .Values.watch.namespaces | quote }}}
- {name: ESPER_OPERATOR_LOG_LEVEL, value: {{ .Values.operator.logLevel | quote }}}
- {name: ESPER_OPERATOR_IMAGE, value: {{ include "esper.image" (dict "root" $ "image" .Values.image.runtime) | quote }}}
- {name: ESPER_OPERATOR_IMAGE_CUDA, value: {{ include "esper.image" (dict "root" $ "image" .Values.image.runtimeCuda) | quote }}}
- {name: ESPER_OPERATOR_PULL_POLICY, value: {{ .Values.image.pullPolicy | quote }}}
- {name: ESPER_OPERATOR_PULL_SECRETS, value: {{ join "," .Values.image.pullSecrets | quote }}}
- {name: ESPER_OPERATOR_NATS_URL, value: {{ include "esper.natsUrl" . | quote }}}
- {name: ESPER_OPERATOR_NATS_DEPLOYED, value: {{ .Values.nats.deploy | quote }}}
- {name: ESPER_OPERATOR_NATS_REPLICAS, value: {{ .Values.nats.replicas | quote }}}
- {name: ESPER_OPERATOR_NATS_TLS, value: {{ .Values.nats.tls | quote }}}
- {name: ESPER_OPERATOR_NATS_STORAGE, value: {{ .Values.nats.storage.size | quote }}}
- {name: ESPER_OPERATOR_POOLS, value: {{ toJson .Values.pools | quote }}}
- {name: ESPER_OPERATOR_PRIORITY_TRAINING, value: {{ include "esper.priority.training" . | quote }}}
- {name: ESPER_OPERATOR_PRIORITY_WORKERS, value: {{ include "esper.priority.workers" . | quote }}}
- {name: ESPER_OPERATOR_STORAGE_CLASS, value: {{ .Values.runs.storageClassName | quote }}}
- {name: ESPER_OPERATOR_CLAIM_SIZE, value: {{ .Values.runs.claimSize | quote }}}
- {name: ESPER_OPERATOR_NETWORK_POLICIES, value: {{ .Values.networkPolicies.enabled | quote }}}
- {name: ESPER_OPERATOR_STATUS_WRITES, value: {{ .Values.operator.statusWritesPerSecond | quote }}}
{{- end }}

{{- define "esper.operatorMounts" -}}
- {name: bus, mountPath: /etc/esper-bus, readOnly: true}
- {name: scratch, mountPath: /tmp}
{{- end }}

{{/* The operator makes the Secret at its first start, so it may lack. */}}
{{- define "esper.operatorVolumes" -}}
- name: bus
  secret: {secretName: {{ include "esper.busSecret" . }}, optional: {{ empty .Values.nats.busSecret }}, defaultMode: 0440}
- name: scratch
  emptyDir: {sizeLimit: 64Mi}
{{- end }}

{{/* What the pods of `helm test` have in common with the operator's. */}}
{{- define "esper.testPod" -}}
enableServiceLinks: false
terminationGracePeriodSeconds: 10
{{- with .Values.image.pullSecrets }}
imagePullSecrets: {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- with .Values.operator.nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.operator.tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
securityContext: {{- include "esper.podSecurity" . | nindent 2 }}
{{- end }}

{{- define "esper.testContainer" -}}
image: {{ include "esper.image" (dict "root" $ "image" .Values.image.operator) }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
resources:
  requests: {cpu: 50m, memory: 96Mi}
  limits: {memory: 512Mi}
securityContext: {{- include "esper.containerSecurity" . | nindent 2 }}
{{- end }}
