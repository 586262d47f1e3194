"""What runs inside the pods: the ranks of a training pod, and what a container needs before anything starts.

Nothing here talks to Kubernetes; the operator gives the environment, mounts, and reads the exit code.
"""

from esper_runtime.local.pod.container import CONFIG, DATA, settle, worker_settled
from esper_runtime.local.pod.train import train

__all__ = ["CONFIG", "DATA", "settle", "train", "worker_settled"]
