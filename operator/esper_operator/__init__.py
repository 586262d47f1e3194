"""The Kubernetes operator: turns runs into Jobs and shows in their status what happens.

kopf brings the events, `esper_runtime.planning` decides, and what is here observes and carries out.
"""
